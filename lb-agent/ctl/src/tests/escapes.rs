//! Whatever others have written, no table clears a screen, forges a line or turns the direction of text.

use serde_json::Value;

use super::{NOW, counts, names, select, snapshot};
use crate::columns::{self, Format, Row, Style};
use crate::explain::{self, Explanation, Finding, Tally, TraceOutcome};
use crate::selection::Selection;
use crate::snapshot::TableSnapshot;
use crate::view::View;
use crate::{affinity, backends, drops, pods, policies, services, status, tree};
use lb_core::admin::{Remark, policy};
use lb_core::cluster::{
    Action, Name, Namespaces, Operator, Peer, PodSelector, PortMatch, PortSpec, Requirement,
    Selector, Tier,
};
use lb_core::names::Names;

const EVIL: &str = "\x1b[2J\nOK\r\u{9b}\u{202e}\u{2028}\u{200b}\x7f";

/// What it is on a terminal.
const SHOWN: &str = "\\x1b[2J\\nOK\\r\\u{9b}\\u{202e}\\u{2028}\\u{200b}\\x7f";

/// The name table, with that behind every text in it that may be any.
fn evil(names: &Names<'static>) -> Names<'static> {
    let mut table = serde_json::to_value(names).unwrap();
    let mut texts = Vec::new();
    gather(&table, String::new(), &mut texts);
    assert!(texts.len() > 20);
    for text in texts {
        let place = table.pointer_mut(&text).unwrap();
        let before = place.clone();
        *place = Value::from(format!("{}{EVIL}", before.as_str().unwrap()));
        if serde_json::from_value::<Names<'static>>(table.clone()).is_err() {
            *table.pointer_mut(&text).unwrap() = before;
        }
    }
    serde_json::from_value(table).unwrap()
}

fn gather(value: &Value, at: String, texts: &mut Vec<String>) {
    match value {
        Value::String(_) => texts.push(at),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, item)| gather(item, format!("{at}/{i}"), texts));
        }
        Value::Object(fields) => {
            fields.iter().for_each(|(name, field)| gather(field, format!("{at}/{name}"), texts));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn is_plain(text: &str) {
    let unseen = text.chars().find(|c| *c != '\n' && EVIL.contains(*c) && !"[2JOK".contains(*c));
    assert_eq!(unseen, None, "{text:?}");
}

/// The same lines as with harmless names, and the names in JSON as they are.
fn check<R: Row>(
    what: &str,
    (snapshot, names): (TableSnapshot, Names<'static>),
    rows: impl Fn(&View<'_>) -> Vec<R>,
) {
    let print = |names: &Names<'static>, output: Format| {
        let view = View::new(&snapshot, names, NOW);
        let style = Style { output, ..Style::default() };
        let mut out = Vec::new();
        columns::print(&mut out, &rows(&view), view.directory.node, &style).unwrap();
        String::from_utf8(out).unwrap()
    };
    let evil = evil(&names);
    for output in [Format::Table, Format::Wide] {
        let (plain, printed) = (print(&names, output), print(&evil, output));
        assert_eq!(plain.lines().count(), printed.lines().count(), "{what}: {printed}");
        assert!(printed.lines().count() > 1, "{what}");
        is_plain(&printed);
        assert!(output == Format::Table || printed.contains(SHOWN), "{what}: {printed}");
    }
    let json: Value = serde_json::from_str(&print(&evil, Format::Json)).unwrap();
    let mut texts = Vec::new();
    gather(&json, String::new(), &mut texts);
    let exact = |at: &String| {
        json.pointer(at).and_then(Value::as_str).is_some_and(|text| text.contains(EVIL))
    };
    assert!(texts.iter().any(exact), "{what}: {json}");
}

#[test]
fn tables() {
    let sample = || (snapshot(), names());
    check("services", sample(), |view| services::rows(view, &Selection::default()));
    check("backends", sample(), |view| backends::rows(view, &Selection::default()));
    check("pods", sample(), |view| pods::rows(view, &select(|_| {})));
    check("drops", sample(), |view| drops::rows(view, &counts(), true));
    let sample = (super::fields::snapshot(), super::fields::names());
    check("affinity", sample, |view| affinity::rows(view, &Selection::default(), true));
    let sample = (TableSnapshot::default(), super::policies::named());
    check("policies", sample, |view| policies::rows(view, None));
}

#[test]
fn the_tree_and_the_status() {
    let snapshot = snapshot();
    let print = |names: &Names<'static>| {
        let view = View::new(&snapshot, names, NOW);
        let mut out = Vec::new();
        let rows = services::rows(&view, &Selection::default());
        tree::print(&mut out, &tree::branches(&view, &rows), true).unwrap();
        let found = status::StatusFacts {
            view: &view,
            maps: &[],
            counts: &counts(),
            running: Some(true),
            names_error: Some(EVIL),
        };
        status::print(&mut out, &status::report(&found), true, true).unwrap();
        String::from_utf8(out).unwrap()
    };
    let (plain, printed) = (print(&names()), print(&evil(&names())));
    assert_eq!(plain.lines().count(), printed.lines().count(), "{printed}");
    is_plain(&printed);
    assert!(!printed.lines().any(|line| line.starts_with("OK")), "{printed}");
}

#[test]
fn records_of_the_agent() {
    let text = || EVIL.to_owned();
    let evil = Name::new(EVIL, EVIL);
    let requirement =
        Requirement { key: EVIL.into(), operator: Operator::In([EVIL.into()].into()) };
    let selector = Selector([requirement].into());
    let pods = PodSelector { namespaces: Namespaces::Selected(selector.clone()), pods: selector };
    let selected = policy::Selected { count: 1, examples: vec![evil.clone()] };
    let port = PortMatch { protocol: None, ports: PortSpec::Named(EVIL.into()) };
    let rule = policy::RuleView {
        action: Action::Accept,
        name: EVIL.into(),
        peers: Some(vec![(Peer::Pods(pods.clone()), selected.clone())]),
        ports: Some(vec![port]),
        hits: 1,
        counted_in: None,
    };
    let policy = policy::PolicyView {
        name: evil,
        tier: Tier::NetworkPolicy,
        priority: 0,
        shadow: false,
        generation: 0,
        subject: (pods, selected),
        ingress: Some(vec![rule]),
        egress: None,
        default_denied: policy::DeniedFlows::default(),
        issues: vec![Remark { object: text(), field: text(), message: text() }],
    };
    let finding = Finding {
        because: vec![text(), format!("other {EVIL}")],
        to_fix: vec![text()],
        ..Finding::default()
    };
    let explanation = Explanation {
        outcome: TraceOutcome::Stopped,
        verdict: text(),
        steps: Vec::new(),
        finding,
        also: Vec::new(),
        branches: Tally::default(),
        lookup: None,
        assumed: vec![text()],
    };
    let mut out = Vec::new();
    policies::print(&mut out, &policy).unwrap();
    explain::print(&mut out, &explanation).unwrap();
    let printed = String::from_utf8(out).unwrap();
    is_plain(&printed);
    assert_eq!(printed.lines().count(), 10 + 6, "{printed}");
}
