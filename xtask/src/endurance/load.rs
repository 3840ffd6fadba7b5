//! The clients: on each of two nodes a Pod whose loads ask the Service, by both families and by TCP and UDP, and servers behind it on
//! the same nodes.

use std::{
    net::{IpAddr, SocketAddr},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use testbed::{client::Transport, load::Report as Asked};

use crate::{
    command::output,
    conformance::{
        bed::Bed,
        report::within,
        traffic::{self, PORT, STARTED, client, server, service, started},
    },
};

/// The Service.
const SERVICE: &str = "endurance";
/// Of ten requests one is by UDP.
const TENTHS: [(Transport, usize); 2] = [(Transport::Tcp, 9), (Transport::Udp, 1)];
/// Nodes with a client and a server each.
const NODES: usize = 2;

/// The loads: where each runs, and what it asks.
pub(super) struct Clients<'a> {
    bed: &'a Bed<'a>,
    loads: Vec<Load>,
}

struct Load {
    pod: String,
    transport: &'static str,
    /// Tenths of what all loads of its family and node ask.
    tenths: usize,
    at: String,
}

impl<'a> Clients<'a> {
    /// Creates Pods and Service, and waits until each load has an answer.
    ///
    /// # Errors
    /// When the API refuses something, a Pod does not start, or a server does not answer.
    pub(super) fn make(bed: &'a Bed<'a>) -> Result<Self> {
        let nodes: Vec<&String> = bed.cluster.nodes.iter().take(NODES).collect();
        let mut objects = vec![service(SERVICE)];
        for node in &nodes {
            objects.extend([server(node, SERVICE), client(&format!("load-{node}"), node)]);
        }
        bed.cluster.apply(&objects)?;
        started(bed.cluster)?;
        let mut loads = Vec::new();
        for address in bed.addresses(SERVICE)? {
            let ip: IpAddr = address.parse().with_context(|| format!("address {address:?}"))?;
            for node in &nodes {
                for (transport, tenths) in TENTHS {
                    loads.push(Load {
                        pod: format!("load-{node}"),
                        transport: if transport == Transport::Udp { "udp" } else { "tcp" },
                        tenths,
                        at: SocketAddr::new(ip, PORT).to_string(),
                    });
                }
            }
        }
        let clients = Self { bed, loads };
        for load in &clients.loads {
            within(STARTED, || clients.first(load))?;
        }
        Ok(clients)
    }

    /// Number of loads.
    pub(super) fn len(&self) -> usize {
        self.loads.len()
    }

    /// One request, which a server must answer.
    fn first(&self, load: &Load) -> Result<()> {
        let ask = ["ask", load.transport, &load.at];
        let said = output(&mut traffic::traffic(self.bed.cluster, &load.pod, &ask))?;
        if !said.starts_with("server-") {
            bail!("{} asks {} by {}: {}", load.pod, load.at, load.transport, said.trim());
        }
        Ok(())
    }

    /// All loads at once, with their share of the rate each.
    ///
    /// # Errors
    /// When one does not run.
    pub(super) fn ask(&self, rate: u32, time: Duration) -> Result<Vec<Asked>> {
        let all: usize = self.loads.iter().map(|load| load.tenths).sum();
        thread::scope(|scope| {
            let run = |load: &Load| -> Result<Asked> {
                let share = rate as usize * load.tenths / all;
                let to = (load.transport, &*load.at);
                let mut asked =
                    traffic::load(self.bed.cluster, &load.pod, to, (share, time.as_secs()))?;
                let failures = std::mem::take(&mut asked.failures).into_iter();
                asked.failures =
                    failures.map(|(kind, n)| (format!("{}: {kind}", load.transport), n)).collect();
                Ok(asked)
            };
            let threads: Vec<_> =
                self.loads.iter().map(|load| scope.spawn(move || run(load))).collect();
            let outcome = |thread: thread::ScopedJoinHandle<'_, Result<Asked>>| match thread.join()
            {
                Ok(asked) => asked,
                Err(_) => bail!("the thread of a load panicked"),
            };
            threads.into_iter().map(outcome).collect()
        })
    }
}
