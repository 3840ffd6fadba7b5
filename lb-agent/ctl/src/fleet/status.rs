//! The reports of all nodes → one screen: the cluster's verdict, a line a node, what is wrong with objects once.
#![expect(missing_docs, reason = "a field without a comment is what its name says")]

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::Serialize;

use crate::columns::{self, NONE, age};
use crate::fleet::ask::NoAnswer;
use crate::fleet::merge::nodes_text;
use crate::status::{Report, StatusIssue};
use lb_core::names::{State, StatusPart};

/// Subsystem of the agent itself.
const AGENT: &str = StatusPart::Agent.name();

/// The whole report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClusterReport {
    /// `OK` or `DEGRADED`.
    pub verdict: &'static str,
    /// What is degraded, one line; empty when nothing is.
    pub because: String,
    pub nodes: Vec<NodeStatus>,
    /// What is wrong with objects, each once.
    pub issues: Vec<ClusterIssue>,
    /// The slow-path counters, all nodes together.
    pub counters: BTreeMap<String, u64>,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeStatus {
    pub node: String,
    /// `OK`, `DEGRADED`, or `UNKNOWN` if no agent answers.
    pub verdict: String,
    /// What is degraded, or why there is no answer.
    pub because: String,
    /// The node's own report.
    pub report: Option<Report>,
}

/// One thing that is wrong with one object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClusterIssue {
    #[serde(flatten)]
    pub issue: StatusIssue,
    /// Nodes that report it.
    pub nodes: Vec<String>,
}

/// Makes the report.
pub fn cluster_report(reports: Vec<(String, Report)>, silent: &[NoAnswer]) -> ClusterReport {
    let mut issues: Vec<ClusterIssue> = Vec::new();
    let mut counters: BTreeMap<String, u64> = BTreeMap::new();
    for (node, report) in &reports {
        for issue in &report.issues {
            add(&mut issues, node, issue);
        }
        for count in &report.counters {
            *counters.entry(count.counter.to_string()).or_default() += count.count;
        }
    }
    issues.sort_by(|a, b| {
        let key = |one: &ClusterIssue| (one.issue.object.clone(), one.issue.field.clone());
        key(a).cmp(&key(b))
    });
    let mut nodes: Vec<NodeStatus> = reports
        .into_iter()
        .map(|(node, report)| NodeStatus {
            node,
            verdict: report.verdict.to_string(),
            because: report.because.clone(),
            report: Some(report),
        })
        .collect();
    nodes.extend(silent.iter().map(|one| NodeStatus {
        node: one.node.clone(),
        verdict: "UNKNOWN".to_owned(),
        because: one.error.clone(),
        report: None,
    }));
    nodes.sort_by(|a, b| crate::natural::compare(&a.node, &b.node));
    let because = because(&nodes);
    let verdict = if because.is_empty() { "OK" } else { "DEGRADED" };
    ClusterReport { verdict, because, nodes, issues, counters }
}

fn add(issues: &mut Vec<ClusterIssue>, node: &str, issue: &StatusIssue) {
    let is_it = |known: &&mut ClusterIssue| {
        let known = &known.issue;
        (&known.object, &known.field, &known.message)
            == (&issue.object, &issue.field, &issue.message)
    };
    match issues.iter_mut().find(is_it) {
        Some(known) => {
            known.nodes.push(node.to_owned());
            known.issue.since = known.issue.since.max(issue.since);
        }
        None => issues.push(ClusterIssue { issue: issue.clone(), nodes: vec![node.to_owned()] }),
    }
}

/// What is wrong, equal reasons once.
fn because(nodes: &[NodeStatus]) -> String {
    let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
    for node in nodes.iter().filter(|node| !node.because.is_empty()) {
        match reasons.iter_mut().find(|(known, _)| *known == node.because) {
            Some((_, on)) => on.push(&node.node),
            None => reasons.push((&node.because, vec![&node.node])),
        }
    }
    let text = |(reason, on): &(&str, Vec<&str>)| {
        format!("{}: {reason}", nodes_text(on, nodes.len(), false))
    };
    reasons.iter().map(text).collect::<Vec<_>>().join("; ")
}

impl ClusterReport {
    /// Whether no node needs attention, or, if `strict`, no object either.
    pub fn is_ok(&self, strict: bool) -> bool {
        self.because.is_empty() && !(strict && !self.issues.is_empty())
    }

    /// The first line.
    fn summary(&self) -> String {
        let plural = |n: usize, one: &str, many: &str| match n {
            1 => format!("1 {one}"),
            n => format!("{n} {many}"),
        };
        let issues = match self.issues.len() {
            0 => String::new(),
            n => format!(", {}", plural(n, "issue of an object", "issues of objects")),
        };
        let nodes = plural(self.nodes.len(), "node", "nodes");
        let colon = if self.because.is_empty() { "" } else { "; " };
        format!("{}: {nodes}{colon}{}{issues}", self.verdict, self.because)
    }
}

