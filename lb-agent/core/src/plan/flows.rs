//! What the flows that are left still need, as a pass over the connection table saw it: until then a backend that has left
//! its Service goes on as it is, and the programs look at the port of a frontend that is gone.
#![forbid(unsafe_code)]

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

/// What a pass over the connection table saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flows {
    /// Ids of the backends that have flows.
    pub backends: HashSet<u32>,
    /// Ports of former frontends that have flows.
    pub former_ports: BTreeSet<u16>,
}

/// The last pass, and what waits for one.
#[derive(Debug, Default)]
pub(super) struct LastFlows {
    /// When the pass began, and what it saw.
    last: Option<(Duration, Flows)>,
    /// Backends that take no new flows, and since when at least.
    waiting: HashMap<u32, Duration>,
}

impl LastFlows {
    /// A pass that began at `begun` has ended.
    pub(super) fn passed(&mut self, begun: Duration, flows: Flows) {
        self.last = Some((begun, flows));
    }

    /// Whether a backend that takes no new flows at `now` may have some: no pass that began later has missed it.
    pub(super) fn may_have(&mut self, id: u32, now: Duration) -> bool {
        let since = *self.waiting.entry(id).or_insert(now);
        let last = self.last.as_ref().filter(|(begun, _)| *begun >= since);
        last.is_none_or(|(_, flows)| flows.backends.contains(&id))
    }

    /// The backend is another, or takes new flows.
    pub(super) fn forget(&mut self, id: u32) {
        self.waiting.remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Flows, LastFlows};

    #[test]
    fn only_a_pass_that_began_later_tells_that_no_flow_is_left() {
        let at = Duration::from_secs;
        let of =
            |ids: &[u32]| Flows { backends: ids.iter().copied().collect(), ..Flows::default() };
        let mut flows = LastFlows::default();
        assert!(flows.may_have(1, at(5)), "nothing is known");
        flows.passed(at(4), of(&[]));
        assert!(flows.may_have(1, at(6)), "it had begun before");
        flows.passed(at(7), of(&[1]));
        assert!(flows.may_have(1, at(8)));
        assert!(flows.may_have(2, at(8)), "another one, later");
        flows.passed(at(9), of(&[2]));
        assert!(!flows.may_have(1, at(10)));
        assert!(flows.may_have(2, at(10)));
        flows.forget(1);
        assert!(flows.may_have(1, at(11)), "it means another one now");
    }
}
