//! Flags and environment → a valid [`AgentConfig`]. Everything is parsed here, once; an error names its flag.
//!
//! An empty value means "not given": a key of the ConfigMap may be there without a value.
#![forbid(unsafe_code)]

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use lb_common::limits;

use crate::flow_log::{FlowLogArgs, FlowLogConfig};
use lb_core::cluster::Prefix;
use lb_core::model::rules::{NodePortAddresses, Rules};
use lb_kernel::host_ports::HostPorts;
use lb_kube::api_server::{ACCOUNT, ConnectOptions, RequestObserver, known};

/// Where the kubelet keeps the address of the API server.
const KUBELET_KUBECONFIG: &str = "/etc/kubernetes/kubelet.conf";
/// kube-proxy's own addresses, so that its probes and scrapes keep working.
const HEALTHZ: &str = "0.0.0.0:10256";
const METRICS: &str = "127.0.0.1:10249";
/// Not kube-proxy's: the kubelet has to reach this agent also while kube-proxy holds those two.
const PROBES: &str = "127.0.0.1:10266";
/// Longer than applications are silent on connections that they use.
const PICKUP_GRACE: Duration = Duration::from_secs(300);
const PICKUP_GRACE_MOST: u64 = 86_400;

/// The command line of `lb-agent`.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "lb-agent",
    version,
    about = "Replaces kube-proxy on this node with eBPF",
    max_term_width = 100
)]
pub(crate) struct AgentCli {
    /// The command to run.
    #[command(subcommand)]
    pub command: AgentCommand,
}

/// The commands of lb-agent.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum AgentCommand {
    /// Run the agent until a signal arrives; programs and maps stay attached after that
    Run(Box<RunArgs>),
    /// Remove everything the agent left on the node: links, filters, maps, state
    Cleanup(CleanupArgs),
    /// Remove kube-proxy's rules from the kernel once the agent has taken over; connections continue
    Takeover(TakeoverArgs),
    /// Mount a bpf file system unless one is mounted, for nodes that boot without it
    MountBpffs(MountBpffsArgs),
}

