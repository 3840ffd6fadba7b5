//! `cargo xtask chaos`: a real cluster in trouble for half an hour. Agents are killed, the API server stops, nodes lose it, and
//! Pods, Services and policies change all the time, while others fill the conntrack tables. Meanwhile clients watch that no request
//! that policies allow is lost, and none that they deny is answered. At the end, the tables equal those of a fresh start.

mod crowd;
pub(crate) mod end;
mod trouble;
pub(crate) mod unrest;
pub(crate) mod witness;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
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

use self::{crowd::Crowd, trouble::Troubles, witness::Witnesses};

/// Options of the task.
#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    target: Target,
    /// For how long
    #[arg(long, value_name = "N", default_value_t = 30)]
    minutes: u64,
    /// Seed of the order of the troubles [default: the number of this process]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Stop the API server with this command. Without it, the API server stays up
    #[arg(long, value_name = "COMMAND", requires = "resume_api")]
    pause_api: Option<String>,
    /// Let it go on with this command
    #[arg(long, value_name = "COMMAND", requires = "pause_api")]
    resume_api: Option<String>,
}

/// How long all stays quiet before the end is judged: the cluster follows its last changes.
const QUIET: Duration = Duration::from_secs(30);
/// How often a line tells how it goes.
const LINE: Duration = Duration::from_secs(60);

/// Deploys, disturbs, judges, cleans up.
///
/// # Errors
/// When the cluster cannot be prepared, or an invariant was broken.
pub(crate) fn run(options: &Options) -> Result<()> {
    let cluster = Cluster::of_nodes(&options.target)?;
    // What a run that was stopped left.
    unrest::remove(&cluster);
    let mut report = Report::new(None);
    let outcome = live(&cluster, options, &mut report);
    unrest::remove(&cluster);
    bed::remove(&cluster)?;
    outcome?;
    report.end()
}

fn live(cluster: &Cluster, options: &Options, report: &mut Report) -> Result<()> {
    deploy::agent(cluster, &options.target)?;
    if let Some(load) = &options.target.load {
        load_image(load, options.target.no_build)?;
    }
    let [key, value] = crowd::ENTRIES;
    deploy::configure(cluster, key, value)?;
    deploy::restart(cluster)?;
    let bed = Bed::make(cluster, &options.target.image)?;
    unrest::prepare(&bed)?;
    let crowd = Crowd::gather(&bed)?;
    let mut witnesses = Witnesses::begin(&bed)?;
    let memory = end::memory(&bed)?;
    say(&format!("{} clients ask; the agents have {}", witnesses.len(), end::shown(&memory)));

    let seed = options.seed.unwrap_or_else(|| u64::from(std::process::id()));
    say(&format!("{} minutes of trouble, seed {seed}", options.minutes));
    let api = options.pause_api.as_deref().zip(options.resume_api.as_deref());
    let mut troubles = Troubles::new(&bed, api, seed)?;
    let is_over = AtomicBool::new(false);
    let (changes, crowded) = thread::scope(|scope| {
        let changes = scope.spawn(|| unrest::go_on(&bed, &is_over));
        let crowded = scope.spawn(|| crowd.go_on(&is_over));
        let deadline = Instant::now() + Duration::from_secs(60 * options.minutes);
        let mut line = Instant::now() + LINE;
        while Instant::now() < deadline {
            troubles.next();
            if Instant::now() >= line {
                line += LINE;
                witnesses.look(&bed);
                say(&format!("{witnesses}; {}", troubles.last()));
            }
        }
        is_over.store(true, Ordering::Relaxed);
        (changes.join(), crowded.join())
    });
    let Ok(changes) = changes else { bail!("the thread that changes objects panicked") };
    let Ok(crowded) = crowded else { bail!("the thread of the crowd panicked") };
    say("all is quiet");
    thread::sleep(QUIET);
    deploy::ready(cluster)?;

    report.check("the troubles happened", || troubles.done());
    report.check("Pods, Services and policies changed", || changes.done(options.minutes));
    report.check("the conntrack tables were full", || crowded.done(&cluster.nodes));
    witnesses.end(&bed, report);
    end::check(&bed, report, &memory);
    Ok(())
}
