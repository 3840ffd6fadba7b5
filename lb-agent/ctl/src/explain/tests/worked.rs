//! The examples in the documents are what the code does: the chapters' YAML goes through watch, model, plan, evaluator
//! and explain, and the blocks after `<!-- example: NAME -->` are compared. `UPDATE_EXPECT=1` writes them.

use std::fmt::{Display, Write as _};
use std::time::Duration;

use lb_common::addr::Addr;
use lb_common::be::Be16;
use lb_common::flow::proto;
use lb_common::policy::{
    Bits, Judgement, PeerKey, PolicyLookup as _, PortKey, Question, identify, judge,
};
use lb_common::service::FrontendKey;

use lb_testkit::document::CheckedDocument;

use super::world::{World, devices, policy, text};
use super::{TO_WEB, base};
use lb_core::model::policy::Compiler;
use lb_core::plan::policy::DesiredTables;
use lb_core::plan::{Actual, Capacity, Planner, Write};

#[test]
fn the_worked_example_is_true() {
    let mut chapter = CheckedDocument::read("docs/src/worked-example.md");
    let world = World::new(&format!("---\n{}", chapter.example("yaml")));
    chapter.compare_example("records", &records(&world));
    chapter.compare_example("desired", &desired(&world));
    chapter.compare_example("service writes", &lines(world.writes.iter().map(service_write)));
    chapter.compare_example(
        "policy writes",
        &lines(sorted(&world.policy_writes).iter().map(policy_write)),
    );
    chapter.compare_example("packet of api", &packet(&world, "shop/api", "10.96.0.10"));
    chapter.compare_example("packet of batch", &packet(&world, "shop/batch", "10.96.0.10"));
    let trace = world.trace("shop/batch", "svc:shop/web");
    assert_eq!(trace.outcome().exit(), 3);
    chapter.compare_example("explain", &text(&trace));
    let switched = (0..1000).map(|_| switch(&chapter)).find(|text| is_in_order(text)).unwrap();
    chapter.compare_example("switch", &switched);
    chapter.finish();
}

#[test]
fn the_example_of_explain_is_true() {
    let spec = "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: \
                {matchLabels: {app: api}}}]}]}";
    let world = World::new(&format!("{}{}", base(), policy("default/access", spec)));
    let text = text(&world.trace(TO_WEB.0, TO_WEB.1));
    let text = format!("$ lbctl explain default/client svc:default/web\n{text}");
    let mut chapter = CheckedDocument::read("docs/src/explain.md");
    chapter.compare_example("explain", &text);
    chapter.finish();
    // README has the most important lines of the same.
    let mut readme = CheckedDocument::read("README.md");
    let is_short = |line: &&str| !line.starts_with(' ');
    let short: Vec<String> = text.lines().filter(is_short).map(cut).collect();
    readme.compare_example("explain", &lines(short));
    readme.finish();
}

/// Cuts the first line: README shows only its beginning.
fn cut(line: &str) -> String {
    match line.find("TCP: ").filter(|_| line.starts_with("STOPPED")) {
        Some(at) => format!("{}TCP: …", &line[..at]),
        None => line.to_owned(),
    }
}

fn lines(lines: impl IntoIterator<Item = impl Display>) -> String {
    lines.into_iter().fold(String::new(), |text, line| format!("{text}{line}\n"))
}

