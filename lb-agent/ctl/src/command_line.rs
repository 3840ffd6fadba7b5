//! The command line of `lbctl`: kubectl's habits beside clap's, and examples below each help.

use std::ffi::OsString;

use clap::{CommandFactory as _, FromArgMatches as _};

use crate::Cli;

/// Examples by command; those of a command with commands of its own are for all of them.
const EXAMPLES: [(&str, &[&str]); 21] = [
    ("status", &["lbctl status", "lbctl status --wait=2m", "lbctl status --strict -o json"]),
    (
        "services",
        &["lbctl services -A", "lbctl services shop/web -o wide", "lbctl services --tree"],
    ),
    ("backends", &["lbctl backends shop/web", "lbctl backends -A --sort-by node"]),
    ("pods", &["lbctl pods -n shop", "lbctl pods -A -o wide"]),
    ("ct", &["lbctl ct shop/web-1", "lbctl ct -A --count --by service"]),
    ("affinity", &["lbctl affinity shop/web"]),
    ("drops", &["lbctl drops", "lbctl drops --all -o json"]),
    ("flows", &["lbctl flows -f", "lbctl flows --from shop/cart --verdict allowed -f"]),
    (
        "policy",
        &[
            "lbctl policy list -n shop",
            "lbctl policy show shop/only-friends",
            "lbctl policy explain --from shop/cart --to svc:db/orders --port 5432/tcp",
        ],
    ),
    (
        "explain",
        &[
            "lbctl explain shop/cart svc:db/orders:5432",
            "lbctl explain deploy/cart orders.db.svc.cluster.local:5432 -n shop",
            "lbctl explain world 192.0.2.10:443 -o json",
        ],
    ),
    (
        "wait",
        &[
            "lbctl wait svc/shop/web --programmed",
            "lbctl wait policy/shop/deny-all --enforced --timeout 30s",
            "lbctl wait policy/shop/deny-all --enforced --generation 4",
        ],
    ),
    ("diff", &["lbctl diff", "lbctl diff --repair"]),
    ("check", &["lbctl check --pre", "lbctl check --pre --fail-on warning -o json", "lbctl check"]),
    ("sysdump", &["lbctl sysdump", "lbctl sysdump --redact -f dump.tar"]),
    ("maps", &["lbctl maps -o wide"]),
    ("analyze", &["lbctl analyze -f manifests/", "lbctl analyze -f - --sarif"]),
    ("shadow", &["lbctl shadow report"]),
    ("top", &["lbctl top", "lbctl top --once"]),
    ("ui", &["lbctl ui"]),
    ("completion", &["lbctl completion bash"]),
    ("version", &["lbctl version -o json"]),
];

/// The examples of a command, as they follow its help; `program` is what it is called.
pub fn examples(command: &str, program: &str) -> Option<String> {
    let (_, lines) = EXAMPLES.iter().find(|(name, _)| *name == command)?;
    let lines = lines.iter().map(|line| format!("\n  {}", line.replacen("lbctl", program, 1)));
    Some(format!("Examples:{}", lines.collect::<String>()))
}

/// Adds the examples to the help of all commands.
pub fn with_examples(mut command: clap::Command, program: &str) -> clap::Command {
    let names: Vec<String> =
        command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    for name in names {
        if let Some(text) = examples(&name, program) {
            command = command.mut_subcommand(&name, |sub| sub.after_help(text));
        }
    }
    command
}

/// Reads a command line. As for kubectl, the namespace may be before the command.
///
/// # Errors
/// What clap has to say, help and version included.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let command = with_examples(Cli::command(), "lbctl");
    let matches = command.try_get_matches_from(namespace_last(args.into_iter().collect()))?;
    Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut Cli::command()))
}

/// Moves `-n NAMESPACE` from before the command to the end of its options.
fn namespace_last(args: Vec<OsString>) -> Vec<OsString> {
    let text = |at: usize| args.get(at).and_then(|arg| arg.to_str()).unwrap_or_default();
    let n = match text(1) {
        "-n" | "--namespace" => 2,
        one if one.starts_with("--namespace=") => 1,
        one if one.starts_with("-n") && one.len() > 2 => 1,
        _ => return args,
    };
    if args.len() < 2 + n {
        return args;
    }
    let mut moved = args.clone();
    let namespace: Vec<OsString> = moved.drain(1..=n).collect();
    // Behind `--` there are no options.
    let end = moved.iter().position(|arg| arg == "--").unwrap_or(moved.len());
    moved.splice(end..end, namespace);
    moved
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use clap::CommandFactory as _;

    use super::{EXAMPLES, examples, namespace_last, parse};
    use crate::{Cli, Command};

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn every_command_has_examples_and_each_is_a_valid_command_line() {
        for command in Cli::command().get_subcommands() {
            let name = command.get_name();
            if name != "help" && name != "programs" {
                assert!(examples(name, "lbctl").is_some(), "{name} has no example");
            }
        }
        for line in EXAMPLES.iter().flat_map(|(_, lines)| *lines) {
            if let Err(error) = parse(words(line)) {
                panic!("{line}: {error}");
            }
        }
        let help = parse(words("lbctl pods --help")).unwrap_err().to_string();
        assert!(
            help.ends_with("Examples:\n  lbctl pods -n shop\n  lbctl pods -A -o wide\n"),
            "{help}"
        );
    }

    #[test]
    fn the_namespace_may_be_before_the_command() {
        for line in [
            "lbctl -n shop pods",
            "lbctl --namespace shop pods",
            "lbctl -nshop pods",
            "lbctl --namespace=shop pods",
        ] {
            let Command::Pods(args) = parse(words(line)).unwrap().command else { panic!("{line}") };
            assert_eq!(args.selection.namespace.as_deref(), Some("shop"), "{line}");
        }
        assert_eq!(namespace_last(words("lbctl -n a pods -- x")), words("lbctl pods -n a -- x"));
        assert_eq!(namespace_last(words("lbctl pods -n a")), words("lbctl pods -n a"));
        assert!(parse(words("lbctl -n shop status")).is_err(), "status has no namespace");
        assert!(parse(words("lbctl -n")).is_err());
    }
}
