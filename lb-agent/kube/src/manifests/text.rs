//! Manifests that are not in a directory of the agent: their objects as events, once, with what is wrong with them.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::document;
use lb_core::cluster::{Event, Kind, Name};
use lb_core::issue::{Issue, ObjectRef};

/// What a text of manifests says.
#[derive(Debug, Default)]
pub struct ReadManifests {
    /// The objects, in their order.
    pub objects: Vec<ReadObject>,
    /// Documents that are not such objects.
    pub faults: Vec<ManifestFault>,
}

/// An object.
#[derive(Debug)]
pub struct ReadObject {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: Name,
    /// The line where its document begins, from 1.
    pub line: u64,
    /// What it means.
    pub event: Event,
    /// What is wrong with its fields.
    pub issues: Vec<Issue>,
}

/// A document that is not an object of a watched kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestFault {
    /// What is wrong, at which line of the text.
    pub issue: Issue,
    /// Whether it may be an object that was meant; otherwise it is of a kind that is not used.
    pub lossy: bool,
}

/// Reads manifests, of which a Pod without a node is one of `node`. `source` names the text in what is wrong with it.
pub fn read(text: &str, source: &str, node: &str) -> ReadManifests {
    let node: Arc<str> = node.into();
    let mut read = ReadManifests::default();
    let faults = document::parse(text, &mut |found| {
        let (kind, name) = (found.object.kind(), found.object.name());
        let (event, issues) = found.object.read(name.clone(), &node);
        read.objects.push(ReadObject { kind, name, line: found.line, event, issues });
    });
    read.faults.extend(faults.into_iter().map(|fault| {
        let object = ObjectRef::file(source, fault.line);
        let issue = Issue::new(object, fault.field, fault.message);
        ManifestFault { issue, lossy: fault.lossy }
    }));
    read
}

#[cfg(test)]
mod tests {
    use super::{Event, read};
    use lb_core::cluster::{Change, Kind, Name, Tier};

    #[test]
    fn objects_and_faults_have_their_lines() {
        let text = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: shop}
spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10/8}}]}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
---
kind: [
";
        let read = read(text, "p.yaml", "n1");
        let [object] = &read.objects[..] else { panic!("{read:?}") };
        assert_eq!((object.kind, object.line), (Kind::NetworkPolicy, 1));
        assert_eq!(object.name, Name::new("shop", "p"));
        let Event::NetworkPolicy(Change::Applied(_, policy)) = &object.event else { panic!() };
        assert_eq!(policy.tier, Tier::NetworkPolicy);
        assert_eq!(object.issues.len(), 1, "{:?}", object.issues);
        let faults: Vec<_> = read
            .faults
            .iter()
            .map(|fault| (fault.issue.object.name.as_str(), fault.lossy))
            .collect();
        assert_eq!(faults[0], ("p.yaml:6", false));
        assert!(faults[1].0.starts_with("p.yaml:1") && faults[1].1, "{faults:?}");
    }
}
