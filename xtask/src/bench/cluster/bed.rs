//! What the bench puts into the cluster: a Namespace with a client in a Pod, a client on the host's network, and a server
//! behind a Service on each node. The Namespace is removed in any case: by a process that outlives this one.

use std::{net::IpAddr, process::Command};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use testbed::series::Target;

use super::{
    Family, NAMESPACE, Options,
    access::Access,
    namespace::Reaper,
    pods,
    record::{Client, Place, Way},
};
use crate::{
    command::say,
    image,
    kubectl::{Kubectl, cluster_ips, items, text},
};

/// The TCP and UDP port of a server that sends bytes back, for one way to it; the next TCP port counts the bytes of streams.
///
/// Each way has ports of its own. A client may use one source port for connections by two ways at a time. If both led to
/// one port of the server, its closed connection by one way would refuse the new one by the other.
const fn port_of(way: Way) -> u16 {
    match way {
        Way::Straight => 8081,
        Way::ClusterIp => 8083,
        Way::NodePort => 8085,
    }
}

/// Echo, datagrams, sink.
const fn ports_of(way: Way) -> [u16; 3] {
    [port_of(way), port_of(way), port_of(way) + 1]
}

/// The bench's Pods and Services.
pub(super) struct Bed<'a> {
    pub(super) kubectl: &'a Kubectl,
    /// Name and servers' places: the second one only with a second node.
    pub(super) places: Vec<Place>,
    family: Family,
    servers: Vec<Server>,
    /// The address of the client's node.
    node: String,
    reaper: Reaper,
}

/// A server: its Pod's address and its Service.
struct Server {
    pod: String,
    cluster_ip: String,
    /// Echo, datagrams, sink.
    node_ports: [u16; 3],
}

impl<'a> Bed<'a> {
    /// Creates everything and waits until the Pods run.
    ///
    /// # Errors
    /// When the Namespace exists, the API refuses something, or a Pod does not start; everything is removed then.
    pub(super) fn make(kubectl: &'a Kubectl, access: &Access, options: &Options) -> Result<Self> {
        let [client, others @ ..] = &access.nodes[..] else { bail!("no node") };
        let places = match others {
            [] => {
                say("only one ready node: the rows to another node are left out");
                vec![Place::SameNode]
            }
            _ => vec![Place::SameNode, Place::OtherNode],
        };
        let names: Vec<&str> = access.nodes.iter().map(|node| node.facts.name.as_str()).collect();
        say(&format!("Pods in the Namespace {NAMESPACE} on {}", names.join(" ")));
        let reaper = Reaper::create_namespace(kubectl)?;
        let mut objects = vec![
            pod("client", &client.facts.name, options, false),
            pod("host", &client.facts.name, options, true),
        ];
        for (place, node) in places.iter().zip(&names) {
            objects.extend([server_pod(*place, node, options), service(*place)]);
        }
        kubectl.send(&["create"], &objects)?;
        pods::wait(kubectl, objects.len() - places.len(), &options.image)?;

        let pods = kubectl.json(&["get", "pods", "--namespace", NAMESPACE])?;
        let services = kubectl.json(&["get", "services", "--namespace", NAMESPACE])?;
        let named = |list: &Value, name: &str| {
            items(list).find(|item| text(item, "/metadata/name") == Some(name)).cloned()
        };
        let first = named(&services, name_of(Place::SameNode)).unwrap_or_default();
        let family = match (options.family, cluster_ips(&first).first()) {
            (Some(family), _) => family,
            (None, Some(address)) if address.contains(':') => Family::Ipv6,
            (None, _) => Family::Ipv4,
        };
        let mut servers = Vec::new();
        for place in &places {
            let [pod, service] =
                [&pods, &services].map(|list| named(list, name_of(*place)).unwrap_or_default());
            servers.push(Server::of(&pod, &service, family)?);
        }
        let node = client.addresses.iter().find(|address| family.has(address));
        let node =
            node.with_context(|| format!("{} has no InternalIP of {family:?}", client.facts.name))?;
        Ok(Self { kubectl, places, family, servers, node: node.clone(), reaper })
    }

    /// The ways to a server.
    pub(super) fn targets(&self, place: Place) -> Result<[Target; 3]> {
        let nth = self.places.iter().position(|known| *known == place);
        let server = nth.and_then(|nth| self.servers.get(nth)).context("no server there")?;
        let target = |way: Way, address: &str, [echo, datagrams, sink]: [u16; 3]| {
            let ip: IpAddr = address.parse().with_context(|| format!("address {address:?}"))?;
            anyhow::Ok(Target { name: way.name().to_owned(), ip, echo, datagrams, sink })
        };
        Ok([
            target(Way::Straight, &server.pod, ports_of(Way::Straight))?,
            target(Way::ClusterIp, &server.cluster_ip, ports_of(Way::ClusterIp))?,
            target(Way::NodePort, &self.node, server.node_ports)?,
        ])
    }

