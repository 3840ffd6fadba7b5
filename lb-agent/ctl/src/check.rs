//! `lbctl check`: what of this node keeps the agent from working, before it is installed (`--pre`) or after.
//!
//! Facts are read from the machine ([`MachineFacts`], by `run`), judged here, and printed as rows with stable codes.
#![expect(missing_docs, reason = "a field without a comment is what its name says")]

use std::ops::RangeInclusive;

use lb_common::listed;
use serde::{Serialize, Serializer};

use crate::columns::{Cell, Column, Row, RowScope, Style};
use crate::status::Report;
use lb_core::names::{State, StatusPart};

/// Flags of `check`.
#[derive(Clone, Debug, clap::Args)]
pub struct CheckArgs {
    /// Only what must be right before the installation
    #[arg(long)]
    pub pre: bool,
    /// From which severity on the exit status is 2
    #[arg(long, value_enum, default_value_t = CheckFailOn::Error, value_name = "SEVERITY")]
    pub fail_on: CheckFailOn,
    /// URL of the API server that the agent will be given, to be tried
    #[arg(long, env = "LB_API_SERVER", value_name = "URL")]
    pub api_server: Option<String>,
    /// How to print them
    #[command(flatten)]
    pub style: Style,
}

/// From which severity on a check fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum CheckFailOn {
    Warning,
    Error,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CheckSeverity {
    /// Nothing to do.
    Ok,
    /// Works in part, or only if what is named is intended.
    Warning,
    /// Does not work.
    Error,
}

impl CheckSeverity {
    const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "WARNING",
            Self::Error => "ERROR",
        }
    }
}

impl Serialize for CheckSeverity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

listed! {
    /// What is checked. A code never changes its meaning.
    pub enum CheckCode {
        Kernel: "KERNEL",
            "The kernel is new enough.",
            "Use Linux 6.1 or later, best 6.1.72, 6.6.11, or 6.7 and later.";
        Btf: "BTF",
            "The kernel describes its types (`/sys/kernel/btf/vmlinux`).",
            "Use a kernel built with CONFIG_DEBUG_INFO_BTF=y.";
        Capabilities: "CAPABILITIES",
            "The process may load programs: CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN.",
            "Run the check as root. The DaemonSet gives the agent these capabilities.";
        Bpffs: "BPFFS",
            "A bpf file system is mounted at `/sys/fs/bpf`.",
            "Mount it, as systemd does, or use the component `mount-bpffs`, whose init container does.";
        Cgroup: "CGROUP_V2",
            "A cgroup v2 hierarchy is mounted.",
            "Boot with systemd.unified_cgroup_hierarchy=1, or `mount -t cgroup2 none /sys/fs/cgroup`.";
        Forwarding: "FORWARDING",
            "The kernel forwards packets between devices.",
            "Set net.ipv4.ip_forward and net.ipv6.conf.all.forwarding to 1, as kubelets and CNI plugins demand.";
        KubeProxy: "KUBE_PROXY",
            "kube-proxy neither runs on the node nor left rules there.",
            "Install lb beside it, then follow the chapter about replacing kube-proxy.";
        OtherEnforcer: "OTHER_ENFORCER",
            "No other component on the node enforces policies or translates Services.",
            "Switch its policies and its kube-proxy replacement off, or remove it: two enforcers deny what either denies.";
        PortRanges: "PORT_RANGES",
            "NodePorts, the ports of the host's own sockets and the ports for masquerading do not overlap.",
            "Set net.ipv4.ip_local_port_range or reserve NodePorts in net.ipv4.ip_local_reserved_ports; or set masquerade-ports.";
        ApiServer: "API_SERVER",
            "The API server answers at an address that does not depend on a Service.",
            "Set api-server in the ConfigMap to the address of a control plane node or of its load balancer.";
        Agent: "AGENT",
            "The agent runs and has programmed the node.",
            "Check `kubectl -n kube-system logs` of the agent's Pod, and `lbctl status`.";
        Subsystem: "SUBSYSTEM",
            "Every line of `lbctl status` is OK.",
            "Follow the line's own advice.";
        Objects: "OBJECTS",
            "No object of a user has an issue.",
            "Correct the objects that `lbctl status` lists.";
    }
}

