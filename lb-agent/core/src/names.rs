//! The name table `<state-dir>/names.json`: what the numbers in the pinned maps are called, and how the agent is.
//!
//! The agent writes it whenever the tables change; `lbctl` reads it beside the maps. It holds names only, so it may
//! be stale or missing: then `lbctl` shows numbers. It knows neither maps nor the API.
//!
//! With 10,000 Services it is rewritten often, so it is compact (short keys, defaults left out) and streams: no
//! second copy of the tables in memory. Strings are `Cow`, so that the agent lends its own.
#![expect(missing_docs, reason = "a field without a comment is what its name says")]

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Write as _};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use lb_common::flow::proto;
use serde::{Deserialize, Serialize};

use crate::cluster;

mod part;
mod policy;
#[cfg(test)]
mod tests;

pub use self::part::{State, StatusPart};
pub use self::policy::{GroupName, IdentName, PolicyName, PolicyRef, RuleName};

/// Name of the file in the state directory.
pub const FILE: &str = "names.json";
/// Version of the layout; raised when an older reader would misunderstand the file. New optional fields do not.
pub const LAYOUT: u32 = 1;

/// The whole file. Order within the lists has no meaning. Times are Unix seconds, 0 = not known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Names<'a> {
    /// [`LAYOUT`] of the writer.
    pub layout: u32,
    /// This node, as Kubernetes or `--node-name` calls it.
    pub node: Cow<'a, str>,
    /// The agent that wrote the file.
    pub agent: AgentInfo<'a>,
    /// Where its facts come from.
    pub source: Source<'a>,
    /// The first and last of `--masquerade-ports`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub masquerade_ports: Option<[u16; 2]>,
    /// The firewall rule of the node for which flows between Pods go through the IP stack, or why rules cannot be read.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub host_rule: Cow<'a, str>,
    /// Lines of `lbctl status`, in the order to be shown.
    pub subsystems: Vec<Subsystem<'a>>,
    /// The issues of all objects at the last sync.
    pub issues: Vec<IssueLine<'a>>,
    /// Service ports, by the `service_id` of the maps.
    pub services: Vec<ServiceName<'a>>,
    /// Backends, by the backend id of the maps.
    pub backends: Vec<BackendName<'a>>,
    /// Nodes with their zones; [`BackendName::place`] and [`RejectedName::place`] count from 1 in this list.
    pub places: Vec<Place<'a>>,
    /// Endpoints that serve no client on this node.
    pub rejected: Vec<RejectedName<'a>>,
    /// Pods of this node, by the ifindex of their veth.
    pub pods: Vec<PodName<'a>>,
    /// The last packet dropped of each reason and direction.
    pub drops: Vec<DropExample>,
    /// Policies, in the order of evaluation.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<PolicyName<'a>>,
    /// Groups of rules; those included that the maps had until a few minutes ago.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupName<'a>>,
    /// Identities of Pods.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub idents: Vec<IdentName<'a>>,
}

/// The agent that wrote the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AgentInfo<'a> {
    /// Version of the binary.
    pub version: Cow<'a, str>,
    /// Process id, in the agent's own PID namespace.
    pub pid: u32,
    /// Time of its start.
    pub started: u64,
    /// Time of this write.
    pub written: u64,
    /// Time of the last sync that left nothing pending.
    pub synced: u64,
}

/// Where the agent's facts come from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Source<'a> {
    /// `kubernetes` or `manifests`.
    pub kind: Cow<'a, str>,
    /// URL of the API server, or the directory.
    pub place: Cow<'a, str>,
}

/// One line of `lbctl status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Subsystem<'a> {
    /// The name of its [`StatusPart`]; of another version of the agent perhaps another word.
    pub name: Cow<'a, str>,
    /// How it is.
    pub state: State,
    /// One line for people: `12 Pods, pod_out and pod_in by tcx`.
    pub detail: Cow<'a, str>,
}

/// One thing that is wrong with one object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IssueLine<'a> {
    /// The object: `Service default/web`, `File services.yaml:12`.
    pub object: Cow<'a, str>,
    /// Path of the field, or empty.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub field: Cow<'a, str>,
    /// What is wrong with it.
    pub message: Cow<'a, str>,
    /// `namespace/name` of the Service that suffers, when `object` is something else of its (a slice); else empty.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub service: Cow<'a, str>,
    /// First seen.
    pub since: u64,
}

