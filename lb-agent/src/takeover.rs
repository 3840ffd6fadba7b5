//! `lb-agent takeover`: removes what kube-proxy leaves behind on a node, once this agent does its work.
//!
//! Its rules go, in one step for each kind; the kernel's connection tracking is left as it is, so that connections
//! which kube-proxy has translated go on. With `--dry-run` it only shows what it would do.
#![forbid(unsafe_code)]

mod chains;
mod legacy;
mod nftables;

use std::io::Write;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};

use crate::config::Dirs;
use crate::ctl::running;
use crate::names::{self, Names, State};
use crate::observe::foreign;

/// The device of kube-proxy's IPVS mode.
const IPVS_DEVICE: &str = "/sys/class/net/kube-ipvs0";
/// The agent writes its name table at least every ten seconds, unless it is very busy.
const FRESH: Duration = Duration::from_secs(60);

/// Shows kube-proxy's rules on `out` and, without `dry_run`, removes them.
///
/// # Errors
/// When kube-proxy or no agent is at work here, or something of kube-proxy's stays.
pub fn run(dirs: &Dirs, dry_run: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    let nftables = nftables::find().context("read the rules of nf_tables")?;
    let (mut legacy, mut left) = (Vec::new(), Vec::new());
    for found in legacy::find() {
        match found {
            Ok(found) if found.counts == (0, 0) => {}
            Ok(found) => legacy.push(found),
            Err(err) => left.push(format!("{err:#}")),
        }
    }
    if Path::new(IPVS_DEVICE).exists() {
        left.push(
            "kube-proxy ran in IPVS mode (device kube-ipvs0 is here): run `kube-proxy --cleanup`, which removes its virtual servers and sets"
                .to_owned(),
        );
    }
    show(out, &nftables, &legacy).context("write")?;
    let obstacle = obstacle(&dirs.state);
    if dry_run {
        if let Some(obstacle) = obstacle {
            writeln!(out, "not now: {obstacle}").context("write")?;
        }
    } else if let Some(obstacle) = obstacle {
        bail!(obstacle);
    } else {
        nftables::remove(&nftables).context("remove the rules of nf_tables")?;
        legacy.iter().try_for_each(legacy::remove)?;
        let n = nftables.len() + legacy.len();
        writeln!(out, "{}", if n == 0 { "nothing to remove" } else { "removed" })
            .context("write")?;
    }
    if left.is_empty() { Ok(()) } else { bail!(left.join("; ")) }
}

/// Why it is too early; `None` when this agent does kube-proxy's work and kube-proxy is gone.
fn obstacle(state_dir: &Path) -> Option<String> {
    if foreign::is_running() {
        return Some(
            "kube-proxy is still running and would write its rules again: delete its DaemonSet first"
                .to_owned(),
        );
    }
    if running::is_locked(state_dir) == Some(false) {
        return Some(format!("no agent runs on {}: start it first", state_dir.display()));
    }
    match names::read(&state_dir.join(names::FILE)) {
        Ok(names) => unready(&names, SystemTime::now()),
        Err(err) => Some(format!("how the agent is cannot be told: {err}")),
    }
}

/// What the agent has yet to do before kube-proxy's rules can go.
fn unready(names: &Names<'_>, now: SystemTime) -> Option<String> {
    let written = UNIX_EPOCH + Duration::from_secs(names.agent.written);
    if now.duration_since(written).is_ok_and(|age| age > FRESH) {
        return Some(
            "the agent has not said for a minute how it is: see `lbctl status`".to_owned(),
        );
    }
    if names.agent.synced == 0 {
        return Some("the agent has not written all Services yet: see `lbctl status`".to_owned());
    }
    let needed = ["api", "programs", "services"];
    let bad = names.subsystems.iter().find(|s| needed.contains(&&*s.name) && s.state != State::Ok);
    bad.map(|bad| format!("the agent's {} are not ready: {}", bad.name, bad.detail))
}

fn show(
    out: &mut dyn Write,
    nftables: &[nftables::Found],
    legacy: &[legacy::Found],
) -> std::io::Result<()> {
    for found in nftables {
        if found.is_own {
            writeln!(out, "nftables table {}: {} chains", found.name, found.chains.len())?;
            continue;
        }
        let (chains, jumps) = (found.chains.len(), found.jumps.len());
        writeln!(
            out,
            "iptables-nft table {}: {chains} chains, {jumps} rules lead to them",
            found.name
        )?;
        show_kept(out, &found.kept)?;
        if found.drops_forward {
            writeln!(
                out,
                "  its chain FORWARD drops by policy: what only kube-proxy's rules accepted there is dropped then"
            )?;
        }
    }
    for found in legacy {
        let (chains, jumps) = found.counts;
        writeln!(out, "legacy iptables: {chains} chains, {jumps} rules lead to them")?;
        show_kept(out, &found.kept)?;
    }
    Ok(())
}

fn show_kept(out: &mut dyn Write, kept: &[String]) -> std::io::Result<()> {
    if kept.is_empty() {
        return Ok(());
    }
    writeln!(out, "  {} stay: rules of somebody else lead to them", kept.join(" and "))
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::time::{Duration, UNIX_EPOCH};

    use super::unready;
    use crate::names::{Names, State, Subsystem};

    #[test]
    fn the_agent_must_have_synced_and_attached() {
        let names = |written: u64, synced: u64, programs: State| {
            let mut names = Names::default();
            (names.agent.written, names.agent.synced) = (written, synced);
            names.subsystems =
                [("api", State::Ok), ("programs", programs), ("kube-proxy", State::Degraded)]
                    .map(|(name, state)| Subsystem {
                        name: Cow::Borrowed(name),
                        state,
                        detail: Cow::Borrowed("3 of 4 Pods"),
                    })
                    .into();
            names
        };
        let now = UNIX_EPOCH + Duration::from_secs(1000);
        for (names, want) in [
            (names(995, 900, State::Ok), None),
            (names(900, 900, State::Ok), Some("the agent has not said for a minute")),
            (names(995, 0, State::Ok), Some("the agent has not written all Services")),
            (names(995, 900, State::Waiting), Some("the agent's programs are not ready: 3 of 4")),
        ] {
            let got = unready(&names, now);
            match want {
                None => assert_eq!(got, None),
                Some(want) => {
                    assert!(got.as_deref().is_some_and(|got| got.starts_with(want)), "{got:?}")
                }
            }
        }
    }
}
