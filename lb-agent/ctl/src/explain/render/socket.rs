//! The sockets of a Pod in words.

use super::{list, paste, process};
use crate::explain::explanation::Finding;
use crate::explain::trace::{Handshake, Hop, Listener, Socket, Trace, Unchecked, Unseen};

/// Ports that are named.
const MOST: usize = 6;

pub(super) fn step(socket: &Socket) -> String {
    match &socket.found {
        Listener::Open(open) => format!("a process listens on {open}"),
        Listener::Unknown(Unseen::Namespace) => {
            "the Pod's sockets are not visible from here".to_owned()
        }
        Listener::Unknown(Unseen::Error(error)) => {
            format!("cannot list the Pod's sockets: {error}")
        }
        Listener::OnLoopback(_) | Listener::OnOthers(_) | Listener::OnPorts(_) => headline(socket),
    }
}

/// How the destination answered before.
pub(super) fn answer(seen: &Handshake) -> String {
    let Handshake { at, accepted, ago, .. } = seen;
    let how = if *accepted { "accepted" } else { "refused" };
    format!("{at} {how} a connection of this source {ago} s ago")
}

/// A destination elsewhere that refuses connections.
pub(super) fn refused(trace: &Trace, seen: &Handshake) -> Finding {
    let Handshake { who, at, accepted, ago, node } = seen;
    if *accepted {
        return Finding::default();
    }
    let src = &trace.wanted.src;
    let port = at.port();
    let place = node.as_deref().unwrap_or("its node");
    Finding {
        object: format!("Pod {who}"),
        headline: format!("{who} refused a connection to {at} {ago} s ago"),
        because: vec![format!(
            "{ago} s ago {who} answered a connection of {src} to {at} with a reset: no process listens on port {port} there, or only on a loopback address"
        )],
        to_fix: vec![format!(
            "set targetPort (or the destination port) to a port that the process listens on; `lbctl explain` on {place} shows which these are"
        )],
        evidence: vec![format!("conntrack: {at} sent a reset instead of a SYN-ACK")],
        ..Finding::default()
    }
}

/// What a refusal that was seen from afar does not say.
pub(super) fn refused_assumption(trace: &Trace, seen: &Handshake) -> Option<String> {
    let Handshake { who, accepted, node, .. } = seen;
    let ask = node.as_ref().map(|node| format!("; ask {node}: {}", paste::exec(trace, node)));
    let ask = ask.unwrap_or_default();
    let text = format!(
        "the next connection is answered like that one; the sockets of {who} were not looked at{ask}"
    );
    (!accepted).then_some(text)
}

/// For the first line of a delivery: whose sockets no agent looked at.
pub(super) fn unseen(trace: &Trace) -> String {
    let unseen = trace.hops.iter().filter_map(|hop| match hop {
        Hop::Unchecked(Unchecked::Pod(who, port)) => Some(process(who, *port)),
        Hop::Socket(Socket { pod, at, found: Listener::Unknown(_) }) => {
            Some(process(pod, at.port()))
        }
        _ => None,
    });
    match unseen.collect::<Vec<_>>().as_slice() {
        [] => String::new(),
        [one] => format!(", if {one} (not looked at)"),
        [one, more @ ..] => {
            format!(", if {one}, and in {} more backends (not looked at)", more.len())
        }
    }
}

fn headline(socket: &Socket) -> String {
    let Socket { pod, at, found } = socket;
    match found {
        Listener::OnLoopback(open) => format!("{pod} listens on {open} only"),
        _ => format!("no process listens on {at} in {pod}"),
    }
}

pub(super) fn assumption(trace: &Trace, socket: &Socket) -> Option<String> {
    let is_unknown = matches!(socket.found, Listener::Unknown(_));
    is_unknown.then(|| {
        let process = process(&socket.pod, socket.at.port());
        format!("{process}; to see its sockets: {}", paste::debug(trace))
    })
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
