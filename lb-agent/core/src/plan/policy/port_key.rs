//! Keys of `port_bits`.
#![forbid(unsafe_code)]

use lb_common::be::Be16;
use lb_common::policy::PortKey;

use crate::model::policy::PortEntry;

/// The element of a group.
pub(in crate::plan) fn port_entry(group: u32, entry: &PortEntry) -> (u32, PortKey) {
    let prefix = port_prefix(group, entry.len, entry.protocol, entry.port);
    (entry.len, PortKey { guess: entry.guess, ..prefix })
}

/// The key of a prefix of this length, what is beyond it zero.
pub(in crate::plan) fn port_prefix(group: u32, len: u32, protocol: u8, port: u16) -> PortKey {
    let proto = if len < PortKey::ANY_PORT { 0 } else { protocol };
    let bits = len.saturating_sub(PortKey::ANY_PORT);
    let mask = u16::MAX.checked_shl(16 - bits).unwrap_or(0);
    PortKey { group, guess: 0, proto, port: Be16::new(port & mask) }
}
