//! `kubectl lb version`: this binary's version and those of the nodes.

use std::io::{self, Write};

use serde::Serialize;

use crate::columns::{self, NONE};
use crate::fleet::ask::FromNode;
use crate::version::Versions;

/// All versions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClusterVersions {
    /// This binary.
    #[serde(rename = "kubectl-lb")]
    pub own: &'static str,
    /// The nodes.
    pub nodes: Vec<NodeVersions>,
}

/// Those of one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeVersions {
    /// Its name.
    pub node: String,
    /// What is there.
    #[serde(flatten)]
    pub versions: Versions,
}

/// Collects them.
pub fn versions(answers: Vec<FromNode<Versions>>) -> ClusterVersions {
    let of_node = |FromNode { node, answer, .. }| NodeVersions { node, versions: answer };
    ClusterVersions {
        own: lb_core::build::VERSION,
        nodes: answers.into_iter().map(of_node).collect(),
    }
}

/// Prints them for people.
///
/// # Errors
/// When the output cannot be written.
pub fn print(out: &mut dyn Write, versions: &ClusterVersions) -> io::Result<()> {
    writeln!(out, "kubectl-lb  {}", versions.own)?;
    let header = ["NODE", "AGENT", "LBCTL", "COMMIT"].map(str::to_owned).to_vec();
    let line = |NodeVersions { node, versions }: &NodeVersions| {
        let agent = versions.agent.clone().unwrap_or_else(|| NONE.to_owned());
        vec![node.clone(), agent, versions.lbctl.to_string(), versions.commit.to_string()]
    };
    let lines = versions.nodes.iter().map(line);
    columns::align(out, &std::iter::once(header).chain(lines).collect::<Vec<_>>(), "")
}
