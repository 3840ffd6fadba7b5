//! The API server is gone for minutes: traffic goes on, the agents stay alive and ready, their logs and memory stay small, and once it
//! is back they follow a change.

use std::{
    fmt,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::{
    command::{command, output, say},
    conformance::{
        ask::url,
        bed::{Bed, PORT, service, with},
        cluster::{NAMESPACE, items, text},
        deploy::{self, SYSTEM, pod_on},
        report::within,
    },
};

use super::nodes::metric;

/// The server answers again by then.
const RETURN: Duration = Duration::from_secs(120);
/// A pause of the agents' backoff is at most 37.5 s, and a request takes its time on a busy machine.
const FOLLOWED: Duration = Duration::from_secs(60);
/// Lines that an agent may log in a minute without an API server. At most once in 30 s each of eight watches and what finds the
/// server fail.
const LINES: usize = 60;
/// What the agent may need more than before.
const GROWTH_KIB: u64 = 4096;

/// The state of an agent as its node sees it every five seconds, in a file of the Pod that stands for the node.
const OBSERVER: &str = r#"cat >/tmp/observer.sh <<'EOF'
: >/tmp/observed
code() { curl --silent --max-time 3 --output /dev/null --write-out '%{http_code}' "http://127.0.0.1:10266/$1"; }
while [ ! -e /tmp/observer-stop ]; do
    for p in /proc/[0-9]*; do
        [ "$(cat $p/comm 2>/dev/null)" = lb-agent ] && rss=$(sed -n 's/^VmRSS:[^0-9]*\([0-9]*\).*/\1/p' $p/status)
    done
    echo "$(code livez) $(code readyz) ${rss:-0}" >>/tmp/observed
    sleep 5
done
EOF
rm -f /tmp/observer-stop; (trap '' HUP; exec sh /tmp/observer.sh) </dev/null >/dev/null 2>&1 &"#;

/// What was seen of one agent.
#[derive(Debug, PartialEq, Eq)]
struct Observed {
    times: usize,
    /// Times at which it was not alive, or not ready.
    bad: usize,
    /// Resident memory at first and at most, in KiB.
    memory: (u64, u64),
}

/// Ends the server for this number of minutes.
pub(super) fn check(bed: &Bed<'_>, (stop, start): (&str, &str), minutes: u64) -> Result<String> {
    let nodes = &bed.cluster.nodes;
    let lists = lists(bed)?;
    let backend = prepare(bed)?;
    for node in nodes {
        bed.in_host_pod(node, OBSERVER)?;
    }
    shell(stop).context("end the API server")?;
    say(&format!("the API server is away for {minutes} minutes"));
    thread::sleep(Duration::from_secs(60 * minutes));
    shell(start).context("start the API server")?;
    let answers = ["get", "--raw", "/readyz"];
    within(RETURN, || bed.cluster.run(&answers)).context("the API server does not return")?;
    let back = Instant::now();

    let address = publish(bed, &backend)?;
    let mut followed = Vec::new();
    for node in nodes {
        within(FOLLOWED, || ask(bed, node, &address))
            .with_context(|| format!("{node} does not follow"))?;
        followed.push(back.elapsed());
    }
    let mut lines = Vec::new();
    let mut seen = Vec::new();
    for node in nodes {
        bed.in_host_pod(node, "touch /tmp/observer-stop")?;
        let observed = Observed::read(&bed.in_host_pod(node, "cat /tmp/observed")?)?;
        ensure!(observed.bad == 0, "{node} was not alive and ready all the time: {observed}");
        let (first, most) = observed.memory;
        ensure!(most <= first + GROWTH_KIB, "{node} needed more memory: {observed}");
        seen.push(observed.to_string());
        lines.push(logged(bed, node, back.elapsed().as_secs() + 60 * minutes)?);
    }
    let per_minute =
        lines.iter().max().copied().unwrap_or_default() / usize::try_from(minutes.max(1))?;
    ensure!(per_minute <= LINES, "an agent logged {per_minute} lines a minute");
    let again = self::lists(bed)? - lists;
    deploy::ready(bed.cluster)?;
    let followed: Vec<String> =
        followed.iter().map(|took| format!("{:.1} s", took.as_secs_f64())).collect();
    Ok(format!(
        "followed after {}; {}; at most {per_minute} log lines a minute; {again} lists of {} agents",
        followed.join(", "),
        seen.join(", "),
        nodes.len()
    ))
}

impl Observed {
    fn read(text: &str) -> Result<Self> {
        let mut seen = Self { times: 0, bad: 0, memory: (0, 0) };
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let [live, ready, rss] = words[..] else { bail!("{line:?} is not an observation") };
            let rss: u64 = rss.parse().with_context(|| format!("memory in {line:?}"))?;
            seen.times += 1;
            seen.bad += usize::from((live, ready) != ("200", "200"));
            let (first, most) = seen.memory;
            seen.memory = (if seen.times == 1 { rss } else { first }, most.max(rss));
        }
        ensure!(seen.times > 0, "nothing was observed");
        Ok(seen)
    }
}

