//! The only loop: events in, `cluster → model → plan → maps`, and what others may know out.
//!
//! One task owns the records, the planner and the maps. Slow things have threads of their own and send messages;
//! servers read published values. Events that are there already are taken together: that is the whole debouncing.
#![forbid(unsafe_code)]

mod addresses;
mod attacher;
mod attachments;
mod audit;
mod background;
pub(crate) mod bindings;
mod compiler;
mod denials;
mod disconnect;
mod flows;
pub(crate) mod hits;
mod host_rules;
mod housekeeping;
mod issues;
mod kernel;
mod kube_proxy;
mod links;
pub(crate) mod lock;
mod masquerade;
mod node;
mod past;
mod pickup;
mod pods;
mod policy;
mod report;
mod scope;
mod servers;
mod settings;
mod sources;
mod table;
mod tasks;
mod waiting;
mod write;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use prometheus_client::registry::Registry;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::{debug, info, warn};

use crate::admin::{self, PendingRequest};
use crate::agent::addresses::NodeAddresses;
use crate::agent::attacher::{Attached, Attacher};
use crate::agent::attachments::Attachments;
use crate::agent::background::News;
use crate::agent::bindings::{BindingClock, Bindings};
use crate::agent::compiler::{CompiledTables, Worker};
use crate::agent::disconnect::{Disconnecter, Turnover};
use crate::agent::flows::FlowNames;
use crate::agent::host_rules::HostRules;
use crate::agent::housekeeping::Housekeeping;
use crate::agent::kernel::Kernel;
use crate::agent::kube_proxy::KubeProxy;
use crate::agent::links::MacOwners;
use crate::agent::lock::Lock;
use crate::agent::past::Past;
use crate::agent::pickup::{Pickup, Start};
use crate::agent::policy::Policies;
use crate::agent::scope::PodWatch;
use crate::agent::servers::{ServerFacts, Servers};
use crate::agent::settings::StartSettings;
use crate::agent::sources::Sources;
use crate::agent::waiting::Queue;
use crate::config::{AgentConfig, FactSource};
use crate::observe::Status;
use crate::observe::metrics::{ChangeKind, Metrics};
use crate::observe::service_health::{HealthPorts, ServiceHealth};
use lb_common::config::SettingFlags;
use lb_core::admin::query::LoopProgress;
use lb_core::cluster::{Change, Cluster, Dirty, Event, Family, Kind, PodScope};
use lb_core::model::Desired;
use lb_core::plan::{Actual, Capacity, Given, Plan, Planner, Write};
use lb_kernel::bpf::attach::Mechanism;
use lb_kernel::bpf::events::ObservedFlow;
use lb_kernel::bpf::gc::Gc;
use lb_kernel::bpf::store::Maps;
use lb_kernel::devices::{self, Devices};
use lb_kernel::foreign;
use lb_kernel::preflight::Machine;
use lb_kube::api_server::{self, ApiEvents, WatchedPods};
use lb_kube::{Counters, Received, manifests};

/// Messages of the source that may wait: a full initial list must not fill memory before it is applied.
const EVENTS: usize = 4096;