/// Prints the report for people; `all` adds the counters.
///
/// # Errors
/// When the output cannot be written.
pub fn print(
    out: &mut dyn Write,
    report: &ClusterReport,
    all: bool,
    headers: bool,
) -> io::Result<()> {
    columns::line(out, report.summary())?;
    let mut section = |names: &[&str], lines: Vec<Vec<String>>| {
        if lines.is_empty() {
            return Ok(());
        }
        let first = headers.then(|| names.iter().map(|name| (*name).to_owned()).collect());
        writeln!(out)?;
        columns::align(out, &first.into_iter().chain(lines).collect::<Vec<_>>(), "")
    };
    let nodes = report.nodes.iter().map(|node| {
        let detail = node.report.as_ref().map_or(node.because.clone(), detail);
        vec![node.node.clone(), node.verdict.clone(), detail]
    });
    section(&["NODE", "VERDICT", "DETAIL"], nodes.collect())?;
    let issues = report.issues.iter().map(|ClusterIssue { issue, nodes }| {
        let names: Vec<&str> = nodes.iter().map(String::as_str).collect();
        let text = match issue.field.as_str() {
            "" => issue.message.clone(),
            field => format!("{field}: {}", issue.message),
        };
        vec![
            issue.object.clone(),
            issue.since.map_or(NONE.to_owned(), age),
            nodes_text(&names, report.nodes.len(), false),
            text,
        ]
    });
    section(&["OBJECT", "SINCE", "NODE", "ISSUE"], issues.collect())?;
    if all {
        let lines = report.counters.iter().map(|(name, n)| vec![name.clone(), n.to_string()]);
        section(&["COUNTER", "COUNT"], lines.collect())?;
    }
    Ok(())
}

/// What is said of a node: the agent, and every part that is not as it should be.
fn detail(report: &Report) -> String {
    let shown =
        report.subsystems.iter().filter(|line| line.subsystem == AGENT || line.state != State::Ok);
    let text = |line: &crate::status::StatusLine| match line.subsystem.as_str() {
        AGENT => line.detail.clone(),
        name => format!("{name} {}: {}", line.state.name().to_lowercase(), line.detail),
    };
    shown.map(text).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::{cluster_report, print};
    use crate::fleet::ask::NoAnswer;
    use crate::status::{Report, StatusIssue, StatusLine};
    use lb_core::names::State;

    fn report(node: &str, because: &str, issues: &[(&str, &str)]) -> (String, Report) {
        let state = if because.is_empty() { State::Ok } else { State::Failed };
        let line = |subsystem: &str, state, detail: &str| StatusLine {
            subsystem: subsystem.to_owned(),
            state,
            detail: detail.to_owned(),
        };
        let issue = |(object, message): &(&str, &str)| StatusIssue {
            object: (*object).to_owned(),
            since: Some(60),
            field: "spec".to_owned(),
            message: (*message).to_owned(),
        };
        let report = Report {
            verdict: if because.is_empty() { "OK" } else { "DEGRADED" }.into(),
            because: because.to_owned(),
            node: node.to_owned(),
            subsystems: vec![
                line("agent", State::Ok, &format!("0.1.0 on {node}, up 3h")),
                line("programs", state, "12 of 13 attached"),
            ],
            issues: issues.iter().map(issue).collect(),
            counters: Vec::new(),
        };
        (node.to_owned(), report)
    }

    fn check(reports: Vec<(String, Report)>, silent: &[NoAnswer], want: Expect) {
        let report = cluster_report(reports, silent);
        let mut out = Vec::new();
        print(&mut out, &report, false, true).unwrap();
        want.assert_eq(std::str::from_utf8(&out).unwrap());
    }

    #[test]
    fn an_issue_of_an_object_is_one_line_and_degrades_nothing() {
        let typo = [("Service shop/web", "typo")];
        check(
            vec![report("n1", "", &typo), report("n2", "", &typo), report("n10", "", &[])],
            &[],
            expect![[r#"
                OK: 3 nodes, 1 issue of an object

                NODE  VERDICT  DETAIL
                n1    OK       0.1.0 on n1, up 3h
                n2    OK       0.1.0 on n2, up 3h
                n10   OK       0.1.0 on n10, up 3h

                OBJECT            SINCE  NODE   ISSUE
                Service shop/web  60s    n1,n2  spec: typo
            "#]],
        );
    }

    #[test]
    fn a_degraded_node_and_one_without_an_answer_degrade_the_cluster() {
        let silent = NoAnswer { node: "n3".to_owned(), error: "no agent on it".to_owned() };
        check(
            vec![report("n1", "", &[]), report("n2", "programs failed", &[])],
            &[silent],
            expect![[r#"
                DEGRADED: 3 nodes; n2: programs failed; n3: no agent on it

                NODE  VERDICT   DETAIL
                n1    OK        0.1.0 on n1, up 3h
                n2    DEGRADED  0.1.0 on n2, up 3h; programs failed: 12 of 13 attached
                n3    UNKNOWN   no agent on it
            "#]],
        );
    }
}
