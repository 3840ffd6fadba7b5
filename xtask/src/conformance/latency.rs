//! How long a new Service takes: from asking the API to create it until the first request through it is answered, and
//! how much of that is after the API server has sent its EndpointSlice to a watcher. All is seen from here, so no clocks
//! are compared: the request goes out through `kubectl proxy`, the EndpointSlice comes in there, and the answers come in
//! over one `kubectl exec`. Only what is after the EndpointSlice is compared with a bar: the rest is the API server's,
//! etcd's and the EndpointSlice controller's, which share their processors with everything else on a small machine.

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
/// The bar, in ms: a new Service answers within this after its EndpointSlice has reached a watcher, in the median.
const BAR_MS: f64 = 25.0;
/// A client's connection attempts are this far apart, and it gives each as long.
const ATTEMPT_MS: u32 = 5;
const ATTEMPTS: u32 = 600;
/// How long an answer and an EndpointSlice are waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// What one creation took, in ms.
struct Creation {
    /// From asking for the Service to the first answer.
    answered: f64,
    /// From the EndpointSlice at a watcher to the first answer: below zero if the answer was here first.
    after_slice: f64,
}

/// Measures and compares with the bar.
pub(crate) fn check(bed: &Bed<'_>, report: &mut Report) {
    report.check("a new Service answers within 25 ms of its EndpointSlice (median)", || {
        let creations = measure(bed)?;
        let sorted = |time: fn(&Creation) -> f64| {
            let mut times: Vec<f64> = creations.iter().map(time).collect();
            times.sort_by(f64::total_cmp);
            times
        };
        let (median, after_slice) = summary(&sorted(|creation| creation.after_slice));
        let (_, answered) = summary(&sorted(|creation| creation.answered));
        let found = format!("{after_slice}; of its creation: {answered}; of {}", creations.len());
        if median > BAR_MS {
            bail!("{found}");
        }
        Ok(found)
    });
}

/// The median of sorted times, and a line of it and both ends.
fn summary(times: &[f64]) -> (f64, String) {
    let at = |n: usize| times.get(n).copied().unwrap_or(f64::INFINITY);
    let (median, least, most) = (at(times.len() / 2), at(0), at(times.len().saturating_sub(1)));
    (median, format!("median {median:.0} ms, least {least:.0}, most {most:.0}"))
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn measure(bed: &Bed<'_>) -> Result<Vec<Creation>> {
    let Some(node) = bed.cluster.nodes.first() else { bail!("no node") };
    // A free address is one that a Service had a moment ago.
    let select = json!({ "app": "web" });
    bed.cluster.apply(&[service("fresh", &select, None)])?;
    let address = bed.addresses("fresh")?.swap_remove(0);
    delete(bed, node, &address)?;
    let proxy = ApiProxy::start(bed)?;
    let mut creations = Vec::new();
    for _ in 0..ROUNDS {
        let body = service("fresh", &select, Some(&address));
        let creation = round(bed, node, &proxy, &address, &body)?;
        delete(bed, node, &address)?;
        creations.push(creation);
    }
    Ok(creations)
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
) -> Result<Creation> {
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
    let slices = proxy.watch_slices("fresh")?;
    let created = Instant::now();
    proxy.create_service(body)?;
    let answered = match answers.recv_timeout(PATIENCE) {
        Ok(at) if at > created => at,
        Ok(_) => bail!("{address} answered before the Service existed"),
        Err(_) => bail!("no answer within {:?}", created.elapsed()),
    };
    // The one of the Service before may have been there still when the watch began.
    let sliced = loop {
        match slices.recv_timeout(PATIENCE) {
            Ok(at) if at > created => break at,
            Ok(_) => {}
            Err(_) => bail!("no EndpointSlice of {address} within {:?}", created.elapsed()),
        }
    };
    let answered = ms(answered - created);
    Ok(Creation { answered, after_slice: answered - ms(sliced - created) })
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

/// Whether the event of a watch is a new EndpointSlice that has a ready endpoint.
fn is_slice(event: &Value) -> bool {
    let ready = |endpoint: &Value| endpoint.pointer("/conditions/ready") == Some(&json!(true));
    let endpoints = event.pointer("/object/endpoints").and_then(Value::as_array);
    event.get("type") == Some(&json!("ADDED")) && endpoints.is_some_and(|all| all.iter().any(ready))
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

    fn connect(&self) -> Result<UnixStream> {
        UnixStream::connect(socket(&self.dir)).context("connect to kubectl proxy")
    }

    /// When each EndpointSlice with a ready endpoint comes that is made for the Service from now on.
    fn watch_slices(&self, service: &str) -> Result<Receiver<Instant>> {
        let stream = self.connect()?;
        write!(
            &stream,
            "GET /apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices?watch=1\
             &labelSelector=kubernetes.io%2Fservice-name%3D{service} HTTP/1.0\r\nHost: localhost\r\n\r\n"
        )
        .context("write to kubectl proxy")?;
        let mut lines = BufReader::new(stream).lines();
        let status = lines.next().context("kubectl proxy closed the watch")??;
        if !status.contains(" 200 ") {
            bail!("the API answered {status:?} to a watch of EndpointSlices");
        }
        let (tx, rx) = mpsc::channel();
        thread::spawn(move || {
            // One event a line: HTTP/1.0 has no chunks. Ends with the proxy, or with the receiver.
            for line in lines.map_while(Result::ok) {
                let Ok(event) = serde_json::from_str::<Value>(&line) else { continue };
                if is_slice(&event) && tx.send(Instant::now()).is_err() {
                    break;
                }
            }
        });
        Ok(rx)
    }

    fn create_service(&self, body: &Value) -> Result<()> {
        let body = body.to_string();
        let mut stream = self.connect()?;
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
