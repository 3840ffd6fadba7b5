//! Which chains go with kube-proxy's: all of its own, unless others need them. Pure.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use lb_kernel::netfilter::is_of_kube_proxy;

/// Marks packets that `KUBE-POSTROUTING` masquerades. Runtimes with host ports use it, too.
const MARK_MASQ: &str = "KUBE-MARK-MASQ";
const POSTROUTING: &str = "KUBE-POSTROUTING";

/// A rule, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Jump<R> {
    /// The chain that it is in.
    pub from: String,
    /// Whether that is a chain of the kernel's own (`PREROUTING`, …).
    pub from_hook: bool,
    /// The chain that it leads to.
    pub to: String,
    /// How the rule is removed.
    pub rule: R,
}

/// What is to be removed from one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Doomed<R> {
    /// The rules in others' chains that lead to kube-proxy's: without them it does nothing any more.
    pub jumps: Vec<R>,
    /// kube-proxy's chains.
    pub chains: Vec<String>,
    /// Chains of kube-proxy that stay, since other rules use them.
    pub kept: Vec<String>,
}

/// What goes, of a table with these chains and jumps.
pub(super) fn doomed<R>(
    chains: impl IntoIterator<Item = String>,
    jumps: Vec<Jump<R>>,
) -> Doomed<R> {
    let ours = is_of_kube_proxy;
    let mut all: BTreeSet<String> = chains.into_iter().filter(|name| ours(name)).collect();
    let mut kept = Vec::new();
    let marks_for_others =
        |jump: &Jump<R>| jump.to == MARK_MASQ && !jump.from_hook && !ours(&jump.from);
    if jumps.iter().any(marks_for_others) {
        kept.extend([MARK_MASQ, POSTROUTING].into_iter().filter(|name| all.remove(*name)));
    }
    let jumps = jumps
        .into_iter()
        .filter(|jump| all.contains(&jump.to) && !all.contains(&jump.from))
        .map(|jump| jump.rule)
        .collect();
    let kept = kept.into_iter().map(str::to_owned).collect();
    Doomed { jumps, chains: all.into_iter().collect(), kept }
}

#[cfg(test)]
mod tests {
    use super::{Doomed, Jump, doomed};

    fn jump(from: &str, to: &str, rule: u64) -> Jump<u64> {
        let from_hook = !from.contains('-');
        Jump { from: from.to_owned(), from_hook, to: to.to_owned(), rule }
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    const NAT: [&str; 9] = [
        "PREROUTING",
        "POSTROUTING",
        "CNI-HOSTPORT",
        "KUBE-SERVICES",
        "KUBE-SVC-4SW47YFZTEDKD3PK",
        "KUBE-SEP-6XXFWL2OVNLBVWZS",
        "KUBE-MARK-MASQ",
        "KUBE-POSTROUTING",
        "KUBE-POD-FW-ABC",
    ];

    #[test]
    fn only_kube_proxys_chains_and_the_jumps_to_them_go() {
        let jumps = vec![
            jump("PREROUTING", "KUBE-SERVICES", 1),
            jump("PREROUTING", "CNI-HOSTPORT", 2),
            jump("POSTROUTING", "KUBE-POSTROUTING", 3),
            jump("KUBE-SERVICES", "KUBE-SVC-4SW47YFZTEDKD3PK", 4),
            jump("KUBE-SVC-4SW47YFZTEDKD3PK", "KUBE-MARK-MASQ", 5),
            jump("PREROUTING", "KUBE-POD-FW-ABC", 6),
            jump("KUBE-POD-FW-ABC", "KUBE-SERVICES", 7),
        ];
        let mut chains = names(&NAT[3..8]);
        chains.sort();
        let want = Doomed { jumps: vec![1, 3, 7], chains, kept: vec![] };
        assert_eq!(doomed(names(&NAT), jumps), want);
    }

    #[test]
    fn a_mark_that_another_chain_sets_keeps_its_meaning() {
        let jumps = vec![
            jump("POSTROUTING", "KUBE-POSTROUTING", 1),
            jump("PREROUTING", "KUBE-SERVICES", 2),
            jump("CNI-HOSTPORT", "KUBE-MARK-MASQ", 3),
        ];
        let got = doomed(names(&NAT), jumps);
        assert_eq!(got.jumps, [2]);
        assert_eq!(got.kept, ["KUBE-MARK-MASQ", "KUBE-POSTROUTING"]);
        assert!(!got.chains.contains(&"KUBE-POSTROUTING".to_owned()));
    }

    #[test]
    fn the_kubelets_chains_stay() {
        let kubelet = names(&["KUBE-FIREWALL", "KUBE-KUBELET-CANARY", "KUBE-MARK-DROP", "INPUT"]);
        let got = doomed(kubelet, vec![jump("INPUT", "KUBE-FIREWALL", 1)]);
        assert_eq!(got, Doomed { jumps: vec![], chains: vec![], kept: vec![] });
    }
}
