//! `cargo xtask lifecycle`: what happens to an agent in a year, on a real cluster in half an hour. An upgrade, a rollback and
//! an upgrade again under load; settings that change; tokens that expire; an API server that is away for long; a node that is
//! drained, and one that boots without the kubelet's configuration.

mod api_away;
mod nodes;
mod settings;
mod tokens;
mod upgrade;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;

use crate::{
    chaos::{unrest, witness::Witnesses},
    command::say,
    conformance::{
        Target,
        bed::{self, Bed},
        cluster::Cluster,
        deploy::{self, DAEMON_SET, SYSTEM},
        report::Report,
    },
};

/// Options of the task.
#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    target: Target,
    /// Checkout of an earlier version, with its image in target/lb-agent.tar, to begin with. Without it, nothing is upgraded
    #[arg(long, value_name = "DIR", requires = "load")]
    from: Option<PathBuf>,
    /// End the API server with this command. Without it, the API server stays
    #[arg(long, value_name = "COMMAND", requires = "start_api")]
    stop_api: Option<String>,
    /// Start it again with this command, and the controllers that have ended without it
    #[arg(long, value_name = "COMMAND", requires = "stop_api")]
    start_api: Option<String>,
    /// For how many minutes the API server is away
    #[arg(long, value_name = "N", default_value_t = 5)]
    away: u64,
    /// Give the agents tokens of ten minutes, and wait until the first ones have expired
    #[arg(long)]
    tokens: bool,
    /// Run only the checks whose names contain this word
    #[arg(long, value_name = "WORD")]
    only: Option<String>,
}

/// Deploys, lives, judges, cleans up.
///
/// # Errors
/// When the cluster cannot be prepared, or a check failed.
pub(crate) fn run(options: &Options) -> Result<()> {
    let cluster = Cluster::of_nodes(&options.target)?;
    if cluster.run(&["--namespace", SYSTEM, "get", DAEMON_SET]).is_ok() {
        bail!("an agent is deployed: remove it first (docs/src/operations.md)");
    }
    unrest::remove(&cluster);
    let mut report = Report::new(options.only.clone());
    let outcome = live(&cluster, options, &mut report);
    unrest::remove(&cluster);
    bed::remove(&cluster)?;
    outcome?;
    report.end()
}

fn live(cluster: &Cluster, options: &Options, report: &mut Report) -> Result<()> {
    let bed = match &options.from {
        Some(from) => upgrade::check(cluster, options, from, report)?,
        None => {
            deploy::agent(cluster, &options.target)?;
            let bed = Bed::make(cluster, &options.target.image)?;
            unrest::prepare(&bed)?;
            bed
        }
    };
    let tokens = options.tokens.then(|| tokens::ShortTokens::issue(&bed)).transpose()?;
    report.check("a changed ConfigMap is noticed without a restart", || settings::check(&bed));

    say("clients ask from here on");
    let witnesses = Witnesses::begin(&bed)?;
    report.check("an agent stays while its node is drained", || nodes::drain(&bed));
    let api = options.stop_api.as_deref().zip(options.start_api.as_deref());
    match api {
        Some((stop, start)) => {
            let name = "the API server is away for minutes, and a change is followed on its return";
            report.check(name, || api_away::check(&bed, (stop, start), options.away));
        }
        None => eprintln!("not run without --stop-api: the check without an API server"),
    }
    match &tokens {
        Some(tokens) => report.check("agents outlive their tokens", || tokens.check(&bed)),
        None => eprintln!("not run without --tokens: the check of tokens that expire"),
    }
    witnesses.end(&bed, report);

    report.check("a node boots without the kubelet's configuration", || nodes::boot(&bed));
    report.check("cleanup removes everything from all nodes", || deploy::remove(&bed));
    Ok(())
}