    /// A command in a client's Pod.
    pub(super) fn exec(&self, client: Client, args: &[&str]) -> Command {
        let pod = match client {
            Client::Pod => "client",
            Client::Host => "host",
        };
        let exec = ["exec", "--namespace", NAMESPACE, pod, "--", "/bin/traffic"];
        self.kubectl.command(&[&exec[..], args].concat())
    }

    /// The family of all addresses, as in tables.
    pub(super) const fn family_name(&self) -> &'static str {
        match self.family {
            Family::Ipv4 => "IPv4",
            Family::Ipv6 => "IPv6",
        }
    }

    /// Removes the Namespace and waits until it is gone.
    ///
    /// # Errors
    /// When it stays.
    pub(super) fn remove(mut self) -> Result<()> {
        self.reaper.finish()
    }
}

impl Server {
    fn of(pod: &Value, service: &Value, family: Family) -> Result<Self> {
        let ips = pod.pointer("/status/podIPs").and_then(Value::as_array);
        let mut ips = ips.into_iter().flatten().filter_map(|ip| text(ip, "/ip"));
        let none =
            |what: &str| format!("{what} has no address of {family:?}: is the cluster dual-stack?");
        let pod = ips.find(|ip| family.has(ip)).with_context(|| none("a Pod"))?.to_owned();
        let cluster_ip = cluster_ips(service).into_iter().find(|ip| family.has(ip));
        // Behind the three ports of the ClusterIP.
        let port = |nth: usize| {
            let port = service.pointer(&format!("/spec/ports/{}/nodePort", 3 + nth));
            let port = port.and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok());
            port.context("a Service has no NodePort")
        };
        Ok(Self {
            pod,
            cluster_ip: cluster_ip.with_context(|| none("a Service"))?,
            node_ports: [port(0)?, port(1)?, port(2)?],
        })
    }
}

const fn name_of(place: Place) -> &'static str {
    match place {
        Place::SameNode => "near",
        Place::OtherNode => "far",
    }
}

/// A Pod that waits for commands.
fn pod(name: &str, node: &str, options: &Options, on_host: bool) -> Value {
    let policy = if options.image == image::BENCH_TAG { "Never" } else { "IfNotPresent" };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": NAMESPACE, "labels": { "app": name } },
        "spec": {
            "nodeName": node, "hostNetwork": on_host, "terminationGracePeriodSeconds": 1,
            "restartPolicy": "Never", "automountServiceAccountToken": false,
            "tolerations": [{ "operator": "Exists" }],
            "containers": [{
                "name": "traffic", "image": options.image, "imagePullPolicy": policy, "args": ["idle"],
                // A Pod without a request gets almost nothing of a CPU that others use.
                "resources": { "requests": { "cpu": "100m" } },
            }],
        },
    })
}

fn server_pod(place: Place, node: &str, options: &Options) -> Value {
    let mut server = pod(name_of(place), node, options, false);
    if let Some(args) = server.pointer_mut("/spec/containers/0/args") {
        *args =
            json!(["bytes", Way::ALL.map(|way| port_of(way).to_string()).join(","), cpu(options)]);
    }
    server
}

/// The CPU of clients and servers, as `traffic` reads it.
pub(super) const fn cpu(options: &Options) -> &'static str {
    if options.pin { "last" } else { "any" }
}

fn service(place: Place) -> Value {
    let ports = [Way::ClusterIp, Way::NodePort].map(|way| {
        let [echo, datagrams, sink] = ports_of(way);
        let port = |what: &str, protocol: &str, port: u16| {
            let name = format!("{what}-{port}");
            json!({ "name": name, "protocol": protocol, "port": port, "targetPort": port })
        };
        [port("echo", "TCP", echo), port("udp", "UDP", datagrams), port("sink", "TCP", sink)]
    });
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": name_of(place), "namespace": NAMESPACE },
        "spec": {
            "type": "NodePort", "ipFamilyPolicy": "PreferDualStack",
            "selector": { "app": name_of(place) },
            "ports": ports.concat(),
        },
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::Server;
    use crate::bench::cluster::Family;

    #[test]
    fn addresses_are_of_the_family_that_is_measured() {
        let pod = json!({ "status": { "podIPs": [{ "ip": "10.244.1.2" }, { "ip": "fd44::2" }] } });
        let ports: Vec<Value> = (29_997..30_003).map(|port| json!({ "nodePort": port })).collect();
        let service = |ips: &[&str]| json!({ "spec": { "clusterIPs": ips, "ports": ports } });
        let both = service(&["10.96.0.9", "fd96::9"]);
        for (family, pod_ip, cluster_ip) in
            [(Family::Ipv4, "10.244.1.2", "10.96.0.9"), (Family::Ipv6, "fd44::2", "fd96::9")]
        {
            let server = Server::of(&pod, &both, family).unwrap();
            assert_eq!((server.pod.as_str(), server.cluster_ip.as_str()), (pod_ip, cluster_ip));
            assert_eq!(server.node_ports, [30_000, 30_001, 30_002]);
        }
        assert!(Server::of(&pod, &service(&["10.96.0.9"]), Family::Ipv6).is_err());
    }
}
