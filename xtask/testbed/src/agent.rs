//! The agent of a node: the real binary, started in the node's namespace with pins and state of its own.

use std::{
    ffi::OsStr,
    fs::OpenOptions,
    net::{Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{bed::run_dir, client, node::Node, wait};

/// Where the agent answers `/healthz`, in its node's namespace.
const HEALTHZ: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10256);
/// Where the agent answers `/metrics`, in its node's namespace.
const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10249);
/// How long the agent may take to become healthy, and to end after SIGTERM.
const PATIENCE: Duration = Duration::from_secs(20);

/// An agent of a node; dropping it kills the process, and its bed removes the pins.
#[derive(Debug)]
pub struct Agent {
    /// The node it serves.
    pub node: Node,
    /// Its pin directory.
    pub pin_dir: PathBuf,
    /// Its state directory.
    pub state_dir: PathBuf,
    /// Its log.
    pub log: PathBuf,
    /// Its `--ct-entries`, from the next start on.
    pub ct_entries: u32,
    /// Its `--masquerade-ports`, from the next start on; as the agent chooses when there are none.
    pub masquerade_ports: Option<RangeInclusive<u16>>,
    /// More arguments, from the next start on.
    pub arguments: Vec<String>,
    binary: PathBuf,
    manifests: PathBuf,
    child: Option<Child>,
}

/// A program with the capabilities that the DaemonSet gives it, and no more: the kernel allows more to a process with all of them.
pub fn as_in_container(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--bounding-set", "-all,+net_admin,+perfmon,+bpf", "--inh-caps", "-all", "--"])
        .arg(program);
    command
}

impl Agent {
    /// An agent that does not run yet: the binary `lb-agent`, the directory of manifests.
    pub fn new(node: &Node, binary: &Path, manifests: &Path) -> Self {
        let dir = run_dir(&node.prefix);
        Self {
            node: node.clone(),
            pin_dir: Path::new("/sys/fs/bpf").join(format!("{}-{}", node.prefix, node.name)),
            state_dir: dir.join(&node.name),
            log: dir.join(format!("{}.log", node.name)),
            ct_entries: 131_072,
            masquerade_ports: None,
            arguments: Vec::new(),
            binary: binary.to_owned(),
            manifests: manifests.to_owned(),
            child: None,
        }
    }

    /// Starts the agent and waits until it is healthy; returns the time that took.
    pub fn start(&mut self) -> anyhow::Result<Duration> {
        let start = Instant::now();
        self.spawn()?;
        self.wait_healthy()?;
        Ok(start.elapsed())
    }

    /// Starts the agent and does not wait.
    pub fn spawn(&mut self) -> anyhow::Result<()> {
        if self.child.is_some() {
            bail!("agent of {}: already running", self.node.name);
        }
        self.child = Some(self.node.netns.spawn(&mut self.run_command()?)?);
        Ok(())
    }

