//! The stage of every test: two nodes with an agent each, reading one directory of manifests.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use testbed::{
    Agent, Bed, Netns, Node, Pod, Shape,
    client::{Transport, ask},
    manifest::{Directory, pod_of},
    server::Server,
    wait,
};

/// How long anything may take that is expected to happen: a first answer, a changed endpoint. Generous, since tests
/// share the machine with others; the bench measures times.
pub(crate) const SOON: Duration = Duration::from_secs(5);

/// Both transports.
pub(crate) const TRANSPORTS: [Transport; 2] = [Transport::Tcp, Transport::Udp];

/// Every host drops what its connection tracking finds invalid (Calico, ufw, firewalld do): a datapath that shows
/// netfilter one direction only of a flow stalls here.
const DROP_INVALID: &str = "table inet firewall {
  chain forward {
    type filter hook forward priority 0; policy accept;
    ct state invalid counter drop
  }
}";

/// The server with the label `app: web` is reached by friends only, at all of its ports.
pub(crate) const ONLY_FRIENDS: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: only-friends, namespace: default}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from: [{podSelector: {matchLabels: {friend: \"yes\"}}}]
";

/// Two nodes, their agents, and what runs on them.
pub(crate) struct Stage {
    // Dropped in this order: agents and servers end before their namespaces go.
    pub(crate) agents: [Agent; 2],
    pub(crate) dir: Directory,
    pub(crate) a: Node,
    pub(crate) b: Node,
    servers: Vec<Server>,
    /// Its Drop removes everything.
    pub(crate) bed: Bed,
}

impl Stage {
    /// Nodes a and b with Pods of this shape, and running agents.
    pub(crate) fn new(prefix: &str, shape: Shape) -> Self {
        Self::prepared(prefix, shape, |_| ())
    }

    /// Like `new`; `prepare` sees the nodes before the agents start.
    pub(crate) fn prepared(prefix: &str, shape: Shape, prepare: impl Fn(&Node)) -> Self {
        Self::with_arguments(prefix, shape, prepare, &[])
    }

    /// Like `prepared`, with more arguments for the agents.
    pub(crate) fn with_arguments(
        prefix: &str,
        shape: Shape,
        prepare: impl Fn(&Node),
        arguments: &[&str],
    ) -> Self {
        let bed = Bed::new(prefix).unwrap();
        let dir = bed.manifests().unwrap();
        let [a, b] = ["a", "b"].map(|name| bed.node(name, shape).unwrap());
        let agents = [&a, &b].map(|node| {
            node.netns.nft(DROP_INVALID).unwrap();
            prepare(node);
            let mut agent = Agent::new(node, Path::new(env!("CARGO_BIN_EXE_lb-agent")), &dir.path);
            agent.arguments = arguments.iter().map(|word| (*word).to_owned()).collect();
            agent.start().unwrap();
            agent
        });
        Self { agents, dir, a, b, servers: Vec::new(), bed }
    }

    /// A Pod on `node` that answers its name on TCP and UDP port 8080 and is in no manifest yet.
    pub(crate) fn server(&mut self, node: &Node, name: &str) -> Pod {
        let pod = node.pod(name).unwrap();
        self.servers.push(Server::named(&pod.netns, name, 8080).unwrap());
        pod
    }

    /// A Pod on each node, both without servers.
    pub(crate) fn clients(&self) -> [Pod; 2] {
        [self.a.pod("client-a").unwrap(), self.b.pod("client-b").unwrap()]
    }

    /// Announces `pods` with the label `app: <app>`, and a Service of that name which selects them (see
    /// [`service`]), at both `ips`.
    pub(crate) fn announce(&self, app: &str, ips: [&str; 2], pods: &[&Pod]) {
        let mut objects = vec![service(app, ips)];
        objects.extend(pods.iter().map(|pod| pod_of(pod).label("app", app)));
        self.dir.write(app, &objects).unwrap();
    }

    /// Waits until `addr` is answered by someone in `names` over both transports, asked from `client`.
    pub(crate) fn wait_for(&self, client: &Netns, addr: SocketAddr, names: &[&str]) {
        for transport in TRANSPORTS {
            let what = format!("{transport:?} {addr} from {client} answered by one of {names:?}");
            let answered = wait::until(&what, SOON, || {
                let name = client.enter(|| ask(transport, addr, Duration::from_secs(1)))??;
                anyhow::ensure!(names.contains(&name.as_str()), "answered by {name}");
                Ok(())
            });
            if let Err(err) = answered {
                panic!("{err:#}\n{}", self.logs());
            }
        }
    }

    /// Asks `addr` from `client` once, over `transport`, and panics with the logs when there is no answer.
    pub(crate) fn ask(&self, client: &Netns, transport: Transport, addr: SocketAddr) -> String {
        match client.enter(|| ask(transport, addr, Duration::from_secs(2))).unwrap() {
            Ok(name) => name,
            Err(err) => panic!("{transport:?} {addr} from {client}: {err}\n{}", self.logs()),
        }
    }

    /// The ends of both agents' logs, and what their tables say.
    pub(crate) fn logs(&self) -> String {
        let mut text = String::new();
        for agent in &self.agents {
            text += &format!("--- agent of {}\n{}\n", agent.node.name, agent.log_tail());
            for command in ["status", "backends", "drops", "ct"] {
                let said = agent.lbctl(&[command]).unwrap_or_else(|err| format!("{err:#}"));
                let lines: Vec<&str> = said.lines().take(60).collect();
                text += &format!("--- lbctl {command}\n{}\n", lines.join("\n"));
            }
        }
        text
    }
}

/// A Service that selects `app: <name>`, TCP and UDP port 80 to 8080 (who answers), TCP port 81 to
/// 8081 (echo).
pub(crate) fn service(name: &str, ips: [&str; 2]) -> testbed::manifest::Object {
    let [v4, v6] = ips;
    testbed::manifest::service(name)
        .selector("app", name)
        .port("TCP", 80, 8080.into())
        .port("UDP", 80, 8080.into())
        .port("TCP", 81, 8081.into())
        .ip(v4)
        .ip(v6)
}

/// A server, straight and through its Service at these addresses.
pub(crate) fn ways_to(server: &Pod, ips: [&str; 2]) -> Vec<SocketAddr> {
    let straight = server.addresses().map(|ip| SocketAddr::new(ip, 8080));
    straight.into_iter().chain(ips.map(port_80)).collect()
}

/// Port 80 at `ip`.
pub(crate) fn port_80(ip: &str) -> SocketAddr {
    SocketAddr::new(ip.parse::<IpAddr>().unwrap(), 80)
}