impl CheckCode {
    /// The anchor of the code in the documentation.
    pub fn anchor(self) -> String {
        format!("docs/src/check.md#{}", self.name().to_lowercase().replace('_', "-"))
    }
}

/// What the machine says.
#[derive(Clone, Debug, Default)]
pub struct MachineFacts {
    /// `uname -r`.
    pub kernel: String,
    /// Why the kernel or the capabilities do not do.
    pub kernel_obstacle: Option<String>,
    /// What does not work under this kernel.
    pub kernel_weakness: Option<String>,
    pub btf: bool,
    /// Capabilities that are missing.
    pub missing_capabilities: Vec<&'static str>,
    pub bpffs: bool,
    pub cgroup2: bool,
    /// IPv4, IPv6.
    pub forwards: [bool; 2],
    /// Signs of kube-proxy, and whether it runs.
    pub kube_proxy: Vec<(String, bool)>,
    /// Signs of other enforcers.
    pub enforcers: Vec<String>,
    /// `net.ipv4.ip_local_port_range`, and whether it has NodePorts that are not reserved.
    pub local_ports: Option<(RangeInclusive<u16>, bool)>,
    /// The ports that masquerading takes unless it is told otherwise, and whether the host's sockets use them, too.
    pub masquerade_ports: Option<(RangeInclusive<u16>, bool)>,
    pub api_server: ApiServerFact,
}

/// What is known of the API server.
#[derive(Clone, Debug, Default)]
pub enum ApiServerFact {
    /// No address was found.
    #[default]
    Unknown,
    /// It takes connections there; the second is where the address is from.
    Answers(String, String),
    /// It does not, and why.
    Silent(String, String, String),
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CheckRow {
    pub severity: CheckSeverity,
    pub code: &'static str,
    /// What was found.
    pub detail: String,
    /// What to do; empty where nothing is.
    pub hint: &'static str,
    /// Where the documentation says more.
    pub docs: String,
}

impl Row for CheckRow {
    const NOUN: &'static str = "checks";
    const SCOPE: RowScope = RowScope::Cluster;
    const COLUMNS: &'static [Column] = &[
        Column::new("STATE"),
        Column::new("CODE"),
        Column::new("DETAIL"),
        Column::new("HINT"),
        Column::wide("DOCS"),
    ];

    fn cells(&self) -> Vec<Cell> {
        vec![
            Cell::Text(self.severity.word().to_owned()),
            Cell::Text(self.code.to_owned()),
            Cell::Text(self.detail.clone()),
            Cell::Note(self.hint.to_owned()),
            Cell::Text(self.docs.clone()),
        ]
    }

    fn name(&self) -> Option<String> {
        Some(self.code.to_owned())
    }
}

fn row(code: CheckCode, severity: CheckSeverity, detail: impl Into<String>) -> CheckRow {
    let hint = if severity == CheckSeverity::Ok { "" } else { code.what_to_do() };
    CheckRow { severity, code: code.name(), detail: detail.into(), hint, docs: code.anchor() }
}

/// Whether a check with these rows fails.
pub fn fails(rows: &[CheckRow], on: CheckFailOn) -> bool {
    let least = match on {
        CheckFailOn::Warning => CheckSeverity::Warning,
        CheckFailOn::Error => CheckSeverity::Error,
    };
    rows.iter().any(|row| row.severity >= least)
}