/// What can happen.
#[derive(Debug)]
enum LoopEvent {
    /// An event of the API server, or of the manifests.
    Received(Received),
    /// Something happened to devices or addresses.
    Devices(Vec<devices::DeviceEvent>),
    /// An attachment came to an end.
    Attached(Attached),
    /// The background thread found something.
    Background(News),
    /// What the policy tables should say is computed.
    Compiled(Box<CompiledTables>),
    /// A request of lbctl.
    Admin(PendingRequest),
    /// The programs report flows.
    Flows(Vec<ObservedFlow>),
    /// The number of clients that follow allowed flows changed.
    Followers(usize),
    /// A time was waited for: a retry, a release of slots, housekeeping.
    Timer,
    /// We are to end.
    Stop(&'static str),
}

/// Runs until a signal comes; then everything stays in place.
///
/// # Errors
/// One sentence: what is missing and how to get it.
pub(crate) async fn run(cfg: AgentConfig) -> anyhow::Result<()> {
    let facts = Machine::read();
    let settings = StartSettings::new(cfg.settings_dir.clone());
    info!(
        version = lb_core::build::VERSION,
        commit = lb_core::build::COMMIT,
        node = cfg.node_name,
        kernel = facts.kernel,
        settings = settings.differing(),
        "starting"
    );
    if let Some(obstacle) = facts.obstacle() {
        anyhow::bail!(obstacle);
    }
    if let Some(weakness) = facts.weakness() {
        warn!(kernel = facts.kernel, "{weakness}");
    }
    let _lock = Lock::take(&cfg.dirs.state)?;
    let mut stop = Stop::new()?;
    let kernel = Kernel::bring_up(&cfg, &facts)?;
    let (mut inbox, mut agent) = Agent::start(cfg, &facts, kernel)?;
    agent.resync_devices()?;
    loop {
        let due = agent.next_wakeup();
        let event = tokio::select! {
            biased;
            name = stop.recv() => LoopEvent::Stop(name),
            events = agent.devices.next() => LoopEvent::Devices(events.context("follow devices")?),
            Some(attached) = inbox.attached.recv() => LoopEvent::Attached(attached),
            compiled = inbox.compiled.recv() => {
                let ended = "the policy compiler thread has ended";
                LoopEvent::Compiled(Box::new(compiled.context(ended)?))
            }
            Some(news) = inbox.background.recv() => LoopEvent::Background(news),
            // Before what may take away their names.
            Some(flows) = inbox.flows.recv() => LoopEvent::Flows(flows),
            Some(received) = inbox.received.recv() => LoopEvent::Received(received),
            Some(pending) = inbox.requests.recv() => LoopEvent::Admin(pending),
            Ok(()) = inbox.followers.changed() => {
                LoopEvent::Followers(*inbox.followers.borrow_and_update())
            }
            () = sleep_until(due) => LoopEvent::Timer,
            ended = &mut inbox.source => {
                return ended.context("the watch of the cluster state failed")?;
            }
        };
        if let LoopEvent::Stop(signal) = event {
            info!(signal, "shutting down; programs and maps stay attached");
            agent.write_names();
            return Ok(());
        }
        agent.handle(event);
        while let Ok(received) = inbox.received.try_recv() {
            agent.handle(LoopEvent::Received(received));
        }
        agent.run_due()?;
    }
}

/// Where messages come from.
struct Inbox {
    received: mpsc::Receiver<Received>,
    attached: mpsc::UnboundedReceiver<Attached>,
    background: mpsc::Receiver<News>,
    compiled: mpsc::UnboundedReceiver<CompiledTables>,
    requests: mpsc::Receiver<PendingRequest>,
    flows: mpsc::Receiver<Vec<ObservedFlow>>,
    followers: watch::Receiver<usize>,
    source: tokio::task::JoinHandle<anyhow::Result<()>>,
}

/// Everything the loop owns.
struct Agent {
    cluster: Cluster,
    dirty: Dirty,
    desired: Desired,
    planner: Planner,
    /// Whether the first plan was applied.
    planned: bool,
    maps: Maps,
    devices: Devices,
    bindings: Bindings,
    clock: BindingClock,
    state_dir: PathBuf,
    sources: Sources,
    links: MacOwners,
    /// Whose flows may go past the IP stack.
    past: Past,
    host_rules: HostRules,
    pickup: Pickup,
    addresses: NodeAddresses,
    policies: Policies,
    /// Which Pods are watched.
    scope: PodWatch,
    /// What the watches see.
    watches: Arc<Counters>,
    attachments: Attachments,
    attacher: Attacher,
    disconnecter: Disconnecter,
    health_ports: HealthPorts,
    kube_proxy: KubeProxy,
    flows: FlowNames,
    /// Whether packets that leave the node are looked at.
    departures: bool,
    mechanism: Option<Mechanism>,
    queue: Queue,
    metrics: Metrics,
    status: watch::Sender<Arc<Status>>,
    housekeeping: Housekeeping,
    next_resync: Instant,
    /// The planner's clock starts here.
    start: Instant,
}

impl Agent {
    /// Takes over the tables and starts threads, source and servers.
    fn start(
        mut cfg: AgentConfig,
        facts: &Machine,
        mut kernel: Kernel,
    ) -> anyhow::Result<(Inbox, Self)> {
        let mut actual = kernel.maps.load().context("read the pinned maps")?;
        info!(frontends = actual.frontends.len(), "restored state from pinned maps");
        let pickup = Pickup::new(kernel.clock, cfg.pickup_grace);
        let former = actual.settings.as_deref().map_or(SettingFlags::NONE, |given| given.flags);
        let past = Past::new(cfg.past_stack, former, &facts.kernel);
        let start = Start { past: past.settings(), ct_is_new: kernel.ct_is_new };
        let given = pickup::given(&cfg, &pickup, &mut kernel.maps, &mut actual, &start)
            .context("write the settings")?;
        let mut devices = Devices::open().context("follow network devices by netlink")?;
        let existing = devices.resync().context("list network devices")?;
        node::clear_devices(&mut kernel, &devices, &mut actual)?;
        let bindings = Bindings::take_over(&cfg.dirs.state, devices.veths());
        actual.pods.retain(|ifindex, pod| node::is_same(&devices, &bindings, *ifindex, pod));
        let addresses = NodeAddresses::take_over(&actual);
        let mut planner = restored(actual, given, &cfg.node_name);
        for veth in devices.veths().filter(|veth| bindings.name(veth.ifindex).is_some()) {
            planner.is_known(veth.ifindex);
        }
        let (done, compiled) = mpsc::unbounded_channel();
        let worker = Worker::spawn(done)?;
        let policies = Policies::new(&cfg, worker);
        let gc = Gc::open(&kernel.pins, kernel.clock)?;
        let (news, background) = mpsc::channel(4);
        background::spawn(gc, background::INTERVAL, news.clone())?;
        let host_rules = HostRules::spawn(cfg.past_stack, news.clone())?;
        let kube_proxy = KubeProxy::spawn(cfg.takeover, news)?;
        background::spawn_resize(kernel.resize)?;
        let (done, attached) = mpsc::unbounded_channel();
        let attacher = Attacher::spawn(kernel.hooks, done)?;
        let (metrics, registry) = observed(&mut cfg, facts);
        let counters = Counters::shared();
        let (tx, received) = mpsc::channel(EVENTS);
        let (scope, wanted) = PodWatch::new();
        let source = spawn_source(&cfg, wanted, tx, Arc::clone(&counters));
        let (status, status_reader) = watch::channel(Arc::new(Status::starting()));
        let api_events = api_events(&cfg);
        let from = ServerFacts {
            metrics: (metrics.clone(), registry),
            traces: kernel.traces,
            source: Arc::clone(&counters),
            status: status_reader,
            api_events: api_events.clone(),
        };
        let Servers { examples, requests, followers, observed, flows } =
            servers::spawn(&cfg, from)?;
        let disconnecter = Disconnecter::spawn(metrics.outside.sockets_closed.clone())?;
        let mut agent = Self {
            cluster: Cluster::new(&cfg.node_name),
            dirty: Dirty::default(),
            desired: Desired::new(cfg.rules.clone()),
            planner,
            planned: false,
            maps: kernel.maps,
            devices,
            bindings,
            clock: BindingClock::start(),
            state_dir: cfg.dirs.state.clone(),
            sources: Sources::new(cfg.allowed_sources.clone()),
            links: MacOwners::default(),
            past: past.counting_flows(cfg.flow_accounting),
            host_rules,
            pickup,
            addresses,
            policies,
            scope,
            watches: counters,
            attachments: Attachments::default(),
            attacher,
            disconnecter,
            health_ports: HealthPorts::new(status.subscribe()),
            kube_proxy,
            flows,
            departures: false,
            mechanism: None,
            queue: Queue::default(),
            housekeeping: Housekeeping::new(&cfg, facts, (examples, api_events), kernel.ct_entries),
            metrics,
            status,
            next_resync: Instant::now(),
            start: Instant::now(),
        };
        // As the maps are: the programs for it stay in place.
        agent.departures = agent.planner.actual().may_watch_departures();
        for event in existing {
            agent.device(event);
        }
        // Before the first packet is judged; else the thread tells.
        if !foreign::rules::find().is_empty() {
            agent.dirty.merge(agent.cluster.apply(Event::OtherProxy));
        }
        agent.begin_flows();
        let inbox = Inbox {
            received,
            attached,
            background,
            compiled,
            requests,
            flows: observed,
            followers,
            source,
        };
        Ok((inbox, agent))
    }

