//! One write to the policy maps, and who does it.
#![forbid(unsafe_code)]

use lb_common::addr::Addr;
use lb_common::endpoint::Ident;
use lb_common::policy::{Bits, Group, PeerKey, PolicyState, PortKey};

use super::Actual;
use crate::model::policy::Range;
use crate::plan::MapError;

/// The groups of a Pod: ingress, egress, and the same with shadow policies; 0 = none.
pub type GroupIds = [u32; 4];

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Writes an element of `groups`. Boxed: it is large.
    PutGroup {
        /// Index.
        id: u32,
        /// The element.
        group: Box<Group>,
    },
    /// Adds or replaces an element of `peer_bits`.
    PutPeerBits {
        /// Key.
        key: PeerKey,
        /// Value.
        bits: Bits,
    },
    /// Removes an element of `peer_bits`.
    DeletePeerBits {
        /// Key.
        key: PeerKey,
    },
    /// Adds or replaces an element of `port_bits`.
    PutPortBits {
        /// Length of the prefix.
        len: u32,
        /// Key.
        key: PortKey,
        /// Value.
        bits: Bits,
    },
    /// Removes an element of `port_bits`.
    DeletePortBits {
        /// Length of the prefix.
        len: u32,
        /// Key.
        key: PortKey,
    },
    /// Adds or replaces an element of `ident`.
    PutIdent {
        /// Key.
        addr: Addr,
        /// Value.
        ident: Ident,
    },
    /// Removes an element of `ident`.
    DeleteIdent {
        /// Key.
        addr: Addr,
    },
    /// Adds or replaces an element of `cidrs`.
    PutCidr {
        /// Key.
        range: Range,
        /// Value.
        ident: u32,
    },
    /// Removes an element of `cidrs`.
    DeleteCidr {
        /// Key.
        range: Range,
    },
    /// Writes the groups into an element of `pods`.
    SetGroups {
        /// Key.
        ifindex: u32,
        /// The groups.
        groups: GroupIds,
    },
    /// Writes the element of `policy`, but for its flags.
    PutState(PolicyState),
}

/// The policy maps: the kernel's, or tables in a test.
pub trait Store {
    /// Does one write; that what is to be removed is not there is no error.
    ///
    /// # Errors
    /// When the write did not happen; the map is as it was.
    fn apply(&mut self, op: &Op) -> Result<(), MapError>;
}

impl Store for Actual {
    fn apply(&mut self, op: &Op) -> Result<(), MapError> {
        self.done(op);
        Ok(())
    }
}

impl Op {
    /// Whether it changes what is enforced.
    pub(super) fn is_enforced(&self) -> bool {
        match self {
            Self::PutIdent { .. }
            | Self::DeleteIdent { .. }
            | Self::PutCidr { .. }
            | Self::SetGroups { .. }
            | Self::PutGroup { .. } => true,
            Self::PutPeerBits { .. }
            | Self::DeletePeerBits { .. }
            | Self::PutPortBits { .. }
            | Self::DeletePortBits { .. }
            | Self::DeleteCidr { .. }
            | Self::PutState(_) => false,
        }
    }
}