impl fmt::Display for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, most) = self.memory;
        let good = self.times - self.bad;
        write!(
            f,
            "alive and ready {good} of {} times, {first} KiB at first, at most {most}",
            self.times
        )
    }
}

fn shell(script: &str) -> Result<()> {
    let mut shell: Command = command("sh");
    output(shell.args(["-c", script])).map(|_| ())
}

/// A server's address: without controllers, an endpoint must be written by hand.
fn prepare(bed: &Bed<'_>) -> Result<String> {
    let pods = ["get", "pods", "--namespace", NAMESPACE, "--selector", "app=web"];
    let list = bed.cluster.json(&pods)?;
    let address = items(&list).find_map(|pod| text(pod, "/status/podIP").map(str::to_owned));
    address.context("no server has an address")
}

/// A Service without a selector, and its endpoint; the ClusterIP.
fn publish(bed: &Bed<'_>, backend: &str) -> Result<String> {
    let plain = service("returned", &Value::Null, None);
    let plain = with(plain, &json!({ "ipFamilyPolicy": "SingleStack", "selector": {} }));
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": "returned", "namespace": NAMESPACE,
            "labels": { "kubernetes.io/service-name": "returned" },
        },
        "addressType": if backend.contains(':') { "IPv6" } else { "IPv4" },
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
        "endpoints": [{ "addresses": [backend], "conditions": { "ready": true } }],
    });
    bed.cluster.apply(&[plain, slice])?;
    Ok(bed.addresses("returned")?.swap_remove(0))
}

fn ask(bed: &Bed<'_>, node: &str, address: &str) -> Result<String> {
    let curl = "curl --globoff --silent --show-error --max-time 1";
    bed.in_pod(node, &format!("{curl} {}/hostname", url(address, PORT)))
}

/// Lines of the agent's log of the last seconds.
fn logged(bed: &Bed<'_>, node: &str, seconds: u64) -> Result<usize> {
    let pod = pod_on(bed.cluster, node)?;
    let logs = ["logs", "--namespace", SYSTEM, &pod, "--since", &format!("{seconds}s")];
    Ok(bed.cluster.run(&logs)?.lines().count())
}

/// How many lists all agents have begun.
fn lists(bed: &Bed<'_>) -> Result<f64> {
    let of = |node: &String| metric(bed, node, "lb_watch_restarts_total", "");
    bed.cluster.nodes.iter().map(of).sum()
}

#[cfg(test)]
mod tests {
    use super::Observed;

    #[test]
    fn observations_are_counted() {
        let seen = Observed::read("200 200 9000\n200 503 9500\n200 200 9100\n").unwrap();
        assert_eq!(seen, Observed { times: 3, bad: 1, memory: (9000, 9500) });
        let want = "alive and ready 2 of 3 times, 9000 KiB at first, at most 9500";
        assert_eq!(seen.to_string(), want);
        assert!(Observed::read("").is_err());
        assert!(Observed::read("200 200\n").is_err());
    }
}
