//! Questions to a server of the test Pods: which server answers, and which client address it sees. A shell is whatever runs a
//! script for the client: in a Pod, on a node, or outside the cluster.

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::{Context as _, Result, bail};

/// Runs a script where the client is and returns its output.
pub(crate) type Shell<'a> = &'a dyn Fn(&str) -> Result<String>;

/// What one connection showed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Name of the Pod that answered.
    pub(crate) server: String,
    /// The client's address as the server saw it.
    pub(crate) client: IpAddr,
    /// The client's address as it saw itself.
    pub(crate) own: IpAddr,
}

impl Seen {
    /// Whether the server saw the client's own address.
    pub(crate) fn kept(&self) -> bool {
        self.client == self.own
    }
}

pub(crate) fn family(address: &str) -> &'static str {
    if address.contains(':') { "IPv6" } else { "IPv4" }
}

/// An address with its port, as it stands in a URL (RFC 3986 §3.2.2).
pub(crate) fn authority(address: &str, port: u16) -> String {
    match family(address) {
        "IPv6" => format!("[{address}]:{port}"),
        _ => format!("{address}:{port}"),
    }
}

/// The URL of an address.
pub(crate) fn url(address: &str, port: u16) -> String {
    format!("http://{}", authority(address, port))
}

/// Asks over TCP, by two connections: a Service with more than one backend may answer from two of them.
///
/// # Errors
/// When either is not answered within three seconds.
pub(crate) fn tcp(address: &str, port: u16, shell: Shell<'_>) -> Result<Seen> {
    let url = url(address, port);
    let answer = shell(&format!(
        "curl --globoff --silent --show-error --max-time 3 --no-keepalive --header 'Connection: close' \
         --write-out ' %{{local_ip}}\\n' {url}/hostname {url}/clientip"
    ))?;
    let mut words = answer.split_whitespace();
    let (server, _, client, own) = (words.next(), words.next(), words.next(), words.next());
    let incomplete = || format!("{answer:?} from {url}");
    Ok(Seen {
        server: server.with_context(incomplete)?.to_owned(),
        client: endpoint(client.with_context(incomplete)?)?,
        own: own.and_then(|own| own.parse().ok()).with_context(incomplete)?,
    })
}

/// Asks `server` over UDP by two datagrams of one flow; the client's address as it saw it.
///
/// # Errors
/// When another answers, or none within a second.
pub(crate) fn udp(address: &str, port: u16, server: &str, shell: Shell<'_>) -> Result<IpAddr> {
    let answer = shell(&format!(
        "{{ echo hostname; sleep 0.1; echo clientip; }} | nc -u -w 1 -W 2 {address} {port}"
    ))?;
    let client = answer.strip_prefix(server);
    let client = client.with_context(|| format!("{answer:?} from {address} {port} over UDP"))?;
    endpoint(client.trim())
}

/// The servers that answer `n` new connections, and how many each.
///
/// # Errors
/// When one is not answered within three seconds.
pub(crate) fn servers(address: &str, port: u16, n: usize, shell: Shell<'_>) -> Result<Names> {
    let answers = shell(&format!(
        "curl --silent --show-error --max-time 3 --no-keepalive --header 'Connection: close' \
         --write-out '\\n' '{}/hostname?[1-{n}]'",
        url(address, port)
    ))?;
    let names: Vec<&str> = answers.split_whitespace().collect();
    if names.len() != n {
        bail!("{} of {n} connections were answered", names.len());
    }
    Ok(names.into_iter().map(str::to_owned).collect())
}

/// Names of servers.
pub(crate) type Names = BTreeSet<String>;

/// That nothing answers, neither at a TCP nor at a UDP port, and nothing refuses: the packets are dropped.
///
/// # Errors
/// When something does, or the client fails otherwise.
pub(crate) fn silent(address: &str, ports: (u16, u16), shell: Shell<'_>) -> Result<()> {
    let (tcp, udp) = ports;
    let answer = shell(&format!(
        "echo hostname | nc -u -w 1 {address} {udp} & {}; wait",
        attempt(address, tcp, 1)
    ))?;
    // 28 is curl's timeout. What UDP answers comes before or after it.
    if !answer.trim().starts_with("28 ") || answer.split_whitespace().count() != 2 {
        bail!(
            "{answer:?} from {address} at {tcp} and {udp}; without an answer, curl would exit with 28 after the timeout"
        );
    }
    Ok(())
}

/// That a connection is refused, and at once.
///
/// # Errors
/// When it is not.
pub(crate) fn refused(address: &str, port: u16, shell: Shell<'_>) -> Result<()> {
    let answer = shell(&attempt(address, port, 3))?;
    let printed = || format!("curl printed {answer:?}");
    let (code, seconds) = answer.trim().split_once(' ').with_context(printed)?;
    let seconds: f64 = seconds.parse().with_context(printed)?;
    // 7 is curl's "failed to connect", which a timeout is not; the time tells a reset from a retried SYN.
    if code != "7" || seconds > 0.9 {
        bail!(
            "{address}:{port}: curl ended with {code} after {seconds} s; expected 7 (refused) at once"
        );
    }
    Ok(())
}

/// A script for one request that prints curl's exit code and how long it took, in seconds.
fn attempt(address: &str, port: u16, limit_s: u32) -> String {
    format!(
        "curl --globoff --silent --max-time {limit_s} --output /dev/null \
         --write-out '%{{exitcode}} %{{time_total}}' {} || true",
        url(address, port)
    )
}

/// The address of `ADDRESS:PORT`, as a server prints its client.
fn endpoint(text: &str) -> Result<IpAddr> {
    let socket: std::net::SocketAddr =
        text.parse().with_context(|| format!("{text:?} is not a client address"))?;
    // A server on a socket of both families sees IPv4 clients as mapped.
    Ok(socket.ip().to_canonical())
}
