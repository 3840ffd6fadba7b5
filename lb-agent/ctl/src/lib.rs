//! `lbctl`, the operators' CLI: reads the pinned maps of this node, so it works with the agent dead.
//!
//! ```text
//! pinned (maps → plain data) ┐
//!                            ├→ view → rows of one command (pure) → columns (text, JSON, YAML)
//! names (the agent's file)   ┘
//! ```
//! What is not in pinned maps (flows, the records behind an explanation) is requested from a running agent (`admin`).
//! lbctl changes nothing on the node, except by `diff --repair`. Output keeps kubectl's habits. A command is a file; this one only has the flags
//! and leads from them to the output.

pub mod account;
#[cfg(feature = "node")]
pub mod admin;
pub mod attribution;
pub mod cell;
pub mod directory;
pub mod fields;
pub mod frontend;
pub mod natural;
pub mod network;
pub mod past;
#[cfg(feature = "node")]
pub mod pinned;
#[cfg(feature = "node")]
pub mod running;
pub mod selection;
pub mod snapshot;
pub mod view;
pub mod words;

pub mod columns;
pub mod format;
pub mod jsonpath;
pub mod table;

pub mod affinity;
#[cfg(feature = "manifests")]
pub mod analyze;
pub mod backends;
pub mod check;
pub mod command_line;
pub mod completion;
pub mod ct;
pub mod diff;
pub mod drops;
pub mod explain;
pub mod flows;
pub mod maps;
pub mod pairs;
pub mod pods;
pub mod policies;
pub mod programs;
pub mod redact;
pub mod services;
pub mod shadow;
pub mod status;
pub mod suggest;
pub mod sysdump;
pub mod tree;
pub mod trial;
pub mod unready;
pub mod version;
pub mod wait;

pub mod entry;
#[cfg(feature = "cluster")]
pub mod fleet;
#[cfg(feature = "node")]
pub mod run;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};
use lb_common::limits;

use crate::columns::{Format, Style};
use crate::ct::CountBy;
use crate::explain::known::KnownPod;
use crate::format::FormatParser;
use crate::network::protocol_number;
use crate::selection::Selection;

/// Show what lb-agent has programmed on this node
#[derive(Clone, Debug, Parser)]
#[command(name = "lbctl", version)]
pub struct Cli {
    /// Directory of the pinned maps
    #[arg(long, global = true, env = "LB_PIN_DIR", value_name = "DIR", default_value = limits::PIN_DIR)]
    pub pin_dir: PathBuf,
    /// Directory of the agent's name table
    #[arg(long, global = true, env = "LB_STATE_DIR", value_name = "DIR", default_value = limits::STATE_DIR)]
    pub state_dir: PathBuf,
    /// The command to run
    #[command(subcommand)]
    pub command: Command,
}

/// The commands of lbctl.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Show the health of the agent and of its maps; exits 2 if anything is degraded
    Status(StatusArgs),
    /// List Services with their addresses, endpoints and issues
    #[command(visible_alias = "svc", alias = "service")]
    Services(ServicesArgs),
    /// List backends: the endpoints that Service traffic is sent to
    #[command(alias = "backend")]
    Backends(BackendsArgs),
    /// List the Pods of this node whose traffic passes the eBPF programs
    #[command(visible_alias = "po", alias = "pod")]
    Pods(PodsArgs),
    /// List flows of this node's Pods and flows from external clients to Services (conntrack)
    Ct(CtArgs),
    /// List clients with session affinity and their backends
    Affinity(AffinityArgs),
    /// Show why packets were dropped, and what to do about it
    Drops(DropsArgs),
    /// Show recently denied flows and the policies that denied them; -f prints new ones as they occur
    #[command(alias = "flow")]
    Flows(FlowsArgs),
    /// Show network policies: which are enforced, what they select, how they decide a flow
    #[command(subcommand, visible_aliases = ["netpol", "policies"])]
    Policy(PolicyCommand),
    /// Show what policies in shadow mode would do
    #[command(subcommand)]
    Shadow(ShadowCommand),
    /// Trace a flow step by step and explain the result; exits 0 if delivered, 3 if stopped, 4 if unknown
    Explain(ExplainArgs),
    /// Check manifests without a cluster, for CI: exits 2 if there are findings
    #[cfg(feature = "manifests")]
    Analyze(analyze::AnalyzeArgs),
    /// Wait until this node has programmed a Service or enforces a policy; exits 1 with the reason if it does not
    Wait(wait::WaitArgs),
    /// Compare the maps with what the agent wrote; exits 2 if they differ. Only --repair changes something
    Diff(diff::DiffArgs),
    /// Check what keeps the agent from working on this node, before the installation (--pre) or after; exits 2 on errors
    Check(check::CheckArgs),
    /// Write what all commands say to one archive; never Secrets, tokens or environment variables
    Sysdump(sysdump::SysdumpArgs),
    /// Show how full the pinned maps are and how much memory they use
    Maps(MapsArgs),
    /// Show how often the eBPF programs ran and how long a run takes, while the kernel counts it (kernel.bpf_stats_enabled)
    #[command(alias = "program")]
    Programs(ProgramsArgs),
    /// Show one screen that follows services, drops and flows
    #[cfg(feature = "live")]
    Top(lb_live::top::TopArgs),
    /// Serve a page on this machine: who calls what, flows, policies, explain
    #[cfg(feature = "live")]
    Ui(lb_live::ui::UiArgs),
    /// Print a completion script for a shell
    Completion(CompletionArgs),
    /// Show the versions of lbctl, the agent and the maps
    Version(VersionArgs),
}

