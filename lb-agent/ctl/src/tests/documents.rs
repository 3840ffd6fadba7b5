//! The reference chapters of the book list what there is: drop reasons and causes with their advice, commands.

use clap::CommandFactory as _;
use lb_common::hop::HopReason;
use lb_common::past::{StackReason, VethReason};
use lb_common::verdict::{Counter, DropReason};
use lb_core::analyze::Lint;
use lb_core::annotation::{Annotation, EventReason};
use lb_core::names::{State, StatusPart};
use lb_testkit::document::{CheckedDocument, NamedRow};

use crate::Cli;
use crate::check::CheckCode;
use crate::explain::code::Code;

#[test]
fn every_drop_reason_is_documented_with_its_advice() {
    let mut chapter = CheckedDocument::read("docs/src/drops.md");
    let row =
        |reason: DropReason| NamedRow::new(reason.name(), [reason.meaning(), reason.what_to_do()]);
    chapter.compare_list("drop reasons", DropReason::ALL.map(row));
    chapter.finish();
}

#[test]
fn every_code_is_documented_with_its_advice() {
    let mut chapter = CheckedDocument::read("docs/src/explain.md");
    let row = |code: Code| NamedRow::new(code.name(), [code.meaning(), code.what_to_do()]);
    chapter.compare_list("codes", Code::ALL.map(row));
    chapter.finish();
}

#[test]
fn every_check_is_documented_with_its_anchor() {
    let mut chapter = CheckedDocument::read("docs/src/check.md");
    let row = |code: CheckCode| NamedRow::new(code.name(), [code.meaning(), code.what_to_do()]);
    chapter.compare_list("checks", CheckCode::ALL.map(row));
    for code in CheckCode::ALL {
        let anchor = code.anchor();
        assert!(anchor.strip_prefix("docs/src/check.md#").is_some_and(|a| chapter.has_anchor(a)));
    }
    chapter.finish();
}

#[test]
fn every_line_of_the_status_and_its_states_are_documented() {
    let mut chapter = CheckedDocument::read("docs/src/status.md");
    chapter.compare_list(
        "states",
        State::ALL.map(|state| NamedRow::new(state.name(), [state.meaning()])),
    );
    let row = |part: StatusPart| NamedRow::new(part.name(), [part.meaning(), part.what_to_do()]);
    chapter.compare_list("status lines", StatusPart::ALL.map(row));
    chapter.finish();
}

#[test]
fn every_annotation_and_reason_of_events_is_documented() {
    let mut chapter = CheckedDocument::read("docs/src/annotations.md");
    let row =
        |one: Annotation| NamedRow::new(one.key(), [one.objects(), one.values(), one.meaning()]);
    chapter.compare_list("annotations", Annotation::ALL.map(row));
    let row =
        |reason: EventReason| NamedRow::new(reason.name(), [reason.objects(), reason.meaning()]);
    chapter.compare_list("event reasons", EventReason::ALL.map(row));
    chapter.finish();
}

#[test]
fn every_counter_is_documented() {
    let mut chapter = CheckedDocument::read("docs/src/metrics.md");
    let row = |counter: Counter| NamedRow::new(counter.name(), [counter.meaning()]);
    chapter.compare_list("counters", Counter::ALL.map(row));
    chapter.finish();
}

#[test]
fn every_reason_of_the_ip_stack_is_documented() {
    let mut chapter = CheckedDocument::read("docs/src/operations.md");
    let row = |reason: StackReason| {
        NamedRow::new(reason.name(), [reason.meaning(), reason.what_to_do()]).within("stack")
    };
    chapter.compare_list("stack reasons", StackReason::ALL.map(row));
    let row = |reason: VethReason| {
        NamedRow::new(reason.name(), [reason.meaning(), reason.what_to_do()]).within("veth")
    };
    chapter.compare_list("veth reasons", VethReason::ALL.map(row));
    let row = |reason: HopReason| {
        NamedRow::new(reason.name(), [reason.meaning(), reason.what_to_do()]).within("hop")
    };
    chapter.compare_list("hop reasons", HopReason::ALL.map(row));
    chapter.finish();
}

#[test]
fn every_lint_is_documented() {
    let mut chapter = CheckedDocument::read("docs/src/analyze.md");
    let row = |lint: Lint| NamedRow::new(lint.name(), [format!("{}.", lint.meaning())]);
    chapter.compare_list("lints", Lint::ALL.map(row));
    for lint in Lint::ALL {
        let place = crate::analyze::documented(lint);
        assert!(place.strip_prefix("docs/src/analyze.md#").is_some_and(|a| chapter.has_anchor(a)));
    }
    chapter.finish();
}

#[test]
fn every_command_is_documented() {
    let chapter = CheckedDocument::read("docs/src/lbctl.md");
    let mut missing = Vec::new();
    for command in Cli::command().get_subcommands() {
        let name = command.get_name();
        let mut lines = vec![format!("`lbctl {name}")];
        if command.has_subcommands() {
            let subcommands = command.get_subcommands();
            lines = subcommands.map(|sub| format!("`lbctl {name} {}", sub.get_name())).collect();
        }
        missing.extend(lines.into_iter().filter(|line| !chapter.text().contains(line)));
    }
    assert!(missing.is_empty(), "lbctl.md does not mention {missing:?}");
}

/// The commands of `kubectl lb` that operators are sent to by alerts and dashboards, with words for their placeholders.
#[cfg(feature = "cluster")]
#[test]
fn commands_in_runbooks_and_dashboards_exist() {
    use clap::Parser as _;

    use crate::fleet::args::FleetCli;

    let mut text = CheckedDocument::read("docs/src/runbooks.md").text().replace("```", "");
    for board in ["overview", "services", "policies", "agent"] {
        let path = format!("deploy/monitoring/dashboards/{board}.json");
        text += CheckedDocument::read(&path).text();
    }
    let mut seen = 0;
    for rest in text.split("kubectl lb ").skip(1) {
        let line = rest.split(['`', '\n']).next().unwrap_or_default();
        let is_option = |word: &str| word.starts_with('-');
        let words = line.split(' ');
        let words = words.map(|word| match is_option(word) {
            true => word.to_owned(),
            false => word.to_lowercase(),
        });
        let parsed = FleetCli::try_parse_from(["kubectl-lb".to_owned()].into_iter().chain(words));
        assert!(parsed.is_ok(), "kubectl lb {line}: {}", parsed.unwrap_err());
        seen += 1;
    }
    assert!(seen > 60, "{seen}");
}
