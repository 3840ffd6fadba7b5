//! The metrics: kube-proxy's names where the meaning is the same, so that its dashboards and alerts go on working,
//! and our own under `lb_`. None has a label by Pod, Service or address: their number is bounded.
#![forbid(unsafe_code)]

mod outside;
pub(crate) mod policy;
mod records;
mod rest_client;

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crate::flow_log::FlowLogCounts;
use lb_common::limits::{self, DEV_PROGRAMS, MapSpec, POD_PROGRAMS, SOCKET_PROGRAMS};
use lb_common::verdict::{Counter as PathCounter, DropReason};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

pub(crate) use self::outside::OutsideMetrics;
pub(crate) use self::policy::OfPolicies;
pub(crate) use self::records::RecordMetrics;
pub(crate) use self::rest_client::RestClientMetrics;
use lb_core::cluster::{Family as IpFamily, Kind};
use lb_core::counts::Counts;

/// Labels whose names and values are known beforehand.
pub(crate) type MetricLabels<const N: usize> = [(&'static str, &'static str); N];
/// A gauge of a floating-point number.
pub(crate) type GaugeF64 = Gauge<f64, AtomicU64>;
type Histograms<const N: usize> = Family<MetricLabels<N>, Histogram>;

/// What a change was about, in `lb_programming_seconds`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ChangeKind {
    Service,
    /// An EndpointSlice.
    Endpoints,
    /// A Pod's entry.
    Pod,
}

impl ChangeKind {
    /// The label's value.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Endpoints => "endpoints",
            Self::Pod => "pod",
        }
    }
}

/// The label's value of a family, as kube-proxy spells it.
pub(crate) const fn ip_family(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "IPv4",
        IpFamily::V6 => "IPv6",
    }
}

const FAMILIES: [IpFamily; 2] = [IpFamily::V4, IpFamily::V6];
const STATES: [&str; 3] = ["wanted", "programmed", "error"];
/// The maps to which the agent adds elements, and which can be full.
const WRITTEN_MAPS: [MapSpec; 13] = [
    limits::MAP_FRONTENDS,
    limits::MAP_SLOTS,
    limits::MAP_BACKENDS,
    limits::MAP_PODS,
    limits::MAP_SOURCE_RANGES,
    limits::MAP_IDENT,
    limits::MAP_DEVS,
    limits::MAP_PEER_BITS,
    limits::MAP_PORT_BITS,
    limits::MAP_CIDRS,
    limits::MAP_POD_SOURCES,
    limits::MAP_POD_RANGES,
    limits::MAP_MACS,
];

/// kube-proxy's.
#[derive(Clone, Debug)]
pub(crate) struct KubeProxyMetrics {
    /// One application of a plan.
    pub sync: Histograms<1>,
    /// The first one, which looks at everything.
    pub full_sync: Histograms<1>,
    /// Every later one.
    pub partial_sync: Histograms<1>,
    /// From the trigger time on an EndpointSlice to the maps.
    pub network_programming: Histograms<1>,
    /// Last time the maps were fully in sync.
    pub last_timestamp: Family<MetricLabels<1>, GaugeF64>,
    /// Last time a change was received.
    pub last_queued: Family<MetricLabels<1>, GaugeF64>,
    /// EndpointSlice changes that are not yet in the maps.
    pub endpoint_changes_pending: Gauge,
    /// All changes of EndpointSlices.
    pub endpoint_changes: Counter,
    /// Service changes that are not yet in the maps.
    pub service_changes_pending: Gauge,
    /// All changes of Services.
    pub service_changes: Counter,
    /// Service ports with a Local policy and no endpoint here.
    pub no_local_endpoints: Family<MetricLabels<2>, Gauge>,
    /// Answers of `/healthz` by status code.
    pub healthz: Family<MetricLabels<1>, Counter>,
    /// Answers of `/livez` by status code.
    pub livez: Family<MetricLabels<1>, Counter>,
}

