//! The documents in a text, their positions, and the messages about those that are not objects.
#![forbid(unsafe_code)]

use super::{DocumentError, ParsedObject};

struct Content {
    found: Vec<ParsedObject>,
    faults: Vec<DocumentError>,
}

fn parse(text: &str) -> Content {
    let mut found = Vec::new();
    let faults = super::parse(text, &mut |object| found.push(object));
    Content { found, faults }
}

fn found(content: &Content) -> Vec<String> {
    let text = |found: &ParsedObject| {
        format!("{}: {} {}", found.line, found.object.kind().name(), found.object.name())
    };
    content.found.iter().map(text).collect()
}

fn faults(content: &Content) -> Vec<String> {
    let text =
        |fault: &DocumentError| format!("{}: {}: {}", fault.line, fault.field, fault.message);
    content.faults.iter().map(text).collect()
}

const NODE: &str = "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n";

#[test]
fn documents_are_separated() {
    let cases: [(&str, String, &[&str]); 8] = [
        ("one", NODE.into(), &["1: Node n1"]),
        ("marker first", format!("---\n{NODE}"), &["2: Node n1"]),
        ("two", format!("{NODE}---\n{NODE}"), &["1: Node n1", "5: Node n1"]),
        ("empty ones", format!("---\n\n---\n---\n{NODE}---\n"), &["5: Node n1"]),
        ("comments", format!("# a\n---\n# b\n{NODE}"), &["3: Node n1"]),
        ("carriage returns", format!("---\r\n{}", NODE.replace('\n', "\r\n")), &["2: Node n1"]),
        (
            "json",
            r#"{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}}"#.into(),
            &["1: Node n1"],
        ),
        (
            "dashes within a text do not separate documents",
            "apiVersion: v1\nkind: Node\nmetadata:\n  name: n1\n  annotations:\n    a: |\n      ---\n".into(),
            &["1: Node n1"],
        ),
    ];
    for (name, text, want) in cases {
        let content = parse(&text);
        assert_eq!(found(&content), want, "{name}");
        assert_eq!(faults(&content), [""; 0], "{name}");
    }
}

#[test]
fn lists_are_taken_apart() {
    let text = "
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Node, metadata: {name: a}}
- {apiVersion: v1, kind: Secret, metadata: {name: b}}
---
apiVersion: v1
kind: PodList
items:
- {metadata: {name: c}}
- {metadata: {name: d, namespace: other}, spec: {containers: 5}}
";
    let content = parse(text);
    assert_eq!(found(&content), ["2: Node a", "8: Pod default/c"]);
    let faults = faults(&content);
    assert_eq!(faults[0], "2: items[1].kind: `Secret` of `v1` is not used by lb-agent: skipped");
    assert!(faults[1].starts_with("8: items[1].: invalid type: integer `5`"), "{}", faults[1]);
}

#[test]
fn a_broken_document_is_named_by_its_line_and_leaves_the_others_alone() {
    let text = format!("{NODE}---\napiVersion: v1\nkind: [\n---\n{NODE}");
    let content = parse(&text);
    assert_eq!(found(&content), ["1: Node n1", "8: Node n1"]);
    let [fault] = content.faults.as_slice() else { panic!("{:?}", content.faults) };
    assert!((5..=7).contains(&fault.line), "{fault:?}");
    assert!(fault.lossy && !fault.message.contains("line"), "{fault:?}");
}

#[test]
fn a_field_of_the_wrong_type_is_named_by_its_line() {
    let content = parse("apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  ports: x\n");
    assert_eq!(faults(&content), ["5: : expected sequence start"]);
}

#[test]
fn policies_in_files() {
    let np = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p";
    let cnp = "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: p";
    let other = "apiVersion: policy.networking.k8s.io/v1alpha1\nkind: AdminNetworkPolicy\nmetadata: {name: p}";
    let list = "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicyList\nitems: [{metadata: {name: q}}]";
    let content = parse(&format!(
        "{np}}}\n---\n{np}, namespace: ns}}\n---\n{cnp}}}\n---\n{cnp}2, namespace: ns}}\n---\n{other}\n---\n{list}\n"
    ));
    let want = [
        "1: NetworkPolicy default/p",
        "5: NetworkPolicy ns/p",
        "9: ClusterNetworkPolicy p",
        "13: ClusterNetworkPolicy p2",
        "21: ClusterNetworkPolicy q",
    ];
    assert_eq!(found(&content), want);
    let want = "17: kind: `AdminNetworkPolicy` of `policy.networking.k8s.io/v1alpha1` is not used by lb-agent: skipped";
    assert_eq!(faults(&content), [want]);
}