    /// The command that runs the agent in the foreground, its output going to the log.
    pub fn run_command(&self) -> anyhow::Result<Command> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("open {}", self.log.display()))?;
        let mut command = as_in_container(&self.binary);
        command
            .arg("run")
            .args(["--node-name", &self.node.name])
            .arg("--manifests")
            .arg(&self.manifests)
            .args(["--ct-entries", &self.ct_entries.to_string()])
            .arg("--pin-dir")
            .arg(&self.pin_dir)
            .arg("--state-dir")
            .arg(&self.state_dir)
            .arg("--cache-dir")
            .arg(self.state_dir.join("cache"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("clone the log's descriptor")?)
            .stderr(log);
        if let Some(ports) = &self.masquerade_ports {
            command.args(["--masquerade-ports", &format!("{}-{}", ports.start(), ports.end())]);
        }
        command.args(&self.arguments);
        Ok(command)
    }

    /// Waits until `/healthz` answers 200.
    pub fn wait_healthy(&mut self) -> anyhow::Result<()> {
        let what = format!("agent of {}", self.node.name);
        let healthy = wait::until(&what, PATIENCE, || {
            if let Some(status) = self.exited()? {
                return Ok(Err(status));
            }
            self.get(HEALTHZ, "/healthz").map(|_| Ok(()))
        });
        match healthy {
            Ok((Ok(()), _)) => Ok(()),
            Ok((Err(status), _)) => bail!("{what}: ended with {status}:\n{}", self.log_tail()),
            Err(err) => bail!("{err:#}\n{}", self.log_tail()),
        }
    }

    /// Process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Ends the agent by SIGTERM and waits for it; an exit code other than 0 is an error.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::SIGTERM)?;
        let what = format!("end of the agent of {}", self.node.name);
        let (status, _) = wait::until(&what, PATIENCE, || self.exited()?.context("still runs"))?;
        if !status.success() {
            bail!("{what}: {status}:\n{}", self.log_tail());
        }
        Ok(())
    }

    /// Kills the agent by SIGKILL.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::SIGKILL)?;
        if let Some(mut child) = self.child.take() {
            child.wait().context("wait for the killed agent")?;
        }
        Ok(())
    }

    /// Lets the process live on; dropping the agent does nothing any more.
    pub fn detach(mut self) {
        self.child = None;
    }

    /// Runs `lb-agent cleanup`; the agent must not run.
    pub fn cleanup(&self) -> anyhow::Result<()> {
        let mut command = Command::new(&self.binary);
        command.arg("cleanup").arg("--pin-dir").arg(&self.pin_dir);
        command.arg("--state-dir").arg(&self.state_dir);
        command.arg("--cache-dir").arg(self.state_dir.join("cache"));
        self.node.netns.output(&mut command).map(drop)
    }

    /// Runs `lbctl` on this agent's pins and returns what it prints, also when its exit code says that something is
    /// degraded. It lies beside `lb-agent`.
    pub fn lbctl(&self, args: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(self.binary.with_file_name("lbctl"));
        command.arg("--pin-dir").arg(&self.pin_dir);
        command.arg("--state-dir").arg(&self.state_dir).args(args);
        let output = self.node.netns.enter(|| command.output())?.context("start lbctl")?;
        if !output.status.success() && output.stdout.is_empty() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            bail!("lbctl {}: {}", args.join(" "), stderr.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The metrics, in Prometheus' text format.
    pub fn metrics(&self) -> anyhow::Result<String> {
        self.get(METRICS, "/metrics")
    }

    /// The metric whose line begins with `series`: a name, or a name with its labels as they are printed.
    pub fn metric(&self, series: &str) -> anyhow::Result<f64> {
        let text = self.metrics()?;
        let line = text
            .lines()
            .find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')))
            .with_context(|| format!("no metric {series}"))?;
        let value = line.rsplit(' ').next().unwrap_or_default();
        value.parse().with_context(|| format!("metric {series}: {value:?}"))
    }

    /// Resident memory of the process in bytes (`VmRSS`).
    pub fn resident_bytes(&self) -> anyhow::Result<u64> {
        let pid = self.pid().context("the agent is not running")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))
            .with_context(|| format!("read the status of process {pid}"))?;
        let kib = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok())
            .context("no VmRSS in the status of the agent")?;
        Ok(kib * 1024)
    }

    /// The log.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn log(&self) -> std::io::Result<String> {
        std::fs::read_to_string(&self.log)
    }

    /// The end of the log.
    pub fn log_tail(&self) -> String {
        let text = self.log().unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(40)..).unwrap_or_default();
        tail.join("\n")
    }

    fn get(&self, addr: SocketAddr, path: &str) -> anyhow::Result<String> {
        let answer =
            self.node.netns.enter(|| client::http_get(addr, path, Duration::from_secs(2)))?;
        answer.with_context(|| format!("GET http://{addr}{path} on {}", self.node.name))
    }

    /// The exit status, once; after that there is no child any more.
    fn exited(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        let Some(child) = &mut self.child else { bail!("the agent is not running") };
        let status = child.try_wait().context("look after the agent")?;
        if status.is_some() {
            self.child = None;
        }
        Ok(status)
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = self.pid().context("the agent is not running")?;
        let pid = i32::try_from(pid).context("process id")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("send {signal} to {pid}"))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // Fails only if it has ended.
            drop(child.kill());
            drop(child.wait());
        }
    }
}
