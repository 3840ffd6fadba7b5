//! The lines of `lbctl status` and their states, with the rows of docs/src/status.md.

use lb_common::listed;
use serde::{Deserialize, Serialize};

listed! {
    /// What a line of `lbctl status` is about.
    pub enum StatusPart {
        Agent: "agent",
            "The agent: whether it runs, its version, when it was last in sync. FAILED while no agent runs: traffic goes on with the maps as they are.",
            "See why it does not run: `kubectl -n kube-system logs` of its Pod with `--previous`, or `lbctl check`.";
        Names: "names",
            "Only if the name table of the agent cannot be read: lbctl then shows numbers in place of names.",
            "Run lbctl of the agent's own image, and let an agent run: it writes the table.";
        Api: "api",
            "Where the agent reads objects. WAITING until the first list of each kind is complete, DEGRADED while the API server refuses a kind.",
            "The kinds that are missing are named. Check the address of the API server and, if it refuses, the ClusterRole.";
        Programs: "programs",
            "The devices with and without programs. WAITING while one of them has none yet, DEGRADED if it cannot get them.",
            "The error of the kernel is named, with the device.";
        Tunnels: "tunnels",
            "The UDP ports of the node's tunnels. Pods cannot send to them.",
            "Nothing.";
        Services: "services",
            "Services that are programmed completely. WAITING until the first plan is written.",
            "See the list of issues: it names what does not fit or cannot be read.";
        Policies: "policies",
            "Policies that are enforced as they are written. DEGRADED if their rules have no room, or Pods that they need cannot be listed.",
            "Use fewer or broader rules; or let the agent list Pods again.";
        ExternalIps: "external-ips",
            "Which `externalIPs` are served, and by what that is decided.",
            "Nothing, or set `external-ip-cidrs`.";
        Conntrack: "conntrack",
            "Entries of the conntrack table. DEGRADED if new connections evict others, or a Pod takes more than its share.",
            "Raise `ct-entries`, or lower `pod-new-flows`.";
        Masquerade: "masquerade",
            "Source ports for external clients. DEGRADED if most ports towards one backend are in use.",
            "Widen `masquerade-ports`, or spread the clients over more nodes.";
        PastStack: "past-stack",
            "Which flows go past the IP stack, and why others do not. Never DEGRADED: both ways deliver.",
            "Nothing. To use the faster way, remove the reason that is named.";
        KubeProxy: "kube-proxy",
            "Signs of kube-proxy on the node. DEGRADED while it runs or its rules are there.",
            "Follow the chapter about replacing kube-proxy.";
        Kernel: "kernel",
            "The version of the kernel. DEGRADED if something does not work under it.",
            "Update the kernel.";
        Settings: "settings",
            "Whether the settings of the mounted ConfigMap are in force; only if one is mounted. Never DEGRADED.",
            "Restart the agent: `kubectl -n kube-system rollout restart ds/lb-agent`.";
        Audit: "audit",
            "Only if something else changed the agent's maps.",
            "Find what did. `lbctl diff` lists the elements, `lbctl diff --repair` writes them again.";
        Tables: "tables",
            "What the maps have, counted by lbctl. DEGRADED if frontends are missing that the agent wanted.",
            "Run `lbctl services`: it marks them.";
        Maps: "maps",
            "How full the maps are. DEGRADED from 90 percent on.",
            "The remedy for the map is in the first line.";
    }
}

/// How a part of the agent is doing.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    #[default]
    Ok,
    /// Not there yet: the initial lists, the first sync.
    Waiting,
    /// Works in part, or something needs attention.
    Degraded,
    /// Does not work.
    Failed,
}

impl State {
    /// All of them, from good to bad.
    pub const ALL: [Self; 4] = [Self::Ok, Self::Waiting, Self::Degraded, Self::Failed];

    /// The word in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Waiting => "WAITING",
            Self::Degraded => "DEGRADED",
            Self::Failed => "FAILED",
        }
    }

    /// What it means, in a sentence.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Ok => "As it should be.",
            Self::Waiting => {
                "Not there yet: the first lists, the first plan, the first device. It ends by itself."
            }
            Self::Degraded => "Works in part, or needs attention. The line says what to do.",
            Self::Failed => "Does not work.",
        }
    }
}