/// Flags of `status`.
#[derive(Clone, Debug, clap::Args)]
pub struct StatusArgs {
    /// Also show the slow-path counters
    #[arg(long)]
    pub all: bool,
    /// Also exit with 2 if only objects of users have issues
    #[arg(long)]
    pub strict: bool,
    /// Wait up to this long (60s, 5m) until healthy
    #[arg(long, value_name = "TIME", num_args = 0..=1, default_missing_value = "60s", require_equals = true, value_parser = duration)]
    pub wait: Option<Duration>,
    /// How to print them
    #[command(flatten)]
    pub style: Style,
}

/// Flags of `services`.
#[derive(Clone, Debug, clap::Args)]
pub struct ServicesArgs {
    /// Only this Service
    #[arg(value_name = "NAMESPACE/NAME")]
    pub name: Option<String>,
    /// Show each frontend with its fields and all its endpoints, laid out like `ipvsadm -Ln`
    #[arg(long)]
    pub tree: bool,
    /// Rows to show
    #[command(flatten)]
    pub selection: Selection,
    /// How to print them
    #[command(flatten)]
    pub style: Style,
    /// Keep running and print changes
    #[arg(short, long, conflicts_with = "tree")]
    pub watch: bool,
}

/// Flags of `backends`.
#[derive(Clone, Debug, clap::Args)]
pub struct BackendsArgs {
    /// Only those of this Service
    #[arg(value_name = "NAMESPACE/NAME")]
    pub name: Option<String>,
    /// Rows to show
    #[command(flatten)]
    pub selection: Selection,
    /// How to print them
    #[command(flatten)]
    pub style: Style,
    /// Keep running and print changes
    #[arg(short, long)]
    pub watch: bool,
}

/// Flags of `pods`.
#[derive(Clone, Debug, clap::Args)]
pub struct PodsArgs {
    /// Only this Pod
    #[arg(value_name = "NAMESPACE/NAME")]
    pub name: Option<String>,
    /// Rows to show
    #[command(flatten)]
    pub selection: Selection,
    /// How to print them
    #[command(flatten)]
    pub style: Style,
    /// Keep running and print changes
    #[arg(short, long)]
    pub watch: bool,
}

/// Flags of `ct`.
#[derive(Clone, Debug, clap::Args)]
pub struct CtArgs {
    /// Only flows of this Pod
    #[arg(value_name = "NAMESPACE/POD")]
    pub name: Option<String>,
    /// Show every conntrack entry, including reply directions, server-side entries and closed flows
    #[arg(long)]
    pub all: bool,
    /// Only this protocol (tcp, udp, sctp, icmp, icmpv6 or a number)
    #[arg(long, value_name = "PROTOCOL", value_parser = protocol_number)]
    pub protocol: Option<u8>,
    /// Print only the number of flows
    #[arg(long)]
    pub count: bool,
    /// Group the count by this
    #[arg(long, value_enum, requires = "count", value_name = "WHAT")]
    pub by: Option<CountBy>,
    /// Rows to show
    #[command(flatten)]
    pub selection: Selection,
    /// How to print them
    #[command(flatten)]
    pub style: Style,
    /// Keep running and print changes
    #[arg(short, long, conflicts_with = "count")]
    pub watch: bool,
}

