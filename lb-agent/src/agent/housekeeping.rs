//! What may wait a second: gauges, the list of issues, the name table. Off the path of changes.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use lb_common::limits::{self, SOCKET_PROGRAMS};
use lb_common::service::state;
use tokio::sync::watch;
use tracing::warn;

use crate::agent::audit;
use crate::agent::issues::Issues;
use crate::agent::masquerade;
use crate::agent::report;
use crate::agent::settings::StartSettings;
use crate::agent::table::{self, NameTable, TableFacts, policies};
use crate::agent::{Agent, unix_now};
use crate::config::{AgentConfig, FactSource};
use crate::observe::metrics::{ChangeKind, Metrics, hooks, ip_family};
use lb_core::cluster::Kind;
use lb_core::issue::Issue;
use lb_core::model::Desired;
use lb_core::names::{self, AgentInfo as AgentName, Names, Source as SourceName};
use lb_core::plan::Actual;
use lb_kernel::bpf::attach::Role;
use lb_kernel::bpf::events::Examples;
use lb_kernel::bpf::gc::Pass;
use lb_kernel::host_ports::HostPorts;
use lb_kernel::preflight::Machine;
use lb_kube::api_server::known::KnownServers;
use lb_kube::api_server::{ApiEvents, StartupTaint};

/// The shortest time between two writes of the name table.
const AT_MOST: Duration = Duration::from_secs(1);
/// The longest one: a table that is recent shows that the agent runs.
const AT_LEAST: Duration = Duration::from_secs(10);
/// After a write follows a pause that is this many times as long as the write took.
const PAUSE: u32 = 50;

/// State of what may wait.
pub(super) struct Housekeeping {
    file: PathBuf,
    node: String,
    source: (&'static str, String),
    kernel: String,
    weakness: Option<String>,
    started: u64,
    ct_capacity: u32,
    /// When the maps are compared next with what was written.
    pub(super) next_audit: Instant,
    /// Elements of the maps that differed from what was written, at the last audit.
    pub(super) drifted: u64,
    settings: StartSettings,
    masquerade_ports: RangeInclusive<u16>,
    examples: watch::Receiver<Examples>,
    issues: Issues,
    api_events: ApiEvents,
    startup_taint: StartupTaint,
    /// None with manifests.
    known_servers: Option<KnownServers>,
    pass: Option<Pass>,
    /// When the maps last said what they should, in seconds since 1970.
    synced: u64,
    /// When a change that ends up in the maps was last heard of, since 1970.
    pub(super) queued: Duration,
    /// The table that an earlier run left, until the first plan.
    former: Option<Names<'static>>,
    /// Whether something changed since the last write.
    touched: bool,
    not_before: Instant,
    at_latest: Instant,
}

impl Housekeeping {
    pub(super) fn new(
        cfg: &AgentConfig,
        facts: &Machine,
        (examples, api_events): (watch::Receiver<Examples>, ApiEvents),
        ct_capacity: u32,
    ) -> Self {
        let now = Instant::now();
        let file = cfg.dirs.state.join(names::FILE);
        Self {
            // None after a reboot; one of another layout is of no use.
            former: names::read(&file).ok(),
            file,
            node: cfg.node_name.clone(),
            source: match &cfg.source {
                FactSource::Kubernetes(options) => {
                    ("kubernetes", options.api_server.clone().unwrap_or_default())
                }
                FactSource::Manifests(dir) => ("manifests", dir.display().to_string()),
            },
            kernel: facts.kernel.clone(),
            weakness: facts.weakness(),
            started: unix_now().as_secs(),
            ct_capacity,
            next_audit: now + audit::INTERVAL,
            drifted: 0,
            settings: StartSettings::new(cfg.settings_dir.clone()),
            masquerade_ports: cfg.masquerade_ports.clone(),
            examples,
            issues: Issues::default(),
            api_events,
            startup_taint: match (&cfg.source, &cfg.startup_taint) {
                (FactSource::Kubernetes(options), Some(key)) => {
                    StartupTaint::spawn(options.clone(), &cfg.node_name, key)
                }
                (FactSource::Kubernetes(_), None) | (FactSource::Manifests(_), _) => {
                    StartupTaint::default()
                }
            },
            known_servers: match &cfg.source {
                FactSource::Kubernetes(_) => Some(KnownServers::new(&cfg.dirs.cache)),
                FactSource::Manifests(_) => None,
            },
            pass: None,
            synced: 0,
            queued: Duration::ZERO,
            touched: true,
            not_before: now,
            at_latest: now,
        }
    }

