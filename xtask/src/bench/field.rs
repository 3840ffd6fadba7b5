//! Where the bench measures: a bed without agents and a bed with them, otherwise alike.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use testbed::{
    Agent, Bed, Netns, Node, Pod, Shape,
    client::{Transport, ask},
    manifest::{Directory, Object, node_of, pod_of, policy, service, slice},
    measure::last_cpu,
    wait,
};

use crate::binaries::Binaries;

/// ClusterIP of the Service that is measured.
pub(super) const TARGET: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// Port that answers with the Pod's name.
const NAME: u16 = 8080;
/// Port that answers bytes with bytes.
pub(super) const BYTES: u16 = 8081;
/// Port of iperf3.
pub(super) const IPERF: u16 = 5201;
/// Programming 10,000 Services in a debug build on a busy machine stays below this.
const PATIENCE: Duration = Duration::from_secs(60);

/// Both beds; dropping it removes them.
#[derive(Debug)]
pub(super) struct Field {
    /// With agents.
    pub(super) with: Side,
    /// Without.
    pub(super) without: Side,
    /// Agents of the nodes of `with`.
    pub(super) agents: [Agent; 2],
    /// What they read.
    pub(super) manifests: Directory,
    /// The CPU of every client and server.
    pub(super) cpu: usize,
    /// The client program.
    pub(super) traffic: PathBuf,
}

/// One bed: a client, a server beside it, a server on the other node.
#[derive(Debug)]
pub(super) struct Side {
    /// The client's node.
    pub(super) node: Node,
    /// The client.
    pub(super) client: Pod,
    /// Server on the client's node.
    pub(super) near: Pod,
    /// Server on the other node.
    pub(super) far: Pod,
    /// A client outside the cluster, which reaches each node's Pods by that node.
    pub(super) outside: Netns,
    /// The node of `far`.
    pub(super) other: Node,
    servers: Vec<Child>,
    bed: Bed,
}

impl Field {
    /// Makes both beds and starts the agents.
    pub(super) fn set(binaries: &Binaries) -> Result<Self> {
        let cpu = last_cpu()?;
        let without = Side::set("benchout", binaries, cpu)?;
        let with = Side::set("benchwith", binaries, cpu)?;
        let manifests = with.bed.manifests()?;
        manifests.write("nodes", &[node_of(&with.node), node_of(&with.other)])?;
        let agents = [&with.node, &with.other]
            .map(|node| Agent::new(node, &binaries.agent, &manifests.path));
        let mut field =
            Self { with, without, agents, manifests, cpu, traffic: binaries.traffic.clone() };
        for agent in &mut field.agents {
            agent.start()?;
        }
        Ok(field)
    }

    /// Points the measured Service at `pod` and waits until it is so, for Pods and for the node.
    pub(super) fn announce_target(&self, pod: &Pod) -> Result<()> {
        self.write_target(pod)?;
        for netns in [&self.with.client.netns, &self.with.node.netns] {
            answered(netns, TARGET.into(), &pod.name)?;
        }
        for node in [&self.with.node, &self.with.other] {
            answered_at(&self.with.outside, SocketAddr::new(node.v4.into(), NAME), &pod.name)?;
        }
        Ok(())
    }

    /// Points the measured Service at `pod` and does not wait.
    pub(super) fn write_target(&self, pod: &Pod) -> Result<()> {
        let target = [(80, NAME), (BYTES, BYTES), (IPERF, IPERF)].into_iter().fold(
            (
                service("target").ip(&TARGET.to_string()).set(&["spec", "type"], "NodePort".into()),
                slice("target", "target", &[pod.v4.into()]),
            ),
            |(service, slice), (port, target)| {
                // The node port is the target port: a client needs to change nothing but the address.
                let entry = serde_json::json!({
                    "name": format!("tcp-{port}"), "protocol": "TCP", "port": port,
                    "targetPort": target, "nodePort": target,
                });
                (service.push(&["spec", "ports"], entry), slice.slice_port("TCP", port, target))
            },
        );
        self.manifests.write("target", &[target.0, target.1])
    }

