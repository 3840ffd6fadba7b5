//! What is wrong with a cluster's Services and policies, or probably not meant, without a cluster: findings for the review of
//! manifests before they are applied.
//!
//! Pure. Selectors are asked about the Pods that are known, and whether a Service's clients are admitted is asked of the
//! evaluator of the programs.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use lb_common::listed;

use crate::cluster::{Cluster, Dirty, Event, Kind, Name};
use crate::issue::{Issue, ObjectRef};
use crate::model::Desired;
use crate::model::policy;
use crate::model::rules::Rules;

mod policies;
mod service_ports;
mod services;

pub(crate) use self::policies::lint;
pub(crate) use self::service_ports::ServicePorts;

listed! {
    /// What a finding is.
    pub enum Lint {
        UnreadableManifest: "UNREADABLE_MANIFEST", "A document cannot be read, so what it says is not applied";
        DuplicateObject: "DUPLICATE_OBJECT", "Two documents are about the same object, and only one can be applied";
        InvalidField: "INVALID_FIELD", "A field has a value that lb does not take, or takes in another way";
        SelectorMatchesNothing: "SELECTOR_MATCHES_NOTHING", "A selector selects no Pod";
        NamedPortUnresolved: "NAMED_PORT_UNRESOLVED", "No selected Pod has a container port with the name";
        ServicePortInPolicy: "SERVICE_PORT_IN_POLICY", "A policy names the port of a Service; it judges the port of the Pods behind it";
        HintPeerOr: "HINT_PEER_OR", "Two entries of a list of peers are alternatives, where one with both selectors was probably meant";
        ServiceWithoutClients: "SERVICE_WITHOUT_CLIENTS", "Policies admit no client to the Pods of a Service";
    }
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// It may be what was meant.
    Note,
    /// It is probably not what was meant.
    Warning,
    /// It does not do what it says.
    Error,
}

impl Severity {
    /// The word in tables, and the level in SARIF.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LintFinding {
    /// What it is.
    pub lint: Lint,
    /// How bad it is.
    pub severity: Severity,
    /// The object and the field, and one sentence.
    pub issue: Issue,
}

impl LintFinding {
    fn new(lint: Lint, severity: Severity, issue: Issue) -> Self {
        Self { lint, severity, issue }
    }
}

/// The cluster in which these events are all there is.
pub fn cluster(events: impl IntoIterator<Item = Event>) -> Cluster {
    let mut cluster = Cluster::new("");
    for event in events {
        cluster.apply(event);
    }
    for kind in Kind::ALL {
        cluster.apply(Event::Synced(kind));
    }
    cluster
}

/// All findings about the objects of a cluster, but for those of fields that could not be read.
pub fn findings(cluster: &Cluster) -> Vec<LintFinding> {
    let mut desired = Desired::new(Rules::default());
    let services = cluster.services().map(|(name, _)| name.clone()).collect();
    desired.update(cluster, &Dirty { services, ..Dirty::default() });
    // Those of nodes are about the node that is missing here.
    let is_about_objects = |issue: &&Issue| issue.object.kind != "Node";
    let compiled = policy::compile(cluster);
    let issues = desired.issues().filter(is_about_objects).chain(&compiled.issues);
    let of_fields = issues.cloned().map(invalid_field);
    let mut findings: Vec<LintFinding> =
        of_fields.chain(policies::findings(cluster)).chain(services::findings(cluster)).collect();
    let mut seen = BTreeSet::new();
    findings.retain(|finding| seen.insert((finding.lint.name(), finding.issue.clone())));
    findings
}

/// The finding for what is wrong with a field.
pub fn invalid_field(issue: Issue) -> LintFinding {
    LintFinding::new(Lint::InvalidField, Severity::Error, issue)
}

/// Several names in one sentence: `a, b and 3 more`.
fn list(names: &[&Name]) -> String {
    const MOST: usize = 3;
    let named: Vec<String> = names.iter().take(MOST).map(ToString::to_string).collect();
    match names.len().saturating_sub(MOST) {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

fn service_object(name: &Name) -> ObjectRef {
    ObjectRef::new("Service", name)
}
