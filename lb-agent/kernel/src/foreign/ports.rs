//! Who answers at kube-proxy's ports: it does, or something else that implements Services, or this agent.
//!
//! Its metrics port says the mode (`/proxyMode`), as ours does. Its health port answers as ours does, too, but has no
//! `/readyz`. Both are kube-proxy's own addresses, whatever ours are set to.
#![forbid(unsafe_code)]

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use super::{MODE, Sign};

/// Where kube-proxy's metrics are.
pub const METRICS: SocketAddr =
    SocketAddr::V4(std::net::SocketAddrV4::new(Ipv4Addr::LOCALHOST, 10249));
/// Where kube-proxy is asked for its health.
pub const HEALTHZ: SocketAddr =
    SocketAddr::V4(std::net::SocketAddrV4::new(Ipv4Addr::LOCALHOST, 10256));
/// A server on this very host connects and answers within these times, or counts as absent.
const CONNECT: Duration = Duration::from_millis(200);
const ANSWER: Duration = Duration::from_millis(500);
/// Of an answer, more is not read.
const MOST: u64 = 4096;
/// The longest word that is accepted as a mode, in letters.
const WORD: usize = 16;

/// Asks at both ports.
pub fn find(metrics: SocketAddr, healthz: SocketAddr) -> Vec<Sign> {
    if let Ok((200, mode)) = get(metrics, "/proxyMode") {
        let mode = mode.trim();
        let is_word = mode.len() <= WORD && mode.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if !mode.is_empty() && is_word && mode != MODE {
            return vec![Sign::Mode(metrics, mode.to_owned())];
        }
    }
    // `/readyz` first: this agent answers it, and does not count its own question as one for its health.
    let healthy = |(_, body): (u16, String)| body.contains("\"lastUpdated\"");
    if get(healthz, "/readyz").is_ok_and(|(status, _)| status == 404)
        && get(healthz, "/healthz").is_ok_and(healthy)
    {
        return vec![Sign::Health(healthz)];
    }
    Vec::new()
}

/// Status and body.
fn get(address: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, CONNECT)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.set_write_timeout(Some(ANSWER))?;
    // In one segment: a server that answers the first line of many and closes would reset the rest.
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes())?;
    let mut bytes = Vec::new();
    stream.take(MOST).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_default();
    match status {
        Some(status) if head.starts_with("HTTP/1.") => Ok((status, body.to_owned())),
        _ => Err(io::Error::from(io::ErrorKind::InvalidData)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::net::{SocketAddr, TcpListener};

    use super::{Sign, find};

    /// A server of these paths.
    fn serve(answers: &'static [(&str, &str)]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                // All of it, or closing resets the connection.
                let lines = BufReader::new(&stream).lines().map(Result::unwrap);
                let head: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
                let path = head[0].split(' ').nth(1).unwrap();
                let found = answers.iter().find(|(known, _)| *known == path);
                let answer = match found {
                    Some((_, body)) => format!("HTTP/1.1 200 OK\r\nA: b\r\n\r\n{body}"),
                    None => "HTTP/1.1 404 Not Found\r\n\r\n".to_owned(),
                };
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        address
    }

    /// A port without a listener, also in tests.
    fn closed() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 1))
    }

    const HEALTH: &str = r#"{"lastUpdated": "x","currentTime": "y", "nodeEligible": true}"#;

    #[test]
    fn kube_proxy_is_distinguished_from_this_agent_and_from_others() {
        let proxy = serve(&[("/proxyMode", "nftables")]);
        let health = serve(&[("/healthz", HEALTH)]);
        let ours = serve(&[("/proxyMode", "ebpf"), ("/metrics", "x 1")]);
        let our_health = serve(&[("/healthz", HEALTH), ("/readyz", HEALTH)]);
        let other = serve(&[("/proxyMode", "<html>what?</html>"), ("/healthz", "ok")]);
        let mode = Sign::Mode(proxy, "nftables".to_owned());
        for (name, metrics, healthz, want) in [
            ("no listener", closed(), closed(), vec![]),
            ("kube-proxy", proxy, health, vec![mode.clone()]),
            ("kube-proxy beside us", proxy, our_health, vec![mode]),
            ("its metrics are elsewhere", closed(), health, vec![Sign::Health(health)]),
            ("it holds one port only", ours, health, vec![Sign::Health(health)]),
            ("we", ours, our_health, vec![]),
            ("something else", other, other, vec![]),
        ] {
            assert_eq!(find(metrics, healthz), want, "{name}");
        }
    }
}
