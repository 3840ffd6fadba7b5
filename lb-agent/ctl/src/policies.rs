//! `lbctl policy list` and `lbctl policy show`: the policies that this node enforces, and one with its rules.

use std::io::{self, Write};

use serde::Serialize;

use crate::columns::{self, Cell, Column, Row};
use crate::view::View;
use lb_core::admin::policy::{Rule, Selected, View as Policy};
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
    const COLUMNS: &'static [Column] = &[
        Column::new("NAMESPACE"),
        Column::new("NAME"),
        Column::new("TIER"),
        Column::new("PRIO"),
        Column::new("SUBJECTS"),
        Column::new("RULES"),
        Column::new("HITS"),
        Column::new("LAST-HIT"),
        Column::new("STATE"),
        Column::new("GENERATION"),
        Column::new("AGE"),
        Column::wide("ISSUE"),
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

/// Prints one policy with its rules.
///
/// # Errors
/// When the output cannot be written.
pub fn print(out: &mut dyn Write, policy: &Policy) -> io::Result<()> {
    let Policy { name, kind, tier, priority, shadow, generation, subject, issues, .. } = policy;
    columns::line(out, format_args!("{kind} {name}"))?;
    let mode = if *shadow { "shadow: evaluated and counted, but not enforced" } else { "enforced" };
    let mut lines = vec![
        ["tier".to_owned(), format!("{tier}, priority {priority}")],
        ["mode".to_owned(), mode.to_owned()],
        ["generation".to_owned(), generation.to_string()],
        ["subject".to_owned(), selected(subject, "Pods")],
    ];
    lines.extend(issues.iter().map(|issue| ["issue".to_owned(), issue.clone()]));
    let Policy { ingress, egress, default_denied, .. } = policy;
    for (direction, rules, denied) in
        [("ingress", ingress, default_denied.ingress), ("egress", egress, default_denied.egress)]
    {
        let text = match rules {
            None => "not covered by this policy".to_owned(),
            Some(rules) if rules.is_empty() && kind == "NetworkPolicy" => {
                "isolated, no traffic allowed".to_owned()
            }
            Some(rules) => format!("{} rules", rules.len()),
        };
        let denied =
            if denied == 0 { "" } else { &format!("; {denied} flows denied by isolation") };
        lines.push([direction.to_owned(), format!("{text}{denied}")]);
    }
    let lines: Vec<Vec<String>> = lines.into_iter().map(Vec::from).collect();
    columns::align(out, &lines, "  ")?;
    for rule in ingress.iter().chain(egress).flatten() {
        print_rule(out, rule)?;
    }
    Ok(())
}

fn print_rule(out: &mut dyn Write, rule: &Rule) -> io::Result<()> {
    let Rule { path, action, name, peers, ports, hits, counted_in } = rule;
    let ports = match ports.as_deref() {
        None => "all protocols and ports".to_owned(),
        Some([]) => "no ports".to_owned(),
        Some(ports) => ports.join(", "),
    };
    let name = if name.is_empty() { String::new() } else { format!(" \"{name}\"") };
    let action = action.to_lowercase();
    let hits = match counted_in.as_str() {
        "" => format!("{hits} hits"),
        first => format!("hits counted in {first}"),
    };
    columns::line(out, format_args!("{path}{name} {action}: {ports}; {hits}"))?;
    match peers.as_deref() {
        None => writeln!(out, "  all peers"),
        Some([]) => writeln!(out, "  no peers"),
        Some(peers) => {
            let lines: Vec<Vec<String>> =
                peers.iter().map(|peer| vec![peer.path.clone(), selected(peer, "Pods")]).collect();
            columns::align(out, &lines, "  ")
        }
    }
}

fn selected(selected: &Selected, noun: &str) -> String {
    let Selected { path: _, wants, count, examples } = selected;
    let noun = if wants.contains("nodes") { "nodes" } else { noun };
    let noun = if *count == 1 { noun.trim_end_matches('s') } else { noun };
    let more = if *count as usize > examples.len() { ", ..." } else { "" };
    match examples.as_slice() {
        [] => format!("{wants}: {count} {noun}"),
        examples => format!("{wants}: {count} {noun} ({}{more})", examples.join(", ")),
    }
}