#[derive(Clone, Debug)]
pub(crate) struct Ours {
    /// From the arrival of an event to the maps.
    pub programming: Histograms<1>,
    /// From the kernel's message about a Pod's device to its programs in place.
    pub pod_ready: Histogram,
    /// Devices that could not be attached to at the first try, seconds without programs.
    pub attach_gap: Counter<f64, AtomicU64>,
    /// Whether a list is complete, by resource.
    pub watch_synced: Family<MetricLabels<1>, Gauge>,
    /// Lists begun.
    pub watch_restarts: Family<MetricLabels<1>, Counter>,
    /// Services by state.
    pub services: Family<MetricLabels<1>, Gauge>,
    /// Frontends by state.
    pub frontends: Family<MetricLabels<1>, Gauge>,
    /// Backends by state.
    pub backends: Family<MetricLabels<1>, Gauge>,
    /// Pods' devices by state.
    pub pods: Family<MetricLabels<1>, Gauge>,
    /// Issues by kind of object.
    pub issues: Family<MetricLabels<1>, Gauge>,
    /// Dropped packets.
    pub drops: Family<MetricLabels<2>, Counter>,
    pub slow_path: Family<MetricLabels<1>, Counter>,
    /// Events of dropped packets by outcome.
    pub events: Family<MetricLabels<1>, Counter>,
    /// Flows by protocol at the last expiry pass.
    pub flows_active: Family<MetricLabels<2>, Gauge>,
    /// Elements in use, by map.
    pub map_entries: Family<MetricLabels<1>, Gauge>,
    /// Elements there is room for.
    pub map_capacity: Family<MetricLabels<1>, Gauge>,
    /// Writes that failed because the map was full.
    pub map_full: Family<MetricLabels<1>, Counter>,
    /// One expiry pass over conntrack.
    pub ct_gc: Histogram,
    /// Conntrack entries that expired.
    pub ct_expired: Counter,
    /// Conntrack entries whose backend is gone, at the last pass.
    pub ct_stale: Gauge,
    /// Conntrack entries of living translated connections that others have evicted, at the last pass: the next packet
    /// puts them back.
    pub ct_displaced: Gauge,
    /// Conntrack entries that others evicted, about.
    pub ct_evicted: Family<MetricLabels<1>, Counter>,
    /// Conntrack entries that were removed since their Pod held more than its share of the table.
    pub ct_over_share: Counter,
    /// Writes to the maps that failed.
    pub sync_failures: Counter,
    pub map_writes: Counter,
    /// 1 when kube-proxy runs beside us.
    pub foreign_proxy: Gauge,
    /// Programs in place, by hook.
    pub programs_attached: Family<MetricLabels<1>, Gauge>,
    /// Programs there should be, by hook.
    pub programs_wanted: Family<MetricLabels<1>, Gauge>,
}

#[derive(Clone, Debug)]
pub(crate) struct OfProcess {
    pub resident_memory: Gauge,
    /// Processor time.
    pub cpu_seconds: Counter<f64, AtomicU64>,
    /// Open descriptors.
    pub open_fds: Gauge,
    pub start_time: GaugeF64,
}

/// All metrics. Clones share their values.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    /// kube-proxy's.
    pub kube_proxy: KubeProxyMetrics,
    pub ours: Ours,
    /// Ours about traffic from outside.
    pub outside: OutsideMetrics,
    /// Ours about watches and audits.
    pub records: RecordMetrics,
    /// About requests to the API server.
    pub rest_client: RestClientMetrics,
    /// Ours about policies.
    pub policy: OfPolicies,
    /// The flow log's.
    pub flow_log: FlowLogCounts,
    pub process: OfProcess,
}

impl Metrics {
    /// All metrics at zero, in a registry of their own. Every label value exists from the start, so that `rate()`
    /// works on the first event.
    pub(crate) fn register(kernel: &str) -> (Self, Registry) {
        let mut registry = Registry::default();
        let metrics = Self {
            kube_proxy: kube_proxy(&mut registry),
            ours: ours(&mut registry),
            outside: OutsideMetrics::register(&mut registry),
            records: RecordMetrics::register(&mut registry),
            rest_client: RestClientMetrics::register(&mut registry),
            policy: OfPolicies::register(&mut registry),
            flow_log: flow_log(&mut registry),
            process: process(&mut registry),
        };
        let build = Info::new(vec![("version", lb_core::build::VERSION.to_owned())]);
        registry.register("lb_build", "The agent's version", build);
        let facts = Info::new(vec![("kernel", kernel.to_owned())]);
        registry.register(
            "lb_cluster_facts",
            "Features of the kernel that the agent detected",
            facts,
        );
        metrics.initialise();
        (metrics, registry)
    }

