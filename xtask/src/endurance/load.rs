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
use testbed::load::Report as Asked;

use crate::{
    command::output,
    conformance::{bed::Bed, cluster::NAMESPACE, report::within},
    image,
};

/// The Service.
const SERVICE: &str = "endurance";
/// Its ports. A client has 28,000 source ports towards each, and each is in use for a minute after its connection.
const PORTS: [u16; 5] = [8080, 8081, 8082, 8083, 8084];
/// The one of them that is asked by UDP.
const UDP: u16 = 8084;
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
                for port in PORTS {
                    loads.push(Load {
                        pod: format!("load-{node}"),
                        transport: if port == UDP { "udp" } else { "tcp" },
                        at: SocketAddr::new(ip, port).to_string(),
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
        let share = (rate as usize / self.loads.len()).to_string();
        let seconds = time.as_secs().to_string();
        thread::scope(|scope| {
            let run = |load: &Load| -> Result<Asked> {
                let args = ["load", load.transport, &load.at, &share, &seconds];
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
    let port = |port: u16| {
        let protocol = if port == UDP { "UDP" } else { "TCP" };
        json!({ "name": format!("p{port}"), "protocol": protocol, "port": port, "targetPort": port })
    };
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": SERVICE, "namespace": NAMESPACE },
        "spec": {
            "ipFamilyPolicy": "PreferDualStack",
            "selector": { "app": SERVICE },
            "ports": PORTS.map(port),
        },
    })
}

fn server(node: &str) -> Value {
    // One process a port.
    let containers = PORTS.map(|port| {
        json!({
            "name": format!("p{port}"), "image": image::BENCH_TAG, "imagePullPolicy": "Never",
            "args": ["serve", format!("server-{node}"), port.to_string()],
        })
    });
    pod(&format!("server-{node}"), node, SERVICE, &json!(containers))
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