/// Flags of `lb-agent run`.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct RunArgs {
    /// Name of this node in Kubernetes [default: the host name]
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// Read Services, EndpointSlices and Pods from the YAML files of this directory instead of Kubernetes
    #[arg(long, env = "LB_MANIFESTS", value_name = "DIR")]
    pub manifests: Option<String>,
    /// URL of the API server [default: in-cluster configuration, else the kubelet's server]
    #[arg(long, env = "LB_API_SERVER", value_name = "URL")]
    pub api_server: Option<String>,
    /// Kubeconfig with the API server's address and the credentials
    #[arg(long, env = "LB_KUBECONFIG", value_name = "PATH")]
    pub kubeconfig: Option<String>,
    /// The kubelet's kubeconfig; only the server's address is read from it [default: /etc/kubernetes/kubelet.conf]
    #[arg(long, env = "LB_KUBELET_KUBECONFIG", value_name = "PATH")]
    pub kubelet_kubeconfig: Option<String>,
    /// The directories that the agent shares with lbctl.
    #[command(flatten)]
    pub dirs: DirArgs,
    /// Directory where the ConfigMap with the settings is mounted, to report settings that are not in force [default: none]
    #[arg(long, env = "LB_SETTINGS_DIR", value_name = "DIR")]
    pub settings_dir: Option<String>,
    /// Root of the cgroup v2 hierarchy [default: found in /proc/mounts]
    #[arg(long, env = "LB_CGROUP", value_name = "DIR")]
    pub cgroup: Option<String>,
    /// Address of /healthz, /livez and /readyz [default: 0.0.0.0:10256]
    #[arg(long, env = "LB_HEALTHZ_BIND_ADDRESS", value_name = "IP:PORT")]
    pub healthz_bind_address: Option<String>,
    /// Address of /metrics [default: 127.0.0.1:10249]
    #[arg(long, env = "LB_METRICS_BIND_ADDRESS", value_name = "IP:PORT")]
    pub metrics_bind_address: Option<String>,
    /// Address of /livez and /readyz for the kubelet; kube-proxy never uses it [default: 127.0.0.1:10266]
    #[arg(long, env = "LB_PROBE_BIND_ADDRESS", value_name = "IP:PORT")]
    pub probe_bind_address: Option<String>,
    /// When to remove kube-proxy's rules: manual (only `lb-agent takeover` removes them) or when-gone (as soon as
    /// kube-proxy no longer runs on this node and the agent has taken over) [default: manual]
    #[arg(long, env = "LB_TAKEOVER", value_name = "WHEN")]
    pub takeover: Option<String>,
    /// Capacity of the conntrack table [default: 131,072 to 1,048,576, depending on the node's memory]
    #[arg(long, env = "LB_CT_ENTRIES", value_name = "N")]
    pub ct_entries: Option<String>,
    /// Node addresses that serve NodePorts: `primary`, or CIDRs like 10.0.0.0/8,2001:db8::/32 [default: primary]
    #[arg(long, env = "LB_NODE_PORT_ADDRESSES", value_name = "CIDRS")]
    pub node_port_addresses: Option<String>,
    /// Whether host processes can reach NodePorts at 127.0.0.1 and ::1: true or false [default: true]
    #[arg(long, env = "LB_LOCALHOST_NODE_PORTS", value_name = "BOOL")]
    pub localhost_node_ports: Option<String>,
    /// CIDRs of the externalIPs to serve, or `none`; an address of a Pod, Service or node is never served [default: all
    /// if Kubernetes enables externalIPs, which it does before 1.40; none without an API server]
    #[arg(long, env = "LB_EXTERNAL_IP_CIDRS", value_name = "CIDRS")]
    pub external_ip_cidrs: Option<String>,
    /// Source ports for flows from external clients that this node forwards to other nodes [default: the widest range
    /// above 10000 that overlaps neither net.ipv4.ip_local_port_range nor 30000-32767, usually 10000-29999]
    #[arg(long, env = "LB_MASQUERADE_PORTS", value_name = "FIRST-LAST")]
    pub masquerade_ports: Option<String>,
    /// What to do with a Pod that is not identified yet: standard (block it only while an isolated Pod could be behind
    /// its device) or strict (block it whenever any policy exists) [default: standard]
    #[arg(long, env = "LB_STARTUP", value_name = "MODE")]
    pub startup: Option<String>,
    /// Remove the taint KEY:NoSchedule from this node once its policies are enforced [default: none]
    #[arg(long, env = "LB_STARTUP_TAINT", value_name = "KEY")]
    pub startup_taint: Option<String>,
    /// Source addresses that Pods may use while any policy exists: strict (only their own) or others (also addresses
    /// that belong to no other Pod, node or Service) [default: strict]
    #[arg(long, env = "LB_SOURCE_CHECK", value_name = "MODE")]
    pub source_check: Option<String>,
    /// Whether flows between Pods, of one node or of several, go past the node's IP stack and netfilter: auto (unless one
    /// of the node's firewall rules is about them), on, or off [default: auto]
    #[arg(long, env = "LB_PAST_STACK", value_name = "MODE")]
    pub past_stack: Option<String>,
    /// CIDRs that Pods may claim with the annotation lb-agent.io/allowed-sources [default: none]
    #[arg(long, env = "LB_ALLOWED_SOURCE_CIDRS", value_name = "CIDRS")]
    pub allowed_source_cidrs: Option<String>,
    /// How long policies let connections continue whose start was not seen, after the maps were created or a Pod got
    /// its first policy: 0 to 86400 seconds [default: 300]
    #[arg(long, env = "LB_PICKUP_GRACE", value_name = "SECONDS")]
    pub pickup_grace: Option<String>,
    /// New flows per second that a Pod may open, and the same number that it may receive, averaged over a few seconds;
    /// 0 = unlimited [default: 20000]
    #[arg(long, env = "LB_POD_NEW_FLOWS", value_name = "N")]
    pub pod_new_flows: Option<String>,
    /// Whether to count packets and bytes of flows, for `lbctl ct` and `lbctl flows --by`: on (Linux 6.6; 320 bytes of memory
    /// for each conntrack entry there is room for) or off [default: off]
    #[arg(long, env = "LB_FLOW_ACCOUNTING", value_name = "MODE")]
    pub flow_accounting: Option<String>,
    /// Where flows are written for audit.
    #[command(flatten)]
    pub flow_log: FlowLogArgs,
    /// Least severity of log lines: error, warn, info, debug or trace [default: info]
    #[arg(long, env = "LB_LOG_LEVEL", value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Format of log lines: text or json [default: text]
    #[arg(long, env = "LB_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<String>,
}

/// Flags of `lb-agent cleanup`.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct CleanupArgs {
    /// Stay after that, and answer /readyz, until a signal arrives: a DaemonSet has rolled out when every node is clean
    #[arg(long)]
    pub wait: bool,
    /// Address of /livez and /readyz, with --wait [default: 127.0.0.1:10266]
    #[arg(long, env = "LB_PROBE_BIND_ADDRESS", value_name = "IP:PORT")]
    pub probe_bind_address: Option<String>,
    /// The directories to remove.
    #[command(flatten)]
    pub dirs: DirArgs,
}

/// Flags of `lb-agent takeover`.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct TakeoverArgs {
    /// Only print what would be removed
    #[arg(long)]
    pub dry_run: bool,
    /// Wait up to this long until kube-proxy no longer runs and the agent has taken over
    #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true, default_missing_value = "2m")]
    pub wait: Option<String>,
    /// The directories of the agent that takes over.
    #[command(flatten)]
    pub dirs: DirArgs,
}

/// Arguments of `lb-agent mount-bpffs`.
#[derive(Clone, Debug, Args)]
pub(crate) struct MountBpffsArgs {
    /// Mount point
    #[arg(default_value = "/sys/fs/bpf")]
    pub dir: PathBuf,
}

