//! The clients: on each of two nodes a Pod whose loads ask the Service, by both families and by TCP and UDP, and servers behind it on
//! the same nodes.

use std::{
    net::{IpAddr, SocketAddr},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use testbed::{client::Transport, load::Report as Asked};

use crate::{
    command::output,
    conformance::{bed::Bed, cluster::NAMESPACE, report::within},
    image,
};

/// The Service.
const SERVICE: &str = "endurance";
/// The first of its ports, and how many there are by TCP. A client has 28,000 source ports towards each, and each is in use for a
/// minute after its connection.
const PORT: u16 = 8080;
const PORTS: u16 = 32;
/// The server's port, for all of them.
const TARGET: u16 = 8080;
/// Of ten requests one is by UDP.
const TENTHS: [(Transport, usize); 2] = [(Transport::Tcp, 9), (Transport::Udp, 1)];
/// Nodes with a client and a server each.
const NODES: usize = 2;
/// Pods have started by then.
const STARTED: Duration = Duration::from_secs(90);

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
        let mut objects = vec![service()];
        for node in &nodes {
            objects.extend([server(node), client(node)]);
        }
        bed.cluster.apply(&objects)?;
        let wait = ["wait", "--namespace", NAMESPACE, "--for", "condition=Ready", "pod"];
        let which = ["--selector", "bed=endurance", "--timeout", "60s"];
        within(STARTED, || bed.cluster.run(&[&wait[..], &which].concat())).with_context(|| {
            format!("the Pods of {} do not run; is the image on the nodes? See `cargo xtask image --bench`", image::BENCH_TAG)
        })?;
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
        let said = output(&mut self.traffic(load, &["ask", load.transport, &load.at]))?;
        if !said.starts_with("server-") {
            bail!("{} asks {} by {}: {}", load.pod, load.at, load.transport, said.trim());
        }
        Ok(())
    }

    fn traffic(&self, load: &Load, args: &[&str]) -> Command {
        let exec = ["exec", "--namespace", NAMESPACE, &load.pod, "--", "/bin/traffic"];
        self.bed.cluster.kubectl(&[&exec[..], args].concat())
    }

    /// All loads at once, with their share of the rate each.
    ///
    /// # Errors
    /// When one does not run.
    pub(super) fn ask(&self, rate: u32, time: Duration) -> Result<Vec<Asked>> {
        let all: usize = self.loads.iter().map(|load| load.tenths).sum();
        let (seconds, ports) = (time.as_secs().to_string(), PORTS.to_string());
        thread::scope(|scope| {
            let run = |load: &Load| -> Result<Asked> {
                let share = (rate as usize * load.tenths / all).to_string();
                let args = ["load", load.transport, &load.at, &share, &seconds, &ports];
                let text = output(self.traffic(load, &args).stdin(Stdio::null()))?;
                serde_json::from_str(&text)
                    .with_context(|| format!("{} reports {text:?}", load.pod))
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

fn service() -> Value {
    let port = |(protocol, port): (&str, u16)| {
        let name = format!("{}-{port}", protocol.to_lowercase());
        json!({ "name": name, "protocol": protocol, "port": port, "targetPort": TARGET })
    };
    let ports = ["TCP", "UDP"]
        .into_iter()
        .flat_map(|protocol| (PORT..PORT + PORTS).map(move |port| (protocol, port)));
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": SERVICE, "namespace": NAMESPACE },
        "spec": {
            "ipFamilyPolicy": "PreferDualStack",
            "selector": { "app": SERVICE },
            "ports": ports.map(port).collect::<Vec<_>>(),
        },
    })
}

fn server(node: &str) -> Value {
    let containers = json!([{
        "name": "traffic", "image": image::BENCH_TAG, "imagePullPolicy": "Never",
        "args": ["serve", format!("server-{node}"), TARGET.to_string()],
    }]);
    pod(&format!("server-{node}"), node, SERVICE, &containers)
}

fn client(node: &str) -> Value {
    let containers = json!([{
        "name": "traffic", "image": image::BENCH_TAG, "imagePullPolicy": "Never", "args": ["idle"],
    }]);
    pod(&format!("load-{node}"), node, "load", &containers)
}

fn pod(name: &str, node: &str, app: &str, containers: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": NAMESPACE, "labels": { "app": app, "bed": "endurance" },
        },
        "spec": {
            "nodeName": node, "terminationGracePeriodSeconds": 1,
            "tolerations": [{ "operator": "Exists" }],
            "containers": containers,
        },
    })
}
