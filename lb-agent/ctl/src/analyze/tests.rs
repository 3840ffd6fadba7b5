//! A directory of manifests with one mistake of each kind, and one without.

use clap::Parser as _;
use expect_test::expect;
use serde_json::Value;

use super::{AnalyzeArgs, Lint, Severity, rows, run, sarif};
use crate::columns::{self, Style};
use crate::{Cli, Command};

/// A shop that is as it should be: a web server, its Service, and a client that a policy admits.
const GOOD: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, ports: [{name: http, containerPort: 8080}]}]}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: load, namespace: shop}
spec:
  jobTemplate: {spec: {template: {metadata: {labels: {app: load}}, spec: {containers: []}}}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: web, port: 80, targetPort: http}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: load}}}]
    ports: [{port: http}, {port: 8080}]
";

/// Each document has one mistake.
const BAD: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: no-subject, namespace: shop}
spec: {podSelector: {matchLabels: {app: wbe}}, ingress: [{}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: either, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from:
    - namespaceSelector: {matchLabels: {team: a}}
    - podSelector: {matchLabels: {app: load}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: service-port, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{podSelector: {matchLabels: {app: load}}}], ports: [{port: 80}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: no-such-port, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{ports: [{port: htpp}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: no-block, namespace: shop}
spec: {podSelector: {}, egress: [{to: [{ipBlock: {cidr: 10/8}}]}], policyTypes: [Egress]}
---
apiVersion: v1
kind: Service
metadata: {name: none, namespace: shop}
spec: {selector: {app: none}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: wrong-target, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: htpp}]}
---
kind: Service
apiVersion: v1
metadata: [
";

const NO_CLIENTS: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny, namespace: shop}
spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}
";

fn files(parts: &[(&str, &str)]) -> Vec<(String, String)> {
    parts.iter().map(|(file, text)| ((*file).to_owned(), (*text).to_owned())).collect()
}

fn table(parts: &[(&str, &str)]) -> String {
    let mut out = Vec::new();
    let (rows, _) = rows(&files(parts));
    columns::print(&mut out, &rows, "", &Style::default()).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn manifests_without_mistakes_have_no_findings() {
    let (rows, severities) = rows(&files(&[("shop.yaml", GOOD)]));
    assert!(rows.is_empty() && severities.is_empty(), "{rows:?}");
}

#[test]
fn each_mistake_is_found_at_its_place() {
    expect![[r#"
        SEVERITY  CODE                      PLACE        OBJECT                           FIELD                              MESSAGE
        error     SERVICE_PORT_IN_POLICY    bad.yaml:17  NetworkPolicy shop/service-port  spec.ingress[0].ports[0].port      80 is the port of Service shop/web; policies judge the port of its Pods, 8080
        error     NAMED_PORT_UNRESOLVED     bad.yaml:24  NetworkPolicy shop/no-such-port  spec.ingress[0].ports[0].port      no Pod that it is about has a port named "htpp"
        error     INVALID_FIELD             bad.yaml:31  NetworkPolicy shop/no-block      spec.egress[0].to[0].ipBlock.cidr  `10/8` is not a CIDR like 10.0.0.0/8: the peer matches nothing
        error     NAMED_PORT_UNRESOLVED     bad.yaml:41  Service shop/wrong-target        spec.ports[0].targetPort           no selected Pod has a container port with this name: shop/web
        error     UNREADABLE_MANIFEST       bad.yaml:48  <none>                           <none>                             unclosed bracket '['
        warning   SELECTOR_MATCHES_NOTHING  bad.yaml:2   NetworkPolicy shop/no-subject    spec.podSelector                   selects no Pod, so the policy has no effect
        warning   HINT_PEER_OR              bad.yaml:7   NetworkPolicy shop/either        spec.ingress[0].from               [0] selects all Pods of namespaces and [1] Pods of this one: either is enough; for Pods with the labels in those namespaces, put both selectors into one entry
        warning   SELECTOR_MATCHES_NOTHING  bad.yaml:36  Service shop/none                spec.selector                      selects no Pod, so the Service has no endpoints
        note      SELECTOR_MATCHES_NOTHING  bad.yaml:7   NetworkPolicy shop/either        spec.ingress[0].from[0]            selects no Pod, so it allows nothing
    "#]].assert_eq(&table(&[("bad.yaml", BAD), ("good.yaml", GOOD)]));
    // A policy that admits a client hides that the other one does not.
    let alone = GOOD.split("---").take(3).collect::<Vec<_>>().join("---");
    expect![[r#"
        SEVERITY  CODE                     PLACE      OBJECT            FIELD          MESSAGE
        warning   SERVICE_WITHOUT_CLIENTS  a.yaml:16  Service shop/web  spec.selector  policies admit no known Pod and no client outside to shop/web
    "#]].assert_eq(&table(&[("a.yaml", &alone), ("b.yaml", NO_CLIENTS)]));
    expect![[r#"
        SEVERITY  CODE              PLACE      OBJECT  FIELD          MESSAGE
        warning   DUPLICATE_OBJECT  b.yaml:2   <none>  metadata.name  Pod shop/web is also defined at a.yaml:2
        warning   DUPLICATE_OBJECT  b.yaml:10  <none>  metadata.name  Pod shop/load is also defined at a.yaml:10
        warning   DUPLICATE_OBJECT  b.yaml:16  <none>  metadata.name  Service shop/web is also defined at a.yaml:16
        warning   DUPLICATE_OBJECT  b.yaml:21  <none>  metadata.name  NetworkPolicy shop/web is also defined at a.yaml:21
    "#]].assert_eq(&table(&[("a.yaml", GOOD), ("b.yaml", GOOD)]));
}

#[test]
fn sarif_names_rules_places_and_levels() {
    let (rows, severities) = rows(&files(&[("bad.yaml", BAD), ("good.yaml", GOOD)]));
    assert_eq!(severities.iter().max(), Some(&Severity::Error));
    let document = sarif::document(&rows);
    assert_eq!(document["version"], "2.1.0");
    let run = &document["runs"][0];
    let rules = run["tool"]["driver"]["rules"].as_array().unwrap();
    assert_eq!(rules.len(), Lint::ALL.len());
    let results = run["results"].as_array().unwrap();
    assert_eq!(results.len(), rows.len());
    for result in results {
        let index = usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap();
        assert_eq!(rules[index]["id"], result["ruleId"], "{result}");
        let level = result["level"].as_str().unwrap();
        assert!(["error", "warning", "note"].contains(&level), "{result}");
        assert!(!result["message"]["text"].as_str().unwrap().is_empty());
        let place = &result["locations"][0]["physicalLocation"];
        assert_eq!(place["artifactLocation"]["uri"], "bad.yaml", "{result}");
        assert!(place["region"]["startLine"].as_u64().unwrap() > 0, "{result}");
    }
}

#[test]
fn the_exit_status_follows_the_severity() {
    let dir = std::env::temp_dir().join(format!("lb-analyze-{}", std::process::id()));
    std::fs::create_dir_all(dir.join("sub")).unwrap();
    let call = |words: &[&str]| {
        let words = [&["lbctl", "analyze", "-f", dir.to_str().unwrap()], words].concat();
        let Command::Analyze(args) = Cli::try_parse_from(words).unwrap().command else { panic!() };
        let mut out = Vec::new();
        let code = run(&args, &mut out);
        (code.map(|code| format!("{code:?}")), String::from_utf8(out).unwrap())
    };
    let code = |words: &[&str]| call(words).0.unwrap();
    let (none, _) = call(&[]);
    assert!(none.unwrap_err().to_string().starts_with("no .yaml, .yml or .json file in "));
    let (success, found) = (std::process::ExitCode::SUCCESS, std::process::ExitCode::from(2));
    let [success, found] = [success, found].map(|code| format!("{code:?}"));
    std::fs::write(dir.join("sub/good.yaml"), GOOD).unwrap();
    assert_eq!(code(&[]), success);
    std::fs::write(dir.join("deny.yaml"), NO_CLIENTS).unwrap();
    std::fs::write(
        dir.join("sub/good.yaml"),
        GOOD.split("---").take(3).collect::<Vec<_>>().join("---"),
    )
    .unwrap();
    assert_eq!(code(&[]), found, "a warning");
    assert_eq!(code(&["--fail-on", "error"]), success);
    let (_, text) = call(&["--sarif"]);
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(document["runs"][0]["results"][0]["ruleId"], "SERVICE_WITHOUT_CLIENTS");
    std::fs::remove_dir_all(&dir).unwrap();
    let gone = AnalyzeArgs { file: vec![dir.clone()], ..parsed() };
    assert!(run(&gone, &mut Vec::new()).is_err());
}

fn parsed() -> AnalyzeArgs {
    match Cli::try_parse_from(["lbctl", "analyze", "-f", "x"]).unwrap().command {
        Command::Analyze(args) => args,
        _ => panic!(),
    }
}