/// The directories of an agent.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct DirArgs {
    /// Directory of the pinned maps and links, in a bpf file system [default: /sys/fs/bpf/lb]
    #[arg(long, env = "LB_PIN_DIR", value_name = "DIR")]
    pub pin_dir: Option<String>,
    /// Directory of the lock and the name table [default: /run/lb]
    #[arg(long, env = "LB_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<String>,
    /// Directory of what is still of use after a reboot: the addresses of API servers [default: /var/lib/lb]
    #[arg(long, env = "LB_CACHE_DIR", value_name = "DIR")]
    pub cache_dir: Option<String>,
}

/// How severe an event must be to be logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogLevel {
    /// What the agent cannot do.
    Error,
    /// And what may be wrong.
    Warn,
    /// And what changes.
    #[default]
    Info,
    /// And each step of it.
    Debug,
    /// And what libraries of the agent say about themselves.
    Trace,
}

impl LogLevel {
    pub(crate) fn resolve(text: Option<String>) -> anyhow::Result<Self> {
        let Some(text) = given(text) else { return Ok(Self::default()) };
        Self::from_str(&text, false).map_err(|_unknown| {
            anyhow::anyhow!("--log-level: {text:?} is none of error, warn, info, debug, trace")
        })
    }

    /// What is logged, as `RUST_LOG` has it. Failed requests to the API server are logged by whoever made them.
    pub(crate) const fn filter(self) -> &'static str {
        match self {
            Self::Error => "error,kube_client=off",
            Self::Warn => "warn,kube_client=off",
            Self::Info => {
                "warn,kube_client=off,lb_agent=info,lb_core=info,lb_kernel=info,lb_kube=info"
            }
            Self::Debug => {
                "warn,kube_client=off,lb_agent=debug,lb_core=debug,lb_kernel=debug,lb_kube=debug"
            }
            Self::Trace => "debug,lb_agent=trace,lb_core=trace,lb_kernel=trace,lb_kube=trace",
        }
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What a Pod may do between its start and the moment its policies are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Startup {
    /// What all Pods may that are not known yet.
    #[default]
    Standard,
    /// Nothing but talk to its node, if there is any policy.
    Strict,
}

impl Startup {
    fn resolve(text: Option<String>) -> anyhow::Result<Self> {
        let Some(text) = given(text) else { return Ok(Self::default()) };
        Self::from_str(&text, false).map_err(|_unknown| {
            anyhow::anyhow!("--startup: {text:?} is neither standard nor strict")
        })
    }
}

/// Which sources Pods may send from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum SourceCheck {
    /// While there is any policy, their own addresses only.
    #[default]
    Strict,
    /// All that belong to no other Pod, node or Service.
    Others,
}

impl SourceCheck {
    fn resolve(text: Option<String>) -> anyhow::Result<Self> {
        let Some(text) = given(text) else { return Ok(Self::default()) };
        Self::from_str(&text, false).map_err(|_unknown| {
            anyhow::anyhow!("--source-check: {text:?} is neither strict nor others")
        })
    }
}

/// Whether flows between Pods of this node go past the IP stack and netfilter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum PastStack {
    /// Where no firewall rule of the node is about them.
    #[default]
    Auto,
    /// Whatever rules the node has, unless another program enforces policies by them.
    On,
    /// Never.
    Off,
}

impl PastStack {
    fn resolve(text: Option<String>) -> anyhow::Result<Self> {
        let Some(text) = given(text) else { return Ok(Self::default()) };
        Self::from_str(&text, false).map_err(|_unknown| {
            anyhow::anyhow!("--past-stack: {text:?} is neither auto, on nor off")
        })
    }
}

/// When kube-proxy's rules are removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Takeover {
    /// By `lb-agent takeover`.
    #[default]
    Manual,
    /// Once kube-proxy is gone from this node and the agent does its work.
    WhenGone,
}

impl Takeover {
    fn resolve(text: Option<String>) -> anyhow::Result<Self> {
        let Some(text) = given(text) else { return Ok(Self::default()) };
        Self::from_str(&text, false).map_err(|_unknown| {
            anyhow::anyhow!("--takeover: {text:?} is neither manual nor when-gone")
        })
    }
}

impl TakeoverArgs {
    /// Reads `--wait`.
    ///
    /// # Errors
    /// Names the flag.
    pub(crate) fn patience(&self) -> anyhow::Result<Duration> {
        self.wait.as_deref().map_or(Ok(Duration::ZERO), patience)
    }
}

impl CleanupArgs {
    /// Where to answer probes once the node is clean; `None` to end then.
    ///
    /// # Errors
    /// Names the flag.
    pub(crate) fn probes(&self) -> anyhow::Result<Option<SocketAddr>> {
        let given = self.probe_bind_address.clone();
        self.wait.then(|| address("--probe-bind-address", given, PROBES)).transpose()
    }
}

/// Where the facts come from.
#[derive(Clone, Debug)]
pub(crate) enum FactSource {
    /// An API server.
    Kubernetes(ConnectOptions),
    /// A directory of YAML files.
    Manifests(PathBuf),
}

