//! The clients that watch: each is a script in a Pod that asks again and again, and notes what it should not have seen. It needs
//! neither the API server nor this machine to go on.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::Range,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    command::output,
    conformance::{
        ask::url,
        bed::{Bed, PORT},
        report::{Report, within},
    },
};

use super::unrest::{TYPED, VAULT, WEB, friend};

/// Requests a second of each client.
const RATE: usize = 5;
/// How long an answer may take, in seconds: more than a node that loads programs needs, and three retransmissions.
const PATIENCE: usize = 10;
/// By then every client has begun.
const BEGUN: Duration = Duration::from_secs(60);

/// What a client expects.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hope {
    /// Each request is answered.
    Answer,
    /// None is.
    Silence,
}

/// A client in a Pod.
struct Witness {
    pod: String,
    /// Of its files.
    tag: String,
    name: String,
    hope: Hope,
    seen: Seen,
}

/// What a client has seen until now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Seen {
    /// Requests that ended as they should.
    good: usize,
    /// Of those, the ones that took a second or more: a packet was sent again.
    slow: usize,
    /// All others: time, HTTP status, seconds, error.
    bad: Vec<String>,
}

/// All clients.
pub(crate) struct Witnesses(Vec<Witness>);

impl Witnesses {
    /// Starts clients on each node, and waits until each has seen what it hopes for.
    ///
    /// # Errors
    /// When a Service has no address, a script does not start, or a client sees something else.
    pub(crate) fn begin(bed: &Bed<'_>) -> Result<Self> {
        let mut all = Self::start(bed)?;
        within(BEGUN, || all.have_begun(bed))?;
        Ok(all)
    }

    fn start(bed: &Bed<'_>) -> Result<Self> {
        let mut all = Vec::new();
        for (service, hope) in [
            (WEB, Hope::Answer),
            (TYPED, Hope::Answer),
            (VAULT, Hope::Answer),
            (VAULT, Hope::Silence),
        ] {
            for address in bed.addresses(service)? {
                for node in &bed.cluster.nodes {
                    let is_friend = service == VAULT && hope == Hope::Answer;
                    let pod = if is_friend { friend(node) } else { format!("client-{node}") };
                    let tag = format!("chaos-{}", all.len());
                    let silent = if hope == Hope::Silence { ", denied" } else { "" };
                    let name = format!("{pod} to {service} at {address}{silent}");
                    let start =
                        output(&mut bed.cluster.pod_shell(&pod, &script(&tag, &address, hope)));
                    start.with_context(|| format!("start the client {name}"))?;
                    all.push(Witness { pod, tag, name, hope, seen: Seen::default() });
                }
            }
        }
        Ok(Self(all))
    }

    /// Number of clients.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Fails while a client has not seen what it hopes for.
    fn have_begun(&mut self, bed: &Bed<'_>) -> Result<()> {
        self.look(bed);
        match self.0.iter().find(|one| one.seen.good < 5) {
            Some(one) => bail!("{}: {:?}", one.name, one.seen),
            None => Ok(()),
        }
    }

    /// Reads what the clients have seen, as far as their nodes answer.
    pub(super) fn look(&mut self, bed: &Bed<'_>) {
        let mut pods: BTreeMap<String, Vec<&mut Witness>> = BTreeMap::new();
        for one in &mut self.0 {
            pods.entry(one.pod.clone()).or_default().push(one);
        }
        for (pod, witnesses) in pods {
            let script =
                "cd /tmp && wc -c chaos-*.good && grep -H '' chaos-*.slow chaos-*.bad; true";
            let Ok(text) = output(&mut bed.cluster.pod_shell(&pod, script)) else { continue };
            for one in witnesses {
                one.seen = read(&text, &one.tag);
            }
        }
    }

    /// Ends all clients, reads for the last time, and judges.
    pub(crate) fn end(self, bed: &Bed<'_>, report: &mut Report) {
        self.end_but(bed, report, 0..0);
    }

    /// The same; requests that were lost within these seconds since 1970 are counted only.
    pub(crate) fn end_but(mut self, bed: &Bed<'_>, report: &mut Report, forgiven: Range<u64>) {
        self.look(bed);
        self.stop(bed);
        let none = 0..0;
        report.check("no request that is allowed was lost", || self.judge(Hope::Answer, &forgiven));
        report.check("no request that is denied was answered", || self.judge(Hope::Silence, &none));
    }

