//! Several targets measured in turn, round after round: what makes one machine slower for a while makes all targets slower.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

use crate::{
    client,
    measure::{Closer, Rate, What},
    wait,
};

/// How long a target may take until it answers for the first time.
const PATIENCE: Duration = Duration::from_secs(30);
const ATTEMPT: Duration = Duration::from_secs(1);

/// A way to a server of [`crate::measured`]: its address and its three ports there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The name of the way in the results.
    pub name: String,
    /// Where to connect to.
    pub ip: IpAddr,
    /// TCP port that sends bytes back.
    pub echo: u16,
    /// UDP port that sends bytes back.
    pub datagrams: u16,
    /// TCP port that counts bytes.
    pub sink: u16,
}

/// One measurement of a series.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The round, from 0.
    pub round: usize,
    /// What was measured.
    pub what: What,
    /// The target's name.
    pub target: String,
    /// The result.
    #[serde(flatten)]
    pub rate: Rate,
}

impl Target {
    /// Reads `NAME=ADDRESS,ECHO,DATAGRAMS,SINK`.
    ///
    /// # Errors
    /// When it has another form.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let form = || format!("{text:?} is not NAME=ADDRESS,ECHO,DATAGRAMS,SINK");
        let (name, rest) = text.split_once('=').with_context(form)?;
        let words: Vec<&str> = rest.split(',').collect();
        let [ip, ports @ ..] = &words[..] else { bail!(form()) };
        let ports: Vec<u16> =
            ports.iter().map(|port| port.parse()).collect::<Result<_, _>>().with_context(form)?;
        let [echo, datagrams, sink] = ports[..] else { bail!(form()) };
        let ip = ip.parse().with_context(form)?;
        Ok(Self { name: name.to_owned(), ip, echo, datagrams, sink })
    }

    /// The port for a measurement.
    pub const fn addr(&self, what: What) -> SocketAddr {
        let port = match what {
            What::Stream | What::Streams => self.sink,
            What::RoundTrips | What::Connects => self.echo,
            What::Datagrams => self.datagrams,
        };
        SocketAddr::new(self.ip, port)
    }

    fn answers(&self, what: What) -> io::Result<()> {
        let addr = self.addr(what);
        if what != What::Datagrams {
            return TcpStream::connect_timeout(&addr, ATTEMPT).map(drop);
        }
        let socket = client::udp_socket(addr, ATTEMPT)?;
        socket.connect(addr)?;
        socket.send(b"?")?;
        socket.recv(&mut [0; 16]).map(drop)
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, ip, echo, datagrams, sink } = self;
        write!(f, "{name}={ip},{echo},{datagrams},{sink}")
    }
}

/// Waits until every target answers, then measures each of them in each round, and hands out each result at once. The first target
/// is another one in each round.
///
/// # Errors
/// When a target does not answer in time or a measurement fails; names it.
pub fn run(
    targets: &[Target],
    whats: &[What],
    rounds: usize,
    duration: Duration,
    mut each: impl FnMut(Entry) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    for target in targets {
        for what in whats {
            let name = format!("{}: an answer from {}", target.name, target.addr(*what));
            wait::until(&name, PATIENCE, || target.answers(*what).map_err(Into::into))?;
        }
    }
    for round in 0..rounds {
        for what in whats {
            let (after, first) = targets.split_at(round % targets.len().max(1));
            for target in first.iter().chain(after) {
                let addr = target.addr(*what);
                let rate = what
                    .measure(addr, duration, Closer::Server)
                    .with_context(|| format!("{} of {addr} ({})", what.word(), target.name))?;
                each(Entry { round, what: *what, target: target.name.clone(), rate })?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Entry, Target};
    use crate::measure::{Rate, What};

    #[test]
    fn targets_are_written_as_they_are_read() {
        for text in ["straight=10.244.1.2,8081,8081,8082", "node-port=fd31::11,30000,30001,30002"] {
            assert_eq!(Target::parse(text).unwrap().to_string(), text);
        }
        for text in ["", "a", "a=b,1,2,3", "a=1.2.3.4,1,2", "a=1.2.3.4,1,2,3,4", "a=1.2.3.4,1,2,x"]
        {
            assert!(Target::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_result_is_one_flat_object() {
        let rate = Rate { per_second: 2.5, p50_ns: 7, p99_ns: 9, lost: 0 };
        let entry = Entry { round: 1, what: What::RoundTrips, target: "straight".to_owned(), rate };
        let text = serde_json::to_string(&entry).unwrap();
        let want = r#"{"round":1,"what":"round-trips","target":"straight","per_second":2.5,"p50_ns":7,"p99_ns":9,"lost":0}"#;
        assert_eq!(text, want);
        assert_eq!(serde_json::from_str::<Entry>(&text).unwrap(), entry);
    }
}
