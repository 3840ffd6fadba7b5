//! The flags of `kubectl lb`, and which of a command's arguments the nodes get.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{
    Arg, ArgAction, ArgMatches, Args as _, CommandFactory as _, FromArgMatches as _, Parser,
    Subcommand,
};

use crate::Command;
use crate::command_line::with_examples;
use lb_remote::FleetOptions;

/// Show what the agents of a cluster have programmed on their nodes
#[derive(Clone, Debug, Parser)]
#[command(name = "kubectl-lb", bin_name = "kubectl lb", version)]
pub struct FleetCli {
    /// Where the cluster is.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Namespace, as after the command
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// The command to run
    #[command(subcommand)]
    pub command: FleetCommand,
}

/// The commands of `kubectl lb`: those of the nodes, and some for the laptop.
#[derive(Clone, Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "a process has one of them")]
pub enum FleetCommand {
    /// What a node has.
    #[command(flatten)]
    Node(Command),
    /// Write the man pages into a directory
    Man(ManArgs),
    /// Complete the last of these words, as kubectl asks for it
    #[command(name = "__complete", hide = true)]
    Complete(CompleteArgs),
}

/// Flags of `man`.
#[derive(Clone, Debug, clap::Args)]
pub struct ManArgs {
    /// The directory
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
}

/// Flags of `__complete`.
#[derive(Clone, Debug, clap::Args)]
pub struct CompleteArgs {
    /// The words after `kubectl lb`
    #[arg(last = true, value_name = "WORDS")]
    pub words: Vec<OsString>,
}

/// Which cluster, and which of its nodes.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Cluster")]
pub struct ClusterArgs {
    /// The kubeconfig [default: KUBECONFIG, or ~/.kube/config]
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// The cluster of the kubeconfig
    #[arg(long, global = true, value_name = "NAME")]
    pub cluster: Option<String>,
    /// The user of the kubeconfig
    #[arg(long, global = true, value_name = "NAME")]
    pub user: Option<String>,
    /// Namespace of the agents
    #[arg(
        long,
        global = true,
        env = "LB_AGENT_NAMESPACE",
        value_name = "NAMESPACE",
        default_value = "kube-system"
    )]
    pub agent_namespace: String,
    /// Only ask these nodes [default: all]
    #[arg(long, global = true, value_name = "NODE", value_delimiter = ',')]
    pub node: Vec<String>,
}

impl ClusterArgs {
    /// How to connect.
    pub fn options(&self) -> FleetOptions {
        FleetOptions {
            kubeconfig: self.kubeconfig.clone(),
            context: self.context.clone(),
            cluster: self.cluster.clone(),
            user: self.user.clone(),
            agent_namespace: self.agent_namespace.clone(),
        }
    }
}

/// Arguments that say how the laptop prints, which the nodes do not do.
const OWN: [&str; 4] = ["output", "no_headers", "sort_by", "timeout"];

/// A command line.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// As types.
    pub cli: FleetCli,
    /// The command with the arguments that decide what it shows, and none of those that say how.
    pub forwarded: Forwarded,
}

/// What a node's `lbctl` is called with, without `-o`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwarded {
    /// The command and its options.
    pub options: Vec<String>,
    /// Its positional arguments.
    pub positionals: Vec<String>,
    /// Whether the command takes a namespace, and none is given.
    pub lacks_namespace: bool,
}

impl Forwarded {
    /// The arguments with these options added. A name without a namespace means the one given.
    pub fn with(&self, more: &[&str], namespace: &str) -> Vec<String> {
        let mut args = self.options.clone();
        args.extend(more.iter().map(|word| (*word).to_owned()));
        if self.lacks_namespace && !self.positionals.is_empty() {
            args.push(format!("--namespace={namespace}"));
        }
        if !self.positionals.is_empty() {
            args.push("--".to_owned());
            args.extend(self.positionals.iter().cloned());
        }
        args
    }
}