fn records(world: &World) -> String {
    let mut text = String::new();
    for (name, service) in world.cluster.services() {
        writeln!(text, "Service {name}").unwrap();
        writeln!(text, "  cluster_ips  {:?}", service.cluster_ips).unwrap();
        writeln!(text, "  ports        {:?}", service.ports).unwrap();
        for (slice, record) in world.cluster.slices_of(name) {
            writeln!(text, "EndpointSlice {slice}").unwrap();
            writeln!(text, "  ports        {:?}", record.ports).unwrap();
            for endpoint in &record.endpoints {
                writeln!(text, "  endpoint     {} {:?}", endpoint.addr, endpoint.conditions)
                    .unwrap();
            }
        }
    }
    for (name, policy) in world.cluster.policies() {
        writeln!(text, "NetworkPolicy {name}").unwrap();
        writeln!(text, "  subject      {:?}", policy.subject).unwrap();
        for rule in policy.ingress.iter().flatten() {
            writeln!(text, "  ingress      {:?}", rule.action).unwrap();
            for peer in rule.peers.iter().flatten() {
                writeln!(text, "    peer       {peer:?}").unwrap();
            }
            for port in rule.ports.iter().flatten() {
                writeln!(text, "    port       {port:?}").unwrap();
            }
        }
        writeln!(text, "  egress       {:?}", policy.egress).unwrap();
    }
    text
}

fn desired(world: &World) -> String {
    let mut text = String::new();
    for (name, service) in &world.desired.services {
        for port in &service.ports {
            writeln!(text, "port {} of {name}", port.port).unwrap();
            writeln!(text, "  frontends  {:?}", port.frontends).unwrap();
            for backend in &port.backends {
                writeln!(
                    text,
                    "  backend    {}:{} {:?}",
                    backend.addr, backend.port, backend.state
                )
                .unwrap();
            }
        }
    }
    let policies = Compiler::default().compile(&world.cluster.snapshot());
    for (index, group) in policies.groups.iter().enumerate() {
        writeln!(text, "groups[{index}]").unwrap();
        writeln!(text, "  isolating  {}", lines(&group.isolating).trim()).unwrap();
        for (number, rule) in &group.rules {
            let source = &rule.source;
            let (direction, index) = (source.direction.name(), source.index);
            writeln!(
                text,
                "  rule {number}     {} {direction}[{index}]: {:?}",
                source.policy, rule.action
            )
            .unwrap();
            writeln!(text, "    peers    atoms {:?}", rule.peers.as_deref().unwrap_or_default())
                .unwrap();
            writeln!(text, "    ports    {:?}", rule.ports.as_deref().unwrap_or_default()).unwrap();
        }
    }
    for (index, atoms) in policies.idents.iter().enumerate() {
        writeln!(text, "idents[{index}]    atoms {:?}", atoms.iter().collect::<Vec<_>>()).unwrap();
    }
    for (_, name, pod) in world.local_pods() {
        for addr in &pod.ips {
            let groups = policies.pods.get(&name).map(|pod| pod.groups).unwrap_or_default();
            let ident = policies.ident_of(addr);
            writeln!(text, "{name} {addr}: idents[{ident}], ingress {:?}", groups[0]).unwrap();
        }
    }
    text
}

fn service_write(op: &Write) -> String {
    match op {
        Write::PutBackend { id, backend } => {
            let (addr, port) = (backend.addr, backend.port.get());
            format!("backends[{id}] = {addr}:{port}, generation {}", backend.generation)
        }
        Write::PutSlot { slot, backend_id } => format!("slots[{slot}] = {backend_id}"),
        Write::PutFrontend { key, frontend } if key.is_wildcard() => {
            format!("frontends[{}, any port] = n {}", key.addr, frontend.n)
        }
        Write::PutFrontend { key, frontend } => format!(
            "frontends[{}:{}] = service {}, base {}, n {}",
            key.addr,
            key.port.get(),
            frontend.service_id,
            frontend.base,
            frontend.n
        ),
        Write::PutFrontendPorts { word, bits } => format!("frontend_ports[{word}] = {bits:#x}"),
        Write::PutSettings(settings) => format!("settings = node {}", settings.node4),
        other => format!("{other:?}"),
    }
}