/// The directories of an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dirs {
    /// Of pinned maps and links.
    pub pins: PathBuf,
    /// Of the lock and the name table.
    pub state: PathBuf,
    /// Of what outlives a reboot.
    pub cache: PathBuf,
}

/// A valid configuration of `lb-agent run`.
#[derive(Clone, Debug)]
pub(crate) struct AgentConfig {
    /// Name of this node.
    pub node_name: String,
    /// Where the facts come from.
    pub source: FactSource,
    /// Pins and state.
    pub dirs: Dirs,
    /// Where the ConfigMap is mounted.
    pub settings_dir: Option<PathBuf>,
    /// Root of the cgroup v2 hierarchy.
    pub cgroup: PathBuf,
    /// Address of /healthz, /livez and /readyz.
    pub healthz: SocketAddr,
    /// Address of /metrics.
    pub metrics: SocketAddr,
    /// Address of the kubelet's probes.
    pub probes: SocketAddr,
    /// When kube-proxy's rules are removed.
    pub takeover: Takeover,
    /// Capacity of the conntrack table.
    pub ct_entries: u32,
    /// Source ports of masqueraded flows.
    pub masquerade_ports: RangeInclusive<u16>,
    /// Which addresses outside the cluster are served.
    pub rules: Rules,
    /// What Pods may do that are not known yet.
    pub startup: Startup,
    /// Key of the taint that is taken off once this node's policies hold.
    pub startup_taint: Option<String>,
    /// Which sources Pods may send from.
    pub source_check: SourceCheck,
    /// Whether flows between Pods of this node go past the IP stack.
    pub past_stack: PastStack,
    /// What annotations of Pods may admit as sources.
    pub allowed_sources: Box<[Prefix]>,
    /// How long connections may be met in mid-flow.
    pub pickup_grace: Duration,
    /// New flows a second of a Pod, in each direction; 0 = any number.
    pub pod_new_flows: u32,
    /// Whether packets and bytes of flows are counted.
    pub flow_accounting: bool,
    /// Where flows are written for audit, if anywhere.
    pub flow_log: Option<FlowLogConfig>,
}

impl AgentConfig {
    /// Reads the flags, and from the machine what they leave open.
    ///
    /// # Errors
    /// Names the flag.
    pub(crate) fn resolve(args: RunArgs) -> anyhow::Result<Self> {
        let dirs = Dirs::resolve(args.dirs)?;
        Ok(Self {
            node_name: match given(args.node_name) {
                Some(name) => name,
                None => host_name().context("--node-name")?,
            },
            source: match (given(args.manifests), given(args.api_server), given(args.kubeconfig)) {
                (Some(_), Some(_), _) => bail!("--api-server: not used with --manifests"),
                (Some(_), _, Some(_)) => bail!("--kubeconfig: not used with --manifests"),
                (Some(dir), None, None) => FactSource::Manifests(directory("--manifests", &dir)?),
                (None, api_server, kubeconfig) => FactSource::Kubernetes(ConnectOptions {
                    api_server: api_server.map(url).transpose().context("--api-server")?,
                    kubeconfig: kubeconfig.map(|path| file("--kubeconfig", &path)).transpose()?,
                    kubelet_kubeconfig: given(args.kubelet_kubeconfig)
                        .map_or_else(|| KUBELET_KUBECONFIG.into(), PathBuf::from),
                    known_servers: dirs.cache.join(known::FILE),
                    account: ACCOUNT.into(),
                    requests: RequestObserver::default(),
                }),
            },
            dirs,
            settings_dir: given(args.settings_dir).map(PathBuf::from),
            cgroup: match given(args.cgroup) {
                Some(dir) => cgroup_root(&dir)?,
                None => find_cgroup(&fs::read_to_string("/proc/mounts").unwrap_or_default())?,
            },
            healthz: address("--healthz-bind-address", args.healthz_bind_address, HEALTHZ)?,
            metrics: address("--metrics-bind-address", args.metrics_bind_address, METRICS)?,
            probes: address("--probe-bind-address", args.probe_bind_address, PROBES)?,
            takeover: Takeover::resolve(args.takeover)?,
            masquerade_ports: match given(args.masquerade_ports) {
                Some(text) => masquerade_ports(&text)?,
                None => HostPorts::read().widest_rest(),
            },
            ct_entries: match given(args.ct_entries) {
                Some(text) => ct_entries(&text)?,
                None => ct_default(memory_bytes()),
            },
            startup: Startup::resolve(args.startup)?,
            startup_taint: given(args.startup_taint).map(taint_key).transpose()?,
            source_check: SourceCheck::resolve(args.source_check)?,
            past_stack: PastStack::resolve(args.past_stack)?,
            allowed_sources: prefixes("--allowed-source-cidrs", given(args.allowed_source_cidrs))?,
            pickup_grace: match given(args.pickup_grace) {
                Some(text) => pickup_grace(&text)?,
                None => PICKUP_GRACE,
            },
            pod_new_flows: match given(args.pod_new_flows) {
                Some(text) => pod_new_flows(&text)?,
                None => POD_NEW_FLOWS,
            },
            flow_accounting: flow_accounting(args.flow_accounting)?,
            flow_log: FlowLogConfig::resolve(args.flow_log)?,
            rules: Rules {
                node_ports: node_port_addresses(args.node_port_addresses)?,
                localhost: switch("--localhost-node-ports", args.localhost_node_ports, true)?,
                external_ips: external_ips(args.external_ip_cidrs)?,
            },
        })
    }
}

