//! kube-proxy's rules in the legacy tables of iptables. The kernel gives and takes those as a whole only, in a layout
//! of their own, so the host's `iptables-legacy-save` and `iptables-legacy-restore` are asked.
#![forbid(unsafe_code)]

use std::io::{self, Write as _};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

use super::chains::{self, Jump};
use lb_kernel::foreign::rules;
use lb_kernel::netfilter::legacy::LISTS;

/// The programs' names, in the order of [`LISTS`].
const PROGRAMS: [(&str, &str); 2] = [
    ("iptables-legacy-save", "iptables-legacy-restore"),
    ("ip6tables-legacy-save", "ip6tables-legacy-restore"),
];

/// kube-proxy's rules of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LegacyRules {
    restore: &'static str,
    /// Input of the restore program, without `--flush`.
    pub script: String,
    /// Number of chains, and of rules that lead to them.
    pub counts: (usize, usize),
    /// Chains that stay, since other rules use them.
    pub kept: Vec<String>,
}

/// Looks for kube-proxy's rules. `Err` in an element: they are there, or may be, and cannot be read.
pub(super) fn find() -> Vec<anyhow::Result<LegacyRules>> {
    LISTS
        .into_iter()
        .zip(PROGRAMS)
        .filter(|((family, names), _)| rules::in_legacy(*family, names) != Some(false))
        .map(|(_, (save, restore))| {
            let found = plan(&saved(save)?);
            Ok(LegacyRules { restore, ..found })
        })
        .collect()
}

/// Removes what was found.
///
/// # Errors
/// When the program is missing or fails; the tables are as before then.
pub(super) fn remove(found: &LegacyRules) -> anyhow::Result<()> {
    let restore = found.restore;
    let mut child = Command::new(restore)
        .args(["--noflush", "--wait", "5"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {restore}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(found.script.as_bytes()).with_context(|| format!("write to {restore}"))?;
    }
    let output = child.wait_with_output().with_context(|| format!("wait for {restore}"))?;
    if !output.status.success() {
        bail!("{restore}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn saved(save: &str) -> anyhow::Result<String> {
    let output = match Command::new(save).stdin(Stdio::null()).output() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => bail!(
            "kube-proxy's rules are in the legacy iptables, and {save} is not installed to read them: run `lb-agent takeover` on the node itself, or `kube-proxy --cleanup`"
        ),
        other => other.with_context(|| format!("start {save}"))?,
    };
    if !output.status.success() {
        bail!("{save}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What has to be said to the restore program, from what the save program says.
fn plan(saved: &str) -> LegacyRules {
    let mut found = LegacyRules::default();
    for table in saved.split("\nCOMMIT") {
        let mut name = None;
        let mut chains = Vec::new();
        let mut jumps = Vec::new();
        for line in table.lines() {
            if let Some(table) = line.strip_prefix('*') {
                name = Some(table);
            } else if let Some(chain) = line.strip_prefix(':') {
                let mut words = chain.split(' ');
                let chain = words.next().unwrap_or_default().to_owned();
                // Chains of the kernel's own have a policy, others a dash.
                chains.push((chain, words.next() != Some("-")));
            } else if let Some(rule) = line.strip_prefix("-A ") {
                jumps.extend(jump(rule));
            }
        }
        let Some(name) = name else { continue };
        for jump in &mut jumps {
            jump.from_hook = chains.iter().any(|(chain, hook)| *hook && *chain == jump.from);
        }
        let doomed = chains::doomed(chains.into_iter().map(|(chain, _)| chain), jumps);
        found.kept.extend(doomed.kept);
        if doomed.chains.is_empty() {
            continue;
        }
        found.counts.0 += doomed.chains.len();
        found.counts.1 += doomed.jumps.len();
        let mut say = |line: &str| {
            found.script.push_str(line);
            found.script.push('\n');
        };
        say(&format!("*{name}"));
        // A chain that is named is emptied, all of them before any other line takes effect.
        doomed.chains.iter().for_each(|chain| say(&format!(":{chain} - [0:0]")));
        doomed.jumps.iter().for_each(|rule| say(&format!("-D {rule}")));
        doomed.chains.iter().for_each(|chain| say(&format!("-X {chain}")));
        say("COMMIT");
    }
    found
}

/// A rule as `iptables-save` shows it behind `-A`.
fn jump(rule: &str) -> Option<Jump<String>> {
    let from = rule.split(' ').next()?.to_owned();
    let mut words = rule.split(' ').skip_while(|word| !matches!(*word, "-j" | "-g"));
    let to = words.nth(1)?.to_owned();
    Some(Jump { from, from_hook: false, to, rule: rule.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::plan;

    #[test]
    fn what_is_saved_becomes_what_is_restored() {
        let saved = "# Generated by iptables-save v1.8.9
*filter
:INPUT ACCEPT [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:FORWARD DROP [0:0]
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
COMMIT
*mangle
:PREROUTING ACCEPT [0:0]
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-NPX46M4PTMTKRN6Y - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -j KUBE-SVC-NPX46M4PTMTKRN6Y
COMMIT
";
        let want = "*filter
:KUBE-FORWARD - [0:0]
-D FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-X KUBE-FORWARD
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-SVC-NPX46M4PTMTKRN6Y - [0:0]
-D PREROUTING -j KUBE-SERVICES
-X KUBE-SERVICES
-X KUBE-SVC-NPX46M4PTMTKRN6Y
COMMIT
";
        let found = plan(saved);
        assert_eq!(found.script, want);
        assert_eq!((found.counts, found.kept.len()), ((3, 2), 0));
        assert_eq!(plan("*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n").script, "");
    }
}
