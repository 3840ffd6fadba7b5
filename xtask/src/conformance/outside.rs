//! The checks with a client outside the cluster: NodePorts, load balancer addresses, externalIPs,
//! `externalTrafficPolicy`, `healthCheckNodePort`. Each Service has one endpoint, on the first node, so that the node
//! asked decides whether it is local: then the server sees the client's own address, else the node's.
//!
//! Addresses that no node has are of the documentation's ranges; the client gets a route to them for as long as a
//! check takes, as a load balancer or a router in front of the cluster would have one.

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::{
    ask::{self, family},
    bed::{Bed, PORT, service, with},
    cluster::NAMESPACE,
    deploy,
    report::{Report, SOON, within},
};

const LOAD_BALANCER: [&str; 2] = ["203.0.113.10", "2001:db8::10"];
const LOCAL_BALANCER: [&str; 2] = ["203.0.113.11", "2001:db8::11"];
const EXTERNAL: [&str; 2] = ["203.0.113.20", "2001:db8::20"];
/// What `--external-ip-cidrs` has to allow for these.
const EXTERNAL_RANGES: &str = "203.0.113.0/24,2001:db8::/32";

/// The minor version of Kubernetes that has externalIPs off by default.
const WITHOUT_EXTERNAL_IPS: u32 = 40;

/// Runs them all; `foreign` if the agent was not deployed here, so that its settings are not touched.
pub(crate) fn check(bed: &Bed<'_>, report: &mut Report, foreign: bool) {
    let [home, others @ ..] = &bed.cluster.nodes[..] else { return };
    if others.is_empty() {
        eprintln!("single-node cluster: endpoints on other nodes are not checked");
    }
    let site = Site { bed, home, others };
    for node in &bed.cluster.nodes {
        let place = site.place(node);
        report.check(&format!("NodePort at {node}, endpoint {place}, from outside"), || {
            site.node_port(node)
        });
    }
    report.check("NodePort from Pods and hosts, and at localhost", || site.node_port_inside());
    for node in &bed.cluster.nodes {
        let place = site.place(node);
        report
            .check(&format!("LoadBalancer IP via {node}, endpoint {place}, from outside"), || {
                site.load_balancer(node)
            });
    }
    report.check("LoadBalancer IP from Pods and hosts", || site.load_balancer_inside());
    report.check("loadBalancerSourceRanges admit and deny clients", || site.source_ranges());
    report.check("externalTrafficPolicy Local answers where the endpoint is", || site.local());
    report.check("externalTrafficPolicy Local does not affect clients in the cluster", || {
        site.local_inside()
    });
    report.check("healthCheckNodePort reports which node has the endpoint", || site.health());
    report.check("externalIPs follow --external-ip-cidrs", || site.external_ip(foreign));
}

/// The cluster, the node with the endpoint, and those without.
struct Site<'a> {
    bed: &'a Bed<'a>,
    home: &'a String,
    others: &'a [String],
}

/// A frontend: its addresses, and its TCP and UDP port.
struct Frontend {
    addresses: Vec<String>,
    ports: (u16, u16),
}

