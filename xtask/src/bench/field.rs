//! Where the bench measures: a bed without agents and a bed with them, otherwise alike; and the same two once more, with
//! connection tracking by netfilter on all nodes.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use testbed::{
    Agent, Netns, Pod,
    client::{Transport, ask},
    manifest::{Directory, Object, node_of, pod_of, policy, service, slice},
    measure::last_cpu,
    wait,
};

use super::side::{BYTES, NAME, SINK, Side};
use crate::binaries::Binaries;

/// ClusterIPs of the Service that is measured.
pub(super) const TARGET: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
pub(super) const TARGET_V6: Ipv6Addr = Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 0x10);
/// Programming 10,000 Services in a debug build on a busy machine stays below this.
const PATIENCE: Duration = Duration::from_secs(60);

/// The beds; dropping it removes them.
#[derive(Debug)]
pub(super) struct Field {
    /// With agents.
    pub(super) with: Side,
    /// Without.
    pub(super) without: Side,
    /// Agents of the nodes of `with`.
    pub(super) agents: [Agent; 2],
    /// The same with netfilter, while there are.
    pub(super) netfilter: Option<Netfilter>,
    /// What they read.
    pub(super) manifests: Directory,
    /// The CPU of every client and server.
    pub(super) cpu: usize,
    /// The client program.
    pub(super) traffic: PathBuf,
}

/// Two beds whose nodes have the kubelet's rule.
#[derive(Debug)]
pub(super) struct Netfilter {
    /// With agents, which read the manifests of the other bed with agents.
    pub(super) with: Side,
    /// Without.
    pub(super) without: Side,
    /// Agents of its nodes.
    pub(super) agents: [Agent; 2],
}

impl Field {
    /// Makes the beds without netfilter and starts the agents.
    pub(super) fn set(binaries: &Binaries) -> Result<Self> {
        let cpu = last_cpu()?;
        let without = Side::set("benchout", binaries, cpu)?;
        let with = Side::set("benchwith", binaries, cpu)?;
        let manifests = with.bed.manifests()?;
        manifests.write("nodes", &[node_of(&with.node), node_of(&with.other)])?;
        // What is not a known Pod goes by the IP stack to another node.
        let Side { client, near, far, .. } = &with;
        let pods = [(client, "client"), (near, "server"), (far, "server")];
        manifests.write("pods", &pods.map(|(pod, role)| pod_of(pod).label("role", role)))?;
        let agents = with.agents(binaries, &manifests)?;
        let traffic = binaries.traffic.clone();
        Ok(Self { with, without, agents, netfilter: None, manifests, cpu, traffic })
    }

    /// Makes the beds with netfilter, too.
    pub(super) fn add_netfilter(&mut self, binaries: &Binaries) -> Result<()> {
        let without = Side::set("benchnf", binaries, self.cpu)?;
        let with = Side::set("benchwnf", binaries, self.cpu)?;
        without.track_connections()?;
        with.track_connections()?;
        let agents = with.agents(binaries, &self.manifests)?;
        self.netfilter = Some(Netfilter { with, without, agents });
        Ok(())
    }

    /// The beds with agents.
    pub(super) fn served(&self) -> impl Iterator<Item = &Side> {
        [&self.with].into_iter().chain(self.netfilter.as_ref().map(|netfilter| &netfilter.with))
    }

    /// Points the measured Service at `pod` and waits until it is so, for Pods, for the nodes and for clients outside.
    pub(super) fn announce_target(&self, pod: &Pod) -> Result<()> {
        self.write_target(pod)?;
        for side in self.served() {
            for netns in [&side.client.netns, &side.node.netns] {
                for ip in [IpAddr::from(TARGET), TARGET_V6.into()] {
                    answered(netns, ip, &pod.name)?;
                }
            }
            for node in [&side.node, &side.other] {
                for ip in [IpAddr::from(node.v4), node.v6.into()] {
                    answered_at(&side.outside, SocketAddr::new(ip, NAME), &pod.name)?;
                }
            }
        }
        Ok(())
    }

    /// Points the measured Service at `pod` and does not wait.
    pub(super) fn write_target(&self, pod: &Pod) -> Result<()> {
        let [v4, v6] = [IpAddr::from(TARGET), TARGET_V6.into()].map(|ip| ip.to_string());
        let mut target =
            service("target").ip(&v4).ip(&v6).set(&["spec", "type"], "NodePort".into());
        let mut slices = pod.addresses().map(|ip| {
            let family = if ip.is_ipv4() { "v4" } else { "v6" };
            slice(&format!("target-{family}"), "target", &[ip])
        });
        for (protocol, port, to) in
            [("TCP", 80, NAME), ("TCP", BYTES, BYTES), ("UDP", BYTES, BYTES), ("TCP", SINK, SINK)]
        {
            // The node port is the target port: a client needs to change nothing but the address.
            let entry = json!({
                "name": format!("{}-{port}", protocol.to_lowercase()), "protocol": protocol,
                "port": port, "targetPort": to, "nodePort": to,
            });
            target = target.push(&["spec", "ports"], entry);
            slices = slices.map(|slice| slice.slice_port(protocol, port, to));
        }
        let [v4, v6] = slices;
        self.manifests.write("target", &[target, v4, v6])
    }

    /// Announces `n` policies on client and servers: two deny everything, one for each direction allows what is
    /// measured, the others allow other things.
    pub(super) fn announce_policies(&self, n: usize) -> Result<()> {
        let rule = |peers: &str, role: &str| {
            let peer = json!({"podSelector": {"matchLabels": {"role": role}}});
            let ports = [("TCP", NAME), ("TCP", BYTES), ("UDP", BYTES), ("TCP", SINK)]
                .map(|(protocol, port)| json!({"protocol": protocol, "port": port}));
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

    /// Announces `n` other Services with two endpoints each, and waits until the last of them is served.
    pub(super) fn announce_others(&self, n: usize) -> Result<()> {
        let mut objects = Vec::with_capacity(2 * n);
        for i in 0..n {
            // The last one has a real endpoint beside itself: it tells when all are there.
            let real = [self.with.near.v4.into()];
            let endpoints = if i + 1 == n { &real[..] } else { &unused(i) };
            objects.extend(other(i, endpoints));
        }
        self.manifests.write("others", &objects)?;
        for side in self.served() {
            if let Some(last) = n.checked_sub(1) {
                answered(&side.client.netns, cluster_ip(last), &side.near.name)?;
            }
        }
        Ok(())
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
