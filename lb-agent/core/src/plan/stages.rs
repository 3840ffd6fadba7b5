//! The writes of one Service by the stage in which they have to happen.
#![forbid(unsafe_code)]

use super::write::Write;

/// The writes of one Service by the stage in which they have to happen.
///
/// Any prefix of the stages in this order is safe: what a frontend refers to is complete before the frontend is
/// written, and is taken away only after the last frontend has been.
#[derive(Debug, Default)]
pub(super) struct Stages {
    /// Bits of `frontend_ports` and `host_ports`: a program must look at what is there. Of `former_ports`: and at flows
    /// to what is going.
    pub(super) port_bits: Vec<Write>,
    pub(super) ranges: Vec<Write>,
    pub(super) backends: Vec<Write>,
    pub(super) slots: Vec<Write>,
    /// Before the frontends, so that it comes again with them when it fails. A client that comes in between is only
    /// remembered until its time is over, and only if affinity is wanted again by then.
    pub(super) affinity: Vec<Write>,
    pub(super) frontends: Vec<Write>,
    /// After the frontends: before them, it would refuse their ports.
    pub(super) wildcards: Vec<Write>,
    /// Wildcards before frontends, for the same reason.
    pub(super) deletes: Vec<Write>,
    /// After the last frontend that is gated by them.
    pub(super) range_deletes: Vec<Write>,
    pub(super) drains: Vec<Write>,
}

impl Stages {
    /// Moves all writes to the end of `writes`.
    pub(super) fn append_to(&mut self, writes: &mut Vec<Write>) {
        writes.append(&mut self.port_bits);
        writes.append(&mut self.ranges);
        writes.append(&mut self.backends);
        writes.append(&mut self.slots);
        writes.append(&mut self.affinity);
        writes.append(&mut self.frontends);
        writes.append(&mut self.wildcards);
        writes.append(&mut self.deletes);
        writes.append(&mut self.range_deletes);
        writes.append(&mut self.drains);
    }
}

/// The map that has no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full(pub(super) &'static str);
