//! `lb-agent takeover`: removes what kube-proxy leaves behind on a node, once this agent does its work.
//!
//! Its rules go, in one step for each kind; the kernel's connection tracking is left as it is, so that connections
//! which kube-proxy has translated go on. With `--dry-run` it only shows what it would do, and which objects need
//! something that is otherwise here.
#![forbid(unsafe_code)]

mod chains;
mod differences;
mod legacy;
mod nftables;
mod obstacle;

use std::io::Write;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use self::differences::Differences;
use crate::config::Dirs;
use lb_kernel::foreign::{self, rules};

/// Between two looks at what is waited for.
const PAUSE: Duration = Duration::from_millis(500);
/// A kube-proxy that nothing else shows may write its rules again by then: at once for the rules of a Service that
/// changes, else at its next sync.
const COMES_BACK: Duration = Duration::from_secs(2);

/// What is here of kube-proxy's rules.
struct Leftovers {
    nftables: Vec<nftables::NftablesRules>,
    legacy: Vec<legacy::LegacyRules>,
    /// What cannot be removed from here, and how it can.
    left: Vec<String>,
}

impl Leftovers {
    fn find() -> anyhow::Result<Self> {
        let nftables = nftables::find().context("list nf_tables rules")?;
        let (mut legacy, mut left) = (Vec::new(), Vec::new());
        for found in legacy::find() {
            match found {
                Ok(found) if found.counts == (0, 0) => {}
                Ok(found) => legacy.push(found),
                Err(err) => left.push(format!("{err:#}")),
            }
        }
        if Path::new(rules::IPVS_DEVICE).exists() {
            left.push(
                "kube-proxy ran in IPVS mode (device kube-ipvs0 exists): run `kube-proxy --cleanup`, which removes its virtual servers and sets"
                    .to_owned(),
            );
        }
        Ok(Self { nftables, legacy, left })
    }

    /// Removes them; from how many places.
    fn remove(&self) -> anyhow::Result<usize> {
        nftables::remove(&self.nftables).context("remove nf_tables rules")?;
        self.legacy.iter().try_for_each(legacy::remove)?;
        Ok(self.nftables.len() + self.legacy.len())
    }

    fn nothing_is_left(self) -> anyhow::Result<()> {
        if self.left.is_empty() { Ok(()) } else { bail!(self.left.join("; ")) }
    }
}

/// Shows kube-proxy's rules on `out`, which objects find something else here, and why the rules would not be removed now.
///
/// # Errors
/// When they cannot be read, or not be removed from here.
pub(crate) fn show(dirs: &Dirs, out: &mut dyn Write) -> anyhow::Result<()> {
    let leftovers = Leftovers::find()?;
    print(out, &leftovers.nftables, &leftovers.legacy).context("write")?;
    Differences::gather(&dirs.state).show(out).context("write")?;
    if let Some(obstacle) = obstacle::find(&dirs.state) {
        writeln!(out, "not possible now: {obstacle}").context("write")?;
    }
    leftovers.nothing_is_left()
}

/// Removes kube-proxy's rules, and says on `out` which.
///
/// # Errors
/// When kube-proxy, or no agent, is at work here after `patience`, or something of kube-proxy's stays or comes back.
pub(crate) fn run(dirs: &Dirs, patience: Duration, out: &mut dyn Write) -> anyhow::Result<()> {
    let deadline = Instant::now() + patience;
    let mut was_reported = false;
    while let Some(obstacle) = obstacle::find(&dirs.state) {
        if Instant::now() >= deadline {
            bail!(obstacle);
        }
        if !was_reported {
            writeln!(out, "waiting: {obstacle}").context("write")?;
            was_reported = true;
        }
        thread::sleep(PAUSE);
    }
    let leftovers = Leftovers::find()?;
    print(out, &leftovers.nftables, &leftovers.legacy).context("write")?;
    if leftovers.remove()? == 0 {
        writeln!(out, "nothing to remove").context("write")?;
    } else {
        stay_away()?;
        writeln!(out, "removed").context("write")?;
    }
    leftovers.nothing_is_left()
}

/// Removes kube-proxy's rules, for an agent that knows that it may; from how many places.
///
/// # Errors
/// When the kernel refuses, or something has to be removed in another way.
pub(crate) fn remove() -> anyhow::Result<usize> {
    let leftovers = Leftovers::find()?;
    let removed = leftovers.remove()?;
    leftovers.nothing_is_left()?;
    Ok(removed)
}

/// Looks for a while whether the rules come back.
fn stay_away() -> anyhow::Result<()> {
    let deadline = Instant::now() + COMES_BACK;
    while Instant::now() < deadline {
        thread::sleep(PAUSE);
        let mut signs = rules::find();
        signs.retain(|sign| !matches!(sign, foreign::Sign::Ipvs));
        if !signs.is_empty() {
            bail!(
                "the rules were removed and came back ({}): kube-proxy still runs on this node, stop it first",
                foreign::words(&signs)
            );
        }
    }
    Ok(())
}

fn print(
    out: &mut dyn Write,
    nftables: &[nftables::NftablesRules],
    legacy: &[legacy::LegacyRules],
) -> std::io::Result<()> {
    for found in nftables {
        if found.is_own {
            writeln!(out, "nftables table {}: {} chains", found.name, found.chains.len())?;
            continue;
        }
        let (chains, jumps) = (found.chains.len(), found.jumps.len());
        writeln!(
            out,
            "iptables-nft table {}: {chains} chains, {jumps} rules jump to them",
            found.name
        )?;
        show_kept(out, &found.kept)?;
        if found.drops_forward {
            writeln!(
                out,
                "  its FORWARD chain has policy drop: traffic that only kube-proxy's rules accepted will be dropped"
            )?;
        }
    }
    for found in legacy {
        let (chains, jumps) = found.counts;
        writeln!(out, "legacy iptables: {chains} chains, {jumps} rules jump to them")?;
        show_kept(out, &found.kept)?;
    }
    Ok(())
}

fn show_kept(out: &mut dyn Write, kept: &[String]) -> std::io::Result<()> {
    if kept.is_empty() {
        return Ok(());
    }
    writeln!(out, "  {} stay: rules of another program jump to them", kept.join(" and "))
}
