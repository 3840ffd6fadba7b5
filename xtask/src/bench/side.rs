//! One bed of the bench: two nodes with a client and servers, and a client outside.

use std::{
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};
use testbed::{Agent, Bed, Netns, Node, Pod, Shape, manifest::Directory, wait};

use crate::binaries::Binaries;

/// Port that answers with the Pod's name.
pub(super) const NAME: u16 = 8080;
/// TCP and UDP port that sends bytes back.
pub(super) const BYTES: u16 = 8081;
/// Port that counts the bytes of streams.
pub(super) const SINK: u16 = BYTES + 1;

/// The rule that each kubelet adds to its node against packets from elsewhere to the loopback addresses, in both families. It
/// drops nothing of what is measured, but a rule that asks for the state of connections makes the kernel track them all.
const KUBE_FIREWALL: &str = "table inet kubelet {
  chain firewall {
    ip saddr != 127.0.0.0/8 ip daddr 127.0.0.0/8 ct state != { established, related } drop
    ip6 saddr != ::1 ip6 daddr ::1 ct state != { established, related } drop
  }
  chain input {
    type filter hook input priority filter;
    jump firewall
  }
  chain output {
    type filter hook output priority filter;
    jump firewall
  }
}
";

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
    pub(super) bed: Bed,
}

impl Side {
    /// Makes the bed and starts its servers.
    pub(super) fn set(prefix: &str, binaries: &Binaries, cpu: usize) -> Result<Self> {
        let bed = Bed::new(prefix)?;
        let (node, other) = (bed.node("a", Shape::Routed)?, bed.node("b", Shape::Routed)?);
        let (client, near, far) = (node.pod("client")?, node.pod("near")?, other.pod("far")?);
        let outside = bed.outsider("outside")?;
        for (n, node) in [(1, &node), (2, &other)] {
            outside.ip(&format!(
                "route add 10.244.{n}.0/24 via {}\nroute add fd44:0:0:{n}::/64 via {}\n",
                node.v4, node.v6
            ))?;
        }
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
            for mut command in [named, bytes] {
                command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
                servers.push(pod.netns.spawn(&mut command)?);
            }
            let ready = |port| {
                let addr = SocketAddr::new(pod.v4.into(), port);
                client.netns.enter(|| std::net::TcpStream::connect(addr))?.context("connect")
            };
            for port in [NAME, BYTES, SINK] {
                wait::until("servers", Duration::from_secs(5), || ready(port).map(drop))?;
            }
        }
        Ok(Self { node, client, near, far, outside, other, servers, bed })
    }

    /// Adds the kubelet's rule to its nodes.
    pub(super) fn track_connections(&self) -> Result<()> {
        self.node.netns.nft(KUBE_FIREWALL)?;
        self.other.netns.nft(KUBE_FIREWALL)
    }

    /// Starts the agents of its nodes.
    pub(super) fn agents(&self, binaries: &Binaries, manifests: &Directory) -> Result<[Agent; 2]> {
        let mut agents = [&self.node, &self.other]
            .map(|node| Agent::new(node, &binaries.agent, &manifests.path));
        for agent in &mut agents {
            agent.start()?;
        }
        Ok(agents)
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

/// Returns a command with the highest priority on the machine: the time that other processes take is not a cost of the
/// path.
pub(super) fn first(program: &Path) -> Command {
    let mut command = Command::new("nice");
    command.args(["-n", "-19"]).arg(program);
    command
}
