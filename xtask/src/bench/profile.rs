//! Where the time of a row goes: what each program costs in a transaction, as the kernel counts it, and what the hop at the
//! client's node costs without any program, where the row has one.

use std::{collections::BTreeMap, fs, net::IpAddr};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use testbed::{Agent, Bed, Netns};

use super::{
    field::Field,
    paths::{Row, Scale, once, rows},
    side::Side,
    statistics::median,
};
use crate::command::say;

/// Where the kernel is told to count what programs cost. It costs each run about 20 ns.
const COUNTS: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// What a row consists of, on nodes of one kind.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Profile {
    /// From where to where, and what.
    row: String,
    /// Whether the nodes have the kubelet's rule.
    netfilter: bool,
    /// Median time of a transaction in microseconds, straight and without a program.
    straight_us: f64,
    /// The same through the client's node, routed by the kernel alone, where the row has that hop.
    hop_us: Option<f64>,
    /// The same through the Service.
    service_us: f64,
    /// What the programs of both nodes cost of it.
    programs: Vec<Cost>,
}

/// What a program costs.
#[derive(Clone, Debug, Serialize)]
struct Cost {
    node: String,
    program: String,
    /// Runs in a transaction.
    runs: f64,
    /// Nanoseconds of a run.
    ns: f64,
}

/// A row of `lbctl programs -o json`.
#[derive(Clone, Deserialize)]
struct Program {
    program: String,
    runs: u64,
    time_ns: u64,
}

/// Profiles the rows with one Service whose name contains `only`, except streams, which are not made of transactions.
pub(super) fn measure(field: &Field, only: Option<&str>, scale: Scale) -> Result<Vec<Profile>> {
    let mut profiles = Vec::new();
    for row in rows(only).into_iter().filter(|row| row.services == 1 && !row.what.is_stream()) {
        say(&format!("profile: {}", row.name()));
        field.announce_target(row.path.server(&field.with))?;
        profiles.extend(of(field, row, scale)?);
    }
    Ok(profiles)
}

/// Profiles a row on both kinds of nodes.
fn of(field: &Field, row: Row, scale: Scale) -> Result<[Profile; 2]> {
    let netfilter = field.netfilter.as_ref().context("no beds with netfilter")?;
    Ok([
        one(field, row, scale, (&field.without, &field.with, &field.agents), false)?,
        one(field, row, scale, (&netfilter.without, &netfilter.with, &netfilter.agents), true)?,
    ])
}

fn one(
    field: &Field,
    row: Row,
    scale: Scale,
    (without, with, agents): (&Side, &Side, &[Agent; 2]),
    netfilter: bool,
) -> Result<Profile> {
    let time = |netns: &Netns, ip: IpAddr| -> Result<f64> {
        Ok(once(field, netns, ip, row.what, scale)?.p50_ns as f64 / 1e3)
    };
    let to_pod = row.family.of(row.path.server(without));
    let frontend = row.path.frontend(with, row.family);
    let (from, client) = (row.path.client(without), row.path.client(with));
    let [mut straight, mut hop, mut service] = [const { Vec::new() }; 3];
    for _ in 0..scale.rounds {
        straight.push(time(from, to_pod)?);
        if row.path.has_hop() {
            hop.push(by_first_node(without, || time(from, to_pod))?);
        }
        service.push(time(client, frontend)?);
    }
    let programs = counted(agents, || {
        let rate = once(field, client, frontend, row.what, scale)?;
        Ok(rate.per_second * scale.seconds())
    })?;
    Ok(Profile {
        row: row.name(),
        netfilter,
        straight_us: median(&straight),
        hop_us: row.path.has_hop().then(|| median(&hop)),
        service_us: median(&service),
        programs,
    })
}