    /// Announces `n` policies on client and servers: two deny everything, one for each direction allows what is
    /// measured, the others allow other things.
    pub(super) fn announce_policies(&self, n: usize) -> Result<()> {
        let Side { client, near, far, .. } = &self.with;
        let pods = [(client, "client"), (near, "server"), (far, "server")];
        self.manifests.write("pods", &pods.map(|(pod, role)| pod_of(pod).label("role", role)))?;
        let rule = |peers: &str, role: &str| {
            let peer = json!({"podSelector": {"matchLabels": {"role": role}}});
            let ports = [NAME, BYTES, IPERF].map(|port| json!({"port": port}));
            json!([{peers: [peer], "ports": ports}])
        };
        let all = json!({"podSelector": {}});
        let mut specs = vec![
            with(&all, "policyTypes", json!(["Ingress", "Egress"])),
            with(&all, "ingress", rule("from", "client")),
            with(&with(&all, "egress", rule("to", "server")), "policyTypes", json!(["Egress"])),
        ];
        specs.extend(
            (specs.len()..n).map(|i| with(&all, "ingress", rule("from", &format!("other-{i}")))),
        );
        specs.truncate(n);
        let name = |i: usize| format!("policy-{i}");
        let objects: Vec<Object> =
            specs.into_iter().enumerate().map(|(i, spec)| policy(&name(i), spec)).collect();
        self.manifests.write("policies", &objects)?;
        for agent in &self.agents {
            wait::until("policies enforced", PATIENCE, || {
                let enforced = agent.metric("lb_policies{state=\"programmed\"}")?;
                ensure!(enforced as usize == n, "{enforced} of {n}");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Announces `n` other Services with two endpoints each, and waits until the last of them is served; returns the
    /// time that took from the moment the file was there.
    pub(super) fn announce_others(&self, n: usize) -> Result<Duration> {
        let mut objects = Vec::with_capacity(2 * n);
        for i in 0..n {
            // The last one has a real endpoint beside itself: it tells when all are there.
            let real = [self.with.near.v4.into()];
            let endpoints = if i + 1 == n { &real[..] } else { &unused(i) };
            objects.extend(other(i, endpoints));
        }
        self.manifests.write("others", &objects)?;
        let start = Instant::now();
        if let Some(last) = n.checked_sub(1) {
            answered(&self.with.client.netns, cluster_ip(last), &self.with.near.name)?;
        }
        Ok(start.elapsed())
    }
}

/// The object with one more field.
fn with(object: &Value, field: &str, value: Value) -> Value {
    let mut object = object.clone();
    if let Some(fields) = object.as_object_mut() {
        fields.insert(field.to_owned(), value);
    }
    object
}

/// Service number `i` and its slice.
fn other(i: usize, endpoints: &[IpAddr]) -> [Object; 2] {
    let name = format!("other-{i}");
    [
        service(&name).port("TCP", 80, NAME.into()).ip(&cluster_ip(i).to_string()),
        slice(&name, &name, endpoints).slice_port("TCP", 80, NAME),
    ]
}

/// ClusterIP of Service number `i`.
pub(super) fn cluster_ip(i: usize) -> IpAddr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 97, 0, 0).to_bits() + i as u32).into()
}

/// Two addresses that no Pod has.
fn unused(i: usize) -> [IpAddr; 2] {
    let base = Ipv4Addr::new(10, 245, 0, 0).to_bits() + 2 * i as u32;
    [base, base + 1].map(|bits| Ipv4Addr::from_bits(bits).into())
}

/// Waits until port 80 at `ip` is answered by `name`.
pub(super) fn answered(netns: &Netns, ip: IpAddr, name: &str) -> Result<()> {
    answered_at(netns, SocketAddr::new(ip, 80), name)
}

fn answered_at(netns: &Netns, addr: SocketAddr, name: &str) -> Result<()> {
    wait::until(&format!("answer of {addr} by {name}"), PATIENCE, || {
        let answer = netns.enter(|| ask(Transport::Tcp, addr, Duration::from_millis(20)))??;
        ensure!(answer == name, "answered by {answer}");
        Ok(())
    })
    .map(drop)
}

/// Returns a command with the highest priority on the machine: the time that other processes take is not a cost of the
/// path.
pub(super) fn first(program: &Path) -> Command {
    let mut command = Command::new("nice");
    command.args(["-n", "-19"]).arg(program);
    command
}

/// Waits until no server answers on port 80 at `ip`.
pub(super) fn unanswered(netns: &Netns, ip: IpAddr) -> Result<()> {
    let addr = SocketAddr::new(ip, 80);
    wait::until(&format!("silence of {addr}"), PATIENCE, || {
        let answer = netns.enter(|| ask(Transport::Tcp, addr, Duration::from_millis(20)))?;
        ensure!(answer.is_err(), "answered by {answer:?}");
        Ok(())
    })
    .map(drop)
}

impl Side {
    fn set(prefix: &str, binaries: &Binaries, cpu: usize) -> Result<Self> {
        let bed = Bed::new(prefix)?;
        let (node, other) = (bed.node("a", Shape::Routed)?, bed.node("b", Shape::Routed)?);
        let (client, near, far) = (node.pod("client")?, node.pod("near")?, other.pod("far")?);
        let outside = bed.outsider("outside")?;
        outside.ip(&format!(
            "route add 10.244.1.0/24 via {}\nroute add 10.244.2.0/24 via {}\n",
            node.v4, other.v4
        ))?;
        for netns in [&client.netns, &node.netns, &outside] {
            // Tens of thousands of connects within the time that TIME_WAIT lasts, but none from the ports that the
            // agent masquerades with.
            netns.sysctl(&[
                ("net/ipv4/ip_local_port_range", "30000 65535"),
                ("net/ipv4/tcp_tw_reuse", "1"),
            ])?;
        }
        let mut servers = Vec::new();
        for pod in [&near, &far] {
            let mut named = first(&binaries.traffic);
            named.args(["serve", &pod.name, &NAME.to_string()]);
            let mut bytes = first(&binaries.traffic);
            bytes.args(["bytes", &BYTES.to_string(), &cpu.to_string()]);
            let mut iperf = first(Path::new("iperf3"));
            iperf.args(["--server", "--port", &IPERF.to_string(), "--affinity", &cpu.to_string()]);
            for mut command in [named, bytes, iperf] {
                command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
                servers.push(pod.netns.spawn(&mut command)?);
            }
            let ready = |port| {
                let addr = SocketAddr::new(pod.v4.into(), port);
                client.netns.enter(|| std::net::TcpStream::connect(addr))?.context("connect")
            };
            for port in [NAME, BYTES, IPERF] {
                wait::until("servers", Duration::from_secs(5), || ready(port).map(drop))?;
            }
        }
        Ok(Self { node, client, near, far, outside, other, servers, bed })
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        for server in &mut self.servers {
            // Fails only if it has ended.
            drop(server.kill());
            drop(server.wait());
        }
    }
}