    /// Takes over what the programs have counted.
    pub(crate) fn set_counts(&self, counts: &Counts, events_read: u64) {
        use std::sync::atomic::Ordering::Relaxed;
        for (reason, ingress, n) in &counts.drops {
            self.ours
                .drops
                .get_or_create(&drop_labels(*reason, *ingress))
                .inner()
                .store(*n, Relaxed);
        }
        for (outcome, tier, ingress, n) in &counts.verdicts {
            let labels = policy::verdict_labels(*outcome, *tier, *ingress);
            self.policy.verdicts.get_or_create(&labels).inner().store(*n, Relaxed);
        }
        for (counter, n) in &counts.counters {
            let outcome = match counter {
                PathCounter::EventLost => "lost",
                PathCounter::EventSuppressed => "suppressed",
                other => {
                    let labels = [("path", other.name())];
                    self.ours.slow_path.get_or_create(&labels).inner().store(*n, Relaxed);
                    continue;
                }
            };
            self.ours.events.get_or_create(&[("outcome", outcome)]).inner().store(*n, Relaxed);
        }
        self.ours.events.get_or_create(&[("outcome", "sent")]).inner().store(events_read, Relaxed);
    }

    fn initialise(&self) {
        let Self { kube_proxy, ours, .. } = self;
        for family in FAMILIES {
            let labels = [("ip_family", ip_family(family))];
            for histogram in [
                &kube_proxy.sync,
                &kube_proxy.full_sync,
                &kube_proxy.partial_sync,
                &kube_proxy.network_programming,
            ] {
                drop(histogram.get_or_create(&labels));
            }
            drop(kube_proxy.last_timestamp.get_or_create(&labels));
            drop(kube_proxy.last_queued.get_or_create(&labels));
            let [label] = labels;
            let labels = [label, ("traffic_policy", "internal")];
            drop(kube_proxy.no_local_endpoints.get_or_create(&labels));
        }
        for code in ["200", "503"] {
            drop(kube_proxy.healthz.get_or_create(&[("code", code)]));
            drop(kube_proxy.livez.get_or_create(&[("code", code)]));
        }
        for subject in [ChangeKind::Service, ChangeKind::Endpoints, ChangeKind::Pod] {
            drop(ours.programming.get_or_create(&[("kind", subject.name())]));
        }
        for kind in Kind::ALL {
            let labels = [("resource", kind.name())];
            drop(ours.watch_synced.get_or_create(&labels));
            drop(ours.watch_restarts.get_or_create(&labels));
            drop(ours.issues.get_or_create(&[("kind", kind.name())]));
        }
        for state in STATES {
            for family in [&ours.services, &ours.frontends, &ours.backends, &ours.pods] {
                drop(family.get_or_create(&[("state", state)]));
            }
        }
        for map in WRITTEN_MAPS {
            drop(ours.map_full.get_or_create(&[("map", map.name)]));
        }
        for kind in ["plain", "translated"] {
            drop(ours.ct_evicted.get_or_create(&[("kind", kind)]));
        }
        for hook in hooks() {
            drop(ours.programs_attached.get_or_create(&[("hook", hook)]));
            drop(ours.programs_wanted.get_or_create(&[("hook", hook)]));
        }
        let counts = Counts {
            drops: DropReason::ALL
                .into_iter()
                .flat_map(|reason| [(reason, false, 0), (reason, true, 0)])
                .collect(),
            counters: PathCounter::ALL.into_iter().map(|counter| (counter, 0)).collect(),
            verdicts: lb_core::counts::verdicts().map(|(o, tier, i)| (o, tier, i, 0)).collect(),
        };
        self.set_counts(&counts, 0);
    }
}

/// Names of all programs.
pub(crate) fn hooks() -> impl Iterator<Item = &'static str> {
    POD_PROGRAMS.into_iter().chain(DEV_PROGRAMS).map(|(name, _)| name).chain(SOCKET_PROGRAMS)
}

fn drop_labels(reason: DropReason, ingress: bool) -> MetricLabels<2> {
    [("reason", reason.name()), ("direction", if ingress { "ingress" } else { "egress" })]
}

/// 1 ms to 16.4 s, as kube-proxy has it.
fn sync_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

/// Every second one of kube-proxy's: for the parts of what `sync_histogram` has as a whole.
fn sync_part_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 4.0, 8))
}

/// 0.5 ms to 16.4 s: where our own goals are.
fn fine_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.0005, 2.0, 16))
}

/// 0.5 ms to 8.2 s, each four times the one before: for work that only has to stay away from seconds.
fn wide_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.0005, 4.0, 8))
}

/// kube-proxy's buckets: 0, 0.25, 0.5, every second to 59, every five to 115, every thirty to 300.
fn programming_histogram() -> Histogram {
    let seconds = (1..60).chain((60..120).step_by(5)).chain((120..=300).step_by(30));
    Histogram::new([0.0, 0.25, 0.5].into_iter().chain(seconds.map(f64::from)))
}