/// Does this while the client outside reaches the far Pod by the first node, in both directions.
fn by_first_node<T>(side: &Side, act: impl FnOnce() -> Result<T>) -> Result<T> {
    let Side { node, other, outside, far, .. } = side;
    let (v4, v6) = Bed::outsider_addrs(0);
    let ends = [(outside, far.v4, far.v6), (&other.netns, v4, v6)];
    let each = |verb: &str| {
        ends.iter().try_for_each(|(netns, v4, v6)| {
            let (by, by_v6) = (node.v4, node.v6);
            netns.ip(&format!("route {verb} {v4} via {by}\nroute {verb} {v6} via {by_v6}\n"))
        })
    };
    for (netns, ..) in ends {
        // The first node tells them of the shorter way.
        for device in ["all", "eth0"] {
            for family in ["ipv4", "ipv6"] {
                let name = format!("net/{family}/conf/{device}/accept_redirects");
                netns.sysctl(&[(&name, "0")])?;
            }
        }
    }
    each("add")?;
    let result = act();
    each("del")?;
    result
}

/// What the programs of these agents cost while `act` makes transactions; it returns how many.
fn counted(agents: &[Agent; 2], act: impl FnOnce() -> Result<f64>) -> Result<Vec<Cost>> {
    let before = fs::read_to_string(COUNTS).with_context(|| COUNTS)?;
    let set = |value: &str| fs::write(COUNTS, value).with_context(|| COUNTS);
    set("1")?;
    let at_first = agents.each_ref().map(programs);
    let transactions = act();
    let at_last = agents.each_ref().map(programs);
    set(before.trim())?;
    let transactions = transactions?;
    let mut costs = Vec::new();
    for ((agent, first), last) in agents.iter().zip(at_first).zip(at_last) {
        let first = first?;
        for (name, last) in last? {
            let Some(first) = first.get(&name) else { continue };
            let (runs, time) = (last.runs - first.runs, last.time_ns - first.time_ns);
            // Programs that ran now and then had other packets.
            if runs as f64 > transactions / 2.0 {
                costs.push(Cost {
                    node: agent.node.name.clone(),
                    program: name,
                    runs: runs as f64 / transactions,
                    ns: time as f64 / runs as f64,
                });
            }
        }
    }
    Ok(costs)
}

fn programs(agent: &Agent) -> Result<BTreeMap<String, Program>> {
    #[derive(Deserialize)]
    struct Listed {
        items: Vec<Program>,
    }
    let json = agent.lbctl(&["programs", "-o", "json"])?;
    let listed: Listed = serde_json::from_str(&json).context("lbctl programs")?;
    Ok(listed.items.into_iter().map(|row| (row.program.clone(), row)).collect())
}

impl Profile {
    /// Microseconds of a transaction that the programs take.
    fn programs_us(&self) -> f64 {
        self.programs.iter().map(|cost| cost.runs * cost.ns / 1e3).sum()
    }
}

/// Prints a table of the parts, and one of the programs.
pub(super) fn print(profiles: &[Profile]) {
    if profiles.is_empty() {
        return;
    }
    println!("\n| row | netfilter | straight | the hop alone | Service | of it programs |");
    println!("|---|---|--:|--:|--:|--:|");
    for profile in profiles {
        let Profile { row, netfilter, straight_us, hop_us, service_us, .. } = profile;
        let hop = hop_us.map_or("—".to_owned(), |us| format!("{us:.1} µs"));
        let programs = profile.programs_us();
        let netfilter = if *netfilter { "yes" } else { "no" };
        println!(
            "| {row} | {netfilter} | {straight_us:.1} µs | {hop} | {service_us:.1} µs | {programs:.2} µs |"
        );
    }
    println!("\n| row | netfilter | node | program | runs | ns a run |\n|---|---|---|---|--:|--:|");
    for Profile { row, netfilter, programs, .. } in profiles {
        let netfilter = if *netfilter { "yes" } else { "no" };
        for Cost { node, program, runs, ns } in programs {
            println!("| {row} | {netfilter} | {node} | `{program}` | {runs:.1} | {ns:.0} |");
        }
    }
}
