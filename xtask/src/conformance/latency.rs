//! How long a new Service takes: from asking the API to create it until the first request through it is answered.
//! Both ends are seen from here, so no clocks are compared: the request goes out through `kubectl proxy`, and the
//! answers come in over one `kubectl exec`. The EndpointSlice controller's share is within the time.

use std::{
    io::{BufRead, BufReader, Write as _},
    os::unix::{net::UnixStream, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::command::{command, line};

use super::{
    ask::url,
    bed::{Bed, PORT, service},
    cluster::NAMESPACE,
    report::{Report, within},
};

const ROUNDS: usize = 11;
/// The bar: a new Service answers within this, in the median.
const BAR: Duration = Duration::from_millis(50);
/// A client's connection attempts are this far apart, and it gives each as long.
const ATTEMPT_MS: u32 = 5;
const ATTEMPTS: u32 = 600;

/// Measures and compares with the bar.
pub(crate) fn check(bed: &Bed<'_>, report: &mut Report) {
    report.check("a new Service answers within 50 ms (median)", || {
        let mut times = measure(bed)?;
        times.sort();
        let at = |n: usize| times.get(n).copied().unwrap_or_default();
        let (median, most) = (at(times.len() / 2), at(times.len() - 1));
        let found = format!(
            "median {:.0} ms, least {:.0}, most {:.0}, of {}",
            ms(median),
            ms(at(0)),
            ms(most),
            times.len()
        );
        if median > BAR {
            bail!("{found}");
        }
        Ok(found)
    });
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn measure(bed: &Bed<'_>) -> Result<Vec<Duration>> {
    let Some(node) = bed.cluster.nodes.first() else { bail!("no node") };
    // A free address is one that a Service had a moment ago.
    let select = json!({ "app": "web" });
    bed.cluster.apply(&[service("fresh", &select, None)])?;
    let address = bed.addresses("fresh")?.swap_remove(0);
    delete(bed, node, &address)?;
    let proxy = ApiProxy::start(bed)?;
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let body = service("fresh", &select, Some(&address));
        let time = round(bed, node, &proxy, &address, &body)?;
        delete(bed, node, &address)?;
        times.push(time);
    }
    Ok(times)
}

/// Deletes the Service and waits until its address is free again.
fn delete(bed: &Bed<'_>, node: &str, address: &str) -> Result<()> {
    bed.cluster.run(&["delete", "--namespace", NAMESPACE, "service", "fresh"])?;
    let ask = format!(
        "curl --silent --output /dev/null --connect-timeout 0.2 --max-time 1 {}/hostname || echo gone",
        url(address, PORT)
    );
    within(Duration::from_secs(10), || match bed.in_pod(node, &ask)? {
        answer if answer.trim() == "gone" => Ok(()),
        _ => bail!("{address} still answers after its Service was deleted"),
    })
}

/// One client process tries again and again; the Service is created while it does.
fn round(
    bed: &Bed<'_>,
    node: &str,
    proxy: &ApiProxy,
    address: &str,
    body: &Value,
) -> Result<Duration> {
    // One process, for starting one an attempt would take longer than what is measured. Its output is flushed with
    // each answer (--no-buffer). No Service has the address before, so attempts before the creation time out.
    let seconds = f64::from(ATTEMPT_MS) / 1000.0;
    let script = format!(
        "echo begin; curl --silent --no-buffer --connect-timeout {seconds} --max-time 1 \
         --rate {}/s '{}/hostname?[1-{ATTEMPTS}]' || true",
        1000 / ATTEMPT_MS,
        url(address, PORT)
    );
    let mut client = bed.cluster.pod_shell(&format!("client-{node}"), &script);
    let mut client = Running::start(client.stdout(Stdio::piped()).stderr(Stdio::null()))?;
    let lines = BufReader::new(client.0.stdout.take().context("no pipe")?);
    let answers = answers(lines)?;
    let created = Instant::now();
    proxy.create_service(body)?;
    match answers.recv_timeout(Duration::from_secs(10)) {
        Ok(at) if at > created => Ok(at - created),
        Ok(_) => bail!("{address} answered before the Service existed"),
        Err(_) => bail!("no answer within {:?}", created.elapsed()),
    }
}

/// When each piece of output arrives, from the client's beginning on.
fn answers(mut lines: impl BufRead + Send + 'static) -> Result<Receiver<Instant>> {
    let mut first = String::new();
    lines.read_line(&mut first).context("read from kubectl exec")?;
    if first.trim() != "begin" {
        bail!("the client did not start: {first:?}");
    }
    let (tx, rx) = mpsc::channel();
    thread::spawn(move || {
        let mut answer = [0; 4096];
        // Ends with the client, or when the receiver is gone.
        while matches!(lines.read(&mut answer), Ok(1..)) && tx.send(Instant::now()).is_ok() {}
    });
    Ok(rx)
}

/// A command that does not outlive its owner, with all that its shell started.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Result<Self> {
        command.process_group(0).stdin(Stdio::null());
        Ok(Self(command.spawn().with_context(|| format!("start `{}`", line(command)))?))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended on its own, which is as good.
        let group = format!("-{}", self.0.id());
        drop(command("kill").args(["-KILL", "--", &group]).stderr(Stdio::null()).status());
        drop(self.0.wait());
    }
}

/// `kubectl proxy` on a socket: a request without starting a process, and through whatever kubectl is.
struct ApiProxy {
    _proxy: Running,
    dir: PathBuf,
}

impl ApiProxy {
    fn start(bed: &Bed<'_>) -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("lb-conformance-{}", std::process::id()));
        std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let option = format!("--unix-socket={}", socket(&dir).display());
        let mut proxy = bed.cluster.kubectl(&["proxy", &option]);
        let proxy = Running::start(proxy.stdout(Stdio::null()).stderr(Stdio::null()))?;
        let proxy = Self { _proxy: proxy, dir };
        within(Duration::from_secs(5), || {
            UnixStream::connect(socket(&proxy.dir)).context("connect to kubectl proxy")
        })?;
        Ok(proxy)
    }

    fn create_service(&self, body: &Value) -> Result<()> {
        let body = body.to_string();
        let mut stream =
            UnixStream::connect(socket(&self.dir)).context("connect to kubectl proxy")?;
        let head = format!(
            "POST /api/v1/namespaces/{NAMESPACE}/services HTTP/1.1\r\nHost: localhost\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        stream.write_all(format!("{head}{body}").as_bytes()).context("write to kubectl proxy")?;
        let mut status = String::new();
        BufReader::new(stream).read_line(&mut status).context("read from kubectl proxy")?;
        if !status.contains(" 201 ") {
            bail!("the API answered {:?} to a new Service", status.trim());
        }
        Ok(())
    }
}

impl Drop for ApiProxy {
    fn drop(&mut self) {
        // Left in the system's temporary directory at worst.
        drop(std::fs::remove_dir_all(&self.dir));
    }
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("api.sock")
}
