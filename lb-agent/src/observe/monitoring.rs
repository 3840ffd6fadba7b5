//! Whether `deploy/monitoring` and its runbooks fit the metrics of this agent. promtool, which `cargo xtask monitoring` runs, knows
//! nothing about these.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use lb_testkit::document::CheckedDocument;
use promql_parser::label::{MatchOp, Matcher};
use promql_parser::parser::{self, Expr, MatrixSelector};
use promql_parser::util::{ExprVisitor, walk_expr};
use serde_json::Value;

use crate::observe::exposition::prometheus_text;
use crate::observe::scrape::tests::body;

/// Labels of targets, by Prometheus and by `podmonitor.yaml`; and the one of histograms that functions use.
const TARGET_LABELS: [&str; 7] = ["job", "instance", "namespace", "pod", "container", "node", "le"];
const BOARDS: [&str; 4] = ["overview", "services", "policies", "agent"];

fn text(path: &str) -> String {
    CheckedDocument::read(path).text().to_owned()
}

fn yaml(path: &str) -> Value {
    serde_saphyr::from_str(&text(path)).unwrap()
}

fn board(name: &str) -> Value {
    serde_json::from_str(&text(&format!("deploy/monitoring/dashboards/{name}.json"))).unwrap()
}

fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn word<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn alerts() -> Vec<Value> {
    let resource = yaml("deploy/monitoring/prometheusrule.yaml");
    let groups = list(&resource, "/spec/groups");
    groups.iter().flat_map(|group| list(group, "/rules").to_vec()).collect()
}

#[test]
fn each_alert_has_a_runbook_a_test_in_which_it_fires_and_one_in_which_it_is_silent() {
    let tests = yaml("deploy/monitoring/tests/alerts.yaml");
    let of_alert = |name: &str| {
        let cases = list(&tests, "/tests").iter().flat_map(|test| list(test, "/alert_rule_test"));
        let cases: Vec<_> = cases.filter(|case| word(case, "/alertname") == name).collect();
        let firing = cases.iter().filter(|case| !list(case, "/exp_alerts").is_empty()).count();
        (firing, cases.len() - firing)
    };
    let runbooks = text("docs/src/runbooks.md");
    let sections: Vec<&str> =
        runbooks.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    let mut names = Vec::new();
    for alert in alerts() {
        let name = word(&alert, "/alert").to_owned();
        let (firing, silent) = of_alert(&name);
        assert!(firing > 0 && silent > 0, "{name}: {firing} firing, {silent} silent");
        let anchor = format!("/runbooks.html#{}", name.to_lowercase());
        let runbook = word(&alert, "/annotations/runbook_url");
        assert!(runbook.ends_with(&anchor), "{name}: {runbook}");
        let severity = word(&alert, "/labels/severity");
        assert!(["critical", "warning", "info"].contains(&severity), "{name}: {severity}");
        for annotation in ["summary", "description"] {
            let pointer = format!("/annotations/{annotation}");
            assert!(!word(&alert, &pointer).is_empty(), "{name}: {annotation}");
        }
        // One name may have two severities.
        if names.last() != Some(&name) {
            names.push(name);
        }
    }
    assert_eq!(names.len(), 18 - 1, "LbMapPressure is there twice");
    assert_eq!(sections, names, "the sections of runbooks.md");
    for name in ["KubeProxyDown", "KubeProxyInstanceUnreachable"] {
        let (firing, silent) = of_alert(name);
        assert!(firing > 0 && silent > 0, "{name}");
    }
}

/// What the agent serves: the values of each label of each name.
fn served() -> BTreeMap<String, BTreeMap<String, BTreeSet<String>>> {
    let mut names = BTreeMap::<_, BTreeMap<_, BTreeSet<_>>>::new();
    let text = prometheus_text(&body());
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (series, _) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let labels_of = names.entry(name.to_owned()).or_default();
        for label in labels.trim_end_matches('}').split("\",").filter(|label| !label.is_empty()) {
            let (label, value) = label.split_once("=\"").unwrap();
            let values = labels_of.entry(label.to_owned()).or_default();
            values.insert(value.trim_end_matches('"').to_owned());
        }
    }
    // Of the target itself.
    names.insert("up".to_owned(), BTreeMap::new());
    names
}

/// The selectors of a query.
#[derive(Default)]
struct Selectors(Vec<(String, Vec<Matcher>)>);

impl ExprVisitor for Selectors {
    type Error = String;

    fn pre_visit(&mut self, expr: &Expr) -> Result<bool, String> {
        if let Expr::VectorSelector(selector)
        | Expr::MatrixSelector(MatrixSelector { vs: selector, .. }) = expr
        {
            let name = selector.name.clone().ok_or("a selector without a name")?;
            self.0.push((name, selector.matchers.matchers.clone()));
        }
        Ok(true)
    }
}

