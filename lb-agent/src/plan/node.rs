//! What is known of this node → the element of the map `settings`.
#![forbid(unsafe_code)]

use lb_common::be::Be16;
use lb_common::config::{Settings, setting_flags};

use crate::model::DesiredNode;

pub(super) fn settings(node: &DesiredNode) -> Box<Settings> {
    let mut settings =
        Box::new(Settings { node4: node.node4, node6: node.node6, ..Settings::ZERO });
    if node.other_proxy {
        settings.flags |= setting_flags::OTHER_PROXY;
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