    fn handle(&mut self, event: LoopEvent) {
        match event {
            LoopEvent::Received(received) => self.receive(received),
            LoopEvent::Devices(events) => {
                for event in events {
                    self.device(event);
                }
                self.write_addresses();
            }
            LoopEvent::Attached(attached) => self.attached(attached),
            LoopEvent::Background(News::Expired(pass, begun, flows)) => {
                self.cluster.pass();
                self.planner.passed(begun.saturating_duration_since(self.start), flows);
                self.housekeeping.expired(*pass, &self.metrics);
            }
            LoopEvent::Background(News::Foreign(signs)) => self.searched(signs),
            LoopEvent::Background(News::TakenOver(removed)) => self.taken_over(removed),
            LoopEvent::Background(News::HostRules(judged)) => self.judged(*judged),
            LoopEvent::Compiled(compiled) => self.compiled(*compiled),
            LoopEvent::Admin(pending) => match self.audit_request(&pending.request) {
                Some(response) => admin::reply(pending.response, response),
                None => {
                    if let Some(pending) = self.defer(pending) {
                        self.respond(pending);
                    }
                }
            },
            LoopEvent::Flows(flows) => self.observed(&flows),
            LoopEvent::Followers(n) => {
                self.report_allowed(n > 0 || self.flows.logs_allowed());
                if n > 0 {
                    self.scope.want_all("a client follows flows");
                }
            }
            LoopEvent::Timer | LoopEvent::Stop(_) => {}
        }
    }