    /// Something changed that the table or a gauge shows.
    pub(super) fn touch(&mut self) {
        self.touched = true;
    }

    /// When the table is to be written.
    pub(super) fn next_due(&self) -> Instant {
        if self.touched { self.not_before } else { self.at_latest }
    }

    /// Takes in a pass over conntrack.
    pub(super) fn expired(&mut self, pass: Pass, metrics: &Metrics) {
        self.touched = true;
        let ours = &metrics.ours;
        ours.ct_gc.observe(pass.duration.as_secs_f64());
        ours.ct_expired.inc_by(pass.expired);
        ours.ct_stale.set(gauge(pass.stale));
        ours.ct_displaced.set(gauge(pass.displaced));
        ours.ct_over_share.inc_by(pass.over_share);
        for (kind, n) in [("plain", pass.evicted.plain), ("translated", pass.evicted.translated)] {
            ours.ct_evicted.get_or_create(&[("kind", kind)]).inc_by(n);
        }
        for (scope, kinds) in [("pod", pass.pod), ("external", pass.external)] {
            for (proto, n) in [("TCP", kinds.tcp), ("UDP", kinds.udp), ("other", kinds.other)] {
                let labels = [("scope", scope), ("proto", proto)];
                ours.flows_active.get_or_create(&labels).set(gauge(n));
            }
        }
        let outside = &metrics.outside;
        outside.masqueraded_flows.set(gauge(pass.masqueraded));
        outside.masquerade_ports_used.set(gauge(pass.masquerade_ports));
        outside.masquerade_ports.set(gauge(self.masquerade_ports.len() as u64));
        outside.masquerade_ports_held.set(gauge(pass.fullest.map_or(0, |fullest| fullest.held)));
        outside.loads_corrected.inc_by(pass.corrected);
        self.pass = Some(pass);
    }
}

impl Agent {
    /// Brings gauges, issues and the name table up to date.
    pub(super) fn write_names(&mut self) {
        let begun = Instant::now();
        let now = unix_now();
        if self.planned && self.queue.oldest().is_none() {
            self.housekeeping.synced = now.as_secs();
        }
        if self.planned {
            self.housekeeping.former = None;
        }
        if self.holds() {
            self.housekeeping.startup_taint.ready();
        }
        let incomplete: BTreeSet<_> = self.planner.issues().map(|issue| &issue.object).collect();
        let incomplete = incomplete.len();
        let all = self.cluster.issues().chain(self.desired.issues()).chain(self.planner.issues());
        let ports = self.health_ports.issues();
        let policies = self.policy_issues();
        let scope = self.scope.issue(&self.housekeeping.node);
        let masquerade = masquerade::issues(
            &self.housekeeping.node,
            &self.housekeeping.masquerade_ports,
            &HostPorts::read(),
            self.desired.node_ports(),
        );
        let all = all
            .chain(self.planner.node_issues())
            .chain(self.bindings.issues())
            .chain(self.sources.issues())
            .chain(self.links.issues())
            .chain(&ports)
            .chain(&masquerade)
            .chain(&scope)
            .chain(&policies);
        let all = all.chain(self.policies.remarks());
        let new = self.housekeeping.issues.replace(all, now.as_secs());
        let roomless: BTreeSet<&Issue> = self.planner.issues().chain(&policies).collect();
        // A field that cannot be read is the same for all nodes: one of them writes the Event.
        let writes = self.cluster.is_first_node();
        let unread: BTreeSet<&Issue> = self.cluster.issues().filter(|_| writes).collect();
        for issue in new {
            if roomless.contains(issue) {
                self.housekeeping.api_events.tell(issue);
            } else if unread.contains(issue) {
                self.housekeeping.api_events.tell_field(issue);
            }
        }
        if let Some(known) = &mut self.housekeeping.known_servers
            && let Err(err) = known.note(self.cluster.api_servers())
        {
            warn!(%err, "cannot write the addresses of the API servers: after a reboot the agent needs another way to find one");
        }
        self.set_gauges(incomplete);
        self.policies.note_names(self.planner.policies(), begun);
        self.policies.count_hits(&mut self.maps.policies, &self.metrics.policy, now.as_secs());
        let examples = self.housekeeping.examples.borrow().clone();
        let table = self.table(&examples, incomplete, now.as_secs());
        if let Err(err) = names::write(&self.housekeeping.file, &table) {
            warn!(%err, "cannot write the name table: lbctl shows ids or outdated names");
        }
        drop(table);
        let took = begun.elapsed();
        self.housekeeping.touched = false;
        self.housekeeping.not_before = Instant::now() + AT_MOST.max(took * PAUSE);
        self.housekeeping.at_latest = Instant::now() + AT_LEAST.max(took * PAUSE);
    }

