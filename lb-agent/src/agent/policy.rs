//! Policies in the loop: given to be compiled when something changed, and the writes that come of it; likewise when
//! devices or addresses of this node do.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use crate::agent::Agent;
use crate::agent::addresses::Addresses;
use crate::agent::compiler::{Compiled, Job, Worker};
use crate::agent::hits::Hits;
use crate::agent::node;
use crate::agent::pods::Pods;
use crate::config::{Config, Startup};
use crate::observe::metrics::policy::OfPolicies;
use lb_core::issue::Issue;
use lb_core::model::policy::{Compiler, Desired, Group};
use lb_core::plan::MapError;
use lb_core::plan::policy::{Actual, Behind, GroupIds, Op, Planner, Store, Veth, Wanted};
use lb_kernel::bpf::addresses::AddressTables;
use lb_kernel::bpf::maps::Tables;
use lb_kernel::bpf::policy::PolicyTables;

/// Changes remembered one by one until they are enforced.
const REMEMBERED: usize = 4096;
/// After each compilation the next one waits so many times as long as that took: Pods of the whole cluster come and go.
const PAUSE: u32 = 4;
/// But not longer: others' changes wait for that.
const PAUSE_MOST: Duration = Duration::from_millis(500);
/// Events about a group may be read so long after it is gone.
const REMEMBER_GROUP: Duration = Duration::from_secs(600);

/// Everything about policies that the loop owns.
pub(super) struct Policies {
    worker: Worker,
    /// `None` while the worker has it.
    compiler: Option<Compiler>,
    desired: Option<Desired>,
    planner: Planner,
    tables: PolicyTables,
    strict: bool,
    /// Whether something has changed since the last compilation began.
    dirty: bool,
    /// When to compile next, at the soonest.
    not_before: Instant,
    /// When changes were told that no compilation has seen yet.
    waiting: Vec<Instant>,
    /// When those were told that the last one saw, while they are not enforced.
    compiling: Vec<Instant>,
    hits: Hits,
    /// Groups by their number, those included that are gone since then.
    named: BTreeMap<u32, (Arc<Group>, Option<Instant>)>,
}

