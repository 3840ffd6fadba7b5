//! The sockets of a Pod in words.

use super::{list, process};
use crate::explain::explanation::Finding;
use crate::explain::trace::{Listener, Socket, Unseen};

/// Ports that are named.
const MOST: usize = 6;

pub(super) fn step(socket: &Socket) -> String {
    match &socket.found {
        Listener::Open(open) => format!("a process listens on {open}"),
        Listener::Unknown(Unseen::Namespace) => {
            "the Pod's network namespace is not visible from here: run lbctl on the node itself"
                .to_owned()
        }
        Listener::Unknown(Unseen::Error(error)) => {
            format!("cannot list the Pod's sockets: {error}")
        }
        Listener::OnLoopback(_) | Listener::OnOthers(_) | Listener::OnPorts(_) => headline(socket),
    }
}

fn headline(socket: &Socket) -> String {
    let Socket { pod, at, found } = socket;
    match found {
        Listener::OnLoopback(open) => format!("{pod} listens on {open} only"),
        _ => format!("no process listens on {at} in {pod}"),
    }
}

pub(super) fn assumption(socket: &Socket) -> Option<String> {
    let is_unknown = matches!(socket.found, Listener::Unknown(_));
    is_unknown.then(|| process(&socket.pod, socket.at.port()))
}

pub(super) fn finding(socket: &Socket) -> Finding {
    let Socket { pod, at, found } = socket;
    let (ip, port) = (at.ip(), at.port());
    let all = "configure the process to listen on all addresses (0.0.0.0 or ::)";
    let other = "set targetPort (or the destination port) to a port that the process listens on";
    let (because, fix, evidence) = match found {
        Listener::Open(_) | Listener::Unknown(_) => return Finding::default(),
        Listener::OnLoopback(open) => (
            format!("the process in {pod} listens on {open}, not on the Pod's address {ip}"),
            all,
            Some(format!("socket {open}")),
        ),
        Listener::OnOthers(others) => {
            (format!("{pod} listens on {}, not on {ip}", list(others)), other, None)
        }
        Listener::OnPorts(ports) if ports.is_empty() => {
            let refused = format!("connections to port {port} are refused");
            (format!("no process listens in {pod}: {refused}"), other, None)
        }
        Listener::OnPorts(ports) => {
            let ports = list(ports.iter().take(MOST));
            let because =
                format!("no process listens on port {port} of {pod}; it listens on {ports}");
            (because, other, None)
        }
    };
    Finding {
        object: format!("Pod {pod}"),
        headline: headline(socket),
        because: vec![because],
        to_fix: vec![fix.to_owned()],
        evidence: evidence.into_iter().collect(),
        ..Finding::default()
    }
}
