//! Clients that never stop while a proxy takes another's place: new connections, and connections that stay open. Each
//! is a script where the client is; a file there ends it.

use std::{
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail};

use super::super::{
    ask::url,
    bed::{Bed, PORT},
    report::{SOON, within},
};

/// Ends the scripts of one place.
const STOP: &str = "/tmp/lb-conformance-takeover-stop";
/// New connections a second of each client.
const RATE: usize = 5;
/// How long an answer may take: loading programs takes seconds of a busy machine's time, and a connection that is lost
/// is never answered.
const PATIENCE: usize = 20;
/// Requests over a connection that stays open, at most: four a second.
const REQUESTS: usize = 4 * 900;

/// Where a client is.
#[derive(Debug)]
enum Place {
    /// In a Pod of the checks, of this name.
    Pod(String),
    /// On a machine outside the cluster.
    Outside,
}

/// A client at work.
struct Client {
    name: String,
    is_new: bool,
    child: Child,
}

/// All clients.
pub(crate) struct Load {
    clients: Vec<Client>,
}

/// What happened to the connections.
#[derive(Default)]
pub(crate) struct Outcome {
    /// Second since 1970 and whether it was answered, of each new connection.
    pub(crate) new: Vec<(u64, bool)>,
    /// How new connections failed.
    pub(crate) errors: Vec<String>,
    /// The slowest answer, in seconds.
    pub(crate) slowest: f64,
    /// Connections that stayed open, and requests over them.
    pub(crate) open: (usize, usize),
    /// Those that broke.
    pub(crate) broken: Vec<String>,
}

impl Load {
    /// Starts clients on each node, in a Pod and as a process of the host, and outside if there is such a machine.
    ///
    /// # Errors
    /// When a Service has no address, or a client no answer.
    pub(crate) fn start(bed: &Bed<'_>) -> Result<Self> {
        bed.cluster.apply(&[bed.node_port_service("takeover")])?;
        let (node_port, _) = bed.node_ports("takeover")?;
        let service = bed.addresses("takeover")?;
        let mut targets = Vec::new();
        for node in &bed.cluster.nodes {
            for address in &service {
                for pod in [format!("client-{node}"), format!("host-{node}")] {
                    targets.push((Place::Pod(pod), address.clone(), PORT));
                }
            }
            for address in bed.cluster.addresses(node)? {
                if bed.cluster.outside_shell("true").is_some() && bed.has_family(&address) {
                    targets.push((Place::Outside, address, node_port));
                }
            }
        }
        let mut load = Self { clients: Vec::new() };
        load.stop(bed, "rm -f")?;
        for (place, address, port) in targets {
            let script = format!(
                "curl --globoff --silent --max-time 1 --output /dev/null {}/hostname",
                url(&address, port)
            );
            within(SOON, || match shell(bed, &place, &script)?.status()?.success() {
                true => Ok(()),
                false => bail!("{place:?} has no answer of {address} port {port}"),
            })?;
            for (is_new, script) in [(true, new(&address, port)), (false, open(&address, port))] {
                let mut shell = shell(bed, &place, &script)?;
                shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
                let child = shell.spawn().context("start a client")?;
                let name = match &place {
                    Place::Pod(pod) => format!("{pod} to {address} port {port}"),
                    Place::Outside => format!("outside to {address} port {port}"),
                };
                load.clients.push(Client { name, is_new, child });
            }
        }
        Ok(load)
    }

    /// Number of clients.
    pub(crate) fn len(&self) -> usize {
        self.clients.len()
    }

    /// Ends all clients and counts.
    ///
    /// # Errors
    /// When a client cannot be ended, or sent nothing.
    pub(crate) fn end(self, bed: &Bed<'_>) -> Result<Outcome> {
        self.stop(bed, "touch")?;
        let mut outcome = Outcome::default();
        for client in self.clients {
            let out = client.child.wait_with_output().context("wait for a client")?;
            let text = String::from_utf8_lossy(&out.stdout);
            if client.is_new {
                count_new(&client.name, &text, &mut outcome)?;
            } else {
                count_open(&client.name, &text, &mut outcome);
            }
        }
        Ok(outcome)
    }

    /// Does something to the file that ends the clients, everywhere.
    fn stop(&self, bed: &Bed<'_>, verb: &str) -> Result<()> {
        let script = format!("{verb} {STOP}");
        for node in &bed.cluster.nodes {
            bed.in_pod(node, &script)?;
            bed.in_host_pod(node, &script)?;
        }
        match bed.cluster.outside_shell("true") {
            Some(_) => bed.outside(&script).map(|_| ()),
            None => Ok(()),
        }
    }
}

fn shell(bed: &Bed<'_>, place: &Place, script: &str) -> Result<Command> {
    match place {
        Place::Pod(pod) => Ok(bed.cluster.pod_shell(pod, script)),
        Place::Outside => bed.cluster.outside_shell(script).context("no --outside-exec"),
    }
}

/// A connection for each request. The second stands before its requests.
fn new(address: &str, port: u16) -> String {
    format!(
        "while [ ! -e {STOP} ]; do echo \"at $(date +%s)\"; curl --silent --no-keepalive \
         --header 'Connection: close' --max-time {PATIENCE} --rate {RATE}/s --output /dev/null \
         --write-out '%{{http_code}} %{{time_total}} %{{errormsg}}\\n' '{}/hostname?[1-{RATE}]'; done",
        url(address, port)
    )
}

/// One connection, and what was sent and answered over it: with nothing sent it has broken.
fn open(address: &str, port: u16) -> String {
    let sent = format!("{STOP}-sent-$$");
    format!(
        "{{ n=0; while [ ! -e {STOP} ] && [ $n -lt {REQUESTS} ]; do \
         printf 'GET /hostname HTTP/1.1\\r\\nHost: conformance\\r\\n\\r\\n' || exit; n=$((n+1)); sleep 0.25; done; \
         echo $n > {sent}; }} | nc -N -w {PATIENCE} {address} {port} | grep -o 'HTTP/1.1 200' | wc -l; \
         cat {sent} 2>/dev/null || echo 0; rm -f {sent}"
    )
}

fn count_new(name: &str, text: &str, outcome: &mut Outcome) -> Result<()> {
    let (mut second, mut n) = (0, 0);
    for line in text.lines() {
        if let Some(at) = line.strip_prefix("at ") {
            second = at.trim().parse().with_context(|| format!("{name}: {line:?}"))?;
            continue;
        }
        n += 1;
        let good = line.starts_with("200");
        if !good {
            outcome.errors.push(format!("{name} at {second}: {line}"));
        }
        let took = line.split(' ').nth(1).and_then(|took| took.parse().ok());
        outcome.slowest = outcome.slowest.max(took.unwrap_or_default());
        outcome.new.push((second, good));
    }
    if n == 0 {
        bail!("{name} sent no request");
    }
    Ok(())
}

fn count_open(name: &str, text: &str, outcome: &mut Outcome) {
    let mut numbers = text.lines().map(|line| line.trim().parse::<usize>().unwrap_or(0));
    let (answered, sent) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if sent > 0 && answered == sent {
        outcome.open.0 += 1;
        outcome.open.1 += sent;
    } else {
        outcome.broken.push(format!("{name}: {answered} answers of {sent}"));
    }
}

/// Seconds since 1970 by this machine's clock.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Lets the clients work for a while.
pub(crate) fn pause(seconds: u64) {
    thread::sleep(Duration::from_secs(seconds));
}