fn policy_write(op: &Write) -> String {
    match op {
        Write::PutGroup { id, group } => format!(
            "groups[{id}] = flags {:#x}, any {}, accept {}, deny {}",
            group.flags.bits(),
            bits(&group.any),
            bits(&group.accept),
            bits(&group.deny)
        ),
        Write::PutPeerBits { key, bits: Bits { words } } => {
            format!("peer_bits[group {}, identity {}] = {}", key.group, key.ident, bits(words))
        }
        Write::DeletePeerBits { key } => {
            format!("delete peer_bits[group {}, identity {}]", key.group, key.ident)
        }
        Write::PutPortBits { len, key, bits: Bits { words } } => format!(
            "port_bits[group {}, protocol {}, port {} /{len}] = {}",
            key.group,
            key.proto,
            key.port.get(),
            bits(words)
        ),
        Write::DeletePortBits { len, key } => format!(
            "delete port_bits[group {}, protocol {}, port {} /{len}]",
            key.group,
            key.proto,
            key.port.get()
        ),
        Write::PutIdent { addr, ident } => {
            format!("ident[{addr}] = identity {}, flags {:#x}", ident.ident, ident.flags.bits())
        }
        Write::PutPod { ifindex, pod } => {
            format!("pods[{ifindex}] = ingress {}, egress {}", pod.ingress, pod.egress)
        }
        Write::PutPolicyState(state) => format!("policy = epoch {}", state.epoch),
        other => format!("{other:?}"),
    }
}

/// Sorts neighbors that may be written in any order.
fn sorted(ops: &[Write]) -> Vec<Write> {
    let rank = |op: &Write| match op {
        Write::PutIdent { addr, .. } => Some((Some(*addr), 0)),
        Write::DeletePeerBits { key } => Some((None, key.ident)),
        _ => None,
    };
    let mut ops = ops.to_vec();
    for run in ops.chunk_by_mut(|a, b| rank(a).is_some() && rank(b).is_some()) {
        run.sort_by_key(rank);
    }
    ops
}

/// Reports whether identities were numbered in the order of addresses. The planner visits addresses in any order; the
/// chapter shows one.
fn is_in_order(text: &str) -> bool {
    text.contains("ident[10.1.0.2] = identity 2")
}

fn bits(words: &[u64]) -> String {
    match words {
        [first, rest @ ..] if rest.iter().all(|word| *word == 0) => format!("{first:#b}"),
        words => format!("{words:x?}"),
    }
}

/// Returns the lookups of the first packet of a connection from a Pod.
fn packet(world: &World, client: &str, service: &str) -> String {
    let mut text = String::new();
    let mut step = |what: String, found: String| {
        writeln!(text, "{}", format!("{what:<44}  {found}").trim_end()).unwrap();
    };
    let pods = world.local_pods();
    let find = |wanted: &str| pods.iter().find(|(_, name, _)| name.to_string() == wanted).unwrap();
    let addr = find(client).2.ips[0];
    let key = FrontendKey::new(Addr::from_ip(service.parse().unwrap()), Be16::new(80), proto::TCP);
    let frontend = world.snapshot.frontends.iter().find(|found| found.key == key).unwrap();
    let (base, n) = (frontend.frontend.base, frontend.frontend.n);
    step(format!("frontends[{service}:80]"), format!("{n} slot, from {base} on"));
    let id = frontend.backend_ids[0];
    step(format!("slots[{base}]"), format!("backend {id}"));
    let backend = world.snapshot.backends[&id];
    let port = backend.port;
    step(format!("backends[{id}]"), format!("{}:{}", backend.addr, port.get()));
    let egress = world.tables.pods[&find(client).0].egress;
    step(format!("pods[{}].egress", find(client).0), format!("group {egress}: no policy"));
    assert_eq!(egress, 0);
    let server = pods.iter().find(|(.., pod)| pod.ips.contains(&backend.addr)).unwrap().0;
    let group = world.tables.pods[&server].ingress;
    step(format!("pods[{server}].ingress"), format!("group {group}"));
    let ident = identify(&world.tables, &addr).unwrap();
    step(format!("ident[{addr}]"), format!("identity {ident}"));
    let none = Bits::ZERO;
    let peers = world.tables.peer_bits(&PeerKey { group, ident }).unwrap_or(&none);
    step(format!("peer_bits[group {group}, identity {ident}]"), bits(&peers.words));
    let key = PortKey { group, guess: 0, proto: proto::TCP, port };
    let ports = world.tables.port_bits(&key).unwrap_or(&none);
    step(format!("port_bits[group {group}, protocol 6, port {}]", port.get()), bits(&ports.words));
    let judgement = ask(&world.tables, server, &addr);
    step("judge()".to_owned(), said(judgement));
    text
}

