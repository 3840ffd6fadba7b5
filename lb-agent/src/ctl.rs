//! `lbctl`, the operators' CLI: reads the pinned maps of this node, so it works with the agent dead.
//!
//! ```text
//! pinned (maps → plain data) ┐
//!                            ├→ view → rows of one command (pure) → columns (text, JSON, YAML)
//! names (the agent's file)   ┘
//! ```
//! What nobody pins (flows, the records behind an explanation) a running agent is asked for at its socket (`agent`).
//! lbctl changes nothing on the node. Output keeps kubectl's habits. A command is a file; this one only has the flags
//! and the way from them to the output.

pub mod agent;
pub mod attribution;
pub mod directory;
pub mod fields;
pub mod frontend;
pub mod natural;
pub mod pinned;
pub mod running;
pub mod selection;
pub mod snapshot;
pub mod view;

pub mod columns;

pub mod affinity;
pub mod backends;
pub mod ct;
pub mod drops;
pub mod explain;
pub mod flows;
pub mod maps;
pub mod pods;
pub mod policies;
pub mod services;
pub mod status;
pub mod tree;
pub mod version;

pub mod run;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use lb_common::limits;

use crate::ctl::columns::{Format, Style};
use crate::ctl::ct::By;
use crate::ctl::selection::Selection;
use crate::ctl::snapshot::protocol_number;

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
    /// What to show
    #[command(subcommand)]
    pub command: Command,
}

/// What to show.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Is everything as it should be? Exit status 2 when not
    Status(StatusArgs),
    /// Services: what they answer at, how many endpoints they have, what is wrong with them
    #[command(visible_alias = "svc", alias = "service")]
    Services(ServicesArgs),
    /// Backends: where packets for the Services go
    #[command(alias = "backend")]
    Backends(BackendsArgs),
    /// Pods of this node whose traffic goes through our programs
    #[command(visible_alias = "po", alias = "pod")]
    Pods(PodsArgs),
    /// Flows of this node's Pods, and from outside to Services (conntrack)
    Ct(CtArgs),
    /// Clients with session affinity, and where they go
    Affinity(AffinityArgs),
    /// Packets that were not delivered: why, and what to do about it
    Drops(DropsArgs),
    /// Flows that were denied lately, and by which policy; with -f as they come
    #[command(alias = "flow")]
    Flows(FlowsArgs),
    /// Network policies: which are enforced, what they select, what they say of a flow
    #[command(subcommand, visible_aliases = ["netpol", "policies"])]
    Policy(PolicyCommand),
    /// What becomes of a flow, step by step, and why. Exit status 0 delivered, 3 stopped, 4 cannot tell
    Explain(ExplainArgs),
    /// The pinned maps: how full they are and what they cost
    Maps(MapsArgs),
    /// A completion script for a shell
    Completion(CompletionArgs),
    /// Versions of this binary, the agent and the maps
    Version(VersionArgs),
}

/// Flags of `status`.
#[derive(Clone, Debug, clap::Args)]
pub struct StatusArgs {
    /// Also show the counters of the slow path
    #[arg(long)]
    pub all: bool,
    /// Wait until everything is as it should be, at most so long (60s, 5m)
    #[arg(long, value_name = "TIME", num_args = 0..=1, default_missing_value = "60s", require_equals = true, value_parser = run::duration)]
    pub wait: Option<std::time::Duration>,
    /// How to print
    #[command(flatten)]
    pub style: Style,
}

/// Flags of `services`.
#[derive(Clone, Debug, clap::Args)]
pub struct ServicesArgs {
    /// Only this Service
    #[arg(value_name = "NAMESPACE/NAME")]
    pub name: Option<String>,
    /// Each frontend with its fields and all its endpoints, in the shape of `ipvsadm -Ln`
    #[arg(long)]
    pub tree: bool,
    /// Which ones
    #[command(flatten)]
    pub selection: Selection,
    /// How to print
    #[command(flatten)]
    pub style: Style,
    /// Stay and print what changes
    #[arg(short, long, conflicts_with = "tree")]
    pub watch: bool,
}

/// Flags of `backends`.
#[derive(Clone, Debug, clap::Args)]
pub struct BackendsArgs {
    /// Only those of this Service
    #[arg(value_name = "NAMESPACE/NAME")]
    pub name: Option<String>,
    /// Which ones
    #[command(flatten)]
    pub selection: Selection,
    /// How to print
    #[command(flatten)]
    pub style: Style,
    /// Stay and print what changes
    #[arg(short, long)]
    pub watch: bool,
}

/// Flags of `pods`.
#[derive(Clone, Debug, clap::Args)]
pub struct PodsArgs {
    /// Only this Pod
    #[arg(value_name = "NAMESPACE/NAME")]
    pub name: Option<String>,
    /// Which ones
    #[command(flatten)]
    pub selection: Selection,
    /// How to print
    #[command(flatten)]
    pub style: Style,
    /// Stay and print what changes
    #[arg(short, long)]
    pub watch: bool,
}

