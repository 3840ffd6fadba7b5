//! `cargo xtask endurance`: thousands of new connections a second through Services of a real cluster, for hours. What an agent
//! does not give back shows as growth, however little it is for each.

mod load;
mod record;

use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;

use crate::{
    bench::load_image,
    command::say,
    conformance::{
        Target,
        bed::{self, Bed},
        cluster::Cluster,
        deploy,
        report::Report,
    },
};

use self::{
    load::Clients,
    record::{Record, Round},
};

/// Options of the task.
#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    target: Target,
    /// For how long
    #[arg(long, value_name = "N", default_value_t = 120, value_parser = clap::value_parser!(u64).range(10..=1440))]
    minutes: u64,
    /// New connections, and requests from new UDP ports, a second, of all clients together
    #[arg(long, value_name = "N", default_value_t = 5000, value_parser = clap::value_parser!(u32).range(100..=20_000))]
    rate: u32,
}

/// How long one round is. After it, everything is counted.
const ROUND: Duration = Duration::from_secs(60);

/// Deploys, asks, counts, judges, cleans up.
///
/// # Errors
/// When the cluster cannot be prepared, or something grew.
pub(crate) fn run(options: &Options) -> Result<()> {
    let cluster = Cluster::of_nodes(&options.target)?;
    let mut report = Report::new(None);
    let outcome = live(&cluster, options, &mut report);
    bed::remove(&cluster)?;
    outcome?;
    report.end()
}

fn live(cluster: &Cluster, options: &Options, report: &mut Report) -> Result<()> {
    deploy::agent(cluster, &options.target)?;
    if let Some(load) = &options.target.load {
        load_image(load, options.target.no_build)?;
    }
    let bed = Bed::make(cluster, &options.target.image)?;
    let clients = Clients::make(&bed)?;
    say(&format!(
        "{} minutes of {} requests a second by {} loads on {} nodes, each with a port of its own",
        options.minutes,
        options.rate,
        clients.len(),
        cluster.nodes.len(),
    ));
    let mut record = Record::default();
    let deadline = Instant::now() + Duration::from_secs(60 * options.minutes);
    while Instant::now() < deadline {
        let asked = clients.ask(options.rate, ROUND)?;
        let round = Round::look(&bed, asked)?;
        say(&round.to_string());
        record.add(round);
    }
    report.check("every request was answered", || record.answered());
    report.check("the rate was reached", || record.reached(options.rate));
    report.check("the time to an answer stayed", || record.stayed_fast());
    report.check("the agents' memory and open files stayed", || record.agents_stayed());
    report.check("the maps' elements stayed", || record.maps_stayed());
    report.check("cleanup removes everything from all nodes", || deploy::remove(&bed));
    Ok(())
}