/// Judges a new connection to port 8080 of the Pod behind a device.
fn ask(tables: &Actual, ifindex: u32, peer: &Addr) -> Judgement {
    let group = tables.pods[&ifindex].ingress;
    let ident = identify(tables, peer).unwrap();
    let port = Be16::new(8080);
    let question =
        Question { group, ident, proto: proto::TCP, port, own: false, port_unknown: false };
    if group == 0 { Judgement::ALLOWED } else { judge(tables, &question) }
}

fn said(judgement: Judgement) -> String {
    let word = if judgement.denied() { "denied" } else { "allowed" };
    match judgement.rule() {
        Some(rule) => format!("{word} by rule {rule}"),
        None => format!("{word}: no rule applies"),
    }
}

/// Returns the writes when the policy admits another Pod, with the verdicts for both Pods after each.
fn switch(chapter: &CheckedDocument) -> String {
    let yaml = chapter.example("yaml");
    let worlds = [
        yaml.to_owned(),
        yaml.replace("{matchLabels: {role: api}}", "{matchLabels: {role: batch}}"),
    ]
    .map(|yaml| World::new(&format!("---\n{yaml}")));
    let mut compiler = Compiler::default();
    let mut tables = Actual::default();
    let mut planner = Planner::restore(Actual::default(), Capacity::default());
    let mut text = format!("{:<60}{:<9}{}\n", "", "api", "batch");
    let mut verdicts = Vec::new();
    let (mut now, mut last) = (Duration::ZERO, Duration::ZERO);
    // The policy as it was, as it is, and what follows until nothing is left to do.
    for round in 0..10 {
        let world = &worlds[round.min(1)];
        let desired = compiler.compile(&world.cluster.snapshot());
        let (devices, veths) = (devices("n1"), world.veths());
        let wanted = DesiredTables {
            desired: Some(&desired),
            devices: &devices,
            veths: &veths,
            strict: false,
            pickup_until: 0,
        };
        for veth in &veths {
            let plan = planner.plan_pod(None, veth, 0);
            planner.apply(plan, &mut tables, &mut || now);
        }
        now = planner.policies().next_wakeup().unwrap_or(now + Duration::from_secs(1));
        let plan = planner.plan_policies(&wanted, now);
        if round > 1 && !plan.writes.is_empty() {
            writeln!(text, "the next plan, {} s later", (now - last).as_secs()).unwrap();
        }
        last = now;
        for op in &sorted(&plan.writes) {
            tables.record(op);
            let pods = world.local_pods();
            let verdict = |client: &str| {
                let find = |wanted: &str| pods.iter().find(|(_, name, _)| &*name.name == wanted);
                let (peer, server) = (find(client).unwrap().2.ips[0], find("web-1").unwrap().0);
                if ask(&tables, server, &peer).denied() { "denied" } else { "allowed" }
            };
            if round > 0 {
                let (api, batch) = (verdict("api"), verdict("batch"));
                verdicts.push((api, batch));
                writeln!(text, "{:<60}{api:<9}{batch}", policy_write(op)).unwrap();
            }
        }
        let applied = planner.apply(plan, &mut Actual::default(), &mut || now);
        assert!(applied.failed.is_empty());
        assert_eq!(planner.actual(), &tables, "the writes one by one");
    }
    verdicts.dedup();
    assert_eq!(verdicts.len(), 2, "one write changes verdicts, and it changes both");
    text
}