/// Registers a metric and gives a handle to it.
fn add<M: prometheus_client::registry::Metric + Clone>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    metric: M,
) -> M {
    registry.register(name, help, metric.clone());
    metric
}

fn counter() -> Counter {
    Counter::default()
}

fn family<M: Default + Clone, const N: usize>() -> Family<MetricLabels<N>, M> {
    Family::default()
}

fn kube_proxy(registry: &mut Registry) -> KubeProxyMetrics {
    let registry = registry.sub_registry_with_prefix("kubeproxy");
    let sync = Histograms::new_with_constructor(sync_histogram as fn() -> Histogram);
    let part = || Histograms::new_with_constructor(sync_part_histogram as fn() -> Histogram);
    let programming = Histograms::new_with_constructor(programming_histogram as fn() -> Histogram);
    KubeProxyMetrics {
        sync: add(
            registry,
            "sync_proxy_rules_duration_seconds",
            "Time to apply a plan to the maps",
            sync,
        ),
        full_sync: add(
            registry,
            "sync_full_proxy_rules_duration_seconds",
            "Time to apply a full plan to the maps",
            part(),
        ),
        partial_sync: add(
            registry,
            "sync_partial_proxy_rules_duration_seconds",
            "Time to apply an incremental plan to the maps",
            part(),
        ),
        network_programming: add(
            registry,
            "network_programming_duration_seconds",
            "Time from a change of an endpoint in the API until the maps are written",
            programming,
        ),
        last_timestamp: add(
            registry,
            "sync_proxy_rules_last_timestamp_seconds",
            "Last time the maps were fully in sync",
            family(),
        ),
        last_queued: add(
            registry,
            "sync_proxy_rules_last_queued_timestamp_seconds",
            "Last time a change was received",
            family(),
        ),
        endpoint_changes_pending: add(
            registry,
            "sync_proxy_rules_endpoint_changes_pending",
            "EndpointSlice changes that are not yet in the maps",
            Gauge::default(),
        ),
        endpoint_changes: add(
            registry,
            "sync_proxy_rules_endpoint_changes",
            "EndpointSlice changes",
            Counter::default(),
        ),
        service_changes_pending: add(
            registry,
            "sync_proxy_rules_service_changes_pending",
            "Service changes that are not yet in the maps",
            Gauge::default(),
        ),
        service_changes: add(
            registry,
            "sync_proxy_rules_service_changes",
            "Service changes",
            Counter::default(),
        ),
        no_local_endpoints: add(
            registry,
            "sync_proxy_rules_no_local_endpoints_total",
            "Service ports with a Local traffic policy and no endpoint on this node",
            family(),
        ),
        healthz: add(registry, "proxy_healthz", "Responses of /healthz by status code", family()),
        livez: add(registry, "proxy_livez", "Responses of /livez by status code", family()),
    }
}

fn process(root: &mut Registry) -> OfProcess {
    let registry = root.sub_registry_with_prefix("process");
    let resident_memory =
        add(registry, "resident_memory_bytes", "Resident memory", Gauge::default());
    let cpu_seconds = Counter::<f64, AtomicU64>::default();
    registry.register_with_unit(
        "cpu",
        "User and system CPU time",
        Unit::Seconds,
        cpu_seconds.clone(),
    );
    let open_fds = add(registry, "open_fds", "Open file descriptors", Gauge::default());
    let start_time = add(
        registry,
        "start_time_seconds",
        "Start of the registry, Unix time",
        GaugeF64::default(),
    );
    OfProcess { resident_memory, cpu_seconds, open_fds, start_time }
}

fn flow_log(root: &mut Registry) -> FlowLogCounts {
    let registry = root.sub_registry_with_prefix("lb");
    FlowLogCounts {
        written: add(
            registry,
            "flow_log_records",
            "Records that were written to the flow log",
            counter(),
        ),
        lost: add(
            registry,
            "flow_log_lost",
            "Records of the flow log that were lost: too many at a time, or an error of the file",
            counter(),
        ),
    }
}