/// Why the agent has nothing that a query selects.
fn fault(
    served: &BTreeMap<String, BTreeMap<String, BTreeSet<String>>>,
    query: &str,
) -> Option<String> {
    let parsed = match parser::parse(query) {
        Ok(parsed) => parsed,
        Err(err) => return Some(err),
    };
    let mut selectors = Selectors::default();
    if let Err(err) = walk_expr(&mut selectors, &parsed) {
        return Some(err);
    }
    if selectors.0.is_empty() {
        return Some("no selector".to_owned());
    }
    for (name, matchers) in selectors.0 {
        let Some(labels) = served.get(&name) else { return Some(format!("no metric {name}")) };
        for matcher in matchers {
            if TARGET_LABELS.contains(&matcher.name.as_str()) {
                continue;
            }
            let Some(values) = labels.get(&matcher.name) else {
                return Some(format!("{name} has no label {}", matcher.name));
            };
            let selects = matches!(matcher.op, MatchOp::Equal | MatchOp::Re(_));
            if selects && !values.iter().any(|value| matcher.is_match(value)) {
                return Some(format!("{name} has no {}: {values:?}", matcher.value));
            }
        }
    }
    None
}

#[test]
fn every_query_selects_metrics_labels_and_values_that_the_agent_has() {
    let served = served();
    for (query, want) in [
        ("lb_services{state=\"wanted\"}", None),
        ("lb_servces", Some("no metric lb_servces")),
        ("rate(lb_drops_total{because=\"X\"}[5m])", Some("lb_drops_total has no label because")),
        ("lb_services{state=\"gone\"} > 0", Some("lb_services has no gone: ")),
        ("vector(1)", Some("no selector")),
    ] {
        let fault = fault(&served, query).unwrap_or_default();
        assert!(fault.starts_with(want.unwrap_or_default()), "{query}: {fault}");
        assert_eq!(fault.is_empty(), want.is_none(), "{query}: {fault}");
    }
    assert!(fault(&served, "sum(").is_some());
    let mut queries = 0;
    let mut faults = Vec::new();
    let mut check = |place: &str, query: &str| {
        queries += 1;
        faults.extend(fault(&served, query).map(|fault| format!("{place}: {fault}: {query}")));
    };
    for alert in alerts() {
        check(word(&alert, "/alert"), word(&alert, "/expr"));
    }
    for name in BOARDS {
        for panel in list(&board(name), "/panels") {
            for target in list(panel, "/targets") {
                let query = word(target, "/expr").replace("$__rate_interval", "5m");
                check(&format!("{name}: {}", word(panel, "/title")), &query);
            }
        }
    }
    assert!(queries > 80, "{queries}");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn boards_have_what_the_sidecar_and_the_links_between_them_need() {
    let kustomization = yaml("deploy/monitoring/kustomization.yaml");
    let maps = list(&kustomization, "/configMapGenerator");
    let files: Vec<&str> = maps.iter().map(|map| word(map, "/files/0")).collect();
    let want = BOARDS.map(|name| format!("dashboards/{name}.json"));
    assert_eq!(files, want);
    assert_eq!(word(&kustomization, "/generatorOptions/labels/grafana_dashboard"), "1");
    for name in BOARDS {
        let board = board(name);
        assert_eq!(word(&board, "/uid"), format!("lb-{name}"));
        assert!(word(&board, "/title").starts_with("lb / "), "{name}");
        assert_eq!(list(&board, "/tags"), ["lb"], "{name}");
        let variables = list(&board, "/templating/list").iter();
        let variables: Vec<&str> = variables.map(|variable| word(variable, "/name")).collect();
        assert_eq!(variables, ["datasource", "node"], "{name}");
        let mut titles = BTreeSet::new();
        for panel in list(&board, "/panels") {
            let title = word(panel, "/title");
            assert!(!title.is_empty() && titles.insert(title), "{name}: {title:?} is there twice");
            assert!(!list(panel, "/targets").is_empty(), "{name}: {title}");
            for target in list(panel, "/targets") {
                assert_eq!(word(target, "/datasource/uid"), "${datasource}", "{name}: {title}");
                assert!(word(target, "/expr").contains("node=~\"$node\""), "{name}: {title}");
            }
        }
    }
}

#[test]
fn agents_are_scraped_as_the_job_of_kube_proxy() {
    let monitor = yaml("deploy/monitoring/podmonitor.yaml");
    let daemonset = yaml("deploy/daemonset.yaml");
    let selector = monitor.pointer("/spec/selector/matchLabels/k8s-app").unwrap();
    assert_eq!(daemonset.pointer("/spec/template/metadata/labels/k8s-app"), Some(selector));
    let container = &list(&daemonset, "/spec/template/spec/containers")[0];
    assert_eq!(word(container, "/name"), "lb-agent", "the alerts select it");
    let endpoint = monitor.pointer("/spec/podMetricsEndpoints/0").unwrap();
    let port = word(endpoint, "/port");
    assert!(list(container, "/ports").iter().any(|known| word(known, "/name") == port), "{port}");
    let relabelings = list(endpoint, "/relabelings");
    assert_eq!(word(&relabelings[0], "/targetLabel"), "job");
    assert_eq!(word(&relabelings[0], "/replacement"), "kube-proxy");
    assert_eq!(word(&relabelings[1], "/targetLabel"), "node");
}