    fn respond(&self, pending: PendingRequest) {
        let state = admin::HandlerState {
            cluster: &self.cluster,
            rules: self.desired.rules(),
            hits: self.policies.hits(),
            progress: &|| self.progress(),
        };
        state.respond(pending);
    }

    /// What is left to do for objects.
    fn progress(&self) -> LoopProgress {
        let is_idle = self.planned && self.dirty.is_empty();
        LoopProgress {
            services_written: is_idle
                && self.queue.oldest().is_none()
                && !self.planner.is_stalled(),
            policies_written: is_idle
                && self.policies.is_compiled()
                && self.planner.policies().unwritten().is_none(),
            pods: self.attachments.pods(),
            issues: (self.cluster.issues().chain(self.desired.issues()))
                .chain(self.planner.issues())
                .cloned()
                .chain(self.policy_issues())
                .collect(),
        }
    }

    fn receive(&mut self, received: Received) {
        // Of the initial lists, only their end says how fast we are.
        if self.planned
            && let Some(subject) = self.queue.push(&received)
        {
            let kube_proxy = &self.metrics.kube_proxy;
            match subject {
                ChangeKind::Service => kube_proxy.service_changes.inc(),
                ChangeKind::Endpoints | ChangeKind::Pod => kube_proxy.endpoint_changes.inc(),
            };
        }
        let at = received.at;
        let is_list_of_pods = received.event == Event::Synced(Kind::Pod);
        if let Event::Pod(Change::Applied(_, pod)) = &received.event
            && !self.cluster.is_own(pod)
        {
            self.scope.heard_of_pod(at);
        }
        self.flows.forget(&received.event);
        let dirty = self.cluster.apply(received.event);
        if dirty.policies {
            self.policies.heard(at);
        }
        if !dirty.is_empty() {
            self.housekeeping.queued = unix_now();
            self.dirty.merge(dirty);
        }
        if is_list_of_pods {
            self.pods_listed();
        }
        self.housekeeping.touch();
    }

    /// Brings the maps to what the cluster says, all of which is known.
    fn sync(&mut self) {
        let begun = Instant::now();
        let now = begun.duration_since(self.start);
        let changed = self.desired.update(&self.cluster, &std::mem::take(&mut self.dirty));
        let alive = |addr: &_| self.cluster.is_alive(addr);
        let plan = self.planner.plan(&self.desired, &changed, &alive, now);
        let families = families(&plan);
        let n_writes = plan.writes.len();
        let turnover = Turnover::of(&plan.writes);
        if self.planner.watches_departures() {
            self.watch_departures(true);
        }
        let applied = self.write(plan);
        if !changed.services.is_empty() {
            self.flows.services_changed();
        }
        let took = begun.elapsed();
        self.disconnecter.send(turnover.after(&self.planner.actual().backends));
        self.watch_departures(self.planner.watches_departures());
        self.metrics.observe_sync(&families, !self.planned, took);
        if !self.planned {
            info!(
                services = self.desired.services.len(),
                writes = applied.writes,
                took = ?took,
                "first sync"
            );
        } else if n_writes > 0 {
            let services = changed.services.len();
            debug!(services, writes = applied.writes, took = ?took, "synced");
        }
        self.planned = true;
        self.serve_health();
        self.compile_policies();
        self.follow_node();
        self.housekeeping.touch();
    }