    fn table<'a>(&'a self, examples: &'a Examples, incomplete: usize, now: u64) -> NameTable<'a> {
        let house = &self.housekeeping;
        let known = TableFacts {
            cluster: &self.cluster,
            desired: &self.desired,
            planner: &self.planner,
            issues: &house.issues,
            examples,
        };
        let veths = self.devices.veths().map(|veth| (veth, self.bindings.name(veth.ifindex)));
        let mut names = table::head(&known, veths);
        if let Some(desired) = self.policies.desired() {
            names.policies = policies::policies(desired, self.policies.hits());
            names.groups =
                self.policies.named().map(|(id, group)| policies::group(id, group)).collect();
            if desired.any {
                names.idents = policies::idents(&self.cluster, self.planner.actual());
            }
        }
        names.node = Cow::Borrowed(&house.node);
        names.agent = AgentName {
            version: Cow::Borrowed(lb_core::build::VERSION),
            pid: std::process::id(),
            started: house.started,
            written: now,
            synced: house.synced,
        };
        let (kind, place) = &house.source;
        let ports = &house.masquerade_ports;
        names.masquerade_ports = Some([*ports.start(), *ports.end()]);
        names.source = SourceName { kind: Cow::Borrowed(kind), place: Cow::Borrowed(place) };
        let kube_proxy = self.kube_proxy.signs(&self.cluster);
        names.host_rule = Cow::Borrowed(self.past.host_rule());
        names.subsystems = report::lines(&report::ReportFacts {
            cluster: &self.cluster,
            source: kind,
            refused: self.refused(),
            mechanism: self.mechanism,
            counts_flows: self.past.counts_flows(),
            pods: self.attachments.pods(),
            uplinks: self.attachments.n_uplinks(),
            tunnel_ports: &self.desired.node.tunnel_ports,
            attach_error: self.attachments.errors().next().map(|(.., error)| error.to_owned()),
            services: (self.desired.services.len(), incomplete),
            policies: self
                .policies
                .desired()
                .map(|desired| (desired.policies.len(), self.troubled_policies())),
            overflowing: self.planner.policies().n_incomplete(),
            lacks_pods: self.scope.lacks_pods(),
            planned: self.planned,
            past: self.past_facts(),
            kube_proxy: &kube_proxy,
            external_ips: self.desired.rules().external_ips(&self.cluster),
            not_taken_over: self.kube_proxy.failure(),
            kernel: &house.kernel,
            weakness: house.weakness.as_deref(),
            ct_entries: house.pass.map(|pass| pass.left()),
            greedy: house.pass.map_or((0, 0), |pass| (pass.greedy, pass.over_share)),
            over_budget: house.pass.map_or(0, |pass| pass.over_budget),
            masquerade_ports: &house.masquerade_ports,
            pass: house.pass.as_ref(),
            drifted: house.drifted,
            settings: house.settings.line(),
            copies: (
                house.pass.map_or(0, |pass| pass.copies),
                u64::from(limits::kept_entries(house.ct_capacity)),
            ),
        });
        NameTable { head: names, known, former: house.former.as_ref() }
    }

