//! A node whose maps were written from manifests by the agent's own code, into memory.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use lb_common::addr::Addr;
use lb_common::config::SettingFlags;
use lb_common::endpoint::{Ident, IdentFlags, PodEntry};
use lb_common::past::{LocalEnd, LocalFlags};
use lb_common::policy::GroupFlags;
use lb_common::service::state;

use crate::attribution::{GroupPolicies, PolicyNames, RuleAt};
use crate::explain::trace::Trace;
use crate::explain::{
    Answered, Facts, Listening, Stale, args, lookup, offline, print, render, trace,
};
use crate::frontend::FrontendSlots;
use crate::snapshot::TableSnapshot;
use crate::view::View;
use lb_core::admin::context::{FlowContext, FlowQuery};
use lb_core::admin::query;
use lb_core::cluster::{Cluster, Dirty, Event, Kind, Name, Pod as PodRecord};
use lb_core::model::Desired;
use lb_core::model::policy::compile;
use lb_core::names::{BackendName, Names, Place, PodName, ServiceName};
use lb_core::plan::policy::{Behind, DesiredTables as ToBe, PodDevice};
use lb_core::plan::{Actual, Capacity, Planner, Write};
use lb_kube::manifests::ManifestDirectory;

/// What every case has: two nodes, three namespaces, a client, a Service with one Pod, name lookups.
const BASE: &str = r#"
apiVersion: v1
kind: Node
metadata: {name: n1}
status: {addresses: [{type: InternalIP, address: 10.0.0.1}]}
---
apiVersion: v1
kind: Node
metadata: {name: n2}
status: {addresses: [{type: InternalIP, address: 10.0.0.2}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: default}
---
apiVersion: v1
kind: Namespace
metadata: {name: front}
---
apiVersion: v1
kind: Namespace
metadata: {name: db, labels: {team: data}}
"#;

/// A Pod: `namespace/name`, its address, node and labels.
pub(super) fn pod(full: &str, ip: &str, node: &str, labels: &str, ready: bool) -> String {
    let (namespace, name) = full.split_once('/').unwrap();
    let status = if ready { "True" } else { "False" };
    format!(
        r#"---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, labels: {{{labels}}}}}
spec: {{nodeName: {node}, containers: [{{name: c, image: x, ports: [{{name: web, containerPort: 8080}}]}}]}}
status: {{phase: Running, podIP: {ip}, podIPs: [{{ip: {ip}}}], conditions: [{{type: Ready, status: "{status}"}}]}}
"#
    )
}

/// A Service: `namespace/name`, its address, port, target port, selector, and more of its spec.
pub(super) fn service(full: &str, ip: &str, ports: &str, selector: &str, more: &str) -> String {
    let (namespace, name) = full.split_once('/').unwrap();
    format!(
        r#"---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {namespace}}}
spec: {{clusterIP: {ip}, clusterIPs: [{ip}], selector: {{{selector}}}, ports: [{{{ports}}}]{more}}}
"#
    )
}

/// A NetworkPolicy with this spec.
pub(super) fn policy(full: &str, spec: &str) -> String {
    let (namespace, name) = full.split_once('/').unwrap();
    format!(
        r#"---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: {name}, namespace: {namespace}}}
spec: {spec}
"#
    )
}

/// What the devices of a node say: its own address.
pub(super) fn devices(node: &str) -> BTreeMap<Addr, Ident> {
    let local = Ident { flags: IdentFlags::LOCAL_NODE, ..Ident::ZERO };
    let ip = if node == "n1" { "10.0.0.1" } else { "10.0.0.2" };
    BTreeMap::from([(Addr::from_ip(ip.parse().unwrap()), local)])
}

/// The node, as lbctl finds it.
pub(super) struct World {
    pub(super) cluster: Cluster,
    /// What the Services come to, and the writes that programmed them.
    pub(super) desired: Desired,
    pub(super) writes: Vec<Write>,
    /// The writes that programmed the policies.
    pub(super) policy_writes: Vec<Write>,
    pub(super) snapshot: TableSnapshot,
    pub(super) names: Names<'static>,
    pub(super) policies: PolicyNames,
    pub(super) tables: Actual,
    /// What Pods listen on.
    pub(super) sockets: Vec<SocketAddr>,
    /// Open flows whose backend was removed.
    pub(super) stale: Vec<Stale>,
    /// Whether the kernel forwards packets.
    pub(super) forwards: [bool; 2],
    /// How addresses answered the source's connections.
    pub(super) answers: Vec<Answered>,
    /// What processes of the node listen on.
    pub(super) host_sockets: Vec<SocketAddr>,
}

impl World {
    /// Node n1 with these manifests.
    pub(super) fn new(manifests: &str) -> Self {
        Self::on("n1", manifests)
    }

    /// This node with these manifests.
    pub(super) fn on(node: &str, manifests: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("lb-explain-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join("all.yaml"), format!("{BASE}{manifests}")).unwrap();
        let mut events = Vec::new();
        let mut directory = ManifestDirectory::new(&path, node);
        directory.refresh(&BTreeSet::new(), &mut |event| events.push(event)).unwrap();
        std::fs::remove_dir_all(&path).unwrap();
        let mut cluster = Cluster::new(node);
        let mut dirty = Dirty::default();
        for event in events.into_iter().chain(Kind::ALL.map(Event::Synced)) {
            dirty.merge(cluster.apply(event));
        }
        let issues: Vec<_> = cluster.issues().collect();
        assert!(issues.is_empty(), "{issues:?}");
        let mut world = Self {
            desired: Desired::default(),
            writes: Vec::new(),
            policy_writes: Vec::new(),
            snapshot: TableSnapshot::default(),
            names: Names { node: node.to_owned().into(), ..Names::default() },
            policies: PolicyNames::default(),
            tables: Actual::default(),
            sockets: vec!["0.0.0.0:8080".parse().unwrap(), "0.0.0.0:53".parse().unwrap()],
            stale: Vec::new(),
            forwards: [true; 2],
            answers: Vec::new(),
            host_sockets: vec!["0.0.0.0:10250".parse().unwrap()],
            cluster,
        };
        world.write_services(&dirty);
        world.write_policies();
        world
    }

    fn write_services(&mut self, dirty: &Dirty) {
        let cluster = &self.cluster;
        let mut desired = Desired::default();
        let changed = desired.update(cluster, dirty);
        let mut planner = Planner::restore(Actual::default(), Capacity::default());
        let plan = planner.plan(&desired, &changed, &|addr| cluster.is_alive(addr), Duration::ZERO);
        self.writes.clone_from(&plan.writes);
        planner.apply(plan, &mut Actual::default(), &mut || Duration::ZERO);
        let actual = planner.actual();
        let ids = |base: u32, n: u32| {
            (base..base + n).map(|slot| actual.slots[slot as usize]).collect::<Vec<_>>()
        };
        self.snapshot.frontends = actual
            .frontends
            .iter()
            .map(|(key, frontend)| FrontendSlots {
                key: *key,
                frontend: *frontend,
                backend_ids: ids(frontend.base, frontend.n),
                local_ids: ids(frontend.local_base, frontend.local_n),
            })
            .collect();
        for range in &actual.source_ranges {
            let ranges = self.snapshot.fields.source_ranges.entry(range.service_id).or_default();
            ranges.push(range.clients);
        }
        let owners: HashMap<Addr, (&Name, &str)> = cluster
            .all_pods()
            .flat_map(|(name, pod)| pod.ips.iter().map(move |ip| (*ip, (name, &*pod.node))))
            .collect();
        self.names.places =
            ["n1", "n2"].map(|node| Place { node: node.into(), zone: "".into() }).into();
        for (id, backend) in (0..).zip(&actual.backends) {
            if backend.state != state::UNUSED {
                self.snapshot.backends.insert(id, *backend);
                let owner = owners.get(&backend.addr);
                self.names.backends.push(BackendName {
                    id,
                    pod: owner.map(|(name, _)| name.to_string()).unwrap_or_default().into(),
                    place: owner.map_or(0, |(_, node)| if *node == "n1" { 1 } else { 2 }),
                    ..BackendName::default()
                });
            }
        }
        for (name, service) in &desired.services {
            for (port, ids) in service.ports.iter().zip(planner.port_ids(name)) {
                let at = |addr: &Addr| SocketAddr::new(addr.to_ip(), port.port);
                self.names.services.push(ServiceName {
                    id: ids.service_id,
                    namespace: name.namespace.to_string().into(),
                    name: name.name.to_string().into(),
                    port: port.port,
                    protocol: port.protocol,
                    frontends: port.frontends.iter().map(at).collect(),
                    ..ServiceName::default()
                });
            }
        }
        self.desired = desired;
    }

    /// The Pods of this node with the ifindex of their devices.
    pub(super) fn local_pods(&self) -> Vec<(u32, Name, PodRecord)> {
        let pods = self.cluster.pods().filter(|(_, pod)| !pod.host_network && !pod.ips.is_empty());
        (11..).zip(pods).map(|(i, (name, pod))| (i, name.clone(), pod.clone())).collect()
    }

    pub(super) fn veths(&self) -> Vec<PodDevice> {
        let behind = |name, pod: PodRecord| Behind::Pod(name, pod.uid);
        let veth = |(ifindex, name, pod)| PodDevice {
            ifindex,
            behind: behind(name, pod),
            device_part: PodEntry::ZERO,
        };
        self.local_pods().into_iter().map(veth).collect()
    }

    fn write_policies(&mut self) {
        let devices = devices(self.cluster.node_name());
        let veths = self.veths();
        let desired = compile(&self.cluster);
        let mut planner = Planner::restore(Actual::default(), Capacity::default());
        let mut tables = Actual::default();
        for veth in &veths {
            let plan = planner.plan_pod(None, veth, 0);
            planner.apply(plan, &mut tables, &mut || Duration::ZERO);
        }
        let wanted = ToBe {
            desired: Some(&desired),
            devices: &devices,
            veths: &veths,
            strict: false,
            pickup_until: 0,
        };
        let plan = planner.plan_policies(&wanted, Duration::ZERO);
        self.policy_writes.clone_from(&plan.writes);
        let applied = planner.apply(plan, &mut tables, &mut || Duration::ZERO);
        assert!(applied.failed.is_empty());
        self.tables = tables;
        self.snapshot.past.settings = SettingFlags::LOCAL_PAST | SettingFlags::HOP_PAST;
        for (ifindex, name, pod) in self.local_pods() {
            let entry = PodEntry { ip4: pod.ips[0], id: ifindex, ..self.tables.pods[&ifindex] };
            let flags = LocalFlags::PAST_OK;
            let end = LocalEnd { ifindex, mtu: 1500, flags, ..LocalEnd::ZERO };
            self.snapshot.past.ends.insert(entry.id, end);
            self.snapshot.pods.insert(ifindex, entry);
            self.names.pods.push(PodName {
                ifindex,
                namespace: name.namespace.to_string().into(),
                name: name.name.to_string().into(),
                ..PodName::default()
            });
        }
        self.policies = PolicyNames::new(planner.policies().groups().map(|(id, group)| {
            let rules = group.rules.iter().map(|(number, rule)| {
                assert_eq!(rule.source.others.len(), 0, "so few are not merged");
                let (direction, index) = (rule.source.direction, rule.source.index);
                (*number, (rule.source.policy.clone(), RuleAt { direction, index, others: 0 }))
            });
            let group = GroupPolicies {
                policies: group.policies().iter().map(|(name, _)| (*name).clone()).collect(),
                isolating: group.isolating.to_vec(),
                rules: rules.collect(),
                no_room: group.flags.contains(GroupFlags::OVERFLOW),
            };
            (id, group)
        }));
    }

    /// Returns the path of a flow, as lbctl finds it.
    pub(super) fn trace(&self, src: &str, dst: &str) -> Trace {
        let wanted: FlowQuery = args::words(src, dst, None).unwrap();
        // As it comes over the socket.
        let context = serde_json::to_vec(&query::context(&self.cluster, &wanted)).unwrap();
        self.trace_with(&wanted, &serde_json::from_slice(&context).unwrap())
    }

    /// The same with the lookup of the name that is dialed.
    pub(super) fn trace_by_name(&self, src: &str, dst: &str) -> Trace {
        let wanted: FlowQuery = args::words(src, dst, None).unwrap();
        let ask = |wanted: &FlowQuery| Ok(query::context(&self.cluster, wanted));
        let follow = |wanted: &FlowQuery, context: &FlowContext| self.trace_with(wanted, context);
        let context = ask(&wanted).unwrap();
        let mut trace = follow(&wanted, &context);
        trace.lookup = lookup::follow((&wanted, &context), &ask, &follow).unwrap();
        trace
    }

    /// The same without an agent.
    pub(super) fn trace_alone(&self, src: &str, dst: &str) -> Trace {
        let wanted: FlowQuery = args::words(src, dst, None).unwrap();
        let view = View::new(&self.snapshot, &self.names, 0);
        self.trace_with(&wanted, &offline::context(&view, &wanted))
    }

    /// The same with these records.
    pub(super) fn trace_with(&self, wanted: &FlowQuery, context: &FlowContext) -> Trace {
        self.follow(wanted, context, &Listening::On(self.sockets.clone()))
    }

    /// The same where the Pods' sockets are these.
    pub(super) fn trace_on(&self, src: &str, dst: &str, listening: &Listening) -> Trace {
        let wanted: FlowQuery = args::words(src, dst, None).unwrap();
        self.follow(&wanted, &query::context(&self.cluster, &wanted), listening)
    }

    fn follow(&self, wanted: &FlowQuery, context: &FlowContext, listening: &Listening) -> Trace {
        trace(&Facts {
            wanted,
            context,
            view: &View::new(&self.snapshot, &self.names, 0),
            policies: &self.policies,
            tables: &self.tables,
            epoch: self.tables.policy.epoch,
            stale: &self.stale,
            forwards: self.forwards,
            listening: &|_, _, _| listening.clone(),
            answers: &self.answers,
            host_listening: &|_| Listening::On(self.host_sockets.clone()),
        })
    }
}

/// Returns what lbctl prints for a trace.
pub(super) fn text(trace: &Trace) -> String {
    let mut out = Vec::new();
    print(&mut out, &render(trace)).unwrap();
    String::from_utf8(out).unwrap()
}
