//! `lbctl policy try`: what a change of policies would do to the flows that are live, and to those that were denied recently.
#![expect(missing_docs, reason = "a field without a comment is what its name says")]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::io::Write;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::attribution::{DecidedBy, PolicyId, RuleAt, RuleId};
use crate::columns::{self, Cell, Column, Format, Row, Style};
use crate::network::protocol_name;
use crate::pairs::{LivePair, PairBy, PairEnd, end};
use lb_core::admin::Remark;
use lb_core::admin::context::RecordJudgement;
use lb_core::admin::what_if::{ChangedVerdict, SeenFlow, WhatIfAnswer};
use lb_core::model::policy::PolicyDirection;

/// What the agent says of a change, of all flows together.
#[derive(Clone, Debug, Default)]
pub struct TrialAnswer {
    /// What happens to each flow whose fate would change.
    pub fates: HashMap<SeenFlow, Fate>,
    /// Whether the agent's records are complete.
    pub complete: bool,
    /// What is wrong with the change.
    pub issues: Vec<Remark>,
    /// Policies that are to be removed and do not exist.
    pub missing: Vec<String>,
}

/// What would happen to a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fate {
    /// Whether it would be denied; otherwise it would be allowed.
    pub denied: bool,
    /// Where, as the Pod sees it.
    pub direction: PolicyDirection,
    /// The policies that would deny it; if it would be allowed, that deny it now.
    pub by: DecidedBy,
}

impl TrialAnswer {
    /// Adds what was answered about these flows.
    pub fn add(&mut self, flows: &[SeenFlow], answer: WhatIfAnswer) {
        let mut changes = BTreeMap::<u32, Vec<ChangedVerdict>>::new();
        for change in answer.changes {
            changes.entry(change.flow).or_default().push(change);
        }
        for (index, changes) in changes {
            // Its fate is the same where another Pod's policies deny it in both cases.
            if answer.still_denied.contains(&index) {
                continue;
            }
            let flow = usize::try_from(index).ok().and_then(|index| flows.get(index));
            // It needs all Pods to be allowed, and one to be denied.
            let denied = changes.iter().any(|change| change.denied);
            let was_denied = changes.iter().any(|change| !change.denied);
            let deciding = changes.iter().find(|change| change.denied == denied);
            if let (Some(flow), Some(change)) = (flow, deciding.filter(|_| !(denied && was_denied)))
            {
                let by = decided_by(if denied { &change.then } else { &change.now });
                let direction = change.direction;
                self.fates.insert(*flow, Fate { denied, direction, by });
            }
        }
        self.complete = answer.complete;
        self.issues = answer.issues;
        self.missing = answer.missing.iter().map(ToString::to_string).collect();
    }
}

fn decided_by(judgement: &RecordJudgement) -> DecidedBy {
    DecidedBy {
        policies: judgement.policies.iter().cloned().map(PolicyId::Named).collect(),
        rule: judgement
            .rule
            .map(|(direction, index, others)| RuleId::Written(RuleAt { direction, index, others })),
    }
}

/// The policies that decide, in words.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DecidedWords {
    /// The policy whose rule decides; where none does, those that isolate the Pod.
    pub policies: Vec<String>,
    /// The path of the rule, empty when none decides.
    pub rule: String,
}

impl From<&DecidedBy> for DecidedWords {
    fn from(by: &DecidedBy) -> Self {
        Self { policies: by.policies.iter().map(PolicyId::to_string).collect(), rule: by.path() }
    }
}

impl fmt::Display for DecidedWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rule = if self.rule.is_empty() { "default-deny" } else { &self.rule };
        write!(f, "{} {rule}", self.policies.join(","))
    }
}

/// Flows with one fate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrialRow {
    /// `denied` or `allowed`.
    pub change: String,
    pub count: u64,
    pub src: PairEnd,
    /// Behind a Service the backend.
    pub dst: PairEnd,
    /// Destination port; 0 for protocols without ports.
    pub port: u16,
    /// Name of the IP protocol (`TCP`), or its IANA number.
    pub protocol: String,
    /// `namespace/name:port` of the Service, or empty.
    pub via: String,
    /// `egress` or `ingress`, as the Pod sees it whose policies decide.
    pub direction: String,
    /// The policies that would deny them; of flows that would be allowed, that deny them now.
    pub by: DecidedWords,
}

impl Row for TrialRow {
    const NOUN: &'static str = "changes";
    const COLUMNS: &'static [Column] = &[
        Column::new("CHANGE"),
        Column::new("COUNT"),
        Column::new("SRC"),
        Column::new("DST"),
        Column::new("PORT"),
        Column::new("PROTO"),
        Column::new("VIA"),
        Column::new("DIRECTION"),
        Column::new("BY"),
        Column::wide("SRC-ADDRESS"),
        Column::wide("DST-ADDRESS"),
    ];

    fn cells(&self) -> Vec<Cell> {
        let text = |text: &str| Cell::Text(text.to_owned());
        vec![
            text(&self.change),
            Cell::Number(self.count),
            text(&self.src.name),
            text(&self.dst.name),
            Cell::Number(self.port.into()),
            text(&self.protocol),
            text(&self.via),
            text(&self.direction),
            Cell::Text(self.by.to_string()),
            text(&self.src.address),
            text(&self.dst.address),
        ]
    }

    fn name(&self) -> Option<String> {
        None
    }
}