    /// Kinds that the API server refuses.
    fn refused(&self) -> Vec<(Kind, String)> {
        let refusal = |kind: Kind| Some((kind, self.watches.of(kind).refusal()?));
        Kind::ALL.into_iter().filter_map(refusal).collect()
    }

    /// Whether this node does all that was told: what starts on it is served, and judged.
    pub(super) fn holds(&self) -> bool {
        let attached = |(all, attached): (usize, usize)| all == attached;
        let devices = [self.attachments.pods(), self.attachments.n_uplinks()];
        self.planned && self.policies.desired().is_some() && devices.into_iter().all(attached)
    }

    fn set_gauges(&self, incomplete: usize) {
        let ours = &self.metrics.ours;
        let wanted = self.desired.services.len();
        Metrics::set_states(&ours.services, wanted, wanted.saturating_sub(incomplete), incomplete);
        let (pods, attached) = self.attachments.pods();
        let errors = self.attachments.errors().filter(|(_, role, _)| *role == Role::Pod).count();
        Metrics::set_states(&ours.pods, pods, attached, errors);
        let sum = Sum::of(&self.desired);
        let actual = self.planner.actual();
        let used = Used::of(actual);
        let missing = |wanted: usize, have: usize| wanted.saturating_sub(have);
        let frontends = actual.frontends.len();
        Metrics::set_states(
            &ours.frontends,
            sum.frontends,
            frontends,
            missing(sum.frontends, frontends),
        );
        Metrics::set_states(
            &ours.backends,
            sum.backends,
            used.active,
            missing(sum.backends, used.active),
        );
        for (family, n) in sum.no_local {
            let labels = [("ip_family", family), ("traffic_policy", "internal")];
            self.metrics.kube_proxy.no_local_endpoints.get_or_create(&labels).set(gauge(n));
        }
        let external_ips = self.desired.rules().external_ips(&self.cluster);
        let served = &self.metrics.outside.external_ips;
        served.clear();
        served
            .get_or_create(&[("reason", external_ips.reason())])
            .set(i64::from(external_ips.is_on()));
        self.set_policy_gauges();
        self.set_map_gauges(&used, frontends);
        self.set_kube_proxy_gauges();
        for kind in Kind::ALL {
            let synced = i64::from(self.cluster.is_synced(kind));
            ours.watch_synced.get_or_create(&[("resource", kind.name())]).set(synced);
            let n = self.housekeeping.issues.by_kind().get(kind.name()).copied().unwrap_or(0);
            ours.issues.get_or_create(&[("kind", kind.name())]).set(n);
        }
        let files = self.housekeeping.issues.by_kind().get("File").copied().unwrap_or(0);
        ours.issues.get_or_create(&[("kind", "File")]).set(files);
        for hook in hooks() {
            let (wanted, attached) = if SOCKET_PROGRAMS.contains(&hook) {
                // Attached once, before the loop begins; else it would not have begun.
                (1, 1)
            } else {
                self.attachments.count(hook)
            };
            ours.programs_wanted.get_or_create(&[("hook", hook)]).set(gauge(wanted as u64));
            ours.programs_attached.get_or_create(&[("hook", hook)]).set(gauge(attached as u64));
        }
    }

    /// How many policies are not enforced as they are written.
    fn troubled_policies(&self) -> usize {
        let issues = self.policy_issues();
        issues.iter().map(|issue| &issue.object).collect::<BTreeSet<_>>().len()
    }

    fn set_policy_gauges(&self) {
        let metrics = &self.metrics.policy;
        let wanted = self.policies.desired().map_or(0, |desired| desired.policies.len());
        let troubled = self.troubled_policies();
        Metrics::set_states(&metrics.policies, wanted, wanted.saturating_sub(troubled), troubled);
        let planner = self.planner.policies();
        metrics.lacks_pods.set(i64::from(self.scope.lacks_pods()));
        metrics.groups.set(gauge(planner.groups().count() as u64));
        metrics.identities.set(gauge(planner.idents().count() as u64));
        metrics.overflowing.set(gauge(planner.n_incomplete() as u64));
        metrics.epoch.set(i64::from(self.planner.actual().policy.epoch));
    }