impl Dirs {
    /// Reads the flags.
    ///
    /// # Errors
    /// Names the flag whose value is not an absolute path.
    pub(crate) fn resolve(args: DirArgs) -> anyhow::Result<Self> {
        Ok(Self {
            pins: absolute("--pin-dir", args.pin_dir, limits::PIN_DIR)?,
            state: absolute("--state-dir", args.state_dir, limits::STATE_DIR)?,
            cache: absolute("--cache-dir", args.cache_dir, limits::CACHE_DIR)?,
        })
    }
}

impl LogFormat {
    /// Reads `--log-format`.
    ///
    /// # Errors
    /// Names the flag.
    pub(crate) fn resolve(text: Option<String>) -> anyhow::Result<Self> {
        let Some(text) = given(text) else { return Ok(Self::default()) };
        Self::from_str(&text, false)
            .map_err(|_unknown| anyhow::anyhow!("--log-format: {text:?} is neither text nor json"))
    }
}

fn given(value: Option<String>) -> Option<String> {
    value.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn address(flag: &str, value: Option<String>, default: &str) -> anyhow::Result<SocketAddr> {
    let text = given(value).unwrap_or_else(|| default.to_owned());
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    // kube-proxy takes an address without a port, too.
    let port = default.parse().map(|default: SocketAddr| default.port());
    match (text.parse::<IpAddr>(), port) {
        (Ok(ip), Ok(port)) => Ok(SocketAddr::new(ip, port)),
        _ => bail!("{flag}: {text:?} is not an address and port like {default}"),
    }
}

fn absolute(flag: &str, value: Option<String>, default: &str) -> anyhow::Result<PathBuf> {
    let path = PathBuf::from(given(value).unwrap_or_else(|| default.to_owned()));
    if !path.is_absolute() {
        bail!("{flag}: {} is not an absolute path", path.display());
    }
    Ok(path)
}

fn directory(flag: &str, text: &str) -> anyhow::Result<PathBuf> {
    let path = PathBuf::from(text);
    if !path.is_dir() {
        bail!("{flag}: {text} is not a directory");
    }
    Ok(path)
}

fn file(flag: &str, text: &str) -> anyhow::Result<PathBuf> {
    let path = PathBuf::from(text);
    if !path.is_file() {
        bail!("{flag}: {text} is not a file");
    }
    Ok(path)
}

fn url(text: String) -> anyhow::Result<String> {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    if host.is_none_or(|host| host.is_empty() || host.starts_with('/')) {
        bail!("{text:?} is not a URL like https://10.0.0.1:6443");
    }
    Ok(text)
}

/// The key of a taint: a name, perhaps behind a domain.
fn taint_key(text: String) -> anyhow::Result<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    if !text.chars().all(is_part) || text.matches('/').count() > 1 {
        bail!("--startup-taint: {text:?} is not the key of a taint, like example.com/starting");
    }
    Ok(text)
}

fn node_port_addresses(value: Option<String>) -> anyhow::Result<NodePortAddresses> {
    match given(value) {
        Some(text) if text != "primary" => {
            Ok(NodePortAddresses::Within(prefixes("--node-port-addresses", Some(text))?))
        }
        Some(_) | None => Ok(NodePortAddresses::Primary),
    }
}

/// `none`, or ranges; `None` when nothing is said.
fn external_ips(value: Option<String>) -> anyhow::Result<Option<Box<[Prefix]>>> {
    match given(value) {
        None => Ok(None),
        Some(text) if text == "none" => Ok(Some(Box::default())),
        Some(text) => Ok(Some(prefixes("--external-ip-cidrs", Some(text))?)),
    }
}

/// Ranges of addresses with commas in between.
fn prefixes(flag: &str, value: Option<String>) -> anyhow::Result<Box<[Prefix]>> {
    let text = given(value).unwrap_or_default();
    let texts = text.split(',').map(str::trim).filter(|text| !text.is_empty());
    let read = |text: &str| text.parse().with_context(|| format!("{flag}: {text:?}"));
    texts.map(read).collect()
}

fn switch(flag: &str, value: Option<String>, default: bool) -> anyhow::Result<bool> {
    let Some(text) = given(value) else { return Ok(default) };
    text.parse().map_err(|_unknown| anyhow::anyhow!("{flag}: {text:?} is neither true nor false"))
}

fn flow_accounting(value: Option<String>) -> anyhow::Result<bool> {
    match given(value).as_deref() {
        Some("on") => Ok(true),
        Some("off") | None => Ok(false),
        Some(text) => bail!("--flow-accounting: {text:?} is neither on nor off"),
    }
}

