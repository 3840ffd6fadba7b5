//! Whether this node has done what an object says: what `lbctl wait` asks.

use serde::{Deserialize, Serialize};

use crate::cluster::Name;

/// The object that is waited for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AwaitedObject {
    /// A Service that is to be in the maps.
    Service(Name),
    /// A policy that is to be enforced; without a namespace a ClusterNetworkPolicy. If given, this `metadata.generation` of it or
    /// a later one.
    Policy(Name, Option<i64>),
}

/// How far the agent is with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ObjectProgress {
    /// The maps say what the object says, as far as it is valid.
    Done,
    /// The agent does not know such an object.
    Missing,
    /// Not yet, and why: one sentence. It can be done without a change of the object.
    Pending(String),
    /// Not as it is written, and why: it needs a change of an object or of the node.
    Refused(Vec<String>),
}
