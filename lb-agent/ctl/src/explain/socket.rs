//! Whether somebody listens.

use std::net::SocketAddr;

use crate::explain::{Code, Finding};

/// Ports that are named.
const MOST: usize = 6;

/// Whether a Pod's sockets take a flow to this address; if not, why.
pub fn heard(sockets: &[SocketAddr], at: SocketAddr, pod: &str) -> Result<String, Box<Finding>> {
    let on_port = || sockets.iter().filter(|socket| socket.port() == at.port());
    let takes = |socket: &&SocketAddr| {
        let ip = socket.ip();
        // A socket at :: takes IPv4, too, unless it was told not to.
        ip == at.ip() || ip.is_unspecified() && (ip.is_ipv6() || at.is_ipv4())
    };
    if let Some(socket) = on_port().find(takes) {
        return Ok(format!("a process listens on {socket}"));
    }
    let object = format!("Pod {pod}");
    if let Some(socket) = on_port().find(|socket| socket.ip().to_canonical().is_loopback()) {
        return Err(Box::new(Finding {
            code: Some(Code::ListensOnLoopback),
            object,
            headline: format!("{pod} listens on {socket} only"),
            because: vec![format!(
                "the process in {pod} listens on {socket}, not on the Pod's address {}",
                at.ip()
            )],
            to_fix: vec![
                "configure the process to listen on all addresses (0.0.0.0 or ::)".to_owned(),
            ],
            evidence: vec![format!("socket {socket}")],
            ..Finding::default()
        }));
    }
    let others: Vec<String> = on_port().map(SocketAddr::to_string).collect();
    let because = if others.is_empty() {
        let mut ports: Vec<u16> = sockets.iter().map(SocketAddr::port).collect();
        ports.sort_unstable();
        ports.dedup();
        let ports: Vec<String> = ports.iter().take(MOST).map(u16::to_string).collect();
        match ports.as_slice() {
            [] => {
                format!(
                    "no process listens in {pod}: connections to port {} are refused",
                    at.port()
                )
            }
            ports => format!(
                "no process listens on port {} of {pod}; it listens on {}",
                at.port(),
                ports.join(", ")
            ),
        }
    } else {
        format!("{pod} listens on {}, not on {}", others.join(", "), at.ip())
    };
    Err(Box::new(Finding {
        code: Some(Code::BackendRefuses),
        object,
        headline: format!("no process listens on {at} in {pod}"),
        because: vec![because],
        to_fix: vec![
            "set targetPort (or the destination port) to a port that the process listens on"
                .to_owned(),
        ],
        ..Finding::default()
    }))
}

#[cfg(test)]
mod tests {
    use super::heard;

    #[test]
    fn sockets_that_take_a_flow() {
        let cases: [(&[&str], &str, &str); 8] = [
            (&["0.0.0.0:80"], "10.0.0.1:80", "ok"),
            (&["[::]:80"], "10.0.0.1:80", "ok"),
            (&["10.0.0.1:80"], "10.0.0.1:80", "ok"),
            (&["0.0.0.0:80"], "[fd00::1]:80", "BACKEND_REFUSES"),
            (&["127.0.0.1:80"], "10.0.0.1:80", "LISTENS_ON_LOOPBACK"),
            (&["[::1]:80", "0.0.0.0:81"], "10.0.0.1:80", "LISTENS_ON_LOOPBACK"),
            (&["10.0.0.2:80"], "10.0.0.1:80", "BACKEND_REFUSES"),
            (&[], "10.0.0.1:80", "BACKEND_REFUSES"),
        ];
        for (sockets, at, want) in cases {
            let sockets: Vec<_> = sockets.iter().map(|text| text.parse().unwrap()).collect();
            let found = heard(&sockets, at.parse().unwrap(), "a/b");
            let found = found.map_or_else(|finding| finding.code.unwrap().name(), |_| "ok");
            assert_eq!(found, want, "{sockets:?} {at}");
        }
    }
}