fn ours(root: &mut Registry) -> Ours {
    let registry = root.sub_registry_with_prefix("lb");
    let fine = Histograms::new_with_constructor(fine_histogram as fn() -> Histogram);
    Ours {
        programming: add(
            registry,
            "programming_seconds",
            "Time from a watch event until the maps are written",
            fine,
        ),
        pod_ready: add(
            registry,
            "pod_first_packet_ready_seconds",
            "Time from the kernel's message about a Pod's device until both programs are attached",
            wide_histogram(),
        ),
        attach_gap: add(
            registry,
            "attach_gap_seconds",
            "Time that Pods' devices were without programs because attaching failed",
            Counter::default(),
        ),
        watch_synced: add(registry, "watch_synced", "1 if the initial list is complete", family()),
        watch_restarts: add(registry, "watch_restarts", "Lists started", family()),
        services: add(registry, "services", "Services", family()),
        frontends: add(registry, "frontends", "Frontends", family()),
        backends: add(registry, "backends", "Backends", family()),
        pods: add(registry, "pods", "Pod devices on this node", family()),
        issues: add(registry, "issues", "Issues with objects; `lbctl status` lists them", family()),
        drops: add(registry, "drops", "Dropped packets", family()),
        slow_path: add(
            registry,
            "slow_path",
            "How often the programs left the fast path of established flows",
            family(),
        ),
        events: add(registry, "events", "Events about dropped packets", family()),
        flows_active: add(
            registry,
            "flows_active",
            "Conntrack entries after the last expiry pass",
            family(),
        ),
        map_entries: add(registry, "map_entries", "Elements in use", family()),
        map_capacity: add(registry, "map_capacity", "Capacity in elements", family()),
        map_full: add(
            registry,
            "map_full",
            "Writes that failed because the map was full",
            family(),
        ),
        ct_gc: add(registry, "ct_gc_seconds", "Time of a conntrack expiry pass", wide_histogram()),
        ct_expired: add(registry, "ct_expired", "Conntrack entries that expired", counter()),
        ct_displaced: add(
            registry,
            "ct_displaced",
            "Conntrack entries of live translated connections that were evicted and that the next packet restores",
            Gauge::default(),
        ),
        ct_evicted: add(
            registry,
            "ct_evicted",
            "Conntrack entries that were evicted by others, approximately; live translated connections keep a copy",
            family(),
        ),
        ct_over_share: add(
            registry,
            "ct_over_share",
            "Conntrack entries that were removed because their Pod held more than a quarter of the table",
            Counter::default(),
        ),
        ct_stale: add(
            registry,
            "ct_stale",
            "Conntrack entries of removed backends, at the last expiry pass",
            Gauge::default(),
        ),
        sync_failures: add(
            registry,
            "sync_failures",
            "Writes to the maps that failed and will be retried",
            Counter::default(),
        ),
        map_writes: add(registry, "map_writes", "Writes to the maps", Counter::default()),
        foreign_proxy: add(
            registry,
            "foreign_proxy_present",
            "1 if kube-proxy also runs on this node",
            Gauge::default(),
        ),
        programs_attached: add(registry, "programs_attached", "Attached programs", family()),
        programs_wanted: add(
            registry,
            "programs_wanted",
            "Programs that should be attached",
            family(),
        ),
    }
}

impl Metrics {
    /// An event has arrived in the maps.
    pub(crate) fn observe_programming(&self, subject: ChangeKind, time: Duration) {
        let histogram = self.ours.programming.get_or_create(&[("kind", subject.name())]);
        histogram.observe(time.as_secs_f64());
    }

    /// The change of an endpoint is in the maps; both times in milliseconds since 1970. Clocks that disagree by more
    /// than it took say nothing.
    pub(crate) fn observe_trigger(&self, family: IpFamily, trigger_ms: u64, now_ms: u128) {
        if let Some(took) = now_ms.checked_sub(u128::from(trigger_ms)) {
            let labels = [("ip_family", ip_family(family))];
            let histogram = self.kube_proxy.network_programming.get_or_create(&labels);
            histogram.observe(took as f64 / 1e3);
        }
    }

    /// A plan was applied that touched these families.
    pub(crate) fn observe_sync(&self, families: &[IpFamily], full: bool, time: Duration) {
        for family in families {
            let labels = [("ip_family", ip_family(*family))];
            let seconds = time.as_secs_f64();
            self.kube_proxy.sync.get_or_create(&labels).observe(seconds);
            let by_kind =
                if full { &self.kube_proxy.full_sync } else { &self.kube_proxy.partial_sync };
            by_kind.get_or_create(&labels).observe(seconds);
        }
    }

    /// Sets the three states of a family of gauges.
    pub(crate) fn set_states(
        gauges: &Family<MetricLabels<1>, Gauge>,
        wanted: usize,
        programmed: usize,
        error: usize,
    ) {
        for (state, n) in STATES.into_iter().zip([wanted, programmed, error]) {
            gauges.get_or_create(&[("state", state)]).set(i64::try_from(n).unwrap_or(i64::MAX));
        }
    }
}
