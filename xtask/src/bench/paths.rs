//! Rates and latencies over each path, in interleaved rounds: without a program, straight to the Pod under the agent, and through the
//! Service; each without netfilter on the nodes and with it.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde::Serialize;
use testbed::{
    Netns, Pod,
    measure::{Rate, What},
};

use super::{
    field::{Field, TARGET, TARGET_V6},
    side::{BYTES, SINK, Side, first},
    statistics::{Level, Ratio},
};
use crate::command::say;

/// How long and how often to measure.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    /// Rounds of each measurement.
    pub(super) rounds: usize,
    /// Time of one measurement.
    duration: Duration,
}

impl Scale {
    /// The scale of a result, or of a look.
    pub(super) fn new(quick: bool, rounds: Option<usize>) -> Self {
        let default = if quick { 3 } else { 15 };
        let duration = Duration::from_millis(if quick { 100 } else { 200 });
        Self { rounds: rounds.unwrap_or(default).max(1), duration }
    }

    /// Seconds of one measurement.
    pub(super) const fn seconds(self) -> f64 {
        self.duration.as_secs_f64()
    }
}

/// What is measured over each path.
pub(super) const WHATS: [What; 4] =
    [What::RoundTrips, What::Connects, What::Datagrams, What::Stream];

/// From where to where.
#[derive(Clone, Copy, Debug)]
pub(super) enum Path {
    SameNode,
    OtherNode,
    HostNear,
    HostFar,
    /// A Pod to a node port of its own node.
    PortNear,
    PortFar,
    /// From outside to a node port of the Pod's node.
    OutsideNear,
    /// From outside to a node port of another node: one hop more than straight to the Pod.
    OutsideFar,
}

impl Path {
    const ALL: [Self; 8] = [
        Self::SameNode,
        Self::OtherNode,
        Self::HostNear,
        Self::HostFar,
        Self::PortNear,
        Self::PortFar,
        Self::OutsideNear,
        Self::OutsideFar,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::SameNode => "Pod, same node",
            Self::OtherNode => "Pod, other node",
            Self::HostNear => "host process, same node",
            Self::HostFar => "host process, other node",
            Self::PortNear => "Pod, same node, through a node port",
            Self::PortFar => "Pod, other node, through a node port",
            Self::OutsideNear => "external, node port, local backend",
            Self::OutsideFar => "external, node port, remote backend",
        }
    }

    pub(super) fn client(self, side: &Side) -> &Netns {
        match self {
            Self::SameNode | Self::OtherNode | Self::PortNear | Self::PortFar => &side.client.netns,
            Self::HostNear | Self::HostFar => &side.node.netns,
            Self::OutsideNear | Self::OutsideFar => &side.outside,
        }
    }

    pub(super) fn server(self, side: &Side) -> &Pod {
        match self {
            Self::SameNode | Self::HostNear | Self::PortNear | Self::OutsideNear => &side.near,
            Self::OtherNode | Self::HostFar | Self::PortFar | Self::OutsideFar => &side.far,
        }
    }

    /// Whether packets pass a node that is neither the client's nor the Pod's.
    pub(super) const fn has_hop(self) -> bool {
        matches!(self, Self::OutsideFar)
    }

    /// The Service's address that is dialled. A node port is that of the node of the client, or the first node.
    pub(super) fn frontend(self, side: &Side, family: Family) -> IpAddr {
        match (self, family) {
            (Self::SameNode | Self::OtherNode | Self::HostNear | Self::HostFar, Family::V4) => {
                TARGET.into()
            }
            (Self::SameNode | Self::OtherNode | Self::HostNear | Self::HostFar, Family::V6) => {
                TARGET_V6.into()
            }
            (_, Family::V4) => side.node.v4.into(),
            (_, Family::V6) => side.node.v6.into(),
        }
    }
}

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) enum Family {
    #[serde(rename = "IPv4")]
    V4,
    #[serde(rename = "IPv6")]
    V6,
}

impl Family {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// The Pod's address of this family.
    pub(super) fn of(self, pod: &Pod) -> IpAddr {
        match self {
            Self::V4 => pod.v4.into(),
            Self::V6 => pod.v6.into(),
        }
    }
}

/// One measurement over one path.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Measured {
    /// From where to where.
    pub(super) path: &'static str,
    pub(super) family: Family,
    pub(super) what: What,
    /// Services programmed.
    pub(super) services: usize,
    /// On nodes without netfilter.
    pub(super) plain: Compared,
    /// On nodes with the kubelet's rule.
    pub(super) netfilter: Compared,
    /// What that rule costs without any program: with it ÷ without.
    pub(super) netfilter_ratio: Ratio,
}

/// The agent against no program.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Compared {
    /// Straight to the Pod, no program.
    pub(super) none: Level,
    /// Straight to the Pod, under the agent.
    pub(super) straight: Level,
    /// Through the Service's address.
    pub(super) service: Level,
    /// `straight` ÷ `none`.
    pub(super) straight_ratio: Ratio,
    /// `service` ÷ `none`.
    pub(super) service_ratio: Ratio,
}

/// A row to measure.
#[derive(Clone, Copy)]
pub(super) struct Row {
    pub(super) path: Path,
    pub(super) family: Family,
    pub(super) what: What,
    pub(super) services: usize,
}

