//! `cargo xtask bench`: what a Service costs over its Pod. Every number is a median over paired rounds: in each round
//! the same thing is measured straight on a bed without agents, straight on a bed with agents, and through the
//! Service, one right after the other, client and server on one CPU; on nodes without netfilter, and on nodes that
//! track connections as every kubelet's node does. Also what policies cost, with and without them
//! in turn; what floods do to others; and how many questions a second are answered through a node port.

mod answers;
mod cluster;
mod field;
mod floods;
mod nanos;
mod paths;
mod policies;
mod profile;
mod programming;
mod report;
mod scale;
mod side;
mod statistics;
mod watches;

pub(crate) use self::cluster::load_image;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};

use crate::{
    binaries::{self, Binaries},
    command::say,
    setup::Need,
};

/// Options of the task.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Options {
    #[command(subcommand)]
    elsewhere: Option<Elsewhere>,
    #[command(flatten)]
    here: Here,
}

/// Where else to measure.
#[derive(Subcommand)]
enum Elsewhere {
    /// Measure what Services cost on the cluster of $KUBECONFIG, with whatever serves them there, or compare earlier results
    Cluster(cluster::Options),
    /// Measure what Services cost by their number, up to a million endpoints: time and memory, without a cluster
    Scale,
    /// Measure what the watches of up to 1,000 agents ask of the API server of $KUBECONFIG, and those of kube-proxy
    Watches(watches::Options),
}

/// Options of the bench on this machine.
#[derive(Args)]
struct Here {
    /// Print JSON instead of Markdown tables
    #[arg(long)]
    json: bool,
    /// Measure fewer and shorter rounds, for a first impression only
    #[arg(long)]
    quick: bool,
    /// Number of rounds of each measurement [default: 15, with --quick 3]
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// Measure only one part. The nanoseconds per packet are always measured
    #[arg(long)]
    part: Option<Part>,
    /// In the part `paths`, measure only rows whose name contains this text, for example "Pod, same node, IPv4"
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// In the part `paths`, also show what each program costs in a transaction of each row, as the kernel counts it
    #[arg(long)]
    profile: bool,
    #[command(flatten)]
    stage: binaries::Stage,
    /// The built test target that measures nanoseconds
    #[arg(long, hide = true)]
    nanos_binary: Option<PathBuf>,
}

impl Options {
    /// What the machine must have.
    pub(crate) const fn needs(&self) -> &'static [Need] {
        match self.elsewhere {
            // What loads its image is asked for where it is built.
            Some(Elsewhere::Cluster(_)) => &[],
            Some(Elsewhere::Scale | Elsewhere::Watches(_)) => &[Need::Rust, Need::BpfLinker],
            None => &[Need::Rust, Need::BpfLinker, Need::Ip, Need::Nsenter, Need::Nft],
        }
    }
}

/// A part of the bench.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Latencies and rates over each path, with and without the agent, with and without netfilter
    Paths,
    /// The cost of policies
    Policies,
    /// The time to program 10,000 Services
    Programming,
    /// What floods do to the connections of others
    Floods,
    /// UDP requests through a node port
    Answers,
}

/// Measures here or on a cluster.
///
/// # Errors
/// When a bed cannot be set, or a measurement fails.
pub(crate) fn run(options: &Options) -> Result<()> {
    match &options.elsewhere {
        Some(Elsewhere::Cluster(options)) => cluster::run(options),
        Some(Elsewhere::Scale) => scale::run(),
        Some(Elsewhere::Watches(options)) => watches::run(options),
        None => on_this_machine(&options.here),
    }
}

/// Builds in release mode, measures, prints.
fn on_this_machine(options: &Here) -> Result<()> {
    let Here { json, quick, rounds, part, .. } = *options;
    let nanos = match &options.nanos_binary {
        Some(nanos) if options.stage.built => nanos.clone(),
        _ => {
            binaries::build(true, false)?;
            nanos::build()?
        }
    };
    if binaries::again_as_root(&["--nanos-binary", &nanos.to_string_lossy()])?.is_some() {
        return Ok(());
    }

    let wanted = |one| part.is_none_or(|part| part == one);
    let scale = paths::Scale::new(quick, rounds);
    let mut results = report::Results { machine: report::Machine::this()?, ..Default::default() };
    say("nanoseconds per packet of each program");
    results.nanos = nanos::measure(&nanos)?;
    let binaries = Binaries::of(true);
    let mut field = field::Field::set(&binaries)?;
    if wanted(Part::Paths) {
        field.add_netfilter(&binaries)?;
        let only = options.only.as_deref();
        results.paths = paths::measure(&field, only, scale)?;
        if options.profile {
            results.profiles = profile::measure(&field, only, scale)?;
        }
        field.netfilter = None;
    }
    if wanted(Part::Policies) {
        results.policies = policies::measure(&field, 50, scale)?;
    }
    if wanted(Part::Floods) {
        results.floods = floods::measure(&field, quick)?;
    }
    if wanted(Part::Answers) {
        results.answers = answers::measure(&field, quick)?;
    }
    if wanted(Part::Programming) {
        say("programming 10,000 Services");
        results.programming = programming::measure(&mut field, scale)?;
    }
    if json { report::print_json(&results) } else { report::print_markdown(&results) }
}
