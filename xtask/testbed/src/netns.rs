//! A named network namespace: made with `ip netns`, entered by `setns` on a thread of its own.
//!
//! Not `ip netns exec`: that also remounts `/sys`, and the cgroup and bpf file systems disappear.

use std::{
    fmt::Display,
    fs::File,
    io::Write as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, bail};
use nix::sched::{CloneFlags, setns};

/// A named network namespace. A handle: dropping it does not remove the namespace, [`crate::Bed`] does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Netns {
    /// Name as `ip netns list` shows it.
    pub name: String,
}

impl Netns {
    /// Creates the namespace, with its loopback up and IPv6 addresses usable at once (no duplicate detection).
    pub fn create(name: &str) -> anyhow::Result<Self> {
        run("ip", &["netns", "add", name], "")?;
        let netns = Self { name: name.to_owned() };
        netns.sysctl(&[
            ("net/ipv6/conf/all/accept_dad", "0"),
            ("net/ipv6/conf/default/accept_dad", "0"),
            ("net/ipv6/conf/all/router_solicitations", "0"),
            ("net/ipv6/conf/default/router_solicitations", "0"),
        ])?;
        netns.ip("link set lo up\n")?;
        Ok(netns)
    }

    /// The file that `nsenter --net=` takes.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Runs `work` on a thread inside the namespace. Sockets and children made there stay in it.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        let path = self.path();
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        let entered = std::thread::scope(|scope| {
            scope
                .spawn(move || setns(file, CloneFlags::CLONE_NEWNET).map(|()| work()))
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        entered.with_context(|| format!("enter network namespace {}", self.name))
    }

    /// Starts `command` inside the namespace.
    pub fn spawn(&self, command: &mut Command) -> anyhow::Result<Child> {
        let program = format!("{:?}", command.get_program());
        self.enter(|| command.spawn())?.with_context(|| format!("start {program} in {}", self.name))
    }

    /// Runs `command` inside the namespace to its end; an exit code other than 0 is an error with its stderr.
    pub fn output(&self, command: &mut Command) -> anyhow::Result<String> {
        let shown = format!("{command:?}");
        let output = self.enter(|| command.output())?.with_context(|| format!("start {shown}"))?;
        if !output.status.success() {
            bail!("{shown}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Sets sysctls of the namespace, given by their paths under `/proc/sys`.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> anyhow::Result<()> {
        self.enter(|| {
            for (name, value) in settings {
                std::fs::write(format!("/proc/sys/{name}"), value)
                    .with_context(|| format!("set sysctl {name}"))?;
            }
            anyhow::Ok(())
        })?
    }

    /// Runs lines of `ip` commands (`link add …`) in one process inside the namespace.
    pub fn ip(&self, lines: &str) -> anyhow::Result<()> {
        run("ip", &["-n", &self.name, "-batch", "-"], lines)
    }

    /// Loads an nftables ruleset into the namespace.
    pub fn nft(&self, ruleset: &str) -> anyhow::Result<()> {
        self.enter(|| run("nft", &["-f", "-"], ruleset))?
    }

    /// Removes the namespace; what runs in it is not touched.
    pub fn remove(&self) -> anyhow::Result<()> {
        run("ip", &["netns", "del", &self.name], "")
    }
}

impl Display for Netns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

/// Runs a tool to its end with `input` on stdin; a failure is an error that shows its stderr and the input.
fn run(program: &str, args: &[&str], input: &str) -> anyhow::Result<()> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {program}: is it installed?"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A tool that fails early closes its stdin; its own message says more than EPIPE.
        drop(stdin.write_all(input.as_bytes()));
    }
    let output = child.wait_with_output().with_context(|| format!("wait for {program}"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {}: {} {input}", args.join(" "), stderr.trim());
    }
    Ok(())
}