/// Not the ports of system services. That they are also none of NodePorts or of the host's own sockets is for the
/// operator to see to; `agent/masquerade.rs` tells when they are.
fn masquerade_ports(text: &str) -> anyhow::Result<RangeInclusive<u16>> {
    let bounds = text.split_once('-').and_then(|(first, last)| {
        Some((first.trim().parse::<u16>().ok()?, last.trim().parse::<u16>().ok()?))
    });
    match bounds {
        Some((first, last)) if first >= 1024 && first <= last => Ok(first..=last),
        _ => bail!(
            "--masquerade-ports: {text:?} is not a port range like 10000-29999 that starts at 1024 or above"
        ),
    }
}

fn ct_entries(text: &str) -> anyhow::Result<u32> {
    let entries: u32 =
        text.parse().with_context(|| format!("--ct-entries: {text:?} is not a number"))?;
    if !(limits::CT..=limits::CT_MAX).contains(&entries) {
        bail!("--ct-entries: {entries} is not between {} and {}", limits::CT, limits::CT_MAX);
    }
    Ok(entries)
}

/// New flows a second of a Pod by default: more than a busy proxy has, and little of what a node can do.
const POD_NEW_FLOWS: u32 = 20_000;

fn pod_new_flows(text: &str) -> anyhow::Result<u32> {
    text.parse().with_context(|| format!("--pod-new-flows: {text:?} is not a number"))
}

fn pickup_grace(text: &str) -> anyhow::Result<Duration> {
    match text.parse() {
        Ok(seconds @ 0..=PICKUP_GRACE_MOST) => Ok(Duration::from_secs(seconds)),
        _ => {
            bail!(
                "--pickup-grace: {text:?} is not a number of seconds from 0 to {PICKUP_GRACE_MOST}"
            )
        }
    }
}

/// A time like `90`, `90s` or `2m`.
fn patience(text: &str) -> anyhow::Result<Duration> {
    let (number, unit) = match text.strip_suffix('m') {
        Some(number) => (number, 60),
        None => (text.strip_suffix('s').unwrap_or(text), 1),
    };
    match number.parse::<u32>() {
        Ok(number) => Ok(Duration::from_secs(u64::from(number) * unit)),
        Err(_) => bail!("--wait: {text:?} is not a duration like 90s or 2m"),
    }
}

/// Conntrack entries by default, at most: more than that and the limit on memory in `deploy/daemonset.yaml` is too low.
const CT_DEFAULT_MOST: u32 = 1_048_576;

/// A quarter of a percent of the memory at about 152 bytes an entry, as a power of two.
fn ct_default(memory_bytes: u64) -> u32 {
    let entries = u32::try_from(memory_bytes / 400 / 152).unwrap_or(u32::MAX);
    let power = 1_u32.checked_shl(entries.max(1).ilog2()).unwrap_or(limits::CT);
    power.clamp(limits::CT, CT_DEFAULT_MOST)
}

fn memory_bytes() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    text.lines()
        .find_map(|line| {
            line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse().ok()
        })
        .map_or(0, |kilobytes: u64| kilobytes * 1024)
}

fn host_name() -> anyhow::Result<String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").context("read the host name")?;
    // Kubernetes lower-cases it, too (kubelet's nodeutil.GetHostname).
    given(Some(name.to_lowercase())).context("the host has no name")
}

/// Checks `--cgroup`.
fn cgroup_root(text: &str) -> anyhow::Result<PathBuf> {
    let path = PathBuf::from(text);
    if !path.join("cgroup.controllers").is_file() {
        bail!("--cgroup: {text} is not a directory of the cgroup v2 hierarchy");
    }
    Ok(path)
}

/// Finds the hierarchy among the mounts. Its root has no `cgroup.events`; in a container both its own part and the
/// host's whole may be mounted, and only programs at the root see the host's processes.
fn find_cgroup(mounts: &str) -> anyhow::Result<PathBuf> {
    let found: Vec<&Path> = cgroup_mounts(mounts).collect();
    let root = found.iter().find(|path| !path.join("cgroup.events").exists());
    match root.or(found.first()) {
        Some(path) => Ok(path.to_path_buf()),
        None => bail!(
            "--cgroup: no cgroup v2 hierarchy is mounted (`mount -t cgroup2 none /sys/fs/cgroup`): without it, host processes cannot use Services"
        ),
    }
}

fn cgroup_mounts(mounts: &str) -> impl Iterator<Item = &Path> {
    mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (_, path, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then_some(Path::new(path))
    })
}

#[cfg(test)]
mod documents;
#[cfg(test)]
mod tests {
    use super::{
        AgentCli, AgentCommand, AgentConfig, FactSource, LogFormat, NodePortAddresses, Rules,
        RunArgs, address, cgroup_mounts, ct_default, find_cgroup, masquerade_ports,
    };
    use clap::{CommandFactory as _, Parser as _};

    /// Flags that are not settings of a cluster: where things are on the node, and what the manifest of the DaemonSet knows.
    pub(super) const NO_SETTINGS: [&str; 9] = [
        "NODE_NAME",
        "LB_MANIFESTS",
        "LB_KUBECONFIG",
        "LB_KUBELET_KUBECONFIG",
        "LB_SETTINGS_DIR",
        "LB_CGROUP",
        "LB_PIN_DIR",
        "LB_STATE_DIR",
        "LB_CACHE_DIR",
    ];