/// The whole answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrialReport {
    /// This node.
    pub node: String,
    /// How long flows were looked for; 0 = once.
    #[serde(default)]
    pub seconds: u64,
    /// Live flows that were judged: all that there were in this time.
    pub flows: u64,
    /// Those of them that would be denied.
    pub denied: u64,
    /// Flows of the agent's sample that were denied.
    pub recently_denied: u64,
    /// Those of them that would be allowed.
    pub allowed: u64,
    /// Whether the agent's records are complete: otherwise Pods of other nodes are taken for clients outside.
    pub complete: bool,
    /// What of the change could not be read or compiled, or has no room.
    pub issues: Vec<Remark>,
    pub items: Vec<TrialRow>,
    /// For a laptop: through which Services the clients of this node opened their flows. The node of the server does not see it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dialed: Vec<DialedService>,
}

/// The Service through which flows with these ends were opened.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DialedService {
    pub src: PairEnd,
    /// The backend.
    pub dst: PairEnd,
    pub port: u16,
    /// Name of the IP protocol (`TCP`), or its IANA number.
    pub protocol: String,
    /// `namespace/name:port` of the Service, or empty when they dialed the backend itself.
    pub via: String,
}

impl TrialReport {
    /// Whether a live flow would break.
    pub fn breaks(&self) -> bool {
        self.denied > 0
    }

    /// The first line.
    pub fn summary(&self) -> String {
        let Self { node, seconds, flows, denied, recently_denied, allowed, .. } = self;
        let place = if node.is_empty() { "this node" } else { node };
        let when = if *seconds == 0 { String::new() } else { format!(" in {seconds} s") };
        let [flows, denied, recent, allowed] =
            [*flows, *denied, *recently_denied, *allowed].map(number);
        format!(
            "of {flows} live flows on {place}{when} {denied} would be denied; \
             of {recent} recently denied {allowed} would be allowed"
        )
    }
}

/// A number with separators: `4,213`.
pub fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// What a trial is made from.
pub struct TrialFacts<'a> {
    pub node: &'a str,
    pub live: &'a [LivePair],
    /// Flows that were denied, and how often.
    pub denied: &'a [LivePair],
    /// Who has an address: `namespace/name` of a Pod, `node/name`, or empty.
    pub owner: &'a dyn Fn(IpAddr) -> String,
    /// Whether this node counts a live flow; if not, another node does.
    pub is_counted: &'a dyn Fn(&LivePair) -> bool,
}

/// The Services through which the flows that this node counts were opened, for [`TrialReport::dialed`].
pub fn dialed(facts: &TrialFacts<'_>) -> Vec<DialedService> {
    let opened = facts.live.iter().filter(|pair| (facts.is_counted)(pair));
    let services = opened.map(|LivePair { flow, via, .. }| {
        let [src, dst] = [flow.src, flow.dst].map(|ip| end(ip, &(facts.owner)(ip), PairBy::Pair));
        let protocol = protocol_name(flow.protocol);
        DialedService { src, dst, port: flow.port, protocol, via: via.clone() }
    });
    services.collect::<BTreeSet<_>>().into_iter().collect()
}

/// Counts the flows whose fate would change, those of a workload together.
pub fn trial(facts: &TrialFacts<'_>, answer: TrialAnswer) -> TrialReport {
    let mut counts = BTreeMap::new();
    let mut sums = [0, 0];
    for (pairs, denied) in [(facts.live, true), (facts.denied, false)] {
        for LivePair { flow, via, count, .. } in pairs {
            let fate = answer.fates.get(flow).filter(|fate| fate.denied == denied);
            let Some(Fate { direction, by, .. }) = fate else { continue };
            if let Some(sum) = sums.get_mut(usize::from(!denied)) {
                *sum += count;
            }
            let [src, dst] =
                [flow.src, flow.dst].map(|ip| end(ip, &(facts.owner)(ip), PairBy::Pair));
            let change = if denied { "denied" } else { "allowed" };
            let key = (src, dst, flow.port, flow.protocol, via.clone(), by.to_string());
            let key = (std::cmp::Reverse(denied), key, *direction);
            let row = counts.entry(key).or_insert_with_key(|(_, key, _)| TrialRow {
                change: change.to_owned(),
                count: 0,
                src: key.0.clone(),
                dst: key.1.clone(),
                port: flow.port,
                protocol: protocol_name(flow.protocol),
                via: via.clone(),
                direction: direction.name().to_owned(),
                by: by.into(),
            });
            row.count += count;
        }
    }
    let [denied, allowed] = sums;
    let sum = |pairs: &[LivePair]| pairs.iter().map(|pair| pair.count).sum();
    let counted = facts.live.iter().filter(|pair| (facts.is_counted)(pair));
    let mut items: Vec<TrialRow> = counts.into_values().collect();
    sort(&mut items);
    TrialReport {
        node: facts.node.to_owned(),
        seconds: 0,
        flows: counted.map(|pair| pair.count).sum(),
        denied,
        recently_denied: sum(facts.denied),
        allowed,
        complete: answer.complete,
        issues: answer.issues,
        items,
        dialed: Vec::new(),
    }
}

