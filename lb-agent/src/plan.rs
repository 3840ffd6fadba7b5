//! The writes that bring the maps from what they say to what they should say.
//!
//! Pure: time and the liveness of addresses are passed in, the maps are behind [`MapStore`].

use std::collections::HashMap;
use std::error::Error;
use std::time::Duration;

use lb_common::addr::Addr;
use lb_common::limits;
use lb_common::service::{Backend, Frontend, FrontendKey};
use thiserror::Error as ThisError;

use crate::cluster::Name;
use crate::issue::Issue;
use crate::model::{Changed, Desired};

/// What the maps say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actual {
    /// The map `frontends`.
    pub frontends: HashMap<FrontendKey, Frontend>,
    /// The array `slots`: backend ids. What is beyond its end is 0.
    pub slots: Vec<u32>,
    /// The array `backends`, by id. What is beyond its end is unused.
    pub backends: Vec<Backend>,
}

/// One write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Writes an element of `backends`.
    PutBackend {
        /// Backend id.
        id: u32,
        /// The element.
        backend: Backend,
    },
    /// Writes an element of `slots`.
    PutSlot {
        /// Index.
        slot: u32,
        /// The element.
        backend_id: u32,
    },
    /// Adds or replaces an element of `frontends`.
    PutFrontend {
        /// Key.
        key: FrontendKey,
        /// Value.
        frontend: Frontend,
    },
    /// Removes an element of `frontends`; that it is not there is no error.
    DeleteFrontend {
        /// Key.
        key: FrontendKey,
    },
}

/// The load balancing maps: the kernel's, or a table in a test.
pub trait MapStore {
    /// Reads everything.
    ///
    /// # Errors
    /// When a map cannot be read.
    fn load(&self) -> Result<Actual, MapError>;

    /// Does one write.
    ///
    /// # Errors
    /// When the write did not happen; the map is as it was.
    fn apply(&mut self, op: &Op) -> Result<(), MapError>;
}

/// A failed access to a map.
#[derive(Debug, ThisError)]
#[error("map {map}: {}{source}", if *.full { "full: " } else { "" })]
pub struct MapError {
    /// Name of the map.
    pub map: &'static str,
    /// Whether it has no room for another element.
    pub full: bool,
    /// What the kernel said.
    #[source]
    pub source: Box<dyn Error + Send + Sync>,
}

/// How much the maps hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Elements of `frontends`.
    pub frontends: u32,
    /// Elements of `slots`.
    pub slots: u32,
    /// Elements of `backends`; id 0 is never used.
    pub backends: u32,
}

impl Default for Capacity {
    fn default() -> Self {
        Self { frontends: limits::FRONTENDS, slots: limits::SLOTS, backends: limits::BACKENDS }
    }
}

/// Writes in the order in which they have to be done.
///
/// They come in groups, one for each Service. After a failed write the rest of its group must not be done;
/// [`Planner::apply`] sees to that. The other groups do not depend on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// All writes.
    pub ops: Vec<Op>,
    /// For each group the index after its last write.
    ends: Vec<usize>,
}

/// What came of a plan.
#[derive(Debug, Default)]
pub struct Applied {
    /// Writes done.
    pub writes: usize,
    /// Writes that failed, with the reason; they come again in a later plan.
    pub failed: Vec<(Op, MapError)>,
}

/// One service port as the maps know it, for the name table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortIds<'a> {
    /// Service id in `frontends`.
    pub service_id: u32,
    /// Ids of the backends in the slots, in the order of the desired port's backends.
    pub backend_ids: &'a [u32],
}

/// Keeps ids, slot ranges and timers, and makes plans.
#[derive(Debug, Default)]
pub struct Planner {}

impl Planner {
    /// Takes over what the maps say. The first plan is an ordinary difference to it.
    pub fn restore(_actual: Actual, _capacity: Capacity) -> Self {
        Self {}
    }

    /// The writes for the changed services, for earlier ones that failed, and for timers that are due.
    ///
    /// Must not be called before [`crate::cluster::Cluster::synced`]: it removes what is not desired.
    /// The first call looks at all services, whatever `changed` says. `alive` tells whether an endpoint or a Pod
    /// has the address ([`crate::cluster::Cluster::is_alive`]); `now` is any clock that never goes back.
    pub fn plan(
        &mut self,
        _desired: &Desired,
        _changed: &Changed,
        _alive: &dyn Fn(&Addr) -> bool,
        _now: Duration,
    ) -> Plan {
        Plan::default()
    }

    /// Does the writes and notes which of them happened.
    pub fn apply(&mut self, _plan: &Plan, _maps: &mut impl MapStore) -> Applied {
        Applied::default()
    }

    /// When [`Planner::plan`] has to be called again although nothing changed, on the clock of its `now`.
    pub fn next_wakeup(&self) -> Option<Duration> {
        None
    }

    /// Services that could not be programmed, and why.
    pub fn issues(&self) -> impl Iterator<Item = &Issue> {
        std::iter::empty()
    }

    /// The ids of a Service's ports, in the order of [`crate::model::DesiredService::ports`]; none while it is not
    /// programmed.
    pub fn port_ids(&self, _service: &Name) -> impl Iterator<Item = PortIds<'_>> {
        std::iter::empty()
    }
}
