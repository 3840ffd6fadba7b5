//! What was found at a Service: its backends, or why there is none.
#![expect(missing_docs, reason = "a field without a comment is what its name says")]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::explain::code::Code;
use crate::unready::UnreadyPod;
use crate::view::BackendState;
use lb_core::admin::context::{EndpointContext, Label};
use lb_core::cluster::{Algorithm, Labels, Name, Prefix, ServiceType};

/// A Service with backends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceHop {
    /// The service port, as it is called.
    pub port: String,
    pub at: SocketAddr,
    /// How a backend is selected.
    pub algorithm: Algorithm,
    /// How many backends a new flow may get.
    pub n: usize,
    /// Endpoints that it cannot get.
    pub excluded: Vec<Excluded>,
    /// The other node whose maps translate the flow.
    pub translated_on: Option<Arc<str>>,
}

/// An endpoint that serves no client on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Excluded {
    /// Its address and target port.
    pub at: SocketAddr,
    /// The Pod, if it names one.
    pub pod: Option<Name>,
    /// Why, in the agent's words.
    pub why: String,
}

/// A backend that the Service may select.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendEvidence {
    /// Its address and port.
    pub at: SocketAddr,
    /// Its Pod, if known.
    pub pod: Option<Name>,
    /// The node where that runs, if known.
    pub node: Option<Arc<str>>,
    pub state: BackendState,
}

/// The way back through a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The backend, if there is only one.
    pub from: Option<SocketAddr>,
    pub at: SocketAddr,
    /// Whether the client is a process of a node, whose socket translates.
    pub to_process: bool,
}

/// A Service that leads nowhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unserved {
    /// The service port, as it is called; `None` when it is not known.
    pub port: Option<String>,
    /// The Service, as it is called; `None` when it is not known.
    pub service: Option<String>,
    pub why: Why,
}

/// Why a Service leads nowhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Why {
    /// The address is a Service's, and no frontend has the port.
    UnknownPort,
    /// The Service has other ports.
    NoSuchPort {
        /// The port that is dialed.
        port: u16,
        /// Ports and protocols that it has.
        has: Vec<(u16, u8)>,
    },
    /// In the range of ClusterIPs, and no Service's.
    Unallocated(IpAddr),
    /// An address outside the cluster that the Service names and that is not served: the field, and why.
    NotServed { field: String, because: String },
    /// A LoadBalancer without an address.
    NoLoadBalancerAddress,
    /// A Service of this type is not for clients outside the cluster.
    NotExternal(ServiceType),
    /// The maps have no frontend at these addresses.
    NotProgrammed(Vec<SocketAddr>),
    /// The client is not in the source ranges.
    SourceRange {
        /// The client's addresses.
        clients: Vec<IpAddr>,
        ranges: Vec<Prefix>,
    },
    /// The traffic policy is Local, and no endpoint is on this node.
    NoLocal {
        frontend: SocketAddr,
        /// Whether that is external, and the policy that for external clients.
        external: bool,
        /// The other node that this is about; `None` = this one.
        node: Option<Arc<str>>,
        /// Nodes with ready endpoints.
        ready_on: Vec<Arc<str>>,
    },
    /// There is no endpoint that could be selected.
    NoEndpoints {
        frontend: SocketAddr,
        /// Why there is none.
        cause: NoEndpoints,
    },
}

/// Why a Service has no endpoint that could be selected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NoEndpoints {
    /// Only the agent knows.
    Unknown,
    /// None of them is ready.
    NotReady {
        /// How many there are.
        n: u32,
        /// The first of them.
        first: Vec<EndpointContext>,
        /// Why their Pods are not ready, where that is known: a node does not know it.
        #[serde(default)]
        pods: Vec<UnreadyPod>,
    },
    /// There is no selector, and no EndpointSlice either.
    NoSelector,
    /// The selector selects no Pod.
    NoPod {
        selector: Labels,
        /// Similar labels, and how many Pods have each.
        similar: Vec<(Label, u32)>,
    },
    /// The selector selects this number of Pods, and none of them has an address yet.
    NoAddress {
        /// How many.
        selected: u32,
        /// The first of them.
        #[serde(default)]
        first: Vec<Name>,
        /// Why they are not ready, where that is known: a node does not know it.
        #[serde(default)]
        pods: Vec<UnreadyPod>,
    },
    /// The selector selects this number of Pods, and none of them is an endpoint.
    NotEndpoints {
        /// How many.
        selected: u32,
    },
}

impl Why {
    /// The code.
    pub const fn code(&self) -> Code {
        match self {
            Self::UnknownPort | Self::NoSuchPort { .. } => Code::UndefinedPort,
            Self::NoLoadBalancerAddress => Code::LbNoAddress,
            Self::Unallocated(_) => Code::UnallocatedIp,
            Self::NotServed { .. } => Code::AddressNotServed,
            Self::NotExternal(_) => Code::NoFrontend,
            Self::NotProgrammed(_) => Code::NotProgrammed,
            Self::SourceRange { .. } => Code::SourceRange,
            Self::NoLocal { .. } => Code::NoLocalEndpoint,
            Self::NoEndpoints { cause, .. } => match cause {
                NoEndpoints::Unknown | NoEndpoints::NoSelector => Code::NoEndpoints,
                NoEndpoints::NotReady { .. } => Code::NoEndpointsNotReady,
                NoEndpoints::NoPod { .. } => Code::NoEndpointsSelector,
                NoEndpoints::NoAddress { .. } => Code::NoEndpointsAddress,
                NoEndpoints::NotEndpoints { .. } => Code::NamedPortUnresolved,
            },
        }
    }
}