    /// A file of `deploy/`.
    fn deployed(path: &str) -> String {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/");
        std::fs::read_to_string(format!("{root}{path}")).unwrap()
    }

    #[test]
    fn each_flag_is_a_setting_of_the_manifests_and_of_the_chart() {
        let command = AgentCli::command();
        let run = command.find_subcommand("run").unwrap();
        let mut flags: Vec<String> = run
            .get_arguments()
            .filter_map(|arg| {
                let env = arg.get_env()?.to_str()?;
                (!NO_SETTINGS.contains(&env)).then(|| arg.get_long().unwrap().to_owned())
            })
            .collect();
        flags.sort();
        let mut settings: Vec<String> = deployed("settings.env")
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| line.split('=').next().unwrap().to_owned())
            .collect();
        settings.sort();
        assert_eq!(flags, settings);
        let daemon_set = deployed("daemonset.yaml");
        let (values, schema) = (deployed("helm/values.yaml"), deployed("helm/values.schema.json"));
        for flag in flags {
            let env = flag.to_uppercase().replace('-', "_");
            let entry = format!(
                "            - name: LB_{env}\n              valueFrom:\n                \
                 configMapKeyRef: {{ name: lb-agent, key: {flag}, optional: true }}\n"
            );
            assert!(daemon_set.contains(&entry), "the DaemonSet does not pass {flag}");
            assert!(values.contains(&format!("\n  {flag}: ")), "values.yaml has no {flag}");
            assert!(schema.contains(&format!("\"{flag}\": {{")), "the schema has no {flag}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        AgentCli::command().debug_assert();
        assert!(AgentCli::try_parse_from(["lb-agent", "run", "--node-name", "n1"]).is_ok());
        for (words, want) in [
            ("--pin-dir /x", Some(None)),
            ("--wait", Some(Some("127.0.0.1:10266"))),
            ("--wait --probe-bind-address 127.0.0.1:1", Some(Some("127.0.0.1:1"))),
            ("--wait --probe-bind-address nowhere", None),
        ] {
            let all = ["lb-agent", "cleanup"].into_iter().chain(words.split(' '));
            let AgentCommand::Cleanup(args) = AgentCli::try_parse_from(all).unwrap().command else {
                panic!("another command");
            };
            let want = want.map(|address| address.map(|address| address.parse().unwrap()));
            assert_eq!(args.probes().ok(), want, "{words}");
        }
        assert!(AgentCli::try_parse_from(["lb-agent", "takeover", "--dry-run"]).is_ok());
        for (flag, want) in [
            (None, Some(0)),
            (Some("--wait"), Some(120)),
            (Some("--wait=90"), Some(90)),
            (Some("--wait=10s"), Some(10)),
            (Some("--wait=3m"), Some(180)),
            (Some("--wait=soon"), None),
        ] {
            let words = ["lb-agent", "takeover"].into_iter().chain(flag);
            let AgentCommand::Takeover(args) = AgentCli::try_parse_from(words).unwrap().command
            else {
                panic!("another command");
            };
            assert_eq!(args.patience().ok().map(|time| time.as_secs()), want, "{flag:?}");
        }
        assert!(AgentCli::try_parse_from(["lb-agent", "mount-bpffs", "/host/bpf"]).is_ok());
        assert!(AgentCli::try_parse_from(["lb-agent"]).is_err());
    }

    #[test]
    fn every_error_names_its_flag() {
        let set = |change: fn(&mut RunArgs)| {
            let mut args = RunArgs { node_name: Some("n1".to_owned()), ..RunArgs::default() };
            change(&mut args);
            args
        };
        let cases: [(&str, RunArgs); 23] = [
            ("--takeover: \"now\"", set(|args| args.takeover = Some("now".to_owned()))),
            (
                "--probe-bind-address",
                set(|args| args.probe_bind_address = Some("localhost:1".to_owned())),
            ),
            ("--startup-taint: \"a=b\"", set(|args| args.startup_taint = Some("a=b".to_owned()))),
            ("--past-stack: \"yes\"", set(|args| args.past_stack = Some("yes".to_owned()))),
            (
                "--flow-accounting: \"yes\"",
                set(|args| args.flow_accounting = Some("yes".to_owned())),
            ),
            ("--source-check: \"no\"", set(|args| args.source_check = Some("no".to_owned()))),
            (
                "--allowed-source-cidrs: \"10.8.0.0\"",
                set(|args| args.allowed_source_cidrs = Some("10.8.0.0".to_owned())),
            ),
            ("--pod-new-flows: \"many\"", set(|args| args.pod_new_flows = Some("many".to_owned()))),
            ("--pickup-grace: \"1h\"", set(|args| args.pickup_grace = Some("1h".to_owned()))),
            (
                "--node-port-addresses: \"all\"",
                set(|args| args.node_port_addresses = Some("10.0.0.0/8,all".to_owned())),
            ),
            (
                "--localhost-node-ports: \"no\"",
                set(|args| args.localhost_node_ports = Some("no".to_owned())),
            ),
            (
                "--external-ip-cidrs: \"192.0.2.1\"",
                set(|args| args.external_ip_cidrs = Some("192.0.2.1".to_owned())),
            ),
            ("--manifests", set(|args| args.manifests = Some("/nowhere".to_owned()))),
            (
                "--api-server: not used",
                set(|args| {
                    args.manifests = Some("/".to_owned());
                    args.api_server = Some("https://x".to_owned());
                }),
            ),
            ("--api-server", set(|args| args.api_server = Some("10.0.0.1:6443".to_owned()))),
            ("--kubeconfig", set(|args| args.kubeconfig = Some("/nowhere".to_owned()))),
            ("--pin-dir", set(|args| args.dirs.pin_dir = Some("lb".to_owned()))),
            ("--state-dir", set(|args| args.dirs.state_dir = Some("lb".to_owned()))),
            ("--cache-dir", set(|args| args.dirs.cache_dir = Some("lb".to_owned()))),
            ("--cgroup", set(|args| args.cgroup = Some("/proc".to_owned()))),
            (
                "--healthz-bind-address",
                set(|args| args.healthz_bind_address = Some("localhost:1".to_owned())),
            ),
            ("--ct-entries: \"many\"", set(|args| args.ct_entries = Some("many".to_owned()))),
            ("--ct-entries: 5 is not", set(|args| args.ct_entries = Some("5".to_owned()))),
        ];
        for (want, args) in cases {
            let error = format!("{:#}", AgentConfig::resolve(args).unwrap_err());
            assert!(error.starts_with(want), "{want}: {error}");
        }
        let error = LogFormat::resolve(Some("xml".to_owned())).unwrap_err().to_string();
        assert!(error.starts_with("--log-format"), "{error}");
    }

    #[test]
    fn empty_values_are_not_given() {
        let args = RunArgs {
            node_name: Some("n1".to_owned()),
            api_server: Some(String::new()),
            ct_entries: Some(" ".to_owned()),
            ..RunArgs::default()
        };
        let cfg = AgentConfig::resolve(args).unwrap();
        let FactSource::Kubernetes(options) = cfg.source else { panic!("not Kubernetes") };
        assert_eq!(options.api_server, None);
        assert_eq!(cfg.healthz.to_string(), "0.0.0.0:10256");
    }

    #[test]
    fn addresses_outside_the_cluster() {
        let rules = |ports: &str, localhost: &str, ips: &str| {
            let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            let args = RunArgs {
                node_name: Some("n1".to_owned()),
                node_port_addresses: given(ports),
                localhost_node_ports: given(localhost),
                external_ip_cidrs: given(ips),
                ..RunArgs::default()
            };
            AgentConfig::resolve(args).unwrap().rules
        };
        assert_eq!(rules("", "", ""), Rules::default());
        assert_eq!(rules("", "", "none").external_ips, Some(Box::default()));
        assert_eq!(rules("primary", "true", ""), Rules::default());
        let prefixes = |texts: &[&str]| -> Box<[_]> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let want = Rules {
            node_ports: NodePortAddresses::Within(prefixes(&["10.0.0.0/8", "::/0"])),
            localhost: false,
            external_ips: Some(prefixes(&["192.0.2.0/24"])),
        };
        assert_eq!(rules("10.0.0.0/8, ::/0", "false", "192.0.2.0/24,"), want);
    }

    #[test]
    fn addresses_may_lack_the_port() {
        for (text, want) in
            [("10.0.0.1", "10.0.0.1:10256"), ("::1", "[::1]:10256"), ("[::]:9", "[::]:9")]
        {
            let address = address("--x", Some(text.to_owned()), "0.0.0.0:10256").unwrap();
            assert_eq!(address.to_string(), want);
        }
    }

    #[test]
    fn ranges_of_ports() {
        for (text, want) in [
            ("10000-29999", Some(20_000)),
            (" 1024 - 1024 ", Some(1)),
            ("61000-65535", Some(4_536)),
            ("80-90", None),
            ("20000-10000", None),
            ("10000", None),
            ("10000-70000", None),
        ] {
            assert_eq!(masquerade_ports(text).ok().map(|ports| ports.len()), want, "{text}");
        }
    }

    #[test]
    fn conntrack_grows_with_memory() {
        for (gib, want) in
            [(0, 131_072), (1, 131_072), (16, 262_144), (64, 1_048_576), (4096, 1_048_576)]
        {
            assert_eq!(ct_default(gib << 30), want, "{gib} GiB");
        }
    }

    #[test]
    fn the_hierarchy_is_found_among_the_mounts() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let found: Vec<_> = cgroup_mounts(mounts).collect();
        assert_eq!(found, [std::path::Path::new("/sys/fs/cgroup/unified")]);
        let error = find_cgroup("proc /proc proc rw 0 0\n").unwrap_err().to_string();
        assert!(error.starts_with("--cgroup: no cgroup v2"), "{error}");
    }
}