    /// Others may begin after these.
    fn stop(&self, bed: &Bed<'_>) {
        let pods: BTreeSet<&str> = self.0.iter().map(|one| one.pod.as_str()).collect();
        for pod in pods {
            // What cannot be reached has its files removed by those who begin.
            if let Err(err) = output(&mut bed.cluster.pod_shell(pod, "rm -f /tmp/chaos-*.sh")) {
                eprintln!("{err:#}");
            }
        }
    }

    fn judge(&self, hope: Hope, forgiven: &Range<u64>) -> Result<String> {
        let mut bad = Vec::new();
        let (mut good, mut slow, mut late) = (0, 0, 0);
        for one in self.0.iter().filter(|one| one.hope == hope) {
            if one.seen.good < 20 {
                bail!("{} made {} requests only", one.name, one.seen.good);
            }
            good += one.seen.good;
            slow += one.seen.slow;
            let (pardoned, lost) = one.seen.bad.iter().partition::<Vec<_>, _>(|line| {
                let end = line.split(' ').next().and_then(|at| at.parse().ok());
                // A request that is lost ends when its client is out of patience.
                end.is_some_and(|end: u64| {
                    (forgiven.start..forgiven.end + PATIENCE as u64).contains(&end)
                })
            });
            late += pardoned.len();
            bad.extend(lost.iter().map(|line| format!("{}: {line}", one.name)));
        }
        if !bad.is_empty() {
            let n = bad.len();
            bad.truncate(20);
            bail!("{n} of {}:\n      {}", good + n, bad.join("\n      "));
        }
        let mut said = good.to_string();
        for (n, what) in [(slow, "took over a second"), (late, "lost, as expected")] {
            if n > 0 {
                said.push_str(&format!(", {n} {what}"));
            }
        }
        Ok(said)
    }

    fn sum(&self, hope: Hope) -> (usize, usize) {
        let those = self.0.iter().filter(|one| one.hope == hope);
        those.fold((0, 0), |(good, bad), one| (good + one.seen.good, bad + one.seen.bad.len()))
    }
}

impl fmt::Display for Witnesses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (answered, lost) = self.sum(Hope::Answer);
        let (denied, leaked) = self.sum(Hope::Silence);
        write!(f, "{answered} answered, {lost} lost; {denied} denied, {leaked} answered")
    }
}

/// The client: it begins, and goes on when this command has ended.
fn script(tag: &str, address: &str, hope: Hope) -> String {
    let (rate, patience, good) = match hope {
        Hope::Answer => (RATE, PATIENCE, "200"),
        Hope::Silence => (2, 1, "000"),
    };
    let url = url(address, PORT);
    format!(
        r#"cd /tmp && : >{tag}.good && : >{tag}.slow && : >{tag}.bad && cat >{tag}.sh <<'EOF'
while [ -e {tag}.sh ]; do
    curl --globoff --silent --no-keepalive --header 'Connection: close' --max-time {patience} --rate {rate}/s \
        --output /dev/null --write-out '%{{http_code}} %{{time_total}} %{{errormsg}}\n' "{url}/hostname?"'[1-100]' 2>&1
done | while read -r code time rest; do
    case $code in
    {good}) printf . >>{tag}.good
        case $code.$time in 200.[1-9]*) echo "$(date +%s) $time" >>{tag}.slow ;; esac ;;
    *) echo "$(date +%s) $code $time $rest" >>{tag}.bad ;;
    esac
done
EOF
(trap '' HUP; exec sh {tag}.sh) </dev/null >/dev/null 2>&1 &"#
    )
}

/// The files of one client: the number of its good requests, and each other line with the name of its file before it.
fn read(text: &str, tag: &str) -> Seen {
    let mut seen = Seen::default();
    let good = format!("{tag}.good");
    for line in text.lines() {
        let Some((file, line)) = line.split_once(':') else {
            match line.trim().split_once(' ') {
                Some((n, file)) if file == good => seen.good = n.parse().unwrap_or_default(),
                _ => {}
            }
            continue;
        };
        match file.strip_prefix(tag) {
            Some(".slow") => seen.slow += 1,
            Some(".bad") => seen.bad.push(line.to_owned()),
            _ => {}
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::{Seen, read};

    #[test]
    fn each_client_has_its_own_files() {
        let text = " 12 chaos-1.good\n  3 chaos-11.good\n 15 total\nchaos-1.bad:5 000 10.0 Timeout: was reached\nchaos-1.slow:6 1.02\n";
        let bad = vec!["5 000 10.0 Timeout: was reached".to_owned()];
        assert_eq!(read(text, "chaos-1"), Seen { good: 12, slow: 1, bad });
        assert_eq!(read(text, "chaos-11"), Seen { good: 3, slow: 0, bad: Vec::new() });
    }
}
