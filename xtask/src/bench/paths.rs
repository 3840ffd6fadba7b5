//! Stream, round trips and connects over each path, in interleaved rounds.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::Value;
use testbed::{Netns, Pod};

use super::field::{BYTES, Field, IPERF, Side, TARGET, first};
use crate::command::say;

/// How long and how often to measure.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    /// Rounds of each measurement.
    pub(super) rounds: usize,
    transactions: Duration,
    stream_secs: u32,
}

impl Scale {
    /// The scale of a result, or of a look.
    pub(super) fn new(quick: bool, rounds: Option<usize>) -> Self {
        let (default, transactions) =
            if quick { (3, Duration::from_millis(200)) } else { (7, Duration::from_millis(500)) };
        Self { rounds: rounds.unwrap_or(default).max(1), transactions, stream_secs: 1 }
    }
}

/// From where to where.
#[derive(Clone, Copy, Debug)]
pub(super) enum Path {
    SameNode,
    OtherNode,
    Host,
    /// A Pod to a node port of its own node.
    NodePort,
    /// From outside to a node port of the Pod's node.
    OutsideNear,
    /// From outside to a node port of another node: one hop more than straight to the Pod.
    OutsideFar,
}

impl Path {
    const ALL: [Self; 6] = [
        Self::SameNode,
        Self::OtherNode,
        Self::Host,
        Self::NodePort,
        Self::OutsideNear,
        Self::OutsideFar,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::SameNode => "Pod, same node",
            Self::OtherNode => "Pod, other node",
            Self::Host => "host process, other node",
            Self::NodePort => "Pod, other node, by a node port",
            Self::OutsideNear => "outside, node port, local backend",
            Self::OutsideFar => "outside, node port, remote backend",
        }
    }

    pub(super) fn client(self, side: &Side) -> &Netns {
        match self {
            Self::SameNode | Self::OtherNode | Self::NodePort => &side.client.netns,
            Self::Host => &side.node.netns,
            Self::OutsideNear | Self::OutsideFar => &side.outside,
        }
    }

    pub(super) fn server(self, side: &Side) -> &Pod {
        match self {
            Self::SameNode => &side.near,
            Self::OtherNode
            | Self::Host
            | Self::NodePort
            | Self::OutsideNear
            | Self::OutsideFar => &side.far,
        }
    }

    /// The Service's address that is dialled.
    fn frontend(self, side: &Side) -> IpAddr {
        match self {
            Self::SameNode | Self::OtherNode | Self::Host => TARGET.into(),
            Self::NodePort | Self::OutsideFar => side.node.v4.into(),
            Self::OutsideNear => side.other.v4.into(),
        }
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub(super) enum What {
    Stream,
    RoundTrips,
    Connects,
}

impl What {
    pub(super) const ALL: [Self; 3] = [Self::Stream, Self::RoundTrips, Self::Connects];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Stream => "stream, Gbit/s",
            Self::RoundTrips => "request/response, 1/s",
            Self::Connects => "connect/request/close, 1/s",
        }
    }
}

/// Medians of one measurement over one path.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Measured {
    /// From where to where.
    pub(super) path: &'static str,
    /// What, with its unit.
    pub(super) what: &'static str,
    /// Services programmed.
    pub(super) services: usize,
    /// Straight to the Pod, no agent.
    pub(super) without_agent: f64,
    /// Straight to the Pod, under the agent.
    pub(super) straight: f64,
    /// Through the Service's address.
    pub(super) service: f64,
    /// Median of the rounds' `straight / without_agent`.
    pub(super) straight_ratio: f64,
    /// Median of the rounds' `service / without_agent`.
    pub(super) service_ratio: f64,
    /// The lowest and the highest `service / without_agent` of the rounds.
    pub(super) service_ratio_range: [f64; 2],
}

/// Measures every path with `services` Services programmed.
pub(super) fn measure(field: &mut Field, services: usize, scale: Scale) -> Result<Vec<Measured>> {
    let mut measured = Vec::new();
    for path in Path::ALL {
        // Between the ends of the range these say nothing new.
        let outside = matches!(path, Path::NodePort | Path::OutsideNear | Path::OutsideFar);
        if services == 1_000 && outside {
            continue;
        }
        field.announce_target(path.server(&field.with))?;
        for what in What::ALL {
            say(&format!("{services} Services: {}, {}", path.name(), what.name()));
            let mut rounds = Vec::new();
            for round in 0..scale.rounds {
                rounds.push(one_round(field, path, what, scale, round)?);
            }
            measured.push(summary(path, what, services, &rounds));
        }
    }
    Ok(measured)
}

/// Without agent, straight under it, through the Service; which one is first turns with the rounds.
fn one_round(
    field: &Field,
    path: Path,
    what: What,
    scale: Scale,
    round: usize,
) -> Result<[f64; 3]> {
    let straight = |side| (path.client(side), IpAddr::from(path.server(side).v4));
    let targets = [
        straight(&field.without),
        straight(&field.with),
        (path.client(&field.with), path.frontend(&field.with)),
    ];
    let mut results = [0.0; 3];
    let mut order: Vec<_> = results.iter_mut().zip(targets).collect();
    order.rotate_left(round % 3);
    for (result, (netns, ip)) in order {
        *result = once(field, netns, ip, what, scale)
            .with_context(|| format!("{} to {ip} from {netns}", what.name()))?;
    }
    Ok(results)
}

/// One measurement of a path under the agent, or of one without.
pub(super) fn once(
    field: &Field,
    netns: &Netns,
    ip: IpAddr,
    what: What,
    scale: Scale,
) -> Result<f64> {
    let cpu = field.cpu.to_string();
    let (mut command, result) = match what {
        What::Stream => {
            let mut command = first(std::path::Path::new("iperf3"));
            command.args(["--client", &ip.to_string(), "--port", &IPERF.to_string()]);
            command.args(["--time", &scale.stream_secs.to_string(), "--json", "--affinity", &cpu]);
            (command, "/end/sum_received/bits_per_second")
        }
        What::RoundTrips | What::Connects => {
            let mut command = first(&field.traffic);
            command.arg(if matches!(what, What::RoundTrips) { "rr" } else { "crr" });
            command.arg(SocketAddr::new(ip, BYTES).to_string());
            command.args([&scale.transactions.as_millis().to_string(), &cpu]);
            (command, "/per_second")
        }
    };
    let output: Value =
        serde_json::from_str(&netns.output(&mut command)?).context("result of the client")?;
    let rate = output.pointer(result).and_then(Value::as_f64).context("no result")?;
    Ok(if matches!(what, What::Stream) { rate / 1e9 } else { rate })
}

fn summary(path: Path, what: What, services: usize, rounds: &[[f64; 3]]) -> Measured {
    let column = |value: fn(&[f64; 3]) -> f64| median(rounds.iter().map(value).collect());
    let ratios: Vec<f64> = rounds.iter().map(|[without, _, ip]| ip / without).collect();
    Measured {
        path: path.name(),
        what: what.name(),
        services,
        without_agent: column(|[without, _, _]| *without),
        straight: column(|[_, straight, _]| *straight),
        service: column(|[_, _, ip]| *ip),
        straight_ratio: column(|[without, straight, _]| straight / without),
        service_ratio: median(ratios.clone()),
        service_ratio_range: [
            ratios.iter().copied().fold(f64::INFINITY, f64::min),
            ratios.iter().copied().fold(0.0, f64::max),
        ],
    }
}

/// The middle value; 0 of none.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
