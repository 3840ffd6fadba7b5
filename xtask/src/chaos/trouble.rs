//! The troubles, one after the other in an order that the seed tells.

use std::{collections::BTreeMap, fmt, process::Command, thread, time::Duration};

use anyhow::{Context as _, Result, bail};

use crate::{
    command::{command, output},
    conformance::{
        bed::Bed,
        cluster::{items, text},
        deploy::{SYSTEM, pod_on},
        faults::KILL,
    },
};

/// How long the API server stands still, in seconds: less than the ten for which the scheduler and the controller manager wait for
/// it before they exit, on a busy machine too.
const PAUSED: u64 = 5;
/// How long a node does not reach it, in seconds: less than until the control plane gives a node up.
const CUT_OFF: u64 = 20;
/// Between two troubles.
const BREATH: Duration = Duration::from_secs(6);

/// What happens to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Trouble {
    /// SIGKILL to one agent, which its kubelet starts again.
    Killed,
    /// To all at once.
    AllKilled,
    /// One agent is replaced, as in an upgrade.
    Replaced,
    /// The API server is stopped and goes on.
    ApiPaused,
    /// One node does not reach the API server.
    CutOff,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Killed => "agent killed",
            Self::AllKilled => "all agents killed",
            Self::Replaced => "agent replaced",
            Self::ApiPaused => "API server paused",
            Self::CutOff => "node cut off from the API server",
        })
    }
}

/// What has happened until now, and what is next.
pub(super) struct Troubles<'a> {
    bed: &'a Bed<'a>,
    /// Commands that stop the API server and let it go on.
    api: Option<(&'a str, &'a str)>,
    /// Its address, and the nodes that reach it through the network.
    api_address: String,
    apart: Vec<String>,
    kinds: Vec<Trouble>,
    random: u64,
    count: BTreeMap<Trouble, usize>,
    failed: Vec<String>,
    last: String,
}

impl<'a> Troubles<'a> {
    /// Finds out which troubles this cluster can have.
    ///
    /// # Errors
    /// When it does not tell the API server's address.
    pub(super) fn new(
        bed: &'a Bed<'a>,
        api: Option<(&'a str, &'a str)>,
        seed: u64,
    ) -> Result<Self> {
        let slice = ["get", "--namespace", "default", "endpointslices"];
        let selected = ["--selector", "kubernetes.io/service-name=kubernetes"];
        let slices = bed.cluster.json(&[&slice[..], &selected].concat())?;
        let address = items(&slices).find_map(|one| text(one, "/endpoints/0/addresses/0"));
        let api_address = address.context("Service kubernetes has no endpoint")?.to_owned();
        let mut apart = Vec::new();
        for node in &bed.cluster.nodes {
            if !bed.cluster.addresses(node)?.contains(&api_address) {
                apart.push(node.clone());
            }
        }
        let mut kinds = vec![Trouble::Killed, Trouble::AllKilled, Trouble::Replaced];
        kinds.extend(api.map(|_| Trouble::ApiPaused));
        kinds.extend((!apart.is_empty()).then_some(Trouble::CutOff));
        Ok(Self {
            bed,
            api,
            api_address,
            apart,
            kinds,
            random: seed | 1,
            count: BTreeMap::new(),
            failed: Vec::new(),
            last: String::new(),
        })
    }

    /// The next one, from its beginning to its end.
    pub(super) fn next(&mut self) {
        let kinds = self.kinds.clone();
        let Some(kind) = self.pick(&kinds) else { return };
        // Each kind once before any comes again.
        let kind = kinds.into_iter().find(|kind| !self.count.contains_key(kind)).unwrap_or(kind);
        match self.happen(kind) {
            Ok(place) => {
                *self.count.entry(kind).or_default() += 1;
                self.last = format!("{kind} {place}").trim_end().to_owned();
            }
            Err(err) => {
                self.last = format!("{kind}: {err:#}");
                self.failed.push(self.last.clone());
            }
        }
        thread::sleep(BREATH);
    }

    /// The last one, in words.
    pub(super) fn last(&self) -> &str {
        &self.last
    }

    /// Says what happened.
    ///
    /// # Errors
    /// When something could not be done, or some kind never happened.
    pub(super) fn done(&self) -> Result<String> {
        if let Some(kind) = self.kinds.iter().find(|kind| !self.count.contains_key(kind)) {
            bail!("not once: {kind}; {}", self.failed.join("; "));
        }
        let counts: Vec<String> =
            self.count.iter().map(|(kind, n)| format!("{kind} {n}")).collect();
        let failed = match self.failed.as_slice() {
            [] => String::new(),
            [first, ..] => format!("; {} could not be done, such as {first}", self.failed.len()),
        };
        Ok(format!("{}{failed}", counts.join(", ")))
    }

    fn happen(&mut self, kind: Trouble) -> Result<String> {
        let nodes = self.bed.cluster.nodes.clone();
        let node = self.pick(&nodes).context("no node")?;
        match kind {
            Trouble::Killed => {
                self.kill(std::slice::from_ref(&node)).map(|()| format!("on {node}"))
            }
            Trouble::AllKilled => self.kill(&nodes).map(|()| String::new()),
            Trouble::Replaced => self.replace(&node).map(|()| format!("on {node}")),
            Trouble::ApiPaused => self.pause_api().map(|()| String::new()),
            Trouble::CutOff => {
                let node = self.pick(&self.apart.clone()).context("no node apart")?;
                self.cut_off(&node).map(|()| node)
            }
        }
    }

    /// The kubelet starts a killed container at once, but the next time only after a while. So the Pod is replaced as well.
    fn kill(&self, nodes: &[String]) -> Result<()> {
        for node in nodes {
            self.bed.on_node(node, KILL)?;
        }
        thread::sleep(BREATH);
        nodes.iter().try_for_each(|node| self.replace(node))
    }

    fn replace(&self, node: &str) -> Result<()> {
        let pod = pod_on(self.bed.cluster, node)?;
        let delete = ["delete", "pod", "--namespace", SYSTEM, &pod, "--wait=false"];
        self.bed.cluster.run(&delete).map(|_| ())
    }

    fn pause_api(&self) -> Result<()> {
        let (pause, resume) = self.api.context("no command")?;
        let shell = |script: &str| -> Result<()> {
            let mut shell: Command = command("sh");
            output(shell.args(["-c", script])).map(|_| ())
        };
        shell(pause)?;
        thread::sleep(Duration::from_secs(PAUSED));
        shell(resume).context("the API server stands still")
    }

    /// The node itself ends it, since its Pods cannot be reached through the API server meanwhile.
    fn cut_off(&self, node: &str) -> Result<()> {
        let family = if self.api_address.contains(':') { "-6" } else { "-4" };
        let route = |verb: &str| format!("ip {family} route {verb} blackhole {}", self.api_address);
        let (add, del) = (route("add"), route("del"));
        let script = format!(
            "{add} || exit 1; (trap '' HUP; sleep {CUT_OFF}; {del}) </dev/null >/dev/null 2>&1 &"
        );
        self.bed.on_node(node, &script)?;
        thread::sleep(Duration::from_secs(CUT_OFF + 2));
        Ok(())
    }

    /// xorshift64: the order is the same for the same seed.
    fn pick<T: Clone>(&mut self, of: &[T]) -> Option<T> {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let nth = usize::try_from(self.random >> 33).unwrap_or_default() % of.len().max(1);
        of.get(nth).cloned()
    }
}