fn sort(items: &mut [TrialRow]) {
    items.sort_by(|a, b| {
        let key = |row: &TrialRow| (row.change == "allowed", std::cmp::Reverse(row.count));
        key(a).cmp(&key(b))
    });
}

/// The answer of several nodes. A flow between two nodes may be denied at either of them, or at both, and is one flow.
pub fn together(nodes: Vec<TrialReport>) -> Option<TrialReport> {
    let names: Vec<String> = nodes.iter().map(|report| report.node.clone()).collect();
    let mut rows = BTreeMap::<_, [Option<TrialRow>; 2]>::new();
    let mut whole = nodes.into_iter().reduce(|mut whole, mut one| {
        whole.flows += one.flows;
        whole.recently_denied += one.recently_denied;
        whole.complete &= one.complete;
        one.issues.retain(|issue| !whole.issues.contains(issue));
        whole.issues.append(&mut one.issues);
        whole.items.append(&mut one.items);
        whole.dialed.append(&mut one.dialed);
        whole
    })?;
    for row in whole.items.drain(..) {
        let key = (row.change.clone(), row.src.clone(), row.dst.clone(), row.port);
        let places = rows.entry((key, row.protocol.clone())).or_default();
        let [ingress, egress] = places;
        let place = if row.direction == "egress" { egress } else { ingress };
        match place {
            Some(known) => {
                known.count += row.count;
                // The client's node knows the Service.
                if known.via.is_empty() {
                    known.via = row.via;
                }
            }
            None => *place = Some(row),
        }
    }
    let most = rows
        .into_values()
        .filter_map(|places| places.into_iter().flatten().max_by_key(|row| row.count));
    whole.items = most.collect();
    fill_via(&mut whole.items, std::mem::take(&mut whole.dialed));
    sort(&mut whole.items);
    let sum = |change: &str| {
        whole.items.iter().filter(|row| row.change == change).map(|row| row.count).sum()
    };
    (whole.denied, whole.allowed) = (sum("denied"), sum("allowed"));
    if names.len() > 1 {
        whole.node = format!("{} nodes", names.len());
    }
    Some(whole)
}

/// Adds the Service to rows that only the node of the server made, where all clients used the same one.
fn fill_via(items: &mut [TrialRow], dialed: Vec<DialedService>) {
    let mut services = BTreeMap::<_, BTreeSet<String>>::new();
    for DialedService { src, dst, port, protocol, via } in dialed {
        services.entry((src, dst, port, protocol)).or_default().insert(via);
    }
    for row in items.iter_mut().filter(|row| row.via.is_empty() && row.change == "denied") {
        let key = (row.src.clone(), row.dst.clone(), row.port, row.protocol.clone());
        let mut known = services.get(&key).into_iter().flatten();
        if let (Some(via), None) = (known.next(), known.next()) {
            row.via.clone_from(via);
        }
    }
}

/// Prints the answer in a format.
///
/// # Errors
/// When it has no such format, or nothing can be written.
pub fn print_as(out: &mut dyn Write, trial: &TrialReport, style: &Style) -> anyhow::Result<()> {
    match style.output {
        Format::Json | Format::Yaml | Format::JsonPath(_) => {
            columns::document(out, trial, style.output)
        }
        Format::Rows => columns::json_line(out, trial),
        Format::Name => anyhow::bail!("a trial cannot be printed as names"),
        Format::Table | Format::Wide => print(out, trial, style),
    }
}

/// Prints the first line and the table.
///
/// # Errors
/// When nothing can be written.
pub fn print(out: &mut dyn Write, trial: &TrialReport, style: &Style) -> anyhow::Result<()> {
    columns::line(out, trial.summary())?;
    if trial.items.is_empty() {
        return Ok(());
    }
    columns::print(out, &trial.items, &trial.node, style)
}

/// A remark as one line.
pub fn remark_line(remark: &Remark) -> String {
    let Remark { object, field, message } = remark;
    if field.is_empty() {
        format!("{object}: {message}")
    } else {
        format!("{object}: {field}: {message}")
    }
}