    fn set_map_gauges(&self, used: &Used, frontends: usize) {
        let ours = &self.metrics.ours;
        let ct = self.housekeeping.pass.map_or(0, |pass| pass.left());
        let actual = self.planner.actual();
        for (map, entries, capacity) in [
            ("affinity", self.housekeeping.pass.map_or(0, |pass| pass.affinity), limits::AFFINITY),
            ("ident", actual.ident.len() as u64, limits::IDENT_MAX),
            ("groups", actual.groups.len() as u64, limits::GROUPS),
            ("peer_bits", actual.peer_bits.len() as u64, limits::PEER_BITS),
            ("port_bits", actual.port_bits.len() as u64, limits::PORT_BITS),
            ("hits", self.policies.hits().n_counted() as u64, limits::HITS),
            ("cidrs", actual.cidrs.len() as u64, limits::CIDRS),
            ("devs", actual.devs.len() as u64, limits::DEVS),
            ("frontends", frontends as u64, limits::FRONTENDS_MAX),
            ("slots", used.slots as u64, limits::SLOTS_MAX),
            ("backends", used.backends as u64, limits::BACKENDS_MAX),
            ("pods", self.attachments.pods().0 as u64, limits::PODS),
            ("ct", ct, self.housekeeping.ct_capacity),
            (
                "kept",
                self.housekeeping.pass.map_or(0, |pass| pass.copies),
                limits::kept_entries(self.housekeeping.ct_capacity),
            ),
        ] {
            ours.map_entries.get_or_create(&[("map", map)]).set(gauge(entries));
            ours.map_capacity.get_or_create(&[("map", map)]).set(i64::from(capacity));
        }
    }

    fn set_kube_proxy_gauges(&self) {
        let kube_proxy = &self.metrics.kube_proxy;
        let pending = |subject| gauge(self.queue.count(subject) as u64);
        kube_proxy.service_changes_pending.set(pending(ChangeKind::Service));
        kube_proxy.endpoint_changes_pending.set(pending(ChangeKind::Endpoints));
        for family in ["IPv4", "IPv6"] {
            let labels = [("ip_family", family)];
            kube_proxy.last_timestamp.get_or_create(&labels).set(self.housekeeping.synced as f64);
            let queued = self.housekeeping.queued.as_secs_f64();
            kube_proxy.last_queued.get_or_create(&labels).set(queued);
        }
    }
}

/// What the desired state adds up to.
#[derive(Default)]
struct Sum {
    frontends: usize,
    backends: usize,
    no_local: [(&'static str, u64); 2],
}

impl Sum {
    fn of(desired: &Desired) -> Self {
        let mut sum = Self { no_local: [("IPv4", 0), ("IPv6", 0)], ..Self::default() };
        for service in desired.services.values() {
            sum.frontends += service.wildcards.len();
            for port in &service.ports {
                sum.frontends += port.frontends.len();
                sum.backends += port.backends.len();
                if port.local_only && port.backends.is_empty() {
                    let family = ip_family(port.family);
                    for (name, n) in &mut sum.no_local {
                        *n += u64::from(*name == family);
                    }
                }
            }
        }
        sum
    }
}

/// Elements in use in the arrays.
struct Used {
    slots: usize,
    backends: usize,
    active: usize,
}

impl Used {
    fn of(actual: &Actual) -> Self {
        let in_state = |wanted: u8| actual.backends.iter().filter(|b| b.state == wanted).count();
        let active = in_state(state::ACTIVE);
        Self {
            slots: actual.slots.iter().filter(|id| **id != 0).count(),
            backends: active + in_state(state::DRAINING) + in_state(state::DEAD),
            active,
        }
    }
}

fn gauge(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