/// One service port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceName<'a> {
    /// `service_id` in the maps; 0 while it could not be programmed.
    pub id: u32,
    #[serde(rename = "ns")]
    pub namespace: Cow<'a, str>,
    /// Name of the Service.
    pub name: Cow<'a, str>,
    /// Name of the port, may be empty.
    #[serde(rename = "pn", skip_serializing_if = "str::is_empty")]
    pub port_name: Cow<'a, str>,
    /// The Service's port, host order.
    #[serde(rename = "p")]
    pub port: u16,
    /// IP protocol number.
    #[serde(rename = "proto", skip_serializing_if = "is_tcp")]
    pub protocol: u8,
    /// `spec.type`.
    #[serde(rename = "type", skip_serializing_if = "is_cluster_ip")]
    pub kind: Cow<'a, str>,
    /// The ClusterIPs it should answer at, whether programmed or not.
    #[serde(rename = "at")]
    pub frontends: Vec<SocketAddr>,
    /// What else it should answer at.
    #[serde(rename = "ext", skip_serializing_if = "Vec::is_empty")]
    pub externals: Vec<ExternalName>,
    /// Endpoints of all states, both families.
    #[serde(rename = "t")]
    pub endpoints: u32,
    /// Those of them that are ready.
    #[serde(rename = "r")]
    pub ready: u32,
    /// `metadata.creationTimestamp`.
    #[serde(rename = "c", skip_serializing_if = "is_zero")]
    pub created: u64,
}

impl Default for ServiceName<'_> {
    fn default() -> Self {
        Self {
            id: 0,
            namespace: Cow::Borrowed(""),
            name: Cow::Borrowed(""),
            port_name: Cow::Borrowed(""),
            port: 0,
            protocol: proto::TCP,
            kind: Cow::Borrowed(CLUSTER_IP),
            frontends: Vec::new(),
            externals: Vec::new(),
            endpoints: 0,
            ready: 0,
            created: 0,
        }
    }
}

/// A frontend that is not a ClusterIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExternalName {
    /// Its address and port.
    pub at: SocketAddr,
    /// What the address is.
    #[serde(rename = "is")]
    pub scope: ExternalScope,
}

/// The kind of the address of a frontend that is not a ClusterIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExternalScope {
    /// This node's.
    NodePort,
    /// A load balancer's.
    LoadBalancer,
    /// In `spec.externalIPs`.
    ExternalIp,
    /// Loopback.
    Localhost,
    /// One of a later agent.
    #[serde(other)]
    Other,
}

impl ExternalScope {
    /// The word in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LoadBalancer",
            Self::ExternalIp => "ExternalIP",
            Self::Localhost => "Localhost",
            Self::Other => "External",
        }
    }
}

/// An endpoint's conditions, as one word.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum EndpointConditions {
    /// `ready`.
    #[default]
    Ready,
    /// `serving` and `terminating` (KEP-1669).
    Serving,
    /// `terminating`, not serving.
    Terminating,
    /// None of them.
    NotReady,
    /// No EndpointSlice has the address any more.
    Gone,
}

impl EndpointConditions {
    /// The word in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Serving => "serving",
            Self::Terminating => "terminating",
            Self::NotReady => "not-ready",
            Self::Gone => "gone",
        }
    }

    fn is_ready(&self) -> bool {
        *self == Self::Ready
    }
}

impl From<cluster::Conditions> for EndpointConditions {
    fn from(record: cluster::Conditions) -> Self {
        match (record.ready, record.serving, record.terminating) {
            (true, _, _) => Self::Ready,
            (false, true, true) => Self::Serving,
            (false, false, true) => Self::Terminating,
            (false, _, false) => Self::NotReady,
        }
    }
}

/// One backend: an endpoint of one service port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BackendName<'a> {
    /// Backend id in the maps.
    pub id: u32,
    /// Id of its service port. A draining backend is in no slot, so the maps alone do not tell.
    #[serde(rename = "s")]
    pub service_id: u32,
    /// `namespace/name` of the Pod, empty when the endpoint names none.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub pod: Cow<'a, str>,
    /// Place of the endpoint in [`Names::places`], counted from 1; 0 = not known.
    #[serde(rename = "at", skip_serializing_if = "is_zero_u32")]
    pub place: u32,
    #[serde(rename = "is", skip_serializing_if = "EndpointConditions::is_ready")]
    pub conditions: EndpointConditions,
}

/// An endpoint of one Service port that serves no client on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectedName<'a> {
    /// Id of the service port.
    #[serde(rename = "s")]
    pub service_id: u32,
    /// Its address and target port.
    #[serde(rename = "ep")]
    pub endpoint: SocketAddr,
    /// `namespace/name` of the Pod, empty when the endpoint names none.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub pod: Cow<'a, str>,
    /// Place of the endpoint in [`Names::places`], counted from 1; 0 = not known.
    #[serde(default, rename = "at", skip_serializing_if = "is_zero_u32")]
    pub place: u32,
    #[serde(default, rename = "is", skip_serializing_if = "EndpointConditions::is_ready")]
    pub conditions: EndpointConditions,
    /// Why, in a few words.
    pub why: Cow<'a, str>,
}

/// A node and its zone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct Place<'a> {
    /// Name of the node, may be empty.
    pub node: Cow<'a, str>,
    /// Its zone, may be empty.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub zone: Cow<'a, str>,
}