/// Flags of `affinity`.
#[derive(Clone, Debug, clap::Args)]
pub struct AffinityArgs {
    /// Only clients of this Service
    #[arg(value_name = "NAMESPACE/NAME")]
    pub name: Option<String>,
    /// Include expired entries and entries whose backend was removed
    #[arg(long)]
    pub all: bool,
    /// Rows to show
    #[command(flatten)]
    pub selection: Selection,
    /// How to print them
    #[command(flatten)]
    pub style: Style,
    /// Keep running and print changes
    #[arg(short, long)]
    pub watch: bool,
}

/// Flags of `drops`.
#[derive(Clone, Debug, clap::Args)]
pub struct DropsArgs {
    /// Include reasons with a count of zero
    #[arg(long)]
    pub all: bool,
    /// How to print them
    #[command(flatten)]
    pub style: Style,
    /// Keep running and print changes
    #[arg(short, long)]
    pub watch: bool,
}

/// Flags of `flows`.
#[derive(Clone, Debug, clap::Args)]
pub struct FlowsArgs {
    /// Rows to show
    #[command(flatten)]
    pub wanted: flows::FlowFilter,
    /// Keep running and print new flows as they occur
    #[arg(short, long)]
    pub follow: bool,
    /// Count live flows by their ends instead: all flows of conntrack, and the denied ones that the agent keeps
    #[arg(long, value_enum, conflicts_with = "follow", value_name = "WHAT")]
    pub by: Option<pairs::PairBy>,
    /// Only the last N flows [default: all that the agent keeps; with -f the last 10]
    #[arg(long, value_name = "N")]
    pub last: Option<usize>,
    /// How to print them
    #[command(flatten)]
    pub style: Style,
}

/// The commands of `lbctl policy`.
#[derive(Clone, Debug, Subcommand)]
pub enum PolicyCommand {
    /// List all policies in the order of evaluation
    #[command(visible_alias = "ls")]
    List(PolicyListArgs),
    /// Show one policy: its rules, numbered as in the YAML, and the peers they match
    #[command(alias = "get")]
    Show(PolicyShowArgs),
    /// Trace a flow step by step and explain the result; exits 0 if delivered, 3 if stopped, 4 if unknown
    Explain(PolicyExplainArgs),
    /// Show what applying or deleting policies would do to the live flows of this node; changes nothing; exits 2 if a
    /// live flow would be denied
    Try(PolicyTryArgs),
    /// Print policies that allow what was seen of the Pods of a namespace, in shadow mode, to be applied
    Suggest(PolicySuggestArgs),
}

/// The commands of `lbctl shadow`.
#[derive(Clone, Debug, Subcommand)]
pub enum ShadowCommand {
    /// Show what would change if the policies in shadow mode were enforced
    Report(ShadowReportArgs),
}

/// Flags of `policy try`.
#[derive(Clone, Debug, clap::Args)]
pub struct PolicyTryArgs {
    /// File with NetworkPolicies and ClusterNetworkPolicies, or - for standard input; they replace those of the same name
    #[arg(short, long, value_name = "FILE")]
    pub file: Vec<PathBuf>,
    /// Try without this policy: NAMESPACE/NAME, or NAME of a ClusterNetworkPolicy
    #[arg(long, value_name = "POLICY")]
    pub delete: Vec<String>,
    /// Try policies in shadow mode as if they were enforced
    #[arg(long)]
    pub enforce: bool,
    /// How long to look for flows; a connection that begins and ends between two looks is not seen
    #[arg(long = "for", value_name = "TIME", default_value = "1s", value_parser = duration)]
    pub span: Duration,
    /// How to print it
    #[command(flatten)]
    pub style: Style,
}

/// Flags of `policy suggest`.
#[derive(Clone, Debug, clap::Args)]
pub struct PolicySuggestArgs {
    /// The namespace
    #[arg(value_name = "NAMESPACE")]
    pub namespace: String,
    /// Print policies that are enforced when they are applied
    #[arg(long)]
    pub enforce: bool,
    /// How long to look for flows; a connection that begins and ends between two looks is not seen
    #[arg(long = "for", value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub span: Duration,
    /// Print what the policies are made from, as JSON
    #[arg(long, hide = true)]
    pub evidence: bool,
}

/// Flags of `shadow report`.
#[derive(Clone, Debug, clap::Args)]
pub struct ShadowReportArgs {
    /// Only flows with an end in this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Only what this policy would decide: NAMESPACE/NAME, or NAME of a ClusterNetworkPolicy
    #[arg(long, value_name = "POLICY")]
    pub policy: Option<String>,
    /// How long to look for flows; a connection that begins and ends between two looks is not seen
    #[arg(long = "for", value_name = "TIME", default_value = "1s", value_parser = duration)]
    pub span: Duration,
    /// How to print it
    #[command(flatten)]
    pub style: Style,
}

