//! What is known of this node → the element of the map `settings`.
#![forbid(unsafe_code)]

use lb_common::be::Be16;
use lb_common::config::{SettingFlags, Settings};
use lb_common::past::StackReason;

use crate::model::DesiredNode;

/// The flags of the settings about flows past the IP stack, and those of the reasons against it.
pub const ABOUT_PAST: SettingFlags = SettingFlags::LOCAL_PAST
    .with(SettingFlags::HOP_PAST)
    .with(SettingFlags::KNOWN_PAST_ONLY)
    .with(SettingFlags::KNOWN_HOP_ONLY)
    .with(SettingFlags::from_bits(!0 << StackReason::FIRST_BIT));

/// What the operator decided and what is known since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// Whether Pods send from their own addresses only, while there is any policy.
    pub strict_source: bool,
    /// Which flows may go past the IP stack, and why others may not.
    pub past: SettingFlags,
    /// Until this stamp connections may be older than the conntrack table.
    pub pickup_until: u32,
}

impl Given {
    /// The settings with this in them.
    #[must_use]
    pub fn within(self, settings: Settings) -> Settings {
        let strict = SettingFlags::STRICT_SOURCE;
        let flags = settings.flags.without(strict | ABOUT_PAST)
            | strict.when(self.strict_source)
            | self.past.only(ABOUT_PAST);
        Settings { flags, pickup_until: self.pickup_until, ..settings }
    }
}

pub(super) fn settings(node: &DesiredNode, given: Given) -> Box<Settings> {
    let (node4, node6) = (node.node4, node.node6);
    let mut settings = Box::new(given.within(Settings { node4, node6, ..Settings::ZERO }));
    if node.other_proxy {
        settings.flags |= SettingFlags::OTHER_PROXY;
    }
    for (place, prefix) in settings.service_cidrs.iter_mut().zip(&node.service_cidrs) {
        *place = prefix.cidr();
        settings.n_service_cidrs += 1;
    }
    for (place, port) in settings.tunnel_ports.iter_mut().zip(&node.tunnel_ports) {
        *place = Be16::new(*port);
        settings.n_tunnel_ports += 1;
    }
    settings
}