/// Flags of `ct`.
#[derive(Clone, Debug, clap::Args)]
pub struct CtArgs {
    /// Only flows of this Pod
    #[arg(value_name = "NAMESPACE/POD")]
    pub name: Option<String>,
    /// Every entry of the table: reply halves, the server's side, dead ones
    #[arg(long)]
    pub all: bool,
    /// Only this protocol (tcp, udp, sctp, icmp, icmpv6 or a number)
    #[arg(long, value_name = "PROTOCOL", value_parser = protocol_number)]
    pub protocol: Option<u8>,
    /// Only the number of flows
    #[arg(long)]
    pub count: bool,
    /// Count by this
    #[arg(long, value_enum, requires = "count", value_name = "WHAT")]
    pub by: Option<By>,
    /// Which ones
    #[command(flatten)]
    pub selection: Selection,
    /// How to print
    #[command(flatten)]
    pub style: Style,
    /// Stay and print what changes
    #[arg(short, long, conflicts_with = "count")]
    pub watch: bool,
}

/// Flags of `affinity`.
#[derive(Clone, Debug, clap::Args)]
pub struct AffinityArgs {
    /// Only clients of this Service
    #[arg(value_name = "NAMESPACE/NAME")]
    pub name: Option<String>,
    /// Also clients whose time is over or whose backend has left
    #[arg(long)]
    pub all: bool,
    /// Which ones
    #[command(flatten)]
    pub selection: Selection,
    /// How to print
    #[command(flatten)]
    pub style: Style,
    /// Stay and print what changes
    #[arg(short, long)]
    pub watch: bool,
}

/// Flags of `drops`.
#[derive(Clone, Debug, clap::Args)]
pub struct DropsArgs {
    /// Also show reasons that did not occur
    #[arg(long)]
    pub all: bool,
    /// How to print
    #[command(flatten)]
    pub style: Style,
    /// Stay and print what changes
    #[arg(short, long)]
    pub watch: bool,
}

/// Flags of `flows`.
#[derive(Clone, Debug, clap::Args)]
pub struct FlowsArgs {
    /// Which ones
    #[command(flatten)]
    pub wanted: flows::Wanted,
    /// Stay and print flows as they come
    #[arg(short, long)]
    pub follow: bool,
    /// Only the last so many [default: all that the agent keeps; with -f the last 10]
    #[arg(long, value_name = "N")]
    pub last: Option<usize>,
    /// How to print
    #[command(flatten)]
    pub style: Style,
}

/// What to show of policies.
#[derive(Clone, Debug, Subcommand)]
pub enum PolicyCommand {
    /// All policies, in the order of evaluation
    #[command(visible_alias = "ls")]
    List(PolicyListArgs),
    /// One policy: its rules as they are numbered in the YAML, and whom they mean
    #[command(alias = "get")]
    Show(PolicyShowArgs),
    /// What becomes of a flow, step by step, and why. Exit status 0 delivered, 3 stopped, 4 cannot tell
    Explain(PolicyExplainArgs),
}

/// Flags of `policy list`.
#[derive(Clone, Debug, clap::Args)]
pub struct PolicyListArgs {
    /// Only those of this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// How to print
    #[command(flatten)]
    pub style: Style,
    /// Stay and print what changes
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
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
}

/// Flags of `policy explain`.
#[derive(Clone, Debug, clap::Args)]
pub struct PolicyExplainArgs {
    /// Who opens the flow: NAMESPACE/POD, an address, node/NAME or world
    #[arg(long, value_name = "WHO")]
    pub from: String,
    /// Whom it is for: NAMESPACE/POD, svc:NAMESPACE/NAME, an address, node/NAME or world
    #[arg(long, value_name = "WHOM")]
    pub to: String,
    /// Its destination port, like 5432/tcp; may be left out of a Service that has only one
    #[arg(long, value_name = "PORT/PROTOCOL")]
    pub port: Option<String>,
    /// Namespace of names that have none
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Output format
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
}

/// Flags of `explain`.
#[derive(Clone, Debug, clap::Args)]
pub struct ExplainArgs {
    /// Who opens the flow: NAMESPACE/POD, an address, node/NAME or world
    #[arg(value_name = "SRC")]
    pub src: String,
    /// Whom it is for: NAMESPACE/POD, svc:NAMESPACE/NAME, an address, node/NAME or world; and its port
    #[arg(value_name = "DST[:PORT][/PROTOCOL]")]
    pub dst: String,
    /// Namespace of names that have none
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Output format
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
}

/// Flags of `maps`.
#[derive(Clone, Debug, clap::Args)]
pub struct MapsArgs {
    /// How to print
    #[command(flatten)]
    pub style: Style,
    /// Stay and print what changes
    #[arg(short, long)]
    pub watch: bool,
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
}

/// Flags of `version`.
#[derive(Clone, Debug, clap::Args)]
pub struct VersionArgs {
    /// How to print
    #[command(flatten)]
    pub style: Style,
}