impl Row {
    pub(super) fn name(self) -> String {
        let Self { path, family, what, services } = self;
        format!("{}, {}, {}, {services} Services", path.name(), family.name(), what.name())
    }
}

/// Every path in both families with one Service, and the busiest ones among many; only rows whose name contains `only`.
pub(super) fn rows(only: Option<&str>) -> Vec<Row> {
    let mut rows = Vec::new();
    for services in [1, 1_000, 10_000, 30_000] {
        for path in Path::ALL {
            for family in [Family::V4, Family::V6] {
                rows.extend(WHATS.map(|what| Row { path, family, what, services }));
            }
        }
    }
    let among_many = |row: &Row| {
        row.family == Family::V4
            && matches!(row.what, What::RoundTrips | What::Connects)
            && matches!(
                row.path,
                Path::SameNode | Path::OtherNode | Path::HostFar | Path::OutsideFar
            )
    };
    rows.retain(|row| row.services == 1 || among_many(row));
    rows.retain(|row| only.is_none_or(|only| row.name().contains(only)));
    rows
}

/// Measures all rows, with one Service and among many.
pub(super) fn measure(field: &Field, only: Option<&str>, scale: Scale) -> Result<Vec<Measured>> {
    let rows = rows(only);
    anyhow::ensure!(!rows.is_empty(), "no row contains {:?}", only.unwrap_or_default());
    let start = Instant::now();
    let (mut measured, mut services, mut server) = (Vec::new(), 0, "");
    for (done, row) in rows.iter().enumerate() {
        if services != row.services {
            services = row.services;
            field.announce_others(services - 1)?;
        }
        let wanted = row.path.server(&field.with);
        if server != wanted.name {
            server = &wanted.name;
            field.announce_target(wanted)?;
        }
        let left = match done {
            0 => String::new(),
            _ => {
                let left = start.elapsed() / done as u32 * (rows.len() - done) as u32;
                format!(", about {} min left", left.as_secs().div_ceil(60))
            }
        };
        say(&format!("{} of {}{left}: {}", done + 1, rows.len(), row.name()));
        measured.push(one_row(field, *row, scale)?);
    }
    field.announce_others(0)?;
    Ok(measured)
}

/// Without a program, straight under the agent, through the Service.
type Three = [Vec<Rate>; 3];

fn one_row(field: &Field, row: Row, scale: Scale) -> Result<Measured> {
    let netfilter = field.netfilter.as_ref().context("no beds with netfilter")?;
    let pairs = [(&field.without, &field.with), (&netfilter.without, &netfilter.with)];
    let ways = pairs.map(|(without, with)| {
        let straight = |side| (row.path.client(side), row.family.of(row.path.server(side)));
        let service = (row.path.client(with), row.path.frontend(with, row.family));
        [straight(without), straight(with), service]
    });
    let ways: Vec<(&Netns, IpAddr)> = ways.concat();
    let mut rates: Vec<Vec<Rate>> = vec![Vec::new(); ways.len()];
    for round in 0..scale.rounds {
        let mut order: Vec<_> = rates.iter_mut().zip(&ways).collect();
        let n = order.len();
        order.rotate_left(round % n);
        for (rates, (netns, ip)) in order {
            let rate = once(field, netns, *ip, row.what, scale);
            rates.push(rate.with_context(|| format!("{} to {ip} from {netns}", row.what.name()))?);
        }
    }
    let netfilter = rates.split_off(3);
    let three = |rates: Vec<Vec<Rate>>| Three::try_from(rates).ok().context("three ways");
    let (plain, netfilter) = (three(rates)?, three(netfilter)?);
    Ok(Measured {
        path: row.path.name(),
        family: row.family,
        what: row.what,
        services: row.services,
        netfilter_ratio: Ratio::of(&netfilter[0], &plain[0]),
        plain: Compared::of(&plain),
        netfilter: Compared::of(&netfilter),
    })
}

impl Compared {
    fn of([none, straight, service]: &Three) -> Self {
        Self {
            none: Level::of(none),
            straight: Level::of(straight),
            service: Level::of(service),
            straight_ratio: Ratio::of(straight, none),
            service_ratio: Ratio::of(service, none),
        }
    }
}

/// One measurement from a namespace to an address.
pub(super) fn once(
    field: &Field,
    netns: &Netns,
    ip: IpAddr,
    what: What,
    scale: Scale,
) -> Result<Rate> {
    let port = if what.is_stream() { SINK } else { BYTES };
    let mut command = first(&field.traffic);
    command.args(["measure", what.word(), &SocketAddr::new(ip, port).to_string()]);
    command.args([scale.duration.as_millis().to_string(), field.cpu.to_string()]);
    serde_json::from_str(&netns.output(&mut command)?).context("result of the client")
}

#[cfg(test)]
mod tests {
    use super::rows;

    #[test]
    fn rows_cover_both_families_and_every_path() {
        let all = rows(None);
        assert_eq!(all.len(), 8 * 2 * 4 + 3 * 8);
        assert_eq!(rows(Some("IPv6")).len(), 8 * 4);
        assert_eq!(rows(Some("remote backend, IPv4, request/response")).len(), 4);
        assert!(rows(Some("nothing like this")).is_empty());
    }
}
