//! Flows that cost their sender little: one datagram each, from its own port, without waiting for an answer.

use std::{
    collections::VecDeque,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

/// How often some are sent.
const TICK: Duration = Duration::from_millis(10);
/// Sockets that stay open for a while, so that an answer finds one.
const OPEN: usize = 256;

/// What to send.
#[derive(Clone, Copy, Debug)]
pub struct Datagrams {
    /// Where to; `ports` ports from this one on, in turn.
    pub addr: SocketAddr,
    /// Number of ports.
    pub ports: u16,
    /// Datagrams per second. What does not fit in is left out.
    pub rate: u32,
    /// For how long.
    pub duration: Duration,
}

/// What was sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// Datagrams, each of a flow of its own.
    pub sent: u64,
    /// Those that the kernel refused.
    pub refused: u64,
    /// The last of its reasons.
    pub error: String,
}

impl Datagrams {
    /// Sends them.
    pub fn send(self) -> Sent {
        let (start, mut tick, mut sent) = (Instant::now(), Instant::now(), Sent::default());
        let mut open = VecDeque::with_capacity(OPEN);
        let mut ports = (self.addr.port()..).take(self.ports.max(1).into()).cycle();
        let each = self.rate / 100;
        while start.elapsed() < self.duration {
            for port in ports.by_ref().take(each as usize) {
                match self.one(port) {
                    Ok(socket) => {
                        sent.sent += 1;
                        if open.len() == OPEN {
                            open.pop_front();
                        }
                        open.push_back(socket);
                    }
                    Err(err) => {
                        sent.refused += 1;
                        sent.error = err.to_string();
                    }
                }
            }
            tick += TICK;
            let now = Instant::now();
            // What was missed is not made up for.
            tick = tick.max(now);
            thread::sleep(tick - now);
        }
        sent
    }

    fn one(&self, port: u16) -> io::Result<UdpSocket> {
        let any = match self.addr {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        let socket = UdpSocket::bind(any)?;
        socket.send_to(b"?", SocketAddr::new(self.addr.ip(), port))?;
        Ok(socket)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        net::{SocketAddr, UdpSocket},
        time::Duration,
    };

    use super::Datagrams;

    #[test]
    fn each_datagram_has_its_own_source_port() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        server.set_nonblocking(true).unwrap();
        let addr: SocketAddr = server.local_addr().unwrap();
        let duration = Duration::from_millis(50);
        let sent = Datagrams { addr, ports: 1, rate: 1000, duration }.send();
        assert_eq!((sent.refused, sent.error.as_str()), (0, ""));
        let mut sources = Vec::new();
        while let Ok((_, from)) = server.recv_from(&mut [0; 8]) {
            sources.push(from.port());
        }
        assert_eq!(sources.len() as u64, sent.sent);
        assert!(sent.sent >= 10, "{sent:?}");
        assert_eq!(sources.iter().collect::<BTreeSet<_>>().len(), sources.len());
    }
}
