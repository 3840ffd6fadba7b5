//! Policies in the loop: compiled when something changed, then written; also written when devices or
//! addresses of this node change.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use crate::agent::Agent;
use crate::agent::compiler::{CompiledTables, Job, Worker};
use crate::agent::hits::Hits;
use crate::agent::node;
use crate::config::{AgentConfig, Startup};
use crate::observe::metrics::policy::OfPolicies;
use lb_core::issue::Issue;
use lb_core::model::policy::{Compiler, DesiredPolicies, RuleSet};
use lb_core::plan::policy::{Behind, DesiredTables, PodDevice, PolicyPlanner};
use lb_kernel::bpf::policy::PolicyTables;
use lb_kernel::devices::bridge_netfilter::BridgeNetfilter;

/// Changes remembered one by one until they are enforced.
const REMEMBERED: usize = 4096;
/// After each compilation the next one waits this multiple of its duration: Pods of the whole cluster come and go.
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
    desired: Option<DesiredPolicies>,
    strict: bool,
    /// Whether something has changed since the last compilation began.
    dirty: bool,
    /// Whether the first compilation had to wait for Pods and can begin.
    released: bool,
    /// When to compile next, at the soonest.
    not_before: Instant,
    /// When changes were told that no compilation has seen yet.
    waiting: Vec<Instant>,
    /// When those were told that the last one saw, while they are not enforced.
    compiling: Vec<Instant>,
    hits: Hits,
    /// Groups by their number, those included that are gone since then.
    named: BTreeMap<u32, (Arc<RuleSet>, Option<Instant>)>,
}

impl Policies {
    pub(super) fn new(cfg: &AgentConfig, worker: Worker) -> Self {
        Self {
            worker,
            compiler: Some(Compiler::default()),
            desired: None,
            strict: cfg.startup == Startup::Strict,
            dirty: true,
            released: false,
            not_before: Instant::now(),
            waiting: Vec::new(),
            compiling: Vec::new(),
            hits: Hits::default(),
            named: BTreeMap::new(),
        }
    }

    /// Something was told that policies depend on.
    pub(super) fn heard(&mut self, at: Instant) {
        self.dirty = true;
        if self.desired.is_some() && self.waiting.len() < REMEMBERED {
            self.waiting.push(at);
        }
    }

    /// What they have waited for is known.
    pub(super) fn release(&mut self) {
        self.dirty = true;
        self.released = true;
    }

    /// What the tables should say, once that is known.
    pub(super) fn desired(&self) -> Option<&DesiredPolicies> {
        self.desired.as_ref()
    }

    /// Whether all changes that were heard of are compiled, and what came out was given to the planner.
    pub(super) fn is_compiled(&self) -> bool {
        self.desired.is_some() && !self.dirty && self.compiler.is_some()
    }

    /// When changes are to be compiled. If they wait for Pods: until when, at most.
    pub(super) fn next_compilation(&self, held_until: Option<Instant>) -> Option<Instant> {
        // One that runs wakes the loop at its end.
        let begun = self.desired.is_some() || self.released || held_until.is_some();
        let waits = self.dirty && begun && self.compiler.is_some();
        waits.then(|| held_until.map_or(self.not_before, |until| until.max(self.not_before)))
    }

    /// Whether devices of unknown Pods are cut off as soon as there is any policy.
    pub(super) fn is_strict(&self) -> bool {
        self.strict
    }

    /// Which policies cost much.
    pub(super) fn remarks(&self) -> &[Issue] {
        self.desired.as_ref().map_or(&[], |desired| &desired.remarks)
    }

    /// The groups by number, and those that are gone since a short time.
    pub(super) fn named(&self) -> impl Iterator<Item = (u32, &RuleSet)> {
        self.named.iter().map(|(id, (group, _))| (*id, &**group))
    }

    /// The group with this number, also if it is gone since a short time.
    pub(super) fn named_group(&self, id: u32) -> Option<&RuleSet> {
        self.named.get(&id).map(|(group, _)| &**group)
    }

    /// What policies decided.
    pub(super) fn hits(&self) -> &Hits {
        &self.hits
    }