impl Policies {
    /// Takes over what an earlier run left, of the devices that are there still.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub(super) fn take_over(
        cfg: &Config,
        (worker, tables): (Worker, PolicyTables),
        pods: &Pods,
        addresses: &Addresses,
    ) -> Result<Self, MapError> {
        let mut actual = tables.load()?;
        actual.ident = addresses.load()?;
        actual.pods.extend(pods.groups());
        Ok(Self {
            worker,
            compiler: Some(Compiler::default()),
            desired: None,
            planner: Planner::restore(actual),
            tables,
            strict: cfg.startup == Startup::Strict,
            dirty: true,
            not_before: Instant::now(),
            waiting: Vec::new(),
            compiling: Vec::new(),
            hits: Hits::default(),
            named: BTreeMap::new(),
        })
    }

    /// Something was told that policies depend on.
    pub(super) fn heard(&mut self, at: Instant) {
        self.dirty = true;
        if self.desired.is_some() && self.waiting.len() < REMEMBERED {
            self.waiting.push(at);
        }
    }

    /// What the tables should say, once that is known.
    pub(super) fn desired(&self) -> Option<&Desired> {
        self.desired.as_ref()
    }

    /// What the tables say.
    pub(super) fn actual(&self) -> &Actual {
        self.planner.actual()
    }

    /// The numbers.
    pub(super) fn planner(&self) -> &Planner {
        &self.planner
    }

    /// When the tables have to be looked at again; `start` is that of the loop's clock.
    pub(super) fn next_due(&self, start: Instant) -> Option<Instant> {
        let planner = self.planner.next_wakeup().map(|at| start + at);
        // One that runs wakes the loop at its end.
        let waits = self.dirty && self.desired.is_some() && self.compiler.is_some();
        let compile = waits.then_some(self.not_before);
        planner.into_iter().chain(compile).min()
    }

    /// The groups of a device whose element is written now.
    pub(super) fn groups_of(&mut self, veth: &Veth) -> GroupIds {
        self.planner.groups_of(self.desired.as_ref(), veth)
    }

    /// Whether devices of unknown Pods are cut off as soon as there is any policy.
    pub(super) fn is_strict(&self) -> bool {
        self.strict
    }

    /// A device is gone.
    pub(super) fn gone(&mut self, ifindex: u32) {
        self.planner.gone(ifindex);
    }

    /// Makes the programs report allowed flows, or stop reporting them.
    pub(super) fn report_allowed(&mut self, wanted: bool) {
        match self.tables.report_allowed(wanted) {
            Ok(()) => debug!(wanted, "changed reporting of allowed flows"),
            Err(err) => warn!(%err, wanted, "cannot change reporting of allowed flows"),
        }
    }

    /// What is wrong with policies.
    pub(super) fn issues(&self) -> Vec<Issue> {
        let compiled = self.desired.iter().flat_map(|desired| &desired.issues);
        compiled.cloned().chain(self.planner.issues()).collect()
    }

    /// Which policies cost much.
    pub(super) fn remarks(&self) -> &[Issue] {
        self.desired.as_ref().map_or(&[], |desired| &desired.remarks)
    }

    /// The groups by number, and those that are gone since a short time.
    pub(super) fn named(&self) -> impl Iterator<Item = (u32, &Group)> {
        self.named.iter().map(|(id, (group, _))| (*id, &**group))
    }

    /// What policies decided.
    pub(super) fn hits(&self) -> &Hits {
        &self.hits
    }

    /// Reads what policies decided since the last time; [`Policies::note_names`] comes before.
    pub(super) fn count_hits(&mut self, metrics: &OfPolicies, now: u64) {
        let Some(desired) = &self.desired else { return };
        let live: HashSet<_> =
            desired.policies.iter().map(|info| (&info.name, info.tier)).collect();
        if desired.any {
            match self.tables.hits() {
                Ok(counts) => {
                    let group = |id: u32| self.named.get(&id).map(|(group, _)| &**group);
                    for key in self.hits.add(&counts, group, now) {
                        if let Err(err) = self.tables.forget_hits(&key) {
                            debug!(?key, %err, "cannot delete the counters of a removed rule set");
                        }
                    }
                }
                Err(err) => warn!(%err, "cannot read the policy hit counters"),
            }
        }
        self.hits.retain(|name, tier| live.contains(&(name, tier)));
        self.hits.publish(&metrics.by_policy);
    }

    /// Notes which groups there are.
    pub(super) fn note_names(&mut self, now: Instant) {
        let mut live = BTreeMap::new();
        live.extend(self.planner.groups().map(|(id, group)| (id, (Arc::clone(group), None))));
        self.named.retain(|id, (_, gone)| {
            live.contains_key(id) || gone.get_or_insert(now).elapsed() < REMEMBER_GROUP
        });
        self.named.extend(live);
    }
}

impl Agent {
    /// Has policies compiled if it is time to; changes that come meanwhile wait for the next time. All lists must be
    /// complete.
    pub(super) fn compile_policies(&mut self) {
        let policies = &mut self.policies;
        if !policies.dirty || Instant::now() < policies.not_before {
            return;
        }
        let Some(compiler) = policies.compiler.take() else { return };
        policies.dirty = false;
        policies.compiling = std::mem::take(&mut policies.waiting);
        let job = Job { compiler, cluster: self.cluster.snapshot() };
        if policies.desired.is_some() {
            policies.worker.start(job);
        } else {
            // The first time nothing is known of Pods and addresses: that is waited for.
            self.compiled(job.run());
        }
    }