impl Site<'_> {
    fn place(&self, node: &str) -> &'static str {
        if node == self.home { "there" } else { "elsewhere" }
    }

    fn server(&self) -> String {
        format!("client-{}", self.home)
    }

    /// Makes a Service of the one endpoint.
    fn make(&self, name: &str, fields: &Value) -> Result<()> {
        let select = json!({ "client": self.home });
        self.bed.cluster.apply(&[with(service(name, &select, None), fields)])
    }

    /// Creates a Service and sets its load balancer addresses, as a cloud provider would. Its class keeps controllers away.
    fn make_balanced(&self, name: &str, fields: &Value, addresses: &[&str]) -> Result<Frontend> {
        let class =
            json!({ "type": "LoadBalancer", "loadBalancerClass": "lb-conformance.test/none" });
        let mut all = class;
        if let (Some(all), Some(more)) = (all.as_object_mut(), fields.as_object()) {
            all.extend(more.clone());
        }
        self.make(name, &all)?;
        let addresses = self.of_families(addresses);
        let ingress: Vec<_> = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
        let status = json!({ "status": { "loadBalancer": { "ingress": ingress } } }).to_string();
        let patch = ["patch", "--namespace", NAMESPACE, "service", name, "--subresource=status"];
        let options = ["--type", "merge", "--patch", &status];
        self.bed.cluster.run(&[&patch[..], &options].concat())?;
        Ok(Frontend { addresses, ports: (PORT, PORT) })
    }

    /// Those of the families that the cluster has.
    fn of_families(&self, addresses: &[&str]) -> Vec<String> {
        let has = |address: &&&str| self.bed.web.iter().any(|own| family(own) == family(address));
        addresses.iter().filter(has).map(|address| (*address).to_owned()).collect()
    }

    fn node_port_of(&self, service: &str, node: &str) -> Result<Frontend> {
        let mut addresses = self.bed.cluster.addresses(node)?;
        addresses.retain(|address| self.bed.web.iter().any(|own| family(own) == family(address)));
        Ok(Frontend { addresses, ports: self.bed.node_ports(service)? })
    }

    fn node_port(&self, node: &str) -> Result<String> {
        self.make("node-port", &json!({ "type": "NodePort" }))?;
        self.outside(&self.node_port_of("node-port", node)?, Some(node == self.home))
    }

    fn node_port_inside(&self) -> Result<String> {
        self.make("node-port", &json!({ "type": "NodePort" }))?;
        let mut n = 0;
        for node in &self.bed.cluster.nodes {
            n += self.inside(&self.node_port_of("node-port", node)?)?;
        }
        let addresses = self.of_families(&["127.0.0.1", "::1"]);
        let ports = self.bed.node_ports("node-port")?;
        let local = Frontend { addresses, ports };
        for node in &self.bed.cluster.nodes {
            self.answers(&local, None, &|script| self.bed.on_node(node, script))
                .with_context(|| format!("at localhost on {node}"))?;
        }
        Ok(format!("{n} ways, and {} at localhost", 2 * self.bed.cluster.nodes.len()))
    }

    fn load_balancer(&self, node: &str) -> Result<String> {
        let frontend = self.make_balanced("balanced", &json!({}), &LOAD_BALANCER)?;
        self.routed(&frontend.addresses, node, || self.outside(&frontend, Some(node == self.home)))
    }

    fn load_balancer_inside(&self) -> Result<String> {
        let frontend = self.make_balanced("balanced", &json!({}), &LOAD_BALANCER)?;
        Ok(format!("{} ways", self.inside(&frontend)?))
    }

    /// The ranges contain no client, then the client itself. NodePorts ignore them.
    fn source_ranges(&self) -> Result<String> {
        let none = json!({ "loadBalancerSourceRanges": ["198.51.100.0/24", "2001:db8:1::/48"] });
        let all = json!({ "loadBalancerSourceRanges": ["0.0.0.0/0", "::/0"] });
        let frontend = self.make_balanced("ranges", &none, &LOCAL_BALANCER)?;
        self.routed(&frontend.addresses, self.home, || {
            self.outside(&self.node_port_of("ranges", self.home)?, Some(true))?;
            self.silent(&frontend)
        })?;
        let frontend = self.make_balanced("ranges", &all, &LOCAL_BALANCER)?;
        let let_in =
            self.routed(&frontend.addresses, self.home, || self.outside(&frontend, Some(true)))?;
        self.bed.cluster.run(&["delete", "--namespace", NAMESPACE, "service", "ranges"])?;
        Ok(format!("others' ranges: silent; all: {let_in}"))
    }

    fn make_local(&self) -> Result<Frontend> {
        let fields = json!({ "externalTrafficPolicy": "Local" });
        self.make_balanced("outside-local", &fields, &LOCAL_BALANCER)
    }

    /// At the NodePort and at the load balancer's address.
    fn local(&self) -> Result<String> {
        let balanced = self.make_local()?;
        let node_port = self.node_port_of("outside-local", self.home)?;
        let seen = self.outside(&node_port, Some(true))?;
        self.routed(&balanced.addresses, self.home, || self.outside(&balanced, Some(true)))?;
        for node in self.others {
            self.silent(&self.node_port_of("outside-local", node)?)
                .with_context(|| format!("NodePort at {node}"))?;
            self.routed(&balanced.addresses, node, || self.silent(&balanced))
                .with_context(|| format!("LoadBalancer IP via {node}"))?;
        }
        Ok(format!("{}: {seen}; silent: {}", self.home, self.others.join(" ")))
    }

    /// Pods and hosts of every node get the endpoint, wherever it is. At a NodePort of another node they are clients
    /// from outside, so only their own node's is asked.
    fn local_inside(&self) -> Result<String> {
        let balanced = self.make_local()?;
        let mut n = self.inside(&balanced)?;
        for node in &self.bed.cluster.nodes {
            n += self.inside_at(node, &self.node_port_of("outside-local", node)?)?;
        }
        Ok(format!("{n} ways"))
    }

    fn health(&self) -> Result<String> {
        self.make_local()?;
        let get = ["get", "--namespace", NAMESPACE, "service", "outside-local"];
        let object = self.bed.cluster.json(&get)?;
        let port = object.pointer("/spec/healthCheckNodePort").and_then(Value::as_u64);
        let port = u16::try_from(port.context("no healthCheckNodePort")?)?;
        let mut found = Vec::new();
        for node in &self.bed.cluster.nodes {
            let want = if node == self.home { "200" } else { "503" };
            for address in self.node_port_of("outside-local", node)?.addresses {
                let script = format!(
                    "curl --globoff --silent --show-error --max-time 3 --output /dev/null \
                     --write-out '%{{http_code}}' {}",
                    ask::url(&address, port)
                );
                within(SOON, || match self.bed.outside(&script)? {
                    code if code == want => Ok(()),
                    code => bail!("{node} says {code} instead of {want} at {address}"),
                })?;
            }
            found.push(format!("{node} {want}"));
        }
        Ok(found.join(", "))
    }

    /// By default as the version of Kubernetes has them; then none, then those in the flag's ranges.
    fn external_ip(&self, foreign: bool) -> Result<String> {
        let addresses = self.of_families(&EXTERNAL);
        self.make("external", &json!({ "externalIPs": addresses }))?;
        let frontend = Frontend { addresses, ports: (PORT, PORT) };
        if foreign {
            return self.external_ip_served(&frontend);
        }
        let off = || self.routed(&frontend.addresses, self.home, || self.unserved(&frontend));
        let on = self.bed.cluster.minor_version()? < WITHOUT_EXTERNAL_IPS;
        match on {
            true => drop(self.external_ip_served(&frontend).context("by default")?),
            false => off().context("by default")?,
        }
        let set = |value: &str| {
            deploy::configure(self.bed.cluster, "external-ip-cidrs", value)?;
            deploy::restart(self.bed.cluster)
        };
        let outcome = set("none")
            .and_then(|()| off().context("with none"))
            .and_then(|()| set(EXTERNAL_RANGES))
            .and_then(|()| self.external_ip_served(&frontend));
        // Takes effect with the next start.
        deploy::configure(self.bed.cluster, "external-ip-cidrs", "")?;
        let by_default = if on { "served" } else { "not served" };
        Ok(format!("{by_default} by default; {}", outcome?))
    }

    fn external_ip_served(&self, frontend: &Frontend) -> Result<String> {
        let mut found = Vec::new();
        for node in &self.bed.cluster.nodes {
            let kept = Some(node == self.home);
            let seen = self.routed(&frontend.addresses, node, || self.outside(frontend, kept));
            found.push(format!("via {node} {}", seen.with_context(|| format!("via {node}"))?));
        }
        Ok(format!("{}; {} ways inside", found.join("; "), self.inside(frontend)?))
    }

    /// Asked from outside, with whether the server should see the client's own address.
    fn outside(&self, frontend: &Frontend, kept: Option<bool>) -> Result<String> {
        self.answers(frontend, kept, &|script| self.bed.outside(script))
    }

    /// Asked by the Pod and the host of every node; how many ways those are.
    fn inside(&self, frontend: &Frontend) -> Result<usize> {
        let mut n = 0;
        for node in &self.bed.cluster.nodes {
            n += self.inside_at(node, frontend)?;
        }
        Ok(n)
    }

    fn inside_at(&self, node: &str, frontend: &Frontend) -> Result<usize> {
        self.answers(frontend, None, &|script| self.bed.in_pod(node, script))
            .with_context(|| format!("a Pod on {node}"))?;
        self.answers(frontend, None, &|script| self.bed.on_node(node, script))
            .with_context(|| format!("the host {node}"))?;
        Ok(2 * frontend.addresses.len())
    }

    /// TCP and UDP at every address; the clients that the server saw.
    fn answers(
        &self,
        frontend: &Frontend,
        kept: Option<bool>,
        shell: ask::Shell<'_>,
    ) -> Result<String> {
        let (tcp, udp) = frontend.ports;
        let mut found = Vec::new();
        for address in &frontend.addresses {
            let seen = within(SOON, || match ask::tcp(address, tcp, shell)? {
                seen if seen.server == self.server() => Ok(seen),
                seen => bail!("{} answered", seen.server),
            })
            .with_context(|| format!("TCP at {address}"))?;
            let over_udp = within(SOON, || ask::udp(address, udp, &self.server(), shell))
                .with_context(|| format!("UDP at {address}"))?;
            for (protocol, client) in [("TCP", seen.client), ("UDP", over_udp)] {
                if kept.is_some_and(|kept| kept != (client == seen.own)) {
                    bail!("{protocol} at {address}: {} came as {client}", seen.own);
                }
            }
            let how = if seen.kept() { "kept" } else { "masqueraded" };
            found.push(format!("{} {how} as {}", seen.own, seen.client));
        }
        Ok(found.join(", "))
    }

    /// Dropped, in both protocols.
    fn silent(&self, frontend: &Frontend) -> Result<()> {
        for address in &frontend.addresses {
            within(SOON, || {
                ask::silent(address, frontend.ports, &|script| self.bed.outside(script))
            })?;
        }
        Ok(())
    }

    /// Not answered; who forwards what no Service has may say so or not.
    fn unserved(&self, frontend: &Frontend) -> Result<()> {
        let shell: ask::Shell<'_> = &|script| self.bed.outside(script);
        for address in &frontend.addresses {
            if let Ok(seen) = ask::tcp(address, frontend.ports.0, shell) {
                bail!("{} answered at {address}", seen.server);
            }
            if let Ok(client) = ask::udp(address, frontend.ports.1, &self.server(), shell) {
                bail!("{address} answered {client} over UDP");
            }
        }
        Ok(())
    }

    /// Does something while the client's way to the addresses is a node.
    fn routed<T>(
        &self,
        addresses: &[String],
        node: &str,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let nodes = self.bed.cluster.addresses(node)?;
        for address in addresses {
            let via = nodes.iter().find(|own| family(own) == family(address));
            let via = via.with_context(|| format!("{node} has no {}", family(address)))?;
            self.bed.outside(&format!("ip route replace {address} via {via}"))?;
        }
        let outcome = work();
        for address in addresses {
            self.bed.outside(&format!("ip route del {address}"))?;
        }
        outcome
    }
}