    /// Reads what policies decided since the last time; [`Policies::note_names`] comes before.
    pub(super) fn count_hits(&mut self, tables: &mut PolicyTables, metrics: &OfPolicies, now: u64) {
        let Some(desired) = &self.desired else { return };
        let live: HashSet<_> =
            desired.policies.iter().map(|info| (&info.name, info.tier)).collect();
        if desired.any {
            match tables.hits() {
                Ok(counts) => {
                    let group = |id: u32| self.named.get(&id).map(|(group, _)| &**group);
                    for key in self.hits.add(&counts, group, now) {
                        if let Err(err) = tables.forget_hits(&key) {
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
    pub(super) fn note_names(&mut self, planner: &PolicyPlanner, now: Instant) {
        let mut live = BTreeMap::new();
        live.extend(planner.groups().map(|(id, group)| (id, (Arc::clone(group), None))));
        self.named.retain(|id, (_, gone)| {
            live.contains_key(id) || gone.get_or_insert(now).elapsed() < REMEMBER_GROUP
        });
        self.named.extend(live);
    }
}

impl Agent {
    /// Has policies compiled if it is time to, once all lists are complete; changes that come meanwhile wait for the next
    /// time.
    pub(super) fn compile_policies(&mut self) {
        // Before that, this is called where a write is tried again.
        let policies = &self.policies;
        if !self.planned || !policies.dirty || Instant::now() < policies.not_before {
            return;
        }
        if policies.compiler.is_none() || !self.has_pods_for_policies() {
            return;
        }
        let policies = &mut self.policies;
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

    /// Policies are compiled: writes the result.
    pub(super) fn compiled(&mut self, compiled: CompiledTables) {
        let CompiledTables { compiler, desired, took } = compiled;
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

    /// Brings the policy tables, whose addresses are whose, and the Pods' elements to what they should say.
    pub(super) fn write_policies(&mut self) {
        self.bind();
        let (netfilter, now, strict) =
            (BridgeNetfilter::read(), self.clock.now(), self.policies.is_strict());
        let known = |veth| node::known(&self.bindings, veth, netfilter, now, strict);
        let veths: Vec<PodDevice> = self.devices.veths().map(known).collect();
        let wanted = DesiredTables {
            desired: self.policies.desired.as_ref(),
            devices: self.addresses.idents(),
            veths: &veths,
            strict,
            pickup_until: self.pickup.until(),
        };
        let now = self.start.elapsed();
        // An address of another node's Pod is in one of the two maps at any time.
        let ranges = wanted.desired.map(|desired| &desired.pod_ranges);
        let more = ranges.map(|ranges| self.planner.plan_pod_ranges(ranges));
        let plan = self.planner.plan_policies(&wanted, now);
        let less = ranges.map(|ranges| self.planner.plan_former_ranges(ranges));
        let is_complete = more.is_none_or(|plan| self.write(plan).failed.is_empty());
        let applied = self.write(plan);
        if let Some(less) = less.filter(|_| is_complete) {
            self.write(less);
        }
        // Those found just now have been under their policies from their first moment.
        let found = veths.iter().filter(|veth| matches!(veth.behind, Behind::Pod(..)));
        found.for_each(|veth| self.planner.is_known(veth.ifindex));
        if !applied.failed.is_empty() {
            self.policies.compiling.clear();
        }
        if applied.writes > 0 {
            let epoch = self.planner.actual().policy.epoch;
            debug!(writes = applied.writes, epoch, "policies written");
            self.housekeeping.touch();
        }
    }

    /// Makes the programs report allowed flows, or stop reporting them.
    pub(super) fn report_allowed(&mut self, wanted: bool) {
        match self.maps.policies.report_allowed(wanted) {
            Ok(()) => debug!(wanted, "changed reporting of allowed flows"),
            Err(err) => warn!(%err, wanted, "cannot change reporting of allowed flows"),
        }
    }

    /// What is wrong with policies.
    pub(super) fn policy_issues(&self) -> Vec<Issue> {
        let compiled = self.policies.desired.iter().flat_map(|desired| &desired.issues);
        compiled.cloned().chain(self.planner.policies().issues()).collect()
    }
}