    /// Publishes what the health check ports answer.
    fn serve_health(&mut self) {
        let health = self.desired.health().map(|(service, port, endpoints)| ServiceHealth {
            service: service.clone(),
            port,
            endpoints: endpoints as usize,
        });
        self.health_ports.update(health, Instant::now());
    }

    /// What waited is in the maps, unless writes failed.
    fn settle_queue(&mut self) {
        if !self.planned {
            return;
        }
        if self.planner.is_stalled() {
            self.queue.stall();
        } else {
            let now = Instant::now();
            let unix_ms = unix_now().as_millis();
            for waiting in self.queue.drain() {
                self.metrics.observe_programming(waiting.subject, now.duration_since(waiting.at));
                if let Some((family, trigger)) = waiting.trigger {
                    self.metrics.observe_trigger(family, trigger, unix_ms);
                }
            }
        }
        self.publish();
    }

    fn publish(&self) {
        let node_eligible = self.cluster.this_node().is_none_or(|node| !node.deleting);
        let pending_since = self.queue.oldest();
        self.status.send_if_modified(|status| {
            let updated = if pending_since.is_none() { SystemTime::now() } else { status.updated };
            *status =
                Arc::new(Status { synced: self.planned, updated, pending_since, node_eligible });
            true
        });
    }
}

/// The metrics, which count the requests of this configuration's clients from here on.
fn observed(cfg: &mut AgentConfig, facts: &Machine) -> (Metrics, Registry) {
    let (metrics, registry) = Metrics::register(&facts.kernel);
    if let FactSource::Kubernetes(options) = &mut cfg.source {
        options.requests = metrics.rest_client.observer();
    }
    (metrics, registry)
}

fn restored(actual: Actual, given: Given, node: &str) -> Planner {
    let mut planner = Planner::restore(actual, Capacity::default());
    planner.give(given);
    planner.name_node(node);
    planner
}

fn api_events(cfg: &AgentConfig) -> ApiEvents {
    match &cfg.source {
        FactSource::Kubernetes(options) => ApiEvents::spawn(options.clone(), &cfg.node_name),
        FactSource::Manifests(_) => ApiEvents::none(),
    }
}

fn spawn_source(
    cfg: &AgentConfig,
    scope: watch::Receiver<PodScope>,
    tx: mpsc::Sender<Received>,
    counters: Arc<Counters>,
) -> tokio::task::JoinHandle<anyhow::Result<()>> {
    match &cfg.source {
        FactSource::Kubernetes(options) => {
            let options = options.clone();
            let pods = WatchedPods { node: cfg.node_name.as_str().into(), scope };
            tokio::spawn(async move {
                api_server::source(options, pods, tx, counters).await;
                Ok(())
            })
        }
        FactSource::Manifests(dir) => {
            let node = cfg.node_name.clone();
            tokio::spawn(manifests::run(dir.clone(), node, tx, counters))
        }
    }
}

/// The families that a plan touches.
fn families(plan: &Plan) -> Vec<Family> {
    let mut found = Vec::new();
    for write in &plan.writes {
        let family = match write {
            Write::PutBackend { backend, .. } => Family::of(&backend.addr),
            Write::PutFrontend { key, .. } | Write::DeleteFrontend { key } => Family::of(&key.addr),
            Write::PutSourceRange { key } | Write::DeleteSourceRange { key } => {
                key.clients.family()
            }
            _ => continue,
        };
        if !found.contains(&family) {
            found.push(family);
        }
        if found.len() == 2 {
            break;
        }
    }
    found
}

/// Time since 1970.
fn unix_now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// The signals that end us.
pub(crate) struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    /// Listens from here on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("listen for signals");
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    /// The name of the next one.
    pub(crate) async fn recv(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
