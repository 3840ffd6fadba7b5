//! `lbctl policy list` and `lbctl policy show`: the policies that this node enforces, and one with its rules.

use std::io::{self, Write};

use serde::Serialize;

use crate::columns::{self, Cell, Column, MergeRule, Row, RowScope};
use crate::view::View;
use crate::words;
use lb_core::admin::Remark;
use lb_core::admin::policy::{DeniedFlows, PolicyView as Policy, RuleView, Selected};
use lb_core::cluster::{Name, Peer, Tier};
use lb_core::model::policy::PolicyDirection;
use lb_core::names::PolicyName;

/// One policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRow {
    /// Namespace, empty of one of the cluster.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// `Admin`, `NetworkPolicy` or `Baseline`.
    pub tier: String,
    /// Priority within the tier.
    pub priority: u16,
    /// Pods of this node that it selects.
    pub subjects: u32,
    /// Its rules, of both directions.
    pub rules: u32,
    /// New flows that it decided since the agent's start, by a rule or by isolating a Pod.
    pub hits: u64,
    /// Seconds since the last of them.
    pub last_hit: Option<u64>,
    /// `enforced`, `shadow` or `error`.
    pub state: &'static str,
    /// `metadata.generation` of what the tables say.
    pub generation: i64,
    /// Seconds since its creation.
    pub age: Option<u64>,
    /// What is wrong with it.
    pub issue: String,
}

impl Row for PolicyRow {
    const NOUN: &'static str = "policies";
    const SCOPE: RowScope = RowScope::Cluster;
    const COLUMNS: &'static [Column] = &[
        Column::new("NAMESPACE"),
        Column::new("NAME"),
        Column::new("TIER"),
        Column::new("PRIO"),
        Column::new("SUBJECTS").merged(MergeRule::Sum),
        Column::new("RULES").merged(MergeRule::Largest),
        Column::new("HITS").merged(MergeRule::Sum),
        Column::new("LAST-HIT").merged(MergeRule::Smallest),
        Column::new("STATE"),
        Column::new("GENERATION"),
        Column::new("AGE").merged(MergeRule::Largest),
        Column::wide("ISSUE").merged(MergeRule::Union),
    ];

    fn cells(&self) -> Vec<Cell> {
        vec![
            Cell::Text(self.namespace.clone()),
            Cell::Text(self.name.clone()),
            Cell::Text(self.tier.clone()),
            Cell::Number(self.priority.into()),
            Cell::Number(self.subjects.into()),
            Cell::Number(self.rules.into()),
            Cell::Number(self.hits),
            Cell::age(self.last_hit),
            Cell::Text(self.state.to_owned()),
            Cell::Number(u64::try_from(self.generation).unwrap_or_default()),
            Cell::age(self.age),
            Cell::Note(self.issue.clone()),
        ]
    }

    fn name(&self) -> Option<String> {
        Some(full(&self.namespace, &self.name))
    }
}

/// The policies of a namespace, or all, in the order of evaluation.
pub fn rows(view: &View<'_>, namespace: Option<&str>) -> Vec<PolicyRow> {
    let policies = view.names.policies.iter();
    let wanted =
        policies.filter(|policy| namespace.is_none_or(|wanted| wanted == policy.namespace));
    wanted.map(|policy| row(view, policy)).collect()
}

fn row(view: &View<'_>, policy: &PolicyName<'_>) -> PolicyRow {
    let kind = if policy.namespace.is_empty() { "ClusterNetworkPolicy" } else { "NetworkPolicy" };
    let object = format!("{kind} {}", full(&policy.namespace, &policy.name));
    let issues = view.names.issues.iter().filter(|issue| issue.object == object);
    let issues: Vec<String> =
        issues.map(|issue| format!("{}: {}", issue.field, issue.message)).collect();
    PolicyRow {
        namespace: policy.namespace.to_string(),
        name: policy.name.to_string(),
        tier: policy.tier.to_string(),
        priority: policy.priority,
        subjects: policy.subjects,
        rules: policy.rules,
        hits: policy.hits,
        last_hit: view.since(policy.last_hit),
        state: match (issues.is_empty(), policy.shadow) {
            (false, _) => "error",
            (true, true) => "shadow",
            (true, false) => "enforced",
        },
        generation: policy.generation,
        age: view.since(policy.created),
        issue: issues.join("; "),
    }
}

