//! The stream, as a collector reads it.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lb_common::event::outcome;
use lb_core::admin::{FlowDecision, FlowOwner, FlowRecord};
use lb_core::cluster::Name;
use lb_core::uid::Uid;
use serde_json::{Value, json};

use super::{FlowLog, FlowLogArgs, FlowLogConfig, FlowLogCounts, FlowLogTarget};

fn record(outcome: u8) -> Arc<FlowRecord> {
    Arc::new(FlowRecord {
        at_ms: 1_795_294_095_123,
        src: "10.1.0.2:40000".parse().unwrap(),
        dst: "10.1.0.3:5432".parse().unwrap(),
        protocol: 6,
        reason: if outcome == outcome::DROPPED { 17 } else { 0 },
        ingress: true,
        outcome,
        ifindex: 7,
        suppressed: 3,
        group: 9,
        judgement: 0,
        ident: 5,
        src_owner: FlowOwner::Pod(Name::new("shop", "cart"), Uid(0x1234_5678 << 96)),
        dst_owner: FlowOwner::Unknown,
        via: "db/orders:pg".into(),
        decision: Some(FlowDecision { policies: vec![Name::new("db", "deny")], rule: None }),
    })
}

fn config(flags: [&str; 3]) -> anyhow::Result<Option<FlowLogConfig>> {
    let [flow_log, verdicts, fields] = flags.map(|text| Some(text.to_owned()));
    FlowLogConfig::resolve(FlowLogArgs {
        flow_log,
        flow_log_verdicts: verdicts,
        flow_log_fields: fields,
        ..FlowLogArgs::default()
    })
}

#[test]
fn flags_are_checked() {
    assert_eq!(config(["", "", ""]).unwrap(), None);
    let cfg = config(["stdout", "", " time , by"]).unwrap().unwrap();
    assert_eq!((cfg.destination, cfg.size, cfg.files), (FlowLogTarget::Stdout, 100 << 20, 5));
    assert_eq!(cfg.fields.unwrap().as_ref(), ["time", "by"]);
    for (flags, want) in [
        (["stderr", "", ""], "--flow-log: \"stderr\" is neither stdout nor file:/PATH"),
        (["file:flows", "", ""], "--flow-log: \"file:flows\" is neither stdout nor file:/PATH"),
        (["stdout", "denied", ""], "--flow-log-verdicts: \"denied\" is not dropped, would-deny"),
        (["stdout", "", "pod"], "--flow-log-fields: there is no field \"pod\", only node, time"),
    ] {
        let err = config(flags).unwrap_err().to_string();
        assert!(err.starts_with(want), "{err}");
    }
    let size = FlowLogArgs {
        flow_log: Some("stdout".to_owned()),
        flow_log_maxsize: Some("0".to_owned()),
        ..FlowLogArgs::default()
    };
    let err = FlowLogConfig::resolve(size).unwrap_err().to_string();
    assert_eq!(err, "--flow-log-maxsize: \"0\" is not a number from 1 to 1000000");
}

/// The lines of the file, once there is this number of them.
fn lines(path: &std::path::Path, n: usize) -> Vec<Value> {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let text = fs::read_to_string(path).unwrap();
        let lines: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        if lines.len() >= n || Instant::now() > end {
            return lines;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn wanted_flows_are_lines_and_lost_ones_are_counted_in_the_stream() {
    let path = std::env::temp_dir().join(format!("lb-flow-log-{}.jsonl", std::process::id()));
    let destination = format!("file:{}", path.display());
    let cfg = config([&destination, "dropped", ""]).unwrap().unwrap();
    let counts = FlowLogCounts::default();
    let log = FlowLog::spawn(&cfg, "n1", counts.clone()).unwrap();
    assert!(!log.wants_allowed());
    log.take(&record(outcome::ALLOWED));
    log.take(&record(outcome::DROPPED));
    let written = lines(&path, 1);
    let [line] = &written[..] else { panic!("{written:?}") };
    assert_eq!((&line["node"], &line["verdict"]), (&json!("n1"), &json!("dropped")));
    assert_eq!(line["src"]["uid"], "12345678-0000-0000-0000-000000000000");
    assert_eq!(line["via"], "db/orders:pg");
    assert_eq!(line["by"], json!({"policies": ["db/deny"], "rule": ""}));
    counts.lost.inc_by(4);
    log.take(&record(outcome::DROPPED));
    let written = lines(&path, 3);
    assert_eq!((&written[1]["lost"], &written[2]["verdict"]), (&json!(4), &json!("dropped")));
    assert_eq!(counts.written.get(), 2);
    fs::remove_file(&path).unwrap();
}

#[test]
fn a_mask_leaves_only_its_fields() {
    let path = std::env::temp_dir().join(format!("lb-flow-mask-{}.jsonl", std::process::id()));
    let destination = format!("file:{}", path.display());
    let cfg = config([&destination, "allowed", "node,verdict"]).unwrap().unwrap();
    let log = FlowLog::spawn(&cfg, "n1", FlowLogCounts::default()).unwrap();
    assert!(log.wants_allowed());
    log.take(&record(outcome::ALLOWED));
    assert_eq!(lines(&path, 1), [json!({"node": "n1", "verdict": "allowed"})]);
    fs::remove_file(&path).unwrap();
}
