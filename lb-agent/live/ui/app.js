// The page of `lbctl ui`. It asks its own server, which runs lbctl, and shows the answers:
//
//   location.hash ──► route ──► view: load() asks, show() makes elements from the answers
//
// Everything that comes from the cluster becomes text by `textContent`; the Content-Security-Policy refuses anything else.

/* ---------------------------------------------------------------- Elements */

/** Makes an element. Functions are event handlers, `null` and `false` leave an attribute out. */
function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
function s(tag, attributes, ...children) {
  return fill(document.createElementNS('http://www.w3.org/2000/svg', tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (typeof value === 'function') element.addEventListener(name, value);
    else if (value !== null && value !== false && value !== undefined) {
      element.setAttribute(name, value === true ? '' : value);
    }
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const byId = (id) => document.getElementById(id);
const plural = (count, one, many = `${one}s`) => `${count.toLocaleString('en')} ${count === 1 ? one : many}`;

/* ----------------------------------------------------------- Asking lbctl */

/** Asks one question. What lbctl answers is `documents`; what it says beside them, and why it failed, is `remarks`. */
async function ask(question, parameters = {}, manifest = null) {
  const given = Object.entries(parameters).filter(([, value]) => value);
  const url = `api/${question}?${new URLSearchParams(given)}`;
  const post = { method: 'POST', headers: { 'Content-Type': 'application/yaml' }, body: manifest };
  let response;
  try {
    response = await fetch(url, manifest === null ? {} : post);
  } catch {
    trouble('lbctl ui has ended. Start it again, and open the URL that it prints.');
    throw new Error('no server');
  }
  if (!response.ok) throw new Error(await response.text());
  trouble('');
  return response.json();
}

/** Rows of an answer, each with the name of its node if it is known. */
function rows(answer) {
  return answer.documents.flatMap((document) =>
    Array.isArray(document.items)
      ? document.items.map((item) => ({ node: document.node, ...item }))
      : Array.isArray(document) ? document : [document]);
}

/** Rows of several nodes about one object → one row: numbers of these fields are added, of the others the first node's count. */
function together(list, key, added) {
  const found = new Map();
  for (const row of list) {
    const known = found.get(key(row));
    if (!known) found.set(key(row), { ...row });
    else for (const field of added) known[field] += row[field];
  }
  return [...found.values()];
}

/** The reports of `lbctl status`: that of this node, or one of each node. */
function reports(answer) {
  return answer.documents.flatMap((document) => (document.nodes ?? [document])
    .map((one) => ({ ...one.report, node: one.node, verdict: one.verdict, because: one.because })));
}

/** Shows or hides the bar about what the whole page lacks. */
function trouble(text) {
  byId('trouble').hidden = text === '';
  byId('trouble').textContent = text;
}

/* ------------------------------------------------------------ Common parts */

/** The head of a view: its title, what it shows, and the command that shows the same. */
function title(text, about, command) {
  return h('div', { class: 'title' },
    h('h1', {}, text),
    about && h('span', { class: 'muted' }, about),
    command && h('code', { class: 'command', title: 'The same in a terminal' }, command));
}

function notice(kind, head, ...more) {
  return h('div', { class: `notice ${kind}`, role: kind === 'bad' ? 'alert' : 'status' },
    h('strong', {}, head), more.map((line) => h('p', {}, line)));
}

/** What lbctl says beside its answer: nodes that do not respond, or why there is no answer. */
function remarks(answer) {
  if (answer.remarks.length === 0) return null;
  const failed = answer.documents.length === 0;
  const [first, ...more] = answer.remarks;
  if (/unexpected argument|unrecognized subcommand/.test(first)) {
    return notice('warn', 'An lbctl that was asked is older than this page', first, 'Update the agents. Until then, the other views work.');
  }
  return failed ? notice('bad', first, ...more) : notice('warn', 'lbctl remarks', first, ...more);
}

/** A table. A column is [name, cell, class]; a cell is text or an element. The first column leads to `open(row)`. */
function table(columns, items, { open, caption, selected } = {}) {
  const head = columns.map(([name, , kind]) => h('th', { scope: 'col', class: kind === 'number' ? kind : null }, name));
  const line = (item) => {
    const href = open?.(item);
    const cells = columns.map(([name, cell, kind], index) => {
      let content = cell(item);
      const empty = content === '' || content === null || content === undefined;
      if (index === 0 && href) content = h('a', { href, 'data-row': true, 'data-key': href }, content);
      return h('td', { class: `${kind ?? ''} ${empty ? 'empty' : ''}`.trim(), 'data-label': name }, empty ? '' : content);
    });
    return h('tr', { 'aria-selected': selected?.(item) ? 'true' : null }, cells);
  };
  return h('div', { class: 'scroll' },
    h('table', { class: 'rows' },
      caption && h('caption', { class: 'unseen' }, caption),
      h('thead', {}, h('tr', {}, head)),
      h('tbody', {}, items.map(line))));
}

/** A command line with a button that copies it. */
function copyable(command) {
  const button = h('button', { type: 'button', click: async () => {
    await navigator.clipboard.writeText(command);
    button.textContent = 'Copied';
    announce('Copied');
  } }, 'Copy');
  return h('div', { class: 'copy' }, h('pre', {}, command), button);
}

/** The field that `/` leads to: rows and cells that do not contain its text are left out. */
function filterField(label, value, changed) {
  return h('label', {}, label,
    h('input', { type: 'search', 'data-filter': true, 'data-key': `filter ${label}`, value,
      placeholder: 'type / to filter', autocomplete: 'off', spellcheck: 'false',
      input: (event) => changed(event.target.value) }));
}

function announce(text) {
  byId('announce').textContent = text;
}

const age = (seconds) => {
  if (seconds === null || seconds === undefined) return '';
  const units = [[86400, 'd'], [3600, 'h'], [60, 'm']];
  const [size, name] = units.find(([size]) => seconds >= 2 * size) ?? [1, 's'];
  return `${Math.floor(seconds / size)}${name}`;
};

/* ------------------------------------------------------------------ Pairs */

const NODES = 'nodes';
const OUTSIDE = 'outside';

/** One end of a flow from its name, `namespace/pod` or `node/name`, and its address. */
function end(name, address) {
  const [namespace, object] = name.split('/');
  if (!object) return { namespace: OUTSIDE, name: address, word: address };
  if (namespace === 'node') return { namespace: NODES, name: object, word: name };
  return { namespace, name: object, word: name };
}

/** `name:port` or `[address]:port` without the port. */
const withoutPort = (text) => text.replace(/:\d+$/, '').replace(/^\[(.*)\]$/, '$1');
const portOf = (text) => Number(/:(\d+)$/.exec(text)?.[1] ?? 0);

/** The workload of a Pod by its name: without what ReplicaSets, DaemonSets and StatefulSets append. */
function workload(name) {
  return name.replace(/-[0-9a-z]{5,10}-[0-9a-z]{5}$/, '').replace(/-[bcdfghjklmnpqrstvwxz2456789]{5}$/, '').replace(/-\d+$/, '');
}

/**
 * Rows of `lbctl flows --by pod` as pairs of workloads. A flow between two nodes is in the conntrack tables of both, and counts
 * once: of a pair of Pods, the node that sees more counts. Denials are only known where they happened, and are added.
 */
function pairs(pairRows) {
  const open = new Map();
  const keyOf = (row) => JSON.stringify([row.src, row.dst, row.port, row.protocol]);
  const isLive = ({ verdict }) => verdict === 'allowed' || verdict === 'unanswered';
  const dropped = new Set(pairRows.filter(({ verdict }) => verdict === 'dropped').map(keyOf));
  // What the client's side allows and the server's side drops has an entry that nothing answers.
  const isCounted = (row) => row.verdict === 'allowed' || (row.verdict === 'unanswered' && !dropped.has(keyOf(row)));
  for (const row of pairRows.filter(isCounted)) {
    const key = keyOf(row);
    const known = open.get(key) ?? { row, via: '', counts: new Map() };
    known.via ||= row.via;
    known.counts.set(row.node, (known.counts.get(row.node) ?? 0) + row.count);
    open.set(key, known);
  }
  const found = new Map();
  const add = (row, via, what, by) => {
    const client = end(row.src.name, row.src.address);
    let server = end(row.dst.name, row.dst.address);
    // A Service without a backend has only its own address.
    if (server.namespace === OUTSIDE && via.includes('/')) server = end(via.replace(/:[^/]*$/, ''), '');
    const key = [client.namespace, workload(client.name), server.namespace, workload(server.name), row.port, row.protocol].join(' ');
    const pair = found.get(key)
      ?? { src: client, dst: server, port: row.port, protocol: row.protocol, via: '', flows: 0, denied: 0, would: 0, by: new Set() };
    found.set(key, pair);
    pair.via ||= via;
    for (const [name, number] of Object.entries(what)) pair[name] += number;
    if (by) pair.by.add(by);
  };
  for (const { row, via, counts } of open.values()) add(row, via, { flows: Math.max(...counts.values()) }, '');
  for (const row of pairRows.filter((row) => !isLive(row))) {
    add(row, row.via, row.verdict === 'would-deny' ? { would: row.count } : { denied: row.count }, row.by);
  }
  return [...found.values()];
}

/** What decided a flow: policies, or the reason of the programs. */
function decidedBy(row) {
  const policies = (row.by?.policies ?? []).map(String).join(', ');
  return policies ? `${policies} ${row.by.rule || 'default-deny'}` : row.reason ?? '';
}

const sum = (list, name) => list.reduce((total, pair) => total + pair[name], 0);
const isBad = (pair) => pair.denied + pair.would;

/** Who may ask `explain`: an end as lbctl takes it. */
function party(pair) {
  const [service, port] = pair.via.split(':');
  const to = service?.includes('/') ? `svc:${service}${port ? `:${port}` : ''}` : `${pair.dst.word}:${pair.port}`;
  return { from: pair.src.word, to: `${to}/${pair.protocol.toLowerCase()}` };
}

const explainLink = (pair) => link('explain', [], party(pair));

function pairTable(list) {
  const sorted = [...list].sort((a, b) => isBad(b) - isBad(a) || b.flows - a.flows);
  const worded = ({ namespace, name }) => (namespace === OUTSIDE ? name : `${namespace}/${workload(name)}`);
  const number = (value, kind) => (value ? h('span', { class: kind }, value.toLocaleString('en')) : '');
  return table([
    ['From', (pair) => worded(pair.src), 'name'],
    ['To', (pair) => worded(pair.dst), 'name'],
    ['Port', (pair) => `${pair.port}/${pair.protocol}`],
    ['Service', (pair) => pair.via, 'name'],
    ['Flows', (pair) => number(pair.flows), 'number'],
    ['Denied', (pair) => number(pair.denied, 'bad state'), 'number'],
    ['Would deny', (pair) => number(pair.would, 'warn state'), 'number'],
    ['By', (pair) => [...pair.by].join('; '), 'wide'],
  ], sorted, { open: explainLink, caption: 'Pairs of workloads' });
}

/* ------------------------------------------------------------ View: matrix */

const loadPairs = () => ask('pairs');

const matrix = {
  name: 'Matrix', every: 5000, load: loadPairs,
  show(answer, route) {
    const all = pairs(rows(answer));
    const wanted = (route.query.filter ?? '').toLowerCase();
    const takes = (pair) => `${pair.src.word} ${pair.dst.word} ${pair.via}`.toLowerCase().includes(wanted);
    const shown = all.filter(takes);
    const chosen = shown.filter((pair) => (!route.query.from || pair.src.namespace === route.query.from)
      && (!route.query.to || pair.dst.namespace === route.query.to));
    const { from, to } = route.query;
    const head = from ? `${from} to ${to}` : 'All pairs, denied ones first';
    const body = answer.documents.length === 0 ? null : all.length === 0
      ? notice('', 'No flows yet', 'The conntrack tables have no flow of a Pod, and no denial is recorded. Open a connection from a Pod, and it appears here.')
      : shown.length === 0
        ? notice('', 'Nothing matches the filter', 'It compares the names of Pods, namespaces and Services.')
        : [h('section', { class: 'panel', 'aria-label': 'Namespaces' },
            h('div', { class: 'matrix-area' }, h('div', { class: 'scroll' }, matrixTable(shown, route)), legend())),
          h('section', { class: 'panel', 'aria-label': 'Pairs' },
            h('div', { class: 'title' }, h('h2', {}, head),
              from && h('a', { href: link('matrix', [], { filter: route.query.filter }), 'data-back': true }, 'show all pairs')),
            pairTable(chosen))];
    return [
      title('Who calls what', answer.documents.length > 0 && `${plural(sum(all, 'flows'), 'open flow')}, ${sum(all, 'denied').toLocaleString('en')} denied, ${sum(all, 'would').toLocaleString('en')} would be denied`, 'lbctl flows --by pair'),
      remarks(answer),
      h('div', { class: 'tools' }, filterField('Filter', route.query.filter ?? '', (filter) => replaceQuery({ ...route.query, filter }))),
      h('div', { class: 'split' }, body),
    ];
  },
};

function order(names) {
  const rank = (name) => [NODES, OUTSIDE].indexOf(name);
  return [...new Set(names)].sort((a, b) => rank(a) - rank(b) || a.localeCompare(b));
}

/** With more columns, their names stand upright. */
const FLAT = 8;

function matrixTable(list, route) {
  const sources = order(list.map((pair) => pair.src.namespace));
  const targets = order(list.map((pair) => pair.dst.namespace));
  const cell = (from, to) => list.filter((pair) => pair.src.namespace === from && pair.dst.namespace === to);
  const most = Math.max(1, ...sources.flatMap((from) => targets.map((to) => sum(cell(from, to), 'flows'))));
  const name = (namespace) => ([NODES, OUTSIDE].includes(namespace)
    ? h('em', {}, namespace)
    : h('a', { href: link('map', [namespace]), title: `Map of ${namespace}` }, namespace));
  const rowOf = (from, y) => h('tr', {},
    h('th', { scope: 'row' }, name(from)),
    targets.map((to, x) => h('td', {}, matrixCell(cell(from, to), { from, to, x, y, most, route }))));
  return h('table', { class: `matrix ${targets.length > FLAT ? 'upright' : ''}` },
    h('caption', { class: 'unseen' }, 'Flows from the namespace of the row to the namespace of the column'),
    h('thead', {}, h('tr', {},
      h('td', { class: 'corner' }, 'from ↓ to →'),
      targets.map((to) => h('th', { scope: 'col' }, name(to))))),
    h('tbody', {}, sources.map(rowOf)));
}

function matrixCell(list, { from, to, x, y, most, route }) {
  if (list.length === 0) return h('span', { class: 'none', 'aria-label': 'no flows' }, '–');
  const [flows, denied, would] = ['flows', 'denied', 'would'].map((name) => sum(list, name));
  const words = [plural(flows, 'flow'), denied && `${denied} denied`, would && `${would} would be denied`];
  const isChosen = route.query.from === from && route.query.to === to;
  const button = h('button', {
    type: 'button',
    class: `${denied ? 'denied' : ''} ${would ? 'would' : ''}`.trim(),
    'aria-pressed': String(isChosen),
    'aria-label': `${from} to ${to}: ${words.filter(Boolean).join(', ')}`,
    title: `${from} → ${to}: ${words.filter(Boolean).join(', ')}`,
    'data-row': true, 'data-x': x, 'data-y': y, 'data-key': `cell ${from} ${to}`,
    click: () => replaceQuery(isChosen ? { filter: route.query.filter } : { ...route.query, from, to }),
  }, flows.toLocaleString('en'),
    denied > 0 && h('small', { class: 'bad' }, `✕ ${denied.toLocaleString('en')}`),
    would > 0 && h('small', { class: 'warn' }, `? ${would.toLocaleString('en')}`));
  button.style.setProperty('--weight', (Math.log1p(flows) / Math.log1p(most)).toFixed(3));
  return button;
}

function legend() {
  return h('p', { class: 'legend' },
    h('span', {}, 'number: open flows'),
    h('span', { class: 'bad' }, '✕ denied, as far as the agents remember'),
    h('span', { class: 'warn' }, '? a policy in shadow mode would deny it'),
    h('span', {}, 'a namespace leads to its map'));
}

/* --------------------------------------------------------------- View: map */

const map = {
  name: null, every: 5000, load: loadPairs,
  show(answer, route) {
    const [namespace] = route.path;
    const list = pairs(rows(answer))
      .filter((pair) => [pair.src.namespace, pair.dst.namespace].includes(namespace));
    const head = [
      title(`Map of ${namespace}`, 'its workloads, who calls them, and what they call', `lbctl flows --by pair -n ${namespace}`),
      remarks(answer),
      h('p', { class: 'muted' }, h('a', { href: link('matrix'), 'data-back': true }, 'all namespaces')),
    ];
    if (answer.documents.length === 0) return head;
    if (list.length === 0) {
      return [...head, notice('', `No flows from or to ${namespace}`, 'Open a connection, or choose another namespace.')];
    }
    return [...head,
      h('section', { class: 'panel scroll', 'aria-label': 'Map' }, drawMap(namespace, list), legendOfMap()),
      h('section', { class: 'panel', 'aria-label': 'Pairs' }, h('h2', {}, 'Its pairs'), pairTable(list))];
  },
};

function legendOfMap() {
  return h('p', { class: 'legend' }, h('span', {}, 'a line leads from the client to the server'),
    h('span', { class: 'bad' }, 'dotted: denied'), h('span', { class: 'warn' }, 'dashed: would be denied'));
}

/** Edges between boxes: workloads of the namespace, and other namespaces as one box each way. */
function edgesOf(namespace, list) {
  const box = (end, side) => (end.namespace === namespace
    ? { id: `own ${workload(end.name)}`, text: workload(end.name), sub: '', own: true }
    : { id: `${side} ${end.namespace}`, text: end.namespace, sub: side === 'in' ? 'calls in' : 'is called' });
  const boxes = new Map();
  const edges = new Map();
  for (const pair of list) {
    const [from, to] = [box(pair.src, 'in'), box(pair.dst, 'out')];
    for (const one of [from, to]) boxes.set(one.id, boxes.get(one.id) ?? one);
    const edge = edges.get(`${from.id}>${to.id}`) ?? { from: from.id, to: to.id, flows: 0, denied: 0, would: 0, ports: new Set() };
    edges.set(`${from.id}>${to.id}`, edge);
    for (const name of ['flows', 'denied', 'would']) edge[name] += pair[name];
    edge.ports.add(pair.port);
  }
  return { boxes, edges: [...edges.values()] };
}

/** The column of each box: right of all that call it; a call that closes a circle does not count. */
function ranks(boxes, edges) {
  const rank = new Map();
  const place = (id, above) => {
    if (rank.has(id)) return rank.get(id);
    const callers = edges.filter((edge) => edge.to === id && !above.has(edge.from)).map((edge) => edge.from);
    rank.set(id, Math.max(0, ...callers.map((caller) => place(caller, new Set([...above, id])) + 1)));
    return rank.get(id);
  };
  for (const id of boxes.keys()) place(id, new Set([id]));
  const last = Math.max(...rank.values());
  for (const id of boxes.keys()) if (id.startsWith('out ')) rank.set(id, last);
  return rank;
}

const BOX = { width: 170, height: 44, gapX: 90, gapY: 16 };

/** Places boxes in columns, and room between them for the lines that cross a column. */
function layout(boxes, edges) {
  const rank = ranks(boxes, edges);
  const columns = Array.from({ length: Math.max(...rank.values()) + 1 }, () => []);
  for (const id of boxes.keys()) columns[rank.get(id)].push({ id, height: BOX.height, before: [] });
  for (const edge of edges) {
    edge.via = [];
    for (let x = rank.get(edge.from) + 1; x < rank.get(edge.to); x += 1) {
      const room = { id: `${edge.from}>${edge.to}@${x}`, height: 10, before: [x - 1 === rank.get(edge.from) ? edge.from : `${edge.from}>${edge.to}@${x - 1}`] };
      columns[x].push(room);
      edge.via.push(room.id);
    }
    columns[rank.get(edge.to)].find((slot) => slot.id === edge.to).before.push(edge.via.at(-1) ?? edge.from);
  }
  const heights = columns.map((column) => column.reduce((total, slot) => total + slot.height + BOX.gapY, 0));
  const size = { x: columns.length * (BOX.width + BOX.gapX) - BOX.gapX + 20, y: Math.max(...heights) + 30 };
  const at = new Map();
  columns.forEach((column, x) => {
    const weight = ({ before }) => {
      const known = before.filter((id) => at.has(id)).map((id) => at.get(id).y);
      return known.length > 0 ? known.reduce((total, y) => total + y, 0) / known.length : 0;
    };
    column.sort((a, b) => weight(a) - weight(b) || a.id.localeCompare(b.id));
    let y = (size.y - heights[x]) / 2;
    for (const { id, height } of column) {
      at.set(id, { x: 10 + x * (BOX.width + BOX.gapX), y: y + height / 2 });
      y += height + BOX.gapY;
    }
  });
  return { at, size };
}

/** The line of an edge: through the room in each column that it crosses. */
function curve(edge, at) {
  const bend = BOX.gapX / 2;
  const first = at.get(edge.from);
  let line = `M${first.x + BOX.width},${first.y}`;
  let here = { x: first.x + BOX.width, y: first.y };
  for (const id of [...edge.via, edge.to]) {
    const { x, y } = at.get(id);
    const goal = { x: id === edge.to ? x - 2 : x, y };
    const sag = goal.x < here.x ? BOX.height + BOX.gapY : 0;
    line += ` C${here.x + bend},${here.y + sag} ${goal.x - bend},${goal.y + sag} ${goal.x},${goal.y}`;
    here = { x: x + BOX.width, y };
    if (id !== edge.to) line += ` L${here.x},${here.y}`;
  }
  return line;
}

function drawMap(namespace, list) {
  const { boxes, edges } = edgesOf(namespace, list);
  const { at, size } = layout(boxes, edges);
  const { width, height } = BOX;
  const lines = edges.map((edge) => {
    const words = [plural(edge.flows, 'flow'), edge.denied && `${edge.denied} denied`, edge.would && `${edge.would} would be denied`];
    return s('path', { class: edge.denied ? 'denied' : edge.would ? 'would' : '', 'marker-end': 'url(#arrow)', d: curve(edge, at) },
      s('title', {}, `${boxes.get(edge.from).text} → ${boxes.get(edge.to).text}, port ${[...edge.ports].join(', ')}: ${words.filter(Boolean).join(', ')}`));
  });
  const short = (text) => (text.length > 20 ? `${text.slice(0, 19)}…` : text);
  const shapes = [...boxes.values()].map((box) => {
    const x = at.get(box.id).x;
    const y = at.get(box.id).y - height / 2;
    const leads = box.own || [NODES, OUTSIDE].includes(box.text) ? null : link('map', [box.text]);
    const shape = [s('rect', { x, y, width, height, rx: 8 }),
      s('text', { x: x + 10, y: y + (box.sub ? 19 : 27) }, short(box.text)),
      box.sub && s('text', { class: 'sub', x: x + 10, y: y + 35 }, box.sub)];
    return leads ? s('a', { href: leads, 'aria-label': `Map of ${box.text}` }, shape) : s('g', { class: box.own ? 'own' : '' }, shape);
  });
  const arrow = s('marker', { id: 'arrow', viewBox: '0 0 8 8', refX: 7, refY: 4, markerWidth: 9, markerHeight: 9, markerUnits: 'userSpaceOnUse', orient: 'auto' },
    s('path', { d: 'M0,0 L8,4 L0,8 z' }));
  const svg = s('svg', { class: 'map', viewBox: `0 0 ${size.x} ${size.y}`, role: 'img', 'aria-label': `Map of ${namespace}: the table below has the same pairs` },
    s('defs', {}, arrow), lines, shapes);
  // Never larger than drawn, and on phones readable instead of small.
  svg.style.setProperty('max-width', `${size.x}px`);
  svg.style.setProperty('min-width', `${Math.min(size.x, 620)}px`);
  return svg;
}

/* ------------------------------------------------------------- View: flows */

const FLOW_FIELDS = [
  ['pod', 'Pod', 'namespace/name'], ['from', 'From', 'Pod, node/name, address'], ['to', 'To', 'Pod, node/name, address'],
  ['namespace', 'Namespace', ''], ['port', 'Port', ''], ['reason', 'Reason', 'POLICY_ISOLATED'], ['policy', 'Policy', 'namespace/name'],
];
const VERDICTS = [
  ['', 'dropped and would-be'], ['dropped', 'dropped'], ['would-deny', 'would-deny'], ['would-allow', 'would-allow'],
  ['allowed,dropped', 'all, allowed sampled'],
];
const KEPT = 500;

const flows = {
  name: 'Flows',
  async load() { return {}; },
  show(_, route) {
    const list = h('tbody', {});
    const state = { paused: false, waiting: [], source: null, seen: 0, opened: 0 };
    const status = h('span', { class: 'muted', role: 'status' }, 'connecting …');
    const pause = h('button', { type: 'button', 'data-pause': true, 'aria-pressed': 'false', click: () => {
      state.paused = !state.paused;
      pause.setAttribute('aria-pressed', String(state.paused));
      pause.textContent = state.paused ? 'Continue' : 'Pause';
      if (!state.paused) state.waiting.splice(0).forEach(add);
      said();
    } }, 'Pause');
    const said = () => {
      status.className = 'muted';
      status.textContent = state.paused
        ? `paused; ${plural(state.waiting.length, 'new flow')} wait` : `following; ${plural(state.seen, 'flow')}`;
    };
    const add = (row) => {
      const line = flowLine(row);
      // Flows of the past come first, all at once.
      if (Date.now() - state.opened > 1500) line.className = 'fresh';
      list.prepend(line);
      while (list.children.length > KEPT) list.lastElementChild.remove();
    };
    const field = ([name, label, hint]) => h('label', {}, label, h('input', {
      name, value: route.query[name] ?? '', placeholder: hint, autocomplete: 'off', spellcheck: 'false',
      'data-filter': name === 'pod', inputmode: name === 'port' ? 'numeric' : null,
    }));
    const options = VERDICTS.map(([value, text]) => h('option', { value, selected: value === (route.query.verdict ?? '') }, text));
    const form = h('form', { class: 'tools', role: 'search', 'aria-label': 'Filters', submit: (event) => {
      event.preventDefault();
      location.hash = link('flows', [], Object.fromEntries(new FormData(form)));
    } }, FLOW_FIELDS.map(field),
      h('label', {}, 'Verdict', h('select', { name: 'verdict', change: () => form.requestSubmit() }, options)),
      h('button', { class: 'primary' }, 'Filter'), pause);
    const problem = h('div', {});
    const follow = () => {
      problem.replaceChildren();
      const query = new URLSearchParams(Object.entries(route.query).filter(([, value]) => value));
      state.source = new EventSource(`api/follow?${query}`);
      leaving.push(() => state.source.close());
      state.source.addEventListener('open', () => { list.replaceChildren(); state.seen = 0; state.opened = Date.now(); said(); });
      state.source.addEventListener('message', (event) => {
        const row = JSON.parse(event.data);
        state.seen += 1;
        if (state.paused) state.waiting.push(row); else add(row);
        if (state.waiting.length > KEPT) state.waiting.shift();
        said();
      });
      state.source.addEventListener('remark', (event) => { status.title = JSON.parse(event.data); });
      state.source.addEventListener('end', (event) => {
        state.source.close();
        status.textContent = 'not following';
        problem.replaceChildren(notice('bad', JSON.parse(event.data)), h('p', {}, h('button', { type: 'button', click: follow }, 'Follow again')));
      });
      state.source.addEventListener('error', () => {
        status.className = 'bad';
        status.textContent = 'the connection is lost; trying again';
      });
    };
    follow();
    const words = Object.entries(route.query).filter(([, value]) => value).map(([name, value]) => ` --${name} ${value}`).join('');
    return [
      title('Flows as they happen', 'newest first', `lbctl flows -f${words}`), form, problem,
      h('section', { class: 'panel', 'aria-label': 'Flows' }, status,
        h('div', { class: 'scroll' }, h('table', { class: 'rows' },
          h('thead', {}, h('tr', {}, ['Time', 'Verdict', 'From', 'To', 'Service', 'Reason', 'By', 'Node'].map((name) => h('th', { scope: 'col' }, name)))),
          list))),
    ];
  },
};

const VERDICT_CLASS = { dropped: 'bad', 'would-deny': 'warn', 'would-allow': 'warn', allowed: 'ok' };

function flowLine(row) {
  const word = (end) => (end.name ? `${end.name}:${portOf(end.address)}` : end.address);
  // The client's port is a different one for each flow.
  const client = h('span', { title: row.src.address }, row.src.name || withoutPort(row.src.address));
  const href = explainLink({
    src: end(row.src.name, withoutPort(row.src.address)), dst: end(row.dst.name, withoutPort(row.dst.address)),
    port: portOf(row.dst.address), protocol: row.protocol, via: row.via,
  });
  const policy = (row.by?.policies ?? []).map(String)[0];
  const cells = [
    ['Time', h('a', { href, 'data-row': true, title: 'Explain this flow' }, row.time.replace(/^.*T/, '').replace('Z', ''))],
    ['Verdict', h('span', { class: `state ${VERDICT_CLASS[row.verdict] ?? ''}` }, row.verdict)],
    ['From', client, 'name'], ['To', `${word(row.dst)}/${row.protocol}`, 'name'], ['Service', row.via, 'name'],
    ['Reason', row.suppressed ? `${row.reason} (+${row.suppressed})` : row.reason],
    ['By', policy ? h('a', { href: link('policies', [policy]) }, decidedBy(row)) : '', 'wide'], ['Node', row.node ?? ''],
  ];
  return h('tr', {}, cells.map(([name, content, kind]) =>
    h('td', { class: `${kind ?? ''} ${content === '' ? 'empty' : ''}`.trim(), 'data-label': name }, content)));
}

/* ---------------------------------------------------------- View: policies */

const policies = {
  name: 'Policies', every: 10000,
  async load(route) {
    const [name] = route.path;
    const [list, one] = await Promise.all([ask('policies'), name ? ask('policy', { name }) : null]);
    return { list, one };
  },
  show({ list, one }, route) {
    const [name] = route.path;
    const wanted = (route.query.filter ?? '').toLowerCase();
    const all = together(rows(list), full, ['subjects', 'hits']);
    for (const row of rows(list)) {
      const known = all.find((one) => full(one) === full(row));
      if (row.lastHit !== null) known.lastHit = Math.min(row.lastHit, known.lastHit ?? Infinity);
    }
    const items = all.filter((row) => full(row).toLowerCase().includes(wanted));
    const state = (row) => h('span', { class: `state ${{ enforced: 'ok', shadow: 'warn', error: 'bad' }[row.state] ?? ''}`, title: row.issue || null }, row.state);
    const found = table([
      ['Policy', full, 'name'],
      // Beside one policy, there is less room.
      !one && ['Tier', (row) => row.tier], !one && ['Selects', (row) => plural(row.subjects, 'Pod'), 'number'],
      !one && ['Rules', (row) => row.rules, 'number'], ['Hits', (row) => row.hits.toLocaleString('en'), 'number'],
      ['Last hit', (row) => age(row.lastHit)], ['State', state],
    ].filter(Boolean), items, { open: (row) => link('policies', [full(row)], route.query), caption: 'Policies', selected: (row) => full(row) === name });
    const empty = rows(list).length === 0 && list.documents.length > 0
      ? notice('', 'No policy selects a Pod here', 'Without policies, all traffic is allowed. Paste one below to see what it would change.')
      : items.length === 0 && list.documents.length > 0 ? notice('', 'Nothing matches the filter') : null;
    return [
      title('Policies', 'in the order of evaluation', name ? `lbctl policy show ${name}` : 'lbctl policy list'),
      remarks(list),
      h('div', { class: 'tools' }, filterField('Filter', route.query.filter ?? '', (filter) => replaceQuery({ ...route.query, filter }))),
      h('div', { class: `split ${one ? 'beside' : ''}` },
        h('section', { class: 'panel', 'aria-label': 'List' }, empty ?? found),
        one && h('section', { class: 'panel', 'aria-label': 'Policy' }, remarks(one), one.documents.map(policyPanel))),
      tryPanel(),
    ];
  },
};

const full = (row) => (row.namespace ? `${row.namespace}/${row.name}` : row.name);

function policyPanel(policy) {
  const rules = ['ingress', 'egress'].flatMap((direction) => {
    const list = policy[direction];
    const denied = policy.defaultDenied?.[direction] ?? 0;
    const isolated = denied > 0 && h('span', { class: 'bad' }, ` ${plural(denied, 'flow')} denied by isolation`);
    const head = h('h3', {}, direction);
    if (!list) return [head, h('p', { class: 'muted' }, 'not covered by this policy')];
    if (list.length === 0) return [head, h('p', {}, 'isolated, no traffic allowed.', isolated)];
    const most = Math.max(1, ...list.map((rule) => rule.hits));
    return [head, isolated && h('p', {}, isolated), list.map((rule) => ruleBlock(rule, most))];
  });
  return [
    h('h2', {}, policy.name),
    h('dl', { class: 'facts' }, [
      ['kind', policy.kind], ['tier', `${policy.tier}, priority ${policy.priority}`],
      ['mode', policy.shadow ? 'shadow: evaluated and counted, not enforced' : 'enforced'],
      ['selects', selected(policy.subject)],
      ...policy.issues.map((issue) => ['issue', h('span', { class: 'bad' }, issue)]),
    ].map(([name, value]) => [h('dt', {}, name), h('dd', {}, value)])),
    rules, shadowBlock(policy),
  ];
}

function selected({ wants, count, examples }) {
  const more = count > examples.length ? ', …' : '';
  return [`${wants}: ${count}`, examples.length > 0 && h('span', { class: 'muted' }, ` (${examples.join(', ')}${more})`)];
}

function ruleBlock(rule, most) {
  const peers = rule.peers === null ? [h('li', {}, 'all peers')] : rule.peers.map((peer) => h('li', {}, selected(peer)));
  const hits = rule.countedIn
    ? h('span', { class: 'hits muted' }, `counted in ${rule.countedIn}`)
    : h('span', { class: 'hits' }, h('meter', { min: 0, max: most, value: rule.hits, 'aria-hidden': 'true' }), ` ${plural(rule.hits, 'hit')}`);
  return h('div', { class: 'rule' },
    h('header', {}, h('code', {}, rule.path), rule.name && h('span', {}, rule.name),
      h('span', { class: `state ${rule.action === 'Deny' ? 'bad' : ''}` }, rule.action.toLowerCase()),
      h('span', {}, rule.ports === null ? 'all ports' : rule.ports.join(', ') || 'no ports'), hits),
    h('ul', {}, peers.length > 0 ? peers : h('li', {}, 'no peers')));
}

function shadowBlock(policy) {
  const [namespace, name] = policy.name.includes('/') ? policy.name.split('/') : ['', policy.name];
  const object = namespace ? `-n ${namespace} annotate networkpolicy ${name}` : `annotate clusternetworkpolicy ${name}`;
  const [shadow, enforce] = [`kubectl ${object} --overwrite lb-agent.io/mode=shadow`, `kubectl ${object} lb-agent.io/mode-`];
  return [
    h('h3', {}, 'Shadow mode'),
    h('p', { class: 'muted' }, policy.shadow
      ? 'Flows that it would deny are allowed and counted as would-deny. This enforces it:'
      : 'This stops it from denying anything, while its would-be denials are counted:'),
    copyable(policy.shadow ? enforce : shadow),
    h('p', {}, h('a', { href: link('flows', [], { policy: policy.name }) }, 'flows that it decided')),
  ];
}

/** What the page keeps while views are shown again. */
const draft = { manifest: '', result: [] };

function tryPanel() {
  const result = h('div', { 'aria-live': 'polite' }, draft.result);
  const keep = (...elements) => { draft.result = elements; result.replaceChildren(...elements); };
  const area = h('textarea', { 'data-key': 'manifest', 'aria-label': 'Manifest of a policy', spellcheck: 'false',
    placeholder: 'apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n…', input: () => { draft.manifest = area.value; } });
  area.value = draft.manifest;
  const button = h('button', { type: 'button', class: 'primary', click: async () => {
    if (area.value.trim() === '') return keep(notice('warn', 'Paste a NetworkPolicy or ClusterNetworkPolicy first'));
    button.disabled = true;
    try {
      keep(...tryResult(await ask('try', {}, area.value)));
    } catch (error) {
      keep(notice('bad', 'The policy could not be tried', error.message));
    } finally {
      button.disabled = false;
    }
  } }, 'Try it on live flows');
  return h('section', { class: 'panel', 'aria-label': 'What if' },
    h('h2', {}, 'What if'),
    h('p', { class: 'muted' }, 'Paste a policy to see which of the flows that are open now it would deny. Nothing is applied. ', h('code', {}, 'lbctl policy try -f -')),
    area, h('p', {}, button), result);
}

function tryResult(answer) {
  if (answer.remarks.some((line) => line.includes('unrecognized subcommand'))) {
    return [notice('warn', 'This lbctl cannot try policies', 'It has no command `policy try`: update the agents. Until then, apply the policy in shadow mode and watch its would-be denials.')];
  }
  const found = answer.documents.flat();
  if (found.length === 0) return [remarks(answer)];
  const total = (name) => found.reduce((count, report) => count + (report[name] ?? 0), 0);
  const changes = found.flatMap((report) => report.items ?? []);
  const denied = total('denied');
  const issues = [...new Set(found.flatMap((report) => report.issues ?? []).map((issue) => [issue.field, issue.message].filter(Boolean).join(': ')))];
  const head = `Of ${plural(total('flows'), 'live flow')}, ${denied.toLocaleString('en')} would be denied; of ${plural(total('recentlyDenied'), 'flow')} denied recently, ${total('allowed').toLocaleString('en')} would be allowed`;
  const who = (end) => end.name || end.address;
  return [
    notice(denied > 0 ? 'bad' : 'ok', head, ...issues),
    remarks(answer),
    found.some((report) => report.complete === false) && notice('warn', 'Pods of other nodes are taken for clients outside', 'The agent has not yet read all Pods: try again in a moment.'),
    changes.length > 0 && table([
      ['Change', (row) => h('span', { class: `state ${row.change === 'denied' ? 'bad' : 'ok'}` }, row.change)],
      ['Flows', (row) => row.count.toLocaleString('en'), 'number'], ['From', (row) => who(row.src), 'name'], ['To', (row) => who(row.dst), 'name'],
      ['Port', (row) => `${row.port}/${row.protocol}`], ['Service', (row) => row.via, 'name'], ['Direction', (row) => row.direction],
      ['By', decidedBy, 'wide'],
    ], changes, { caption: 'Flows that would change' }),
  ].filter(Boolean);
}

/* ----------------------------------------------------------- View: explain */

const explain = {
  name: 'Explain',
  async load(route) {
    const { from, to } = route.query;
    const names = await Promise.all([ask('pods'), ask('services')]);
    return { names, answer: from && to ? await ask('explain', { from, to }) : null };
  },
  show({ names: [pods, services], answer }, route) {
    const suggestions = [...rows(pods).filter((pod) => pod.name).map((pod) => full(pod)),
      ...rows(services).filter((row) => row.namespace).map((row) => `svc:${full(row)}${row.port ? `:${row.port}/${row.protocol.toLowerCase()}` : ''}`)];
    const field = (name, label, hint, first) => h('label', {}, label, h('input', {
      name, value: route.query[name] ?? '', placeholder: hint, list: 'parties', required: true, 'data-filter': first,
      'data-key': `explain ${name}`, autocomplete: 'off', spellcheck: 'false',
    }));
    const form = h('form', { class: 'ends panel', submit: (event) => {
      event.preventDefault();
      const wanted = link('explain', [], Object.fromEntries(new FormData(form)));
      if (location.hash === wanted) show(); else location.hash = wanted;
    } }, field('from', 'From', 'shop/cart, deploy/cart, an address, world', true),
      field('to', 'To', 'svc:db/orders:5432, db/orders-0:5432, an address', false),
      h('button', { class: 'primary' }, 'Explain'),
      h('datalist', { id: 'parties' }, [...new Set(suggestions)].map((value) => h('option', { value }))));
    const command = route.query.from ? `lbctl explain ${route.query.from} ${route.query.to}` : 'lbctl explain FROM TO';
    const body = answer === null
      ? notice('', 'Name both ends of a flow', 'The answer has every step of its path, the rule that stops it, and what to change.')
      : [remarks(answer), answer.documents.map((found) => explanation(found))];
    return [title('Explain a flow', 'step by step, as the kernel decides it', command), form, body];
  },
};

const OUTCOMES = { delivered: ['ok', 'DELIVERED'], stopped: ['bad', 'STOPPED'], 'cannot-tell': ['warn', 'CANNOT TELL'] };
const STEP_STATES = { ok: ['ok', '✓ ok'], stop: ['bad', '✕ STOP'], unknown: ['warn', '? unknown'] };

function explanation(found) {
  const [kind, word] = OUTCOMES[found.outcome] ?? ['warn', found.outcome];
  const list = (head, lines) => lines?.length > 0 && [h('h3', {}, head), h('ul', {}, lines.map((line) => h('li', {}, line)))];
  const unique = (part) => [...new Set([found, ...(found.also ?? [])].flatMap((finding) => finding[part] ?? []))];
  const step = ({ state, what, text }) => {
    const [kind, word] = STEP_STATES[state] ?? ['', state];
    return h('li', { class: state === 'stop' ? 'stop' : null }, h('span', { class: `state ${kind}` }, word), h('strong', {}, what), h('span', { class: 'text' }, text));
  };
  return h('section', { class: 'panel', 'aria-label': 'Answer' },
    h('div', { class: `notice ${kind}`, role: 'status' }, h('p', { class: 'outcome' }, `${word}: ${found.verdict}`)),
    list('Because', unique('because')), list('To fix', unique('toFix')),
    h('h3', {}, 'Steps'), h('ol', { class: 'steps' }, found.steps.map(step)),
    list('Assumed', found.assumed),
    found.code && h('p', { class: 'muted' }, 'code: ', h('code', {}, found.code)));
}

/* ---------------------------------------------------------- View: services */

const services = {
  name: 'Services', every: 5000,
  load: () => ask('services'),
  show(answer, route) {
    const wanted = (route.query.filter ?? '').toLowerCase();
    const all = together(rows(answer), (row) => `${full(row)} ${row.port} ${row.protocol}`, ['flows', 'local']);
    const items = all.filter((row) => `${full(row)} ${row.frontends.join(' ')}`.toLowerCase().includes(wanted));
    const ready = (row) => h('span', { class: row.endpoints > 0 && row.ready === 0 ? 'bad state' : row.ready < row.endpoints ? 'warn state' : '' }, `${row.ready}/${row.endpoints}`);
    const list = table([
      ['Service', full, 'name'], ['Port', (row) => `${row.portName ? `${row.portName}:` : ''}${row.port ?? ''}/${row.protocol}`],
      ['Type', (row) => row.type], ['Frontends', (row) => row.frontends.join(' '), 'wide mono'], ['Ready', ready, 'number'],
      ['Flows', (row) => row.flows.toLocaleString('en'), 'number'], ['Age', (row) => age(row.age)],
      ['Issue', (row) => (row.issues.length > 0 ? h('span', { class: 'bad' }, row.issues.join('; ')) : ''), 'wide'],
    ], items, { open: (row) => link('explain', [], { to: `svc:${full(row)}:${row.port}/${row.protocol.toLowerCase()}` }), caption: 'Services' });
    const empty = rows(answer).length === 0 ? notice('', 'No Services', 'The agent has not programmed any Service.') : notice('', 'Nothing matches the filter');
    return [
      title('Services', plural(items.length, 'port'), 'lbctl services'), remarks(answer),
      h('div', { class: 'tools' }, filterField('Filter', route.query.filter ?? '', (filter) => replaceQuery({ ...route.query, filter }))),
      answer.documents.length > 0 && h('section', { class: 'panel', 'aria-label': 'List' }, items.length > 0 ? list : empty),
    ];
  },
};

/* ------------------------------------------------------------ View: status */

const status = {
  name: 'Status', every: 10000,
  async load() {
    const [report, drops] = await Promise.all([ask('status'), ask('drops')]);
    return { report, drops };
  },
  show({ report, drops }) {
    const nodes = reports(report);
    const one = (found) => h('details', { class: 'panel', open: nodes.length <= 2 || found.verdict !== 'OK' },
      h('summary', {}, h('h2', {}, found.node || 'This node', ' ', h('span', { class: `state ${found.verdict === 'OK' ? 'ok' : 'bad'}` }, found.verdict))),
      found.because && h('p', { class: 'bad' }, found.because),
      found.subsystems && table([['Part', (line) => line.subsystem],
        ['State', (line) => h('span', { class: `state ${/^ok$/i.test(line.state) ? 'ok' : 'bad'}` }, line.state)],
        ['Detail', (line) => line.detail, 'wide']], found.subsystems),
      found.issues?.length > 0 && [h('h3', {}, 'Issues of objects'),
        table([['Object', (issue) => issue.object], ['Since', (issue) => age(issue.since)],
          ['Issue', (issue) => [issue.field, issue.message].filter(Boolean).join(': '), 'wide']], found.issues)]);
    const dropped = rows(drops);
    return [
      title('Status', '', 'lbctl status; lbctl drops'), remarks(report),
      nodes.map(one),
      h('section', { class: 'panel', 'aria-label': 'Drops' }, h('h2', {}, 'Packets that were not delivered'),
        remarks(drops),
        dropped.length === 0 ? notice('ok', 'None') : table([
          ['Reason', (row) => row.reason, 'name'], ['Direction', (row) => row.direction], ['Count', (row) => row.count.toLocaleString('en'), 'number'],
          ['Last', (row) => age(row.last)], ['Example', (row) => row.example, 'wide mono'], ['What to do', (row) => row.whatToDo, 'wide'], ['Node', (row) => row.node ?? ''],
        ], dropped)),
    ];
  },
};

/** The health in the bar at the top. */
async function health() {
  const element = byId('health');
  try {
    const answer = await ask('status');
    const nodes = reports(answer);
    const bad = nodes.filter((report) => report.verdict !== 'OK');
    const issues = new Set(nodes.flatMap((report) => (report.issues ?? []).map((issue) => `${issue.object} ${issue.field} ${issue.message}`))).size;
    element.dataset.state = nodes.length === 0 || bad.length > 0 ? 'bad' : 'ok';
    const word = nodes.length === 0 ? 'no answer' : bad.length > 0 ? 'DEGRADED' : 'OK';
    element.textContent = [`${word === 'OK' ? '●' : '▲'} ${word}`, nodes.length > 1 && plural(nodes.length, 'node'), issues > 0 && plural(issues, 'issue')].filter(Boolean).join(' · ');
    element.title = bad.map((report) => `${report.node}: ${report.because}`).join('\n');
  } catch {
    element.dataset.state = 'bad';
    element.textContent = '▲ no answer';
  }
}

/* ----------------------------------------------------------------- Routes */

const VIEWS = { matrix, flows, policies, explain, services, status, map };

/** The address of a view inside the page. */
function link(view, path = [], query = {}) {
  const given = Object.entries(query).filter(([, value]) => value);
  const tail = given.length > 0 ? `?${new URLSearchParams(given)}` : '';
  return `#/${[view, ...path.map(encodeURIComponent)].join('/')}${tail}`;
}

function route() {
  const [place, query] = location.hash.replace(/^#\//, '').split('?');
  const [view, ...path] = place.split('/').map(decodeURIComponent);
  return { view: Object.hasOwn(VIEWS, view) ? view : 'matrix', path, query: Object.fromEntries(new URLSearchParams(query)) };
}

/** Changes what the view shows without a new entry in the history. */
function replaceQuery(query) {
  const { view, path } = route();
  history.replaceState(null, '', link(view, path, query));
  render();
}

let leaving = [];
let shown = { place: '', data: null, text: '' };
let timer = 0;

/** Shows the view of the address: asks, then renders. */
async function show() {
  clearTimeout(timer);
  const here = route();
  const place = location.hash;
  const isNew = shown.place.split('?')[0] !== place.split('?')[0];
  const view = VIEWS[here.view];
  for (const element of byId('views').children) {
    const isCurrent = element.dataset.view === (here.view === 'map' ? 'matrix' : here.view);
    if (isCurrent) element.setAttribute('aria-current', 'page'); else element.removeAttribute('aria-current');
  }
  if (isNew) {
    document.title = `lb: ${view.name ?? here.path[0]}`;
    if (shown.place === '' || isNew) byId('view').replaceChildren(h('p', { class: 'muted' }, 'asking lbctl …'));
  }
  try {
    const data = await view.load(here);
    if (location.hash !== place) return;
    const text = JSON.stringify(data);
    // What has not changed stays as it is: fields keep their text, and readers their place.
    if (shown.place !== place || shown.text !== text || !view.every) {
      shown = { place, data, text };
      render();
    }
  } catch (error) {
    if (location.hash !== place) return;
    if (isNew) byId('view').replaceChildren(notice('bad', 'lbctl did not answer', error.message));
    shown = { place: '', data: null, text: '' };
  }
  if (view.every) timer = setTimeout(refresh, view.every);
}

function refresh() {
  if (document.hidden) timer = setTimeout(refresh, 1000); else show();
}

function render() {
  const here = route();
  leaving.splice(0).forEach((leave) => leave());
  const main = byId('view');
  const active = document.activeElement;
  const key = main.contains(active) ? active.dataset.key : undefined;
  const selection = key && 'selectionStart' in active ? [active.selectionStart, active.selectionEnd] : null;
  main.replaceChildren(...[VIEWS[here.view].show(shown.data, here)].flat(Infinity).filter(Boolean));
  if (key) {
    const again = [...main.querySelectorAll('[data-key]')].find((element) => element.dataset.key === key);
    again?.focus({ preventScroll: true });
    if (again && selection && again.type !== 'number') again.setSelectionRange(...selection);
  }
}

/* ------------------------------------------------------------- Light, dark */

const darkness = matchMedia('(prefers-color-scheme: dark)');

function paint() {
  document.documentElement.dataset.theme = localStorage.getItem('theme') ?? (darkness.matches ? 'dark' : 'light');
}

function toggleTheme() {
  const next = document.documentElement.dataset.theme === 'dark' ? 'light' : 'dark';
  // The choice of the system is followed again when the page is set to it.
  if (next === (darkness.matches ? 'dark' : 'light')) localStorage.removeItem('theme'); else localStorage.setItem('theme', next);
  paint();
}

/* ------------------------------------------------------------------- Keys */

const isField = (element) => ['INPUT', 'TEXTAREA', 'SELECT'].includes(element.tagName);

/** Moves among rows, and among the cells of the matrix. */
function move(dx, dy) {
  const all = [...byId('view').querySelectorAll('[data-row]')];
  const current = document.activeElement;
  const index = all.indexOf(current);
  let next;
  if (index < 0) next = all[0];
  else if (current.dataset.x !== undefined) {
    const [x, y] = [Number(current.dataset.x), Number(current.dataset.y)];
    const ahead = all.filter((cell) => cell.dataset.x !== undefined
      && (dx === 0 || (Number(cell.dataset.y) === y && Math.sign(cell.dataset.x - x) === dx))
      && (dy === 0 || Math.sign(cell.dataset.y - y) === dy));
    const distance = (cell) => Math.abs(cell.dataset.y - y) * 1000 + Math.abs(cell.dataset.x - x);
    next = ahead.sort((a, b) => distance(a) - distance(b))[0] ?? (dy > 0 ? all.find((row) => row.dataset.x === undefined) : undefined);
  } else if (dy !== 0) next = all[index + dy];
  next?.focus();
  next?.scrollIntoView({ block: 'nearest', inline: 'nearest' });
}

function onKey(event) {
  const { key, target } = event;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (key === 'Escape') {
    if (isField(target)) return target.blur();
    const back = byId('view').querySelector('[data-back]');
    if (back && !byId('help').open) back.click();
    return;
  }
  if (isField(target) || byId('help').open) return;
  const names = Object.keys(VIEWS).filter((name) => VIEWS[name].name);
  const actions = {
    '/': () => byId('view').querySelector('[data-filter]')?.focus(),
    '?': () => byId('help').showModal(),
    j: () => move(0, 1), k: () => move(0, -1), h: () => move(-1, 0), l: () => move(1, 0),
    r: () => { shown.text = ''; show(); health(); },
    t: toggleTheme,
    ' ': target.tagName === 'BUTTON' || target.tagName === 'A' ? null : () => byId('view').querySelector('[data-pause]')?.click(),
  };
  const action = /^[1-9]$/.test(key) && names[key - 1] ? () => { location.hash = link(names[key - 1]); } : actions[key];
  if (!action) return;
  event.preventDefault();
  action();
}

/* ------------------------------------------------------------------ Start */

function start() {
  const names = Object.keys(VIEWS).filter((name) => VIEWS[name].name);
  byId('views').append(...names.map((name, index) =>
    h('a', { href: link(name), 'data-view': name, 'aria-keyshortcuts': index + 1, title: `${VIEWS[name].name} (${index + 1})` }, VIEWS[name].name)));
  byId('theme').addEventListener('click', toggleTheme);
  byId('keys').addEventListener('click', () => byId('help').showModal());
  darkness.addEventListener('change', paint);
  addEventListener('hashchange', show);
  addEventListener('keydown', onKey);
  paint();
  show();
  health();
  setInterval(() => { if (!document.hidden) health(); }, 15000);
}

start();