/// A Pod of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodName<'a> {
    /// ifindex of the host side of its veth: the key in the map `pods`.
    pub ifindex: u32,
    /// Name of that device.
    pub iface: Cow<'a, str>,
    /// Namespace; empty when no Pod is known by the address behind the veth.
    #[serde(rename = "ns")]
    pub namespace: Cow<'a, str>,
    pub name: Cow<'a, str>,
    /// `metadata.creationTimestamp`.
    #[serde(rename = "c", skip_serializing_if = "is_zero")]
    pub created: u64,
}

/// The last packet that was dropped for one reason in one direction, from the ring buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropExample {
    /// Number of the [`lb_common::verdict::DropReason`].
    pub reason: u8,
    /// Whether the packet was entering the Pod.
    pub ingress: bool,
    /// IP protocol number.
    #[serde(rename = "proto")]
    pub protocol: u8,
    /// Source of the packet.
    pub src: SocketAddr,
    /// Destination of the packet.
    pub dst: SocketAddr,
    /// ifindex of the Pod's veth.
    pub ifindex: u32,
    /// Id of the service port, 0 when none is involved.
    pub service_id: u32,
    /// When.
    pub at: u64,
    /// Group of the policies that judged it, 0 when none did.
    #[serde(default, rename = "g", skip_serializing_if = "is_zero_u32")]
    pub group: u32,
    /// Number of the [`lb_common::policy::Judgement`].
    #[serde(default, rename = "j", skip_serializing_if = "is_zero_u32")]
    pub judgement: u32,
}

/// Why the name table could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum NamesError {
    /// The file or its directory is not accessible.
    #[error("name table {path}: {source}", path = path.display())]
    Io {
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The file is not a name table.
    #[error("name table {path}: {source}", path = path.display())]
    Json {
        path: PathBuf,
        /// What is wrong, with line and column.
        source: serde_json::Error,
    },
    /// The writer was an agent of another layout.
    #[error("name table {path} has layout {found}, this binary reads {LAYOUT}", path = path.display())]
    Layout {
        path: PathBuf,
        /// Layout found.
        found: u32,
    },
}

/// Writes the table to `path` as a whole: a reader sees the old file or the new one, never a part.
///
/// `names` is a [`Names`], or serialises to the same: the agent streams its lists out of its own tables.
///
/// There is no `fsync`: the state directory is on a tmpfs and dies with the maps it describes.
///
/// # Errors
/// When the directory does not exist, is read-only or full.
pub fn write(path: &Path, names: &impl Serialize) -> Result<(), NamesError> {
    let io = |source| NamesError::Io { path: path.to_owned(), source };
    let partial = path.with_extension("json.tmp");
    let mut file = BufWriter::with_capacity(1 << 16, File::create(&partial).map_err(io)?);
    serde_json::to_writer(&mut file, names)
        .map_err(|source| NamesError::Json { path: partial.clone(), source })?;
    file.flush().map_err(io)?;
    fs::rename(&partial, path).map_err(io)
}

/// The range of source ports that the last agent gave to masqueraded flows, by its table at `path`; `None` when there is
/// no such table, or it does not say.
pub fn masquerade_ports(path: &Path) -> Option<RangeInclusive<u16>> {
    #[derive(Deserialize)]
    struct Stored {
        masquerade_ports: Option<[u16; 2]>,
    }
    let file = BufReader::with_capacity(1 << 16, File::open(path).ok()?);
    let Stored { masquerade_ports } = serde_json::from_reader(file).ok()?;
    masquerade_ports.map(|[first, last]| first..=last)
}

/// Reads the table at `path`.
///
/// # Errors
/// When there is no file, it is not ours, or its layout is another one.
pub fn read(path: &Path) -> Result<Names<'static>, NamesError> {
    /// What every layout has; read first, so that another layout is not reported as broken JSON.
    #[derive(Deserialize)]
    struct Header {
        layout: u32,
    }
    let open = || {
        File::open(path)
            .map(|file| BufReader::with_capacity(1 << 16, file))
            .map_err(|source| NamesError::Io { path: path.to_owned(), source })
    };
    let json = |source| NamesError::Json { path: path.to_owned(), source };
    let Header { layout } = serde_json::from_reader(open()?).map_err(json)?;
    if layout != LAYOUT {
        return Err(NamesError::Layout { path: path.to_owned(), found: layout });
    }
    serde_json::from_reader(open()?).map_err(json)
}

const CLUSTER_IP: &str = "ClusterIP";

fn is_tcp(protocol: &u8) -> bool {
    *protocol == proto::TCP
}

fn is_cluster_ip(kind: &str) -> bool {
    kind == CLUSTER_IP
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

fn is_zero_u32(value: &u32) -> bool {
    *value == 0
}
