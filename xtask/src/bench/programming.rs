//! How fast the agent brings Services into the kernel, and what it takes to hold them.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use testbed::{
    Agent,
    client::{Transport, ask},
    wait,
};

use super::{
    field::{Field, TARGET, answered, cluster_ip, unanswered},
    paths::Scale,
    statistics::median,
};

/// Services programmed at once, besides the measured one.
const SERVICES: usize = 10_000;

/// Medians of the programming.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Programming {
    /// Services, of two endpoints each.
    pub(super) services: usize,
    /// From complete lists to all of them in the kernel, in milliseconds, as the agent's metrics tell it.
    pub(super) all_ms: f64,
    /// From the agent's start on empty tables to the first answer of the last Service, in milliseconds; reading the
    /// manifests and loading the programs included.
    pub(super) start_to_last_answer_ms: f64,
    /// From the agent's start on full tables to its first sync, in milliseconds; reading the manifests included.
    pub(super) restart_ms: f64,
    /// From a written manifest to the first answer of the new endpoint, in milliseconds, among all those Services.
    pub(super) change_to_answer_ms: f64,
    /// Resident memory of the agent with all of them, in MiB.
    pub(super) resident_mib: f64,
}

/// Measures on the agent of the client's node.
pub(super) fn measure(field: &mut Field, scale: Scale) -> Result<Programming> {
    field.announce_others(SERVICES)?;
    field.announce_target(&field.with.near)?;
    let rounds = scale.rounds.min(5);
    let (mut all, mut last, mut restart, mut resident) = (vec![], vec![], vec![], vec![]);
    for _ in 0..rounds {
        let [agent, _] = &mut field.agents;
        agent.stop()?;
        agent.cleanup()?;
        // The kernel detaches the programs a little after their links have gone.
        unanswered(&field.with.client.netns, cluster_ip(SERVICES - 1))?;
        let start = Instant::now();
        agent.spawn()?;
        let name = field.with.near.name.clone();
        answered(&field.with.client.netns, cluster_ip(SERVICES - 1), &name)?;
        last.push(millis(start.elapsed()));
        synced(agent)?;
        all.push(agent.metric(SYNC_SECONDS)? * 1000.0);
        resident.push(agent.resident_bytes()? as f64 / f64::from(1 << 20));
        agent.stop()?;
        let start = Instant::now();
        agent.spawn()?;
        synced(agent)?;
        restart.push(millis(start.elapsed()));
    }
    Ok(Programming {
        services: SERVICES,
        all_ms: median(&all),
        start_to_last_answer_ms: median(&last),
        restart_ms: median(&restart),
        change_to_answer_ms: change_to_answer(field, scale)?,
        resident_mib: median(&resident),
    })
}

/// Time spent syncing since the agent's start; right after it that is the first, full sync.
const SYNC_SECONDS: &str = "kubeproxy_sync_proxy_rules_duration_seconds_sum{ip_family=\"IPv4\"}";
/// When the agent last synced; 0 before the first sync. Unlike the count of durations it also changes when a sync found
/// nothing to do.
const SYNCED: &str = "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"}";

/// Waits for the first sync after a start: lists complete, tables as they should be.
fn synced(agent: &mut Agent) -> Result<()> {
    agent.wait_healthy()?;
    wait::until("first sync", Duration::from_secs(60), || {
        ensure!(agent.metric(SYNCED)? > 0.0, "none yet");
        Ok(())
    })
    .map(drop)
}

/// Moves the measured Service between two Pods and asks without a pause who answers.
fn change_to_answer(field: &Field, scale: Scale) -> Result<f64> {
    let addr = SocketAddr::new(TARGET.into(), 80);
    let mut times = Vec::new();
    for i in 0..4 * scale.rounds {
        let pod = if i % 2 == 0 { &field.with.far } else { &field.with.near };
        field.write_target(pod)?;
        let start = Instant::now();
        let waited = field.with.client.netns.enter(|| -> Result<Duration> {
            while start.elapsed() < Duration::from_secs(10) {
                let answer = ask(Transport::Tcp, addr, Duration::from_secs(1)).context("ask")?;
                if answer == pod.name {
                    return Ok(start.elapsed());
                }
            }
            anyhow::bail!("{} does not answer", pod.name)
        })?;
        let drops = || field.agents[0].lbctl(&["drops"]).unwrap_or_else(|err| format!("{err:#}"));
        times.push(millis(waited.with_context(|| format!("change {i}; drops:\n{}", drops()))?));
    }
    ensure!(!times.is_empty(), "no change measured");
    Ok(median(&times))
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
