//! The checks that stop the agent: traffic must not notice, and a change made meanwhile must follow its return.

use std::{
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::{
    ask::url,
    bed::{Bed, PORT, service},
    cluster::NAMESPACE,
    deploy::{self, DAEMON_SET, SYSTEM, agent_on, pod_on},
    report::{Report, within},
    services::endpoints,
};

/// Requests a second of all clients together, and for how long.
const RATE: usize = 200;
const SECONDS: usize = 10;
/// Clients on each node: with more of them each has the time for its share on a busy machine too.
const CLIENTS: usize = 2;
/// An endpoint added while the agent was down is served this soon after its return.
const CATCH_UP: Duration = Duration::from_secs(5);

/// Runs both.
pub(crate) fn check(bed: &Bed<'_>, report: &mut Report) {
    report.check(
        "SIGKILL of every agent under up to 200 requests per second loses no request",
        || kill(bed),
    );
    report.check("an endpoint added while the agent is down", || catch_up(bed));
}

/// Clients on each node with their share of the rate, each request a new connection; meanwhile every agent is killed.
fn kill(bed: &Bed<'_>) -> Result<String> {
    let Some(address) = bed.web.first() else { bail!("no address") };
    let nodes = &bed.cluster.nodes;
    let rate = RATE.div_ceil(CLIENTS * nodes.len());
    let n = rate * SECONDS;
    // curl falls behind its pace and never catches up, and starting it takes time as well.
    let pace = rate + rate / 4;
    let script = format!(
        "curl --silent --no-keepalive --header 'Connection: close' --max-time 3 --rate {pace}/s \
         --output /dev/null --write-out '%{{http_code}} %{{errormsg}}\\n' '{}/hostname?[1-{n}]'",
        url(address, PORT)
    );
    let before = restarts(bed)?;
    let start = Instant::now();
    let mut clients = Vec::new();
    for node in nodes.iter().flat_map(|node| [node; CLIENTS]) {
        let mut client = bed.cluster.pod_shell(&format!("client-{node}"), &script);
        client.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        clients.push(client.spawn().context("start kubectl exec")?);
    }
    thread::sleep(Duration::from_secs(SECONDS as u64 / 3));
    for node in nodes {
        bed.on_node(node, KILL).with_context(|| format!("kill the agent on {node}"))?;
    }
    let mut lost = Vec::new();
    let mut answered = 0;
    for client in clients {
        let out = client.wait_with_output().context("wait for kubectl exec")?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let (good, bad): (Vec<_>, Vec<_>) = text.lines().partition(|line| line.starts_with("200"));
        answered += good.len();
        lost.extend(bad.into_iter().map(str::to_owned));
    }
    let seconds = start.elapsed().as_secs_f64();
    let asked = n * CLIENTS * nodes.len();
    if answered != asked {
        lost.dedup();
        bail!("{answered} of {asked} answered; {lost:?}");
    }
    let achieved = answered as f64 / seconds;
    // A machine that is busy otherwise sends fewer, but a kill must meet some at each moment.
    if achieved < 0.4 * RATE as f64 {
        bail!(
            "only {achieved:.0} requests per second were sent: the load was too low for a result"
        );
    }
    within(Duration::from_secs(30), || match restarts(bed)? {
        now if now >= before + nodes.len() as u64 => Ok(()),
        now => bail!("{} agents restarted", now - before),
    })
    .context("no agent was killed")?;
    deploy::ready(bed.cluster)?;
    Ok(format!("{answered} at {achieved:.0}/s"))
}

/// By name in /proc, for a node need not have pkill; exactly one must be there.
pub(crate) const KILL: &str = "n=0; for p in /proc/[0-9]*; do \
    if [ \"$(cat $p/comm 2>/dev/null)\" = lb-agent ]; then kill -9 ${p#/proc/} && n=$((n+1)); fi; done; \
    [ $n = 1 ] || { echo \"$n processes named lb-agent\" >&2; exit 1; }";

/// Ends when an agent's process is there.
const RETURN: &str = "while :; do for p in /proc/[0-9]*; do \
    [ \"$(cat $p/comm 2>/dev/null)\" = lb-agent ] && exit 0; done; sleep 0.05; done";

fn restarts(bed: &Bed<'_>) -> Result<u64> {
    let mut sum = 0;
    for node in &bed.cluster.nodes {
        let pod = agent_on(bed.cluster, node)?;
        let count = pod.pointer("/status/containerStatuses/0/restartCount");
        sum += count.and_then(Value::as_u64).unwrap_or(0);
    }
    Ok(sum)
}

/// Holds the agents down by a node selector that fits no node, adds an endpoint, lets them return.
fn catch_up(bed: &Bed<'_>) -> Result<String> {
    let Some(node) = bed.cluster.nodes.first() else { bail!("no node") };
    bed.cluster
        .apply(&[bed.deployment("late", 1), service("late", &json!({ "app": "late" }), None)])?;
    wait_endpoints(bed, 1)?;
    let address = bed.addresses("late")?.swap_remove(0);
    let ask = format!(
        "curl --globoff --silent --show-error --max-time 3 {}/hostname",
        url(&address, PORT)
    );
    let old =
        within(Duration::from_secs(10), || bed.in_pod(node, &ask)).context("with one endpoint")?;
    select(bed, json!("nowhere"))?;
    let down = added_while_down(bed, node, &ask, &old);
    // Whatever happened, the agents come back.
    select(bed, Value::Null)?;
    down?;
    let back = bed.on_node(node, RETURN).map(|_| Instant::now())?;
    // Each request is a new connection, so it finds the new endpoint with one chance in two: 60 a second do.
    let script = format!(
        "curl --silent --no-buffer --no-keepalive --header 'Connection: close' --max-time 1 \
         --rate 60/s --write-out '\\n' '{}/hostname?[1-{}]'",
        url(&address, PORT),
        60 * CATCH_UP.as_secs()
    );
    let answers = bed.in_pod(node, &script);
    let took = back.elapsed();
    deploy::ready(bed.cluster)?;
    let answers = answers?;
    let names: Vec<&str> = answers.split_whitespace().collect();
    match names.iter().position(|name| *name != old.trim()) {
        Some(nth) => Ok(format!(
            "served by request {} of {} ({} answers) in {:.1} s",
            nth + 1,
            60 * CATCH_UP.as_secs(),
            names.len(),
            took.as_secs_f64()
        )),
        None => bail!(
            "not among {} answers in the {:.1} s after the agent's restart",
            names.len(),
            took.as_secs_f64()
        ),
    }
}

/// With the agents gone: traffic flows, an endpoint is added, and it is not served yet.
fn added_while_down(bed: &Bed<'_>, node: &str, ask: &str, old: &str) -> Result<()> {
    within(Duration::from_secs(60), || match pod_on(bed.cluster, node) {
        Ok(pod) => bail!("{pod} is still there"),
        Err(_) => Ok(()),
    })?;
    bed.cluster.run(&["scale", "--namespace", NAMESPACE, "deployment/late", "--replicas=2"])?;
    wait_endpoints(bed, 2)?;
    for _ in 0..10 {
        let answer = bed.in_pod(node, ask).context("while the agent is down")?;
        if answer != *old {
            bail!("{answer:?} answered: another Service implementation is active");
        }
    }
    Ok(())
}

fn wait_endpoints(bed: &Bed<'_>, n: usize) -> Result<()> {
    within(Duration::from_secs(60), || match endpoints(bed, "late")? {
        ready if ready == n => Ok(()),
        ready => bail!("{ready} of {n} endpoints are ready"),
    })
}

/// Sets, or with null removes, a node selector beside the DaemonSet's own.
fn select(bed: &Bed<'_>, value: Value) -> Result<()> {
    let patch = json!({ "spec": { "template": { "spec": { "nodeSelector": { "lb-conformance": value } } } } });
    let patch = patch.to_string();
    bed.cluster.run(&["--namespace", SYSTEM, "patch", DAEMON_SET, "--patch", &patch]).map(|_| ())
}