/// Flags of `policy list`.
#[derive(Clone, Debug, clap::Args)]
pub struct PolicyListArgs {
    /// Only policies of this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// How to print them
    #[command(flatten)]
    pub style: Style,
    /// Keep running and print changes
    #[arg(short, long)]
    pub watch: bool,
}

/// Flags of `policy show`.
#[derive(Clone, Debug, clap::Args)]
pub struct PolicyShowArgs {
    /// The policy: NAMESPACE/NAME, or NAME of a ClusterNetworkPolicy
    #[arg(value_name = "POLICY")]
    pub name: String,
    /// Output format
    #[arg(short, long, value_parser = FormatParser, default_value = "table", value_name = "FORMAT")]
    pub output: Format,
}

/// Flags of `policy explain`.
#[derive(Clone, Debug, clap::Args)]
pub struct PolicyExplainArgs {
    /// Source: NAMESPACE/POD, deploy/NAME, an address, node/NAME or world
    #[arg(long, value_name = "SRC")]
    pub from: String,
    /// Destination: NAMESPACE/POD, deploy/NAME, svc:NAMESPACE/NAME, NAME.NAMESPACE.svc, an address, node/NAME or world
    #[arg(long, value_name = "DST")]
    pub to: String,
    /// Destination port, like 5432/tcp; optional for a Service with a single port
    #[arg(long, value_name = "PORT/PROTOCOL")]
    pub port: Option<String>,
    /// Namespace of names that are given without one
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// A Pod that the agent may not know, as NAMESPACE/NAME@NODE=IP,IP
    #[arg(long, hide = true, value_name = "POD")]
    pub known_pod: Vec<KnownPod>,
    /// Output format
    #[arg(short, long, value_parser = FormatParser, default_value = "table", value_name = "FORMAT")]
    pub output: Format,
}

/// Flags of `explain`.
#[derive(Clone, Debug, clap::Args)]
pub struct ExplainArgs {
    /// Source: NAMESPACE/POD, deploy/NAME, an address, node/NAME or world
    #[arg(value_name = "SRC")]
    pub src: String,
    /// Destination: NAMESPACE/POD, deploy/NAME, svc:NAMESPACE/NAME, NAME.NAMESPACE.svc, an address, node/NAME or world; and the port, by its number or name
    #[arg(value_name = "DST[:PORT][/PROTOCOL]")]
    pub dst: String,
    /// Namespace of names that are given without one
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// A Pod that the agent may not know, as NAMESPACE/NAME@NODE=IP,IP
    #[arg(long, hide = true, value_name = "POD")]
    pub known_pod: Vec<KnownPod>,
    /// Output format
    #[arg(short, long, value_parser = FormatParser, default_value = "table", value_name = "FORMAT")]
    pub output: Format,
}

/// Flags of `maps`.
#[derive(Clone, Debug, clap::Args)]
pub struct MapsArgs {
    /// How to print them
    #[command(flatten)]
    pub style: Style,
    /// Keep running and print changes
    #[arg(short, long)]
    pub watch: bool,
}

/// Flags of `programs`.
#[derive(Clone, Debug, clap::Args)]
pub struct ProgramsArgs {
    /// How to print them
    #[command(flatten)]
    pub style: Style,
}

/// Flags of `completion`.
#[derive(Clone, Debug, clap::Args)]
pub struct CompletionArgs {
    /// The shell
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Shells with completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Shell {
    /// `source <(lbctl completion bash)`
    Bash,
    /// `source <(lbctl completion zsh)`
    Zsh,
    /// `lbctl completion fish | source`
    Fish,
    /// `kubectl lb completion kubectl`: the program kubectl_complete-lb, which kubectl's own completion runs
    Kubectl,
}

/// Flags of `version`.
#[derive(Clone, Debug, clap::Args)]
pub struct VersionArgs {
    /// How to print them
    #[command(flatten)]
    pub style: Style,
}

/// Time as `60s`, `5m`, `1h` or plain seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.strip_suffix(['s', 'm', 'h']) {
        Some(number) if text.ends_with('m') => (number, 60),
        Some(number) if text.ends_with('h') => (number, 3600),
        Some(number) => (number, 1),
        None => (text, 1),
    };
    let number: u64 = number
        .parse()
        .map_err(|error| format!("{text} is not a duration like 60s or 5m: {error}"))?;
    Ok(Duration::from_secs(number.saturating_mul(unit)))
}
