//! The tables of docs/src/settings.md list every flag of `lb-agent`.

use clap::{Arg, Command, CommandFactory as _};
use lb_testkit::document::{CheckedDocument, NamedRow};

use super::AgentCli;
use super::tests::NO_SETTINGS;

fn environment(arg: &Arg) -> &str {
    arg.get_env().and_then(|name| name.to_str()).unwrap_or_default()
}

fn is_setting(arg: &Arg) -> bool {
    let name = environment(arg);
    !name.is_empty() && !NO_SETTINGS.contains(&name)
}

/// Without what clap itself adds.
fn flags(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|arg| !["help", "version"].contains(&arg.get_id().as_str()))
}

fn row(arg: &Arg) -> NamedRow<3> {
    let values = arg.get_value_names().unwrap_or_default();
    let value = values.first().filter(|_| arg.get_action().takes_values());
    let value = value.map(|value| value.to_string()).unwrap_or_default();
    let name = arg.get_long().map_or_else(|| value.clone(), str::to_owned);
    let usage = match arg.get_long() {
        Some(long) => format!("`--{long} {value}").trim_end().to_owned() + "`",
        None => format!("`{value}`"),
    };
    let environment = match environment(arg) {
        "" => String::new(),
        name => format!("`{name}`"),
    };
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    assert!(!help.is_empty() && !help.contains('|'), "{name}: {help}");
    NamedRow::new(name, [usage, environment, help])
}

#[test]
fn every_flag_is_documented() {
    let cli = AgentCli::command();
    let run = cli.find_subcommand("run").unwrap();
    let mut chapter = CheckedDocument::read("docs/src/settings.md");
    chapter.compare_list("settings", flags(run).filter(|arg| is_setting(arg)).map(row));
    chapter.compare_list("node flags", flags(run).filter(|arg| !is_setting(arg)).map(row));
    for command in cli.get_subcommands().filter(|command| command.get_name() != "run") {
        let name = command.get_name();
        let is_shared = |arg: &&Arg| flags(run).any(|other| other.get_id() == arg.get_id());
        let own: Vec<&Arg> = flags(command).filter(|arg| !is_shared(arg)).collect();
        if own.is_empty() {
            assert!(chapter.text().contains(&format!("`lb-agent {name}`")), "{name}");
        } else {
            let rows = own.into_iter().map(|arg| row(arg).within(name));
            chapter.compare_list(&format!("{name} flags"), rows);
        }
    }
    chapter.finish();
}