    /// Policies are compiled: writes what comes of it.
    pub(super) fn compiled(&mut self, compiled: Compiled) {
        let Compiled { compiler, desired, took } = compiled;
        let begun = Instant::now();
        let policies = &mut self.policies;
        policies.compiler = Some(compiler);
        if desired.any || policies.desired.as_ref().is_some_and(|desired| desired.any) {
            self.metrics.policy.compile.observe(took.as_secs_f64());
            self.metrics.policy.last_compile.set(took.as_secs_f64());
        } else {
            policies.compiling.clear();
        }
        policies.desired = Some(desired);
        self.write_policies();
        for at in self.policies.compiling.drain(..) {
            self.metrics.policy.enforcement.observe(at.elapsed().as_secs_f64());
        }
        let took = took + begun.elapsed();
        self.policies.not_before = Instant::now() + (took * PAUSE).min(PAUSE_MOST);
        self.housekeeping.touch();
    }

    /// Brings the policy tables, and whose addresses are whose, to what they should say.
    pub(super) fn write_policies(&mut self) {
        self.bind();
        let pickup_until = self.pickup.until();
        let now = node::now();
        let Self { policies, addresses, tables, pods, devices, bindings, .. } = self;
        let veths: Vec<Veth> = devices
            .veths()
            .map(|veth| node::behind(bindings, veth, now, policies.strict))
            .collect();
        let (idents, address_tables) = addresses.idents();
        let wanted = Wanted {
            desired: policies.desired.as_ref(),
            devices: idents,
            veths: &veths,
            strict: policies.strict,
        };
        let now = self.start.elapsed();
        let plan = policies.planner.plan(&wanted, now);
        let mut maps = Maps {
            policy: &mut policies.tables,
            addresses: address_tables,
            tables,
            pods,
            pickup_until,
        };
        let applied = policies.planner.apply(plan, &mut maps, now);
        // Those found just now have been under their policies from their first moment.
        let found = veths.iter().filter(|veth| matches!(veth.behind, Behind::Pod(..)));
        found.for_each(|veth| pods.is_known(veth.ifindex));
        let ours = &self.metrics.ours;
        ours.map_writes.inc_by(applied.writes as u64);
        ours.sync_failures.inc_by(applied.failed.len() as u64);
        for (op, err) in &applied.failed {
            debug!(?op, %err, "write failed");
            if err.full {
                ours.map_full.get_or_create(&[("map", err.map)]).inc();
            }
        }
        if let Some((_, err)) = applied.failed.first() {
            warn!(map = err.map, failed = applied.failed.len(), %err, "policy writes failed, retrying");
            policies.compiling.clear();
        }
        if applied.writes > 0 {
            debug!(
                writes = applied.writes,
                epoch = policies.planner.actual().state.epoch,
                "policies written"
            );
            self.housekeeping.touch();
        }
    }
}

/// The maps that policies are written to.
struct Maps<'a> {
    policy: &'a mut PolicyTables,
    addresses: &'a mut AddressTables,
    tables: &'a mut Tables,
    pods: &'a mut Pods,
    pickup_until: u32,
}

impl Store for Maps<'_> {
    fn apply(&mut self, op: &Op) -> Result<(), MapError> {
        match op {
            Op::PutIdent { addr, ident } => self.addresses.set_ident(addr, Some(ident)),
            Op::DeleteIdent { addr } => self.addresses.set_ident(addr, None),
            Op::SetGroups { ifindex, groups } => {
                // One that is not written yet gets its groups when it is.
                let Some(pod) = self.pods.regrouped(*ifindex, *groups, self.pickup_until) else {
                    return Ok(());
                };
                self.tables.put_pod(*ifindex, &pod)?;
                self.pods.wrote(*ifindex, pod);
                Ok(())
            }
            Op::PutGroup { .. }
            | Op::PutPeerBits { .. }
            | Op::DeletePeerBits { .. }
            | Op::PutPortBits { .. }
            | Op::DeletePortBits { .. }
            | Op::PutCidr { .. }
            | Op::DeleteCidr { .. }
            | Op::PutState(_) => self.policy.apply(op),
        }
    }
}
