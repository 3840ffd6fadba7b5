//! The pure middle of the agent, wired as the agent wires it, over maps in memory and an injected clock.

use std::collections::HashSet;
use std::time::Duration;

use lb_common::addr::Addr;
use lb_core::cluster::{Cluster, Dirty, Event};
use lb_core::issue::Issue;
use lb_core::model::rules::Rules;
use lb_core::model::{Changed, Desired};
use lb_core::plan::{Capacity, Flows, Planner, Write};

use crate::maps::FakeMaps;

/// Events in, map contents out.
#[derive(Debug)]
pub(crate) struct Pipeline {
    pub(crate) cluster: Cluster,
    pub(crate) desired: Desired,
    pub(crate) planner: Planner,
    pub(crate) maps: FakeMaps,
    /// Addresses with connections, although no Pod has them.
    pub(crate) busy: Vec<Addr>,
    /// Whether other addresses have none.
    pub(crate) idle: bool,
    /// Ports of frontends that are gone and have connections.
    pub(crate) dialed: Vec<u16>,
    node: String,
    capacity: Capacity,
    dirty: Dirty,
}

impl Pipeline {
    /// Of `spec.externalIPs`, those in 192.0.2.0/24 and 2001:db8::/64 are served.
    pub(crate) fn new(node: &str, capacity: Capacity) -> Self {
        let maps = FakeMaps::new(capacity);
        Self {
            cluster: Cluster::new(node),
            desired: Desired::new(rules()),
            planner: Planner::restore(maps.actual.clone(), capacity),
            maps,
            busy: Vec::new(),
            idle: false,
            dialed: Vec::new(),
            node: node.to_owned(),
            capacity,
            dirty: Dirty::default(),
        }
    }

    pub(crate) fn tell(&mut self, events: impl IntoIterator<Item = Event>) {
        for event in events {
            self.dirty.merge(self.cluster.apply(event));
        }
    }

    /// One round: model what is dirty, plan, write. Returns the writes.
    pub(crate) fn round(&mut self) -> Vec<Write> {
        let dirty = std::mem::take(&mut self.dirty);
        let changed = self.desired.update(&self.cluster, &dirty);
        self.write(&changed)
    }

    fn write(&mut self, changed: &Changed) -> Vec<Write> {
        let cluster = &self.cluster;
        let alive = |addr: &_| cluster.is_alive(addr);
        // Connections of what is still there, unless a story says otherwise.
        let backends = (0..).zip(&self.maps.actual.backends);
        let busy = |addr: &Addr| alive(addr) && !self.idle || self.busy.contains(addr);
        let backends = backends.filter(|(_, backend)| busy(&backend.addr)).map(|(id, _)| id);
        let former_ports = self.dialed.iter().copied().collect();
        self.planner.passed(self.maps.now, Flows { backends: backends.collect(), former_ports });
        let plan = self.planner.plan(&self.desired, changed, &alive, self.maps.now);
        let ops = plan.writes.clone();
        check_order(&ops);
        self.maps.host = self.desired.node.addrs.to_vec();
        let now = self.maps.now;
        let applied = self.planner.apply(plan, &mut self.maps, &mut || now);
        let skipped = ops.len() - applied.writes - applied.failed.len();
        assert!(skipped == 0 || !applied.failed.is_empty());
        assert_eq!(*self.planner.actual(), self.maps.actual, "the planner's idea of the maps");
        ops
    }

    /// Rounds until nothing is left to write at this time, retries included: those advance the clock.
    pub(crate) fn settle(&mut self) {
        self.round();
        let mut rounds = 0;
        while self.planner.n_pending() > 0 {
            let at = self.planner.next_wakeup().expect("something is pending");
            self.maps.now = self.maps.now.max(at);
            self.round();
            rounds += 1;
            // Retries are up to 30 s apart, with other timers between them: this is room for a hundred of them and more.
            assert!(rounds < 10_000, "never settles: {:?}", self.issues());
        }
    }

    /// Lets time pass; timers run when they are due, passes over the connection table now and then and at the end.
    pub(crate) fn advance(&mut self, time: Duration) {
        const PASSES: Duration = Duration::from_secs(30);
        let end = self.maps.now + time;
        let mut pass = self.maps.now + PASSES;
        loop {
            let at = self.planner.next_wakeup().map_or(pass, |at| at.min(pass));
            if at > end {
                break;
            }
            pass += if at == pass { PASSES } else { Duration::ZERO };
            self.maps.now = self.maps.now.max(at);
            self.round();
        }
        self.maps.now = end;
        self.round();
    }

    /// The agent ends and another begins, with the maps as they are and all objects listed again.
    pub(crate) fn restart(&mut self, events: impl IntoIterator<Item = Event>) {
        self.cluster = Cluster::new(&self.node);
        self.desired = Desired::new(rules());
        self.dirty = Dirty::default();
        self.maps.crash_after = None;
        // A program that read a frontend before the end of the old agent has long finished by now: the new one does
        // not know which slots have just been left.
        self.maps.now += Duration::from_secs(1);
        self.planner = Planner::restore(self.maps.actual.clone(), self.capacity);
        self.tell(events);
    }

    pub(crate) fn issues(&self) -> Vec<Issue> {
        let issues =
            self.cluster.issues().chain(self.desired.issues()).chain(self.planner.issues());
        let mut issues: Vec<_> = issues.cloned().collect();
        issues.sort();
        issues
    }
}

fn rules() -> Rules {
    let external_ips = ["192.0.2.0/24", "2001:db8::/64"].map(|text| text.parse().unwrap());
    Rules { external_ips: Some(external_ips.into()), ..Rules::default() }
}

/// A gated frontend is written when all its clients are, and these go after the last frontend that is gated by them.
fn check_order(ops: &[Write]) {
    let (mut gated, mut narrowed) = (HashSet::new(), HashSet::new());
    for op in ops {
        match op {
            Write::PutFrontend { frontend, .. } => {
                gated.insert(frontend.service_id);
                assert!(!narrowed.contains(&frontend.service_id), "{op:?} comes late");
            }
            Write::PutSourceRange { key } => {
                assert!(!gated.contains(&key.service_id), "{op:?} comes late");
            }
            Write::DeleteSourceRange { key } => drop(narrowed.insert(key.service_id)),
            _ => {}
        }
    }
}
