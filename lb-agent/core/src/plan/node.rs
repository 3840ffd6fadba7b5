//! What is known of this node → the element of the map `settings`.
#![forbid(unsafe_code)]

use lb_common::be::Be16;
use lb_common::config::{SettingFlags, Settings};

use crate::model::DesiredNode;

/// What the operator decided and what is known since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// Whether Pods send from their own addresses only, while there is any policy.
    pub strict_source: bool,
    /// Whether flows between Pods of this node may go past the IP stack.
    pub local_past: bool,
    /// Until this stamp connections may be older than the conntrack table.
    pub pickup_until: u32,
}

impl Given {
    /// The settings with this in them.
    #[must_use]
    pub fn within(self, settings: Settings) -> Settings {
        let (strict, past) = (SettingFlags::STRICT_SOURCE, SettingFlags::LOCAL_PAST);
        let flags = settings.flags.without(strict | past)
            | strict.when(self.strict_source)
            | past.when(self.local_past);
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
