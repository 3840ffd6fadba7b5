//! What the demo plays on: the nodes, the Pods with their servers, the agents, the manifests.
//!
//! ```text
//!   node a: client  web-1  web-2        node b: web-3  dns-1  dns-2
//! ```
//! The servers are processes of their own, so that they live on when the scene is kept.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result};
use testbed::{
    Agent, Bed, Netns, Node, Pod, Shape,
    manifest::{Directory, Object, pod_of, service},
};

use crate::binaries::Binaries;

/// ClusterIPs of the Service `web`, TCP 80.
pub(crate) const WEB: [&str; 2] = ["10.96.0.10", "fd96::10"];
/// ClusterIPs of the Service `dns`, UDP 53.
pub(crate) const DNS: [&str; 2] = ["10.96.0.53", "fd96::53"];
/// Port of the iperf3 servers, a port of the Service `web` too.
pub(crate) const IPERF: u16 = 5201;

/// The whole scene; dropping it removes everything.
#[derive(Debug)]
pub(crate) struct Scene {
    pub(crate) agents: [Agent; 2],
    pub(crate) nodes: [Node; 2],
    pub(crate) client: Pod,
    pub(crate) web: [Pod; 3],
    pub(crate) dns: [Pod; 2],
    pub(crate) manifests: Directory,
    servers: Vec<Child>,
    traffic: PathBuf,
    lbctl: PathBuf,
    bed: Bed,
}

impl Scene {
    /// Makes everything; what an earlier demo left behind goes first.
    pub(crate) fn set(binaries: &Binaries) -> Result<Self> {
        let bed = Bed::new("demo")?;
        let nodes = [bed.node("a", Shape::Routed)?, bed.node("b", Shape::Routed)?];
        let [a, b] = &nodes;
        let client = a.pod("client")?;
        let web = [a.pod("web-1")?, a.pod("web-2")?, b.pod("web-3")?];
        let dns = [b.pod("dns-1")?, b.pod("dns-2")?];
        let manifests = bed.manifests()?;
        let agents = [a, b].map(|node| Agent::new(node, &binaries.agent, &manifests.path));
        let mut scene = Self {
            agents,
            client,
            web,
            dns,
            manifests,
            servers: Vec::new(),
            traffic: binaries.traffic.clone(),
            lbctl: binaries.agent.with_file_name("lbctl"),
            bed,
            nodes,
        };
        scene.start_servers()?;
        Ok(scene)
    }

    fn start_servers(&mut self) -> Result<()> {
        for (pods, port) in [(&self.web[..], "80"), (&self.dns[..], "53")] {
            for pod in pods {
                let mut serve = Command::new(&self.traffic);
                serve.args(["serve", &pod.name, port]);
                // Kept servers must not hold on to the terminal.
                serve.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
                self.servers.push(pod.netns.spawn(&mut serve)?);
            }
        }
        for pod in &self.web {
            let mut iperf = Command::new("iperf3");
            iperf.args(["--server", "--port", &IPERF.to_string()]);
            iperf.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            self.servers.push(pod.netns.spawn(&mut iperf)?);
        }
        Ok(())
    }

    /// Announces the Service `web` with these Pods as its endpoints.
    pub(crate) fn announce_web(&self, pods: &[&Pod]) -> Result<()> {
        let web = service("web").selector("app", "web").tcp(80).tcp(IPERF);
        let mut objects = vec![with_ips(web, WEB)];
        objects.extend(pods.iter().map(|pod| pod_of(pod).label("app", "web")));
        self.manifests.write("web", &objects)
    }

    /// Announces the Service `dns`.
    pub(crate) fn announce_dns(&self) -> Result<()> {
        let mut objects = vec![with_ips(service("dns").selector("app", "dns").udp(53), DNS)];
        objects.extend(self.dns.iter().map(|pod| pod_of(pod).label("app", "dns")));
        self.manifests.write("dns", &objects)
    }

    /// Announces the Pod `client`, which no Service has.
    pub(crate) fn announce_client(&self) -> Result<()> {
        self.manifests.write("client", &[pod_of(&self.client).label("app", "client")])
    }

    /// Removes everything and waits for it.
    pub(crate) fn remove(mut self) -> Result<()> {
        for agent in &mut self.agents {
            agent.stop()?;
            agent.cleanup()?;
        }
        for server in &mut self.servers {
            server.kill().context("end a server")?;
            server.wait().context("wait for a server")?;
        }
        drop(self);
        println!(
            "\nEverything has been removed. `cargo xtask demo --keep` keeps it running to explore."
        );
        Ok(())
    }

    /// Leaves everything up and says what to do with it.
    pub(crate) fn keep(self) -> Result<()> {
        self.print_commands();
        for agent in self.agents {
            agent.detach();
        }
        self.bed.keep()
    }

    fn print_commands(&self) {
        let Self { client, nodes: [a, _], agents: [agent, _], .. } = self;
        let traffic = self.traffic.display();
        let enter = |netns: &Netns| format!("nsenter --net={}", netns.path().display());
        println!("\nThe demo keeps running; the next `cargo xtask demo` removes it. As root:");
        println!("\n  # from the Pod client, or from a process of node a");
        println!("  {} {traffic} ask tcp {}:80 9", enter(&client.netns), WEB[0]);
        println!("  {} {traffic} ask udp [{}]:53", enter(&a.netns), DNS[1]);
        println!("  {} {traffic} load tcp {}:80 200 10", enter(&client.netns), WEB[0]);
        println!("\n  # what the agent of node a sees");
        let lbctl = format!(
            "{} {} --pin-dir {} --state-dir {}",
            enter(&a.netns),
            self.lbctl.display(),
            agent.pin_dir.display(),
            agent.state_dir.display()
        );
        for command in ["status", "services", "backends", "ct", "drops"] {
            println!("  {lbctl} {command}");
        }
        println!("  tail {}", agent.log.display());
        println!("\n  # change the cluster: the agents watch these files");
        println!("  $EDITOR {}/web.yaml", self.manifests.path.display());
    }
}

fn with_ips(service: Object, [v4, v6]: [&str; 2]) -> Object {
    service.ip(v4).ip(v6)
}