/// Judges the machine.
pub fn machine(facts: &MachineFacts) -> Vec<CheckRow> {
    use CheckSeverity::{Error, Ok, Warning};
    let kernel = match (&facts.kernel_obstacle, &facts.kernel_weakness) {
        (Some(why), _) => row(CheckCode::Kernel, Error, why.clone()),
        (None, Some(why)) => row(CheckCode::Kernel, Warning, why.clone()),
        (None, None) => row(CheckCode::Kernel, Ok, facts.kernel.clone()),
    };
    let is = |code, good: bool, bad: CheckSeverity, yes: &str, no: &str| match good {
        true => row(code, Ok, yes),
        false => row(code, bad, no),
    };
    let missing = facts.missing_capabilities.join(", ");
    let [v4, v6] = facts.forwards;
    vec![
        kernel,
        is(CheckCode::Btf, facts.btf, Error, "present", "no /sys/kernel/btf/vmlinux"),
        is(
            CheckCode::Capabilities,
            missing.is_empty(),
            Error,
            "complete",
            &format!("missing {missing}"),
        ),
        is(CheckCode::Bpffs, facts.bpffs, Warning, "mounted", "no bpf file system at /sys/fs/bpf"),
        is(CheckCode::Cgroup, facts.cgroup2, Error, "mounted", "no cgroup v2 hierarchy is mounted"),
        match (v4, v6) {
            (true, true) => row(CheckCode::Forwarding, Ok, "IPv4 and IPv6"),
            (true, false) => {
                row(CheckCode::Forwarding, Warning, "net.ipv6.conf.all.forwarding is 0")
            }
            (false, _) => row(CheckCode::Forwarding, Warning, "net.ipv4.ip_forward is 0"),
        },
        kube_proxy(facts),
        match facts.enforcers.as_slice() {
            [] => row(CheckCode::OtherEnforcer, Ok, "none found"),
            found => row(CheckCode::OtherEnforcer, Warning, found.join("; ")),
        },
        ports(facts),
        api_server(&facts.api_server),
    ]
}

fn kube_proxy(facts: &MachineFacts) -> CheckRow {
    let signs: Vec<&str> = facts.kube_proxy.iter().map(|(sign, _)| sign.as_str()).collect();
    match signs.as_slice() {
        [] => row(CheckCode::KubeProxy, CheckSeverity::Ok, "not detected"),
        signs => row(CheckCode::KubeProxy, CheckSeverity::Warning, signs.join("; ")),
    }
}

fn ports(facts: &MachineFacts) -> CheckRow {
    let text = |range: &RangeInclusive<u16>| format!("{}-{}", range.start(), range.end());
    let mut found = Vec::new();
    let mut bad = false;
    if let Some((range, overlaps)) = &facts.local_ports {
        bad |= overlaps;
        let how = if *overlaps { ", which NodePorts 30000-32767 are in" } else { "" };
        found.push(format!("sockets of the host get {}{how}", text(range)));
    }
    if let Some((range, overlaps)) = &facts.masquerade_ports {
        bad |= overlaps;
        let how = if *overlaps { ", which these are in" } else { "" };
        found.push(format!("masquerading gets {}{how}", text(range)));
    }
    let severity = if bad { CheckSeverity::Warning } else { CheckSeverity::Ok };
    row(CheckCode::PortRanges, severity, found.join("; "))
}

fn api_server(fact: &ApiServerFact) -> CheckRow {
    match fact {
        ApiServerFact::Unknown => {
            let detail = "no address found: neither --api-server nor a kubelet.conf";
            row(CheckCode::ApiServer, CheckSeverity::Warning, detail)
        }
        ApiServerFact::Answers(at, from) => {
            row(CheckCode::ApiServer, CheckSeverity::Ok, format!("{at} answers ({from})"))
        }
        ApiServerFact::Silent(at, from, why) => {
            row(CheckCode::ApiServer, CheckSeverity::Error, format!("{at} ({from}): {why}"))
        }
    }
}

/// Judges what the agent says of the node.
pub fn installed(report: &Report) -> Vec<CheckRow> {
    let severity = |state: State| match state {
        State::Ok => CheckSeverity::Ok,
        State::Waiting | State::Degraded => CheckSeverity::Warning,
        State::Failed => CheckSeverity::Error,
    };
    let mut rows: Vec<CheckRow> = (report.subsystems.iter())
        .map(|line| match line.subsystem.as_str() {
            name if name == StatusPart::Agent.name() => {
                row(CheckCode::Agent, severity(line.state), line.detail.clone())
            }
            name => {
                let detail = format!("{name}: {}", line.detail);
                row(CheckCode::Subsystem, severity(line.state), detail)
            }
        })
        .collect();
    rows.push(match report.issues.len() {
        0 => row(CheckCode::Objects, CheckSeverity::Ok, "no issues"),
        n => {
            let first = report.issues.first();
            let first =
                first.map(|issue| format!("; the first: {}", issue.object)).unwrap_or_default();
            row(CheckCode::Objects, CheckSeverity::Warning, format!("issues: {n}{first}"))
        }
    });
    rows
}

#[cfg(test)]
mod tests;