fn full(namespace: &str, name: &str) -> String {
    if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") }
}

/// One policy with its rules, as JSON and YAML have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Document {
    /// `namespace/name`, or the name of a ClusterNetworkPolicy.
    pub name: String,
    /// `NetworkPolicy` or `ClusterNetworkPolicy`.
    pub kind: &'static str,
    /// Its tier.
    pub tier: &'static str,
    /// Its priority in the tier.
    pub priority: u16,
    /// Whether it is evaluated without being enforced.
    pub shadow: bool,
    /// `metadata.generation`.
    pub generation: i64,
    /// The Pods that it selects.
    pub subject: SelectedDocument,
    /// Its ingress rules; `None` = it does not apply to that direction.
    pub ingress: Option<Vec<RuleDocument>>,
    /// Its egress rules, likewise.
    pub egress: Option<Vec<RuleDocument>>,
    /// New flows denied by isolation.
    pub default_denied: DeniedFlows,
    /// What is wrong with it.
    pub issues: Vec<String>,
}

/// A selector and what it selects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SelectedDocument {
    /// Path of a peer in `spec`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// The selector in words.
    pub wants: String,
    /// Pods (or nodes) that it selects, in the whole cluster.
    pub count: u32,
    /// The first of them.
    pub examples: Vec<String>,
}

/// One of its rules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleDocument {
    /// Path in `spec`.
    pub path: String,
    /// `Accept`, `Deny` or `Pass`.
    pub action: &'static str,
    /// Its name, may be empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Its peers; `None` = all.
    pub peers: Option<Vec<SelectedDocument>>,
    /// Its ports; `None` = all.
    pub ports: Option<Vec<String>>,
    /// New flows that it decided since the agent's start.
    pub hits: u64,
    /// Path of the rule whose hits include those of this one; empty = it has its own.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub counted_in: String,
}

/// Returns the document of a policy.
pub fn document(policy: &Policy) -> Document {
    let rules = |direction: PolicyDirection, rules: &Option<Vec<RuleView>>| {
        let rules = (0..).zip(rules.as_ref()?);
        let rule = |(index, rule)| rule_document(policy, (direction, index), rule);
        Some(rules.map(rule).collect())
    };
    let (subject, pods) = &policy.subject;
    Document {
        name: policy.name.to_string(),
        kind: policy.tier.kind(),
        tier: policy.tier.name(),
        priority: policy.priority,
        shadow: policy.shadow,
        generation: policy.generation,
        subject: selected_document(
            String::new(),
            words::pods(&policy.name.namespace, subject),
            pods,
        ),
        ingress: rules(PolicyDirection::Ingress, &policy.ingress),
        egress: rules(PolicyDirection::Egress, &policy.egress),
        default_denied: policy.default_denied,
        issues: policy.issues.iter().map(issue).collect(),
    }
}

fn rule_document(
    policy: &Policy,
    (direction, index): (PolicyDirection, u32),
    rule: &RuleView,
) -> RuleDocument {
    let peer = |(at, (peer, pods)): (u32, &(Peer, Selected))| {
        let path = words::peer_path(direction, index, at);
        selected_document(path, words::peer(&policy.name.namespace, peer), pods)
    };
    let path = |rule| words::rule_path(direction, rule);
    RuleDocument {
        path: path(index),
        action: rule.action.name(),
        name: rule.name.to_string(),
        peers: rule.peers.as_ref().map(|peers| (0..).zip(peers).map(peer).collect()),
        ports: rule.ports.as_ref().map(|ports| ports.iter().map(words::port).collect()),
        hits: rule.hits,
        counted_in: rule.counted_in.map(path).unwrap_or_default(),
    }
}

fn selected_document(path: String, wants: String, selected: &Selected) -> SelectedDocument {
    let examples = selected.examples.iter().map(Name::to_string).collect();
    SelectedDocument { path, wants, count: selected.count, examples }
}

fn issue(issue: &Remark) -> String {
    format!("{}: {}", issue.field, issue.message)
}

