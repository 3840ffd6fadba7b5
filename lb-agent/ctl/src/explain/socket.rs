//! Whether a process listens.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use crate::explain::trace::Listener;
#[cfg(feature = "node")]
use lb_kernel::bpf::listening::ListenAnswer;

/// Returns which of a Pod's sockets accepts a flow to this address; if none, why.
pub(super) fn accepting(sockets: &[SocketAddr], at: SocketAddr) -> Listener {
    let on_port = || sockets.iter().filter(|socket| socket.port() == at.port()).copied();
    let accepts = |socket: &SocketAddr| {
        let ip = socket.ip();
        // A socket at :: accepts IPv4, too, unless an option of the socket excludes it.
        ip == at.ip() || ip.is_unspecified() && (ip.is_ipv6() || at.is_ipv4())
    };
    if let Some(socket) = on_port().find(accepts) {
        return Listener::Open(socket);
    }
    if let Some(socket) = on_port().find(|socket| socket.ip().to_canonical().is_loopback()) {
        return Listener::OnLoopback(socket);
    }
    let others: Vec<SocketAddr> = on_port().collect();
    if !others.is_empty() {
        return Listener::OnOthers(others);
    }
    let ports: BTreeSet<u16> = sockets.iter().map(SocketAddr::port).collect();
    Listener::OnPorts(ports.into_iter().collect())
}

/// The same from what the kernel says of the address.
#[cfg(feature = "node")]
pub fn answered(answer: ListenAnswer, at: SocketAddr) -> Listener {
    match answer {
        ListenAnswer::Taken => Listener::Open(at),
        ListenAnswer::Elsewhere(sockets) => match sockets.iter().find(|at| at.ip().is_loopback()) {
            Some(socket) => Listener::OnLoopback(*socket),
            None => Listener::OnOthers(sockets),
        },
        ListenAnswer::Refused(ports) => Listener::OnPorts(ports),
    }
}

#[cfg(test)]
mod tests {
    use super::{ListenAnswer, Listener, accepting, answered};

    #[test]
    fn what_the_kernel_says() {
        let at = |text: &str| text.parse().unwrap();
        let dialed = at("10.0.0.1:80");
        for (answer, want) in [
            (ListenAnswer::Taken, Listener::Open(dialed)),
            (
                ListenAnswer::Elsewhere(vec![at("[::]:80"), at("127.0.0.1:80")]),
                Listener::OnLoopback(at("127.0.0.1:80")),
            ),
            (ListenAnswer::Elsewhere(vec![at("[::]:80")]), Listener::OnOthers(vec![at("[::]:80")])),
            (ListenAnswer::Refused(vec![7]), Listener::OnPorts(vec![7])),
        ] {
            assert_eq!(answered(answer, dialed), want);
        }
    }

    #[test]
    fn sockets_that_accept_a_flow() {
        let at = |text: &str| text.parse().unwrap();
        let cases: [(&[&str], &str, Listener); 8] = [
            (&["0.0.0.0:80"], "10.0.0.1:80", Listener::Open(at("0.0.0.0:80"))),
            (&["[::]:80"], "10.0.0.1:80", Listener::Open(at("[::]:80"))),
            (&["10.0.0.1:80"], "10.0.0.1:80", Listener::Open(at("10.0.0.1:80"))),
            (&["0.0.0.0:80"], "[fd00::1]:80", Listener::OnOthers(vec![at("0.0.0.0:80")])),
            (&["127.0.0.1:80"], "10.0.0.1:80", Listener::OnLoopback(at("127.0.0.1:80"))),
            (&["[::1]:80", "0.0.0.0:81"], "10.0.0.1:80", Listener::OnLoopback(at("[::1]:80"))),
            (&["10.0.0.2:80"], "10.0.0.1:80", Listener::OnOthers(vec![at("10.0.0.2:80")])),
            (&["0.0.0.0:9", "[::]:9", "[::]:7"], "10.0.0.1:80", Listener::OnPorts(vec![7, 9])),
        ];
        for (sockets, to, want) in cases {
            let sockets: Vec<_> = sockets.iter().map(|text| at(text)).collect();
            assert_eq!(accepting(&sockets, at(to)), want, "{sockets:?} {to}");
        }
    }
}