/// Reads a command line.
///
/// # Errors
/// What clap has to say, help and version included.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Parsed, clap::Error> {
    let mut command = with_examples(FleetCli::command(), "kubectl lb");
    let matches = command.try_get_matches_from_mut(args)?;
    let cli = FleetCli::from_arg_matches(&matches)?;
    let of_cluster = ClusterArgs::augment_args(clap::Command::new("cluster"));
    let mut own: Vec<&str> = of_cluster.get_arguments().map(|arg| arg.get_id().as_str()).collect();
    own.extend(OWN);
    let mut forwarded = Forwarded::default();
    if let Some((name, matches)) = matches.subcommand()
        && let Some(command) = command.find_subcommand(name)
    {
        forward(command, matches, &own, &mut forwarded);
    }
    if forwarded.lacks_namespace
        && let Some(namespace) = &cli.namespace
    {
        forwarded.options.push(format!("--namespace={namespace}"));
        forwarded.lacks_namespace = false;
    }
    Ok(Parsed { cli, forwarded })
}

/// Adds a command and those of its arguments that were given.
fn forward(command: &clap::Command, matches: &ArgMatches, own: &[&str], to: &mut Forwarded) {
    to.options.push(command.get_name().to_owned());
    for arg in command.get_arguments() {
        let id = arg.get_id().as_str();
        if own.contains(&id) || !given(matches, id) {
            to.lacks_namespace |= id == "namespace";
            continue;
        }
        let values = || {
            let raw = matches.get_raw(id).into_iter().flatten();
            raw.map(|value| value.to_string_lossy().into_owned())
        };
        match (arg.get_long(), arg.get_action()) {
            _ if arg.is_positional() => to.positionals.extend(values()),
            (Some(long), ArgAction::SetTrue) => {
                to.options.push(format!("--{long}"));
                to.lacks_namespace &= !replaces_namespace(arg);
            }
            (Some(long), _) => {
                to.options.extend(values().map(|value| format!("--{long}={value}")));
            }
            (None, _) => {}
        }
    }
    if let Some((name, matches)) = matches.subcommand()
        && let Some(command) = command.find_subcommand(name)
    {
        forward(command, matches, own, to);
    }
}

/// Whether it stands for all namespaces.
fn replaces_namespace(arg: &Arg) -> bool {
    arg.get_id() == "all_namespaces"
}

fn given(matches: &ArgMatches, id: &str) -> bool {
    // Arguments of other commands are not known here, and not given.
    matches.try_contains_id(id).unwrap_or(false)
        && matches.value_source(id) == Some(clap::parser::ValueSource::CommandLine)
}

#[cfg(test)]
mod tests {
    use super::parse;

    fn forwarded(line: &str) -> String {
        let words = std::iter::once("kubectl-lb").chain(line.split_whitespace());
        let parsed = parse(words.map(Into::into)).unwrap();
        parsed.forwarded.with(&["-o=rows"], "team").join(" ")
    }

    #[test]
    fn what_decides_the_answer_is_forwarded_and_how_to_print_it_is_not() {
        let cases = [
            ("services", "services -o=rows"),
            ("svc -A -o wide --sort-by flows --no-headers", "services --all-namespaces -o=rows"),
            ("--context c services --node n1,n2 -n shop", "services --namespace=shop -o=rows"),
            ("-n shop services", "services --namespace=shop -o=rows"),
            ("services web", "services -o=rows --namespace=team -- web"),
            ("services web -n a", "services --namespace=a -o=rows -- web"),
            ("-n shop maps", "maps -o=rows"),
            ("ct --count --by service", "ct --count --by=service -o=rows"),
            (
                "flows -f --verdict allowed,dropped",
                "flows --verdict=allowed --verdict=dropped --follow -o=rows",
            ),
            ("policy list -n a", "policy list --namespace=a -o=rows"),
            ("policy ls", "policy list -o=rows"),
            ("explain a/b c/d:80", "explain -o=rows --namespace=team -- a/b c/d:80"),
            ("status --strict --wait", "status --strict --wait=60s -o=rows"),
        ];
        for (line, want) in cases {
            assert_eq!(forwarded(line), want, "{line}");
        }
    }
}
