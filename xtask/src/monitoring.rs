//! `cargo xtask monitoring`: the alerts and dashboards of `deploy/monitoring`, judged by Prometheus itself. promtool runs the tests
//! of the alerts and parses each query of the dashboards; the agent's test target `monitoring` asks a Prometheus that scrapes a real
//! agent. What needs neither is in the tests of `lb-agent`.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::command::{self, command, root, target_dir};
use crate::setup::of_prometheus;
use crate::test;

const DIRECTORY: &str = "deploy/monitoring";

/// Runs all tests.
///
/// # Errors
/// When one fails.
pub(crate) fn run() -> Result<()> {
    let directory = target_dir().join("monitoring");
    fs::create_dir_all(&directory).context("create the directory of the rules")?;
    let from = root().join(DIRECTORY);
    let read =
        |path: &Path| fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
    let write = |file: &str, text: &str| {
        let path = directory.join(file);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    };
    write("rules.yaml", &rules(&read(&from.join("prometheusrule.yaml"))?)?)?;
    for file in ["alerts.yaml", "kubernetes-mixin.yaml"] {
        write(file, &read(&from.join("tests").join(file))?)?;
    }
    let mut queries = Vec::new();
    for entry in fs::read_dir(from.join("dashboards")).context("list the dashboards")? {
        let path = entry.context("list the dashboards")?.path();
        let board = serde_json::from_str(&read(&path)?);
        let board: Value = board.with_context(|| format!("parse {}", path.display()))?;
        queries.extend(expressions(&board));
    }
    ensure!(!queries.is_empty(), "{DIRECTORY}/dashboards has no query");
    write("dashboards.yaml", &as_rules(&queries)?)?;
    let promtool = || {
        let mut promtool = command(&of_prometheus("promtool").to_string_lossy());
        promtool.current_dir(&directory);
        promtool
    };
    let check = ["check", "rules", "--lint-fatal", "rules.yaml", "kubernetes-mixin.yaml"];
    command::run(promtool().args(check).arg("dashboards.yaml"))?;
    command::run(promtool().args(["test", "rules", "alerts.yaml"]))?;
    let program = |variable, name| (variable, of_prometheus(name).to_string_lossy().into_owned());
    let programs = [program("LB_PROMETHEUS", "prometheus"), program("LB_PROMTOOL", "promtool")];
    test::apart("monitoring", &programs)
}

/// Returns the rule file that a PrometheusRule contains: its `spec`, as Prometheus reads it.
fn rules(resource: &str) -> Result<String> {
    let (_, spec) = resource.split_once("\nspec:\n").context("the PrometheusRule has no spec")?;
    let lines = spec.lines().map(|line| line.strip_prefix("  ").unwrap_or(line));
    Ok(lines.fold(String::new(), |text, line| text + line + "\n"))
}

/// Returns the queries of a dashboard's panels, those in rows included.
fn expressions(board: &Value) -> Vec<String> {
    let list = |value: &Value, key: &str| -> Vec<Value> {
        value.get(key).and_then(Value::as_array).cloned().unwrap_or_default()
    };
    let mut found = Vec::new();
    for panel in list(board, "panels") {
        found.extend(expressions(&panel));
        let targets = list(&panel, "targets");
        let queries = targets.iter().filter_map(|target| target.get("expr")?.as_str());
        found.extend(queries.map(str::to_owned));
    }
    found
}

/// Returns a rule file with a recording rule for each query, for promtool to parse. Grafana's variables have values.
fn as_rules(queries: &[String]) -> Result<String> {
    let rules = queries.iter().enumerate().map(|(n, query)| {
        let query = query.replace("$__rate_interval", "5m").replace("$__range", "1h");
        serde_json::json!({ "record": format!("dashboard:query{n}:value"), "expr": query })
    });
    let rules: Vec<Value> = rules.collect();
    let file = serde_json::json!({ "groups": [{ "name": "dashboards", "rules": rules }] });
    serde_json::to_string_pretty(&file).context("write the queries")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{as_rules, expressions, rules};

    #[test]
    fn the_spec_of_a_rule_is_a_rule_file() {
        let resource =
            "kind: PrometheusRule\nmetadata:\n  name: x\nspec:\n  groups:\n    - name: g\n";
        assert_eq!(rules(resource).unwrap(), "groups:\n  - name: g\n");
        assert!(rules("kind: PrometheusRule\n").is_err());
    }

    #[test]
    fn queries_are_found_in_panels_and_in_rows() {
        let board = json!({"panels": [
            {"targets": [{"expr": "a"}, {"expr": "rate(b[$__rate_interval])"}]},
            {"type": "row", "panels": [{"targets": [{"expr": "c"}]}]},
            {"type": "text"},
        ]});
        let queries = expressions(&board);
        assert_eq!(queries, ["a", "rate(b[$__rate_interval])", "c"]);
        let file = as_rules(&queries).unwrap();
        assert!(
            file.contains("\"rate(b[5m])\"") && file.contains("dashboard:query2:value"),
            "{file}"
        );
    }
}