/// Prints one policy with its rules.
///
/// # Errors
/// When the output cannot be written.
pub fn print(out: &mut dyn Write, policy: &Policy) -> io::Result<()> {
    let Policy { name, tier, priority, shadow, generation, subject, issues, .. } = policy;
    columns::line(out, format_args!("{} {name}", tier.kind()))?;
    let mode = if *shadow { "shadow: evaluated and counted, but not enforced" } else { "enforced" };
    let subject = selected(&words::pods(&name.namespace, &subject.0), &subject.1, "Pod");
    let mut lines = vec![
        ["tier".to_owned(), format!("{}, priority {priority}", tier.name())],
        ["mode".to_owned(), mode.to_owned()],
        ["generation".to_owned(), generation.to_string()],
        ["subject".to_owned(), subject],
    ];
    lines.extend(issues.iter().map(|one| ["issue".to_owned(), issue(one)]));
    let Policy { ingress, egress, default_denied, .. } = policy;
    for (direction, rules, denied) in [
        (PolicyDirection::Ingress, ingress, default_denied.ingress),
        (PolicyDirection::Egress, egress, default_denied.egress),
    ] {
        let text = match rules {
            None => "not covered by this policy".to_owned(),
            Some(rules) if rules.is_empty() && *tier == Tier::NetworkPolicy => {
                "isolated, no traffic allowed".to_owned()
            }
            Some(rules) => format!("{} rules", rules.len()),
        };
        let denied =
            if denied == 0 { "" } else { &format!("; {denied} flows denied by isolation") };
        lines.push([direction.name().to_owned(), format!("{text}{denied}")]);
    }
    let lines: Vec<Vec<String>> = lines.into_iter().map(Vec::from).collect();
    columns::align(out, &lines, "  ")?;
    for (direction, rules) in
        [(PolicyDirection::Ingress, ingress), (PolicyDirection::Egress, egress)]
    {
        for (index, rule) in (0..).zip(rules.iter().flatten()) {
            print_rule(out, &name.namespace, (direction, index), rule)?;
        }
    }
    Ok(())
}

fn print_rule(
    out: &mut dyn Write,
    namespace: &str,
    (direction, index): (PolicyDirection, u32),
    rule: &RuleView,
) -> io::Result<()> {
    let RuleView { action, name, peers, ports, hits, counted_in } = rule;
    let ports = match ports.as_deref() {
        None => "all protocols and ports".to_owned(),
        Some([]) => "no ports".to_owned(),
        Some(ports) => ports.iter().map(words::port).collect::<Vec<_>>().join(", "),
    };
    let name = if name.is_empty() { String::new() } else { format!(" \"{name}\"") };
    let action = action.name().to_lowercase();
    let hits = match counted_in {
        None => format!("{hits} hits"),
        Some(first) => format!("hits counted in {}", words::rule_path(direction, *first)),
    };
    let path = words::rule_path(direction, index);
    columns::line(out, format_args!("{path}{name} {action}: {ports}; {hits}"))?;
    match peers.as_deref() {
        None => writeln!(out, "  all peers"),
        Some([]) => writeln!(out, "  no peers"),
        Some(peers) => {
            let line = |(at, (peer, found)): (u32, &(Peer, Selected))| {
                let noun = if matches!(peer, Peer::Nodes(_)) { "node" } else { "Pod" };
                let text = selected(&words::peer(namespace, peer), found, noun);
                vec![words::peer_path(direction, index, at), text]
            };
            let lines: Vec<Vec<String>> = (0..).zip(peers).map(line).collect();
            columns::align(out, &lines, "  ")
        }
    }
}

fn selected(wants: &str, selected: &Selected, noun: &str) -> String {
    let Selected { count, examples } = selected;
    let plural = if *count == 1 { "" } else { "s" };
    let more = if *count as usize > examples.len() { ", ..." } else { "" };
    let examples: Vec<String> = examples.iter().map(Name::to_string).collect();
    match examples.as_slice() {
        [] => format!("{wants}: {count} {noun}{plural}"),
        examples => format!("{wants}: {count} {noun}{plural} ({}{more})", examples.join(", ")),
    }
}
