//! What a machine's facts are judged as.

use super::*;

fn good() -> MachineFacts {
    MachineFacts {
        kernel: "6.12.1".into(),
        btf: true,
        bpffs: true,
        cgroup2: true,
        forwards: [true, true],
        local_ports: Some((32768..=60999, false)),
        masquerade_ports: Some((10000..=29999, false)),
        api_server: ApiServerFact::Answers("https://10.0.0.1:6443".into(), "kubelet.conf".into()),
        ..MachineFacts::default()
    }
}

fn found(rows: &[CheckRow]) -> Vec<(&'static str, CheckSeverity)> {
    let bad = rows.iter().filter(|row| row.severity != CheckSeverity::Ok);
    bad.map(|row| (row.code, row.severity)).collect()
}

#[test]
fn a_machine_that_fits_has_no_findings() {
    let rows = machine(&good());
    assert_eq!(found(&rows), []);
    assert!(rows.iter().all(|row| row.hint.is_empty() && !row.detail.is_empty()), "{rows:?}");
    assert!(!fails(&rows, CheckFailOn::Warning));
}

#[test]
fn each_finding_has_its_code_severity_and_hint() {
    use CheckSeverity::{Error, Warning};
    type Change = fn(&mut MachineFacts);
    let cases: [(Change, &str, CheckSeverity); 13] = [
        (|it| it.kernel_obstacle = Some("too old".into()), "KERNEL", Error),
        (|it| it.kernel_weakness = Some("mounts".into()), "KERNEL", Warning),
        (|it| it.btf = false, "BTF", Error),
        (|it| it.missing_capabilities = vec!["CAP_BPF"], "CAPABILITIES", Error),
        (|it| it.bpffs = false, "BPFFS", Warning),
        (|it| it.cgroup2 = false, "CGROUP_V2", Error),
        (|it| it.forwards = [false, true], "FORWARDING", Warning),
        (|it| it.kube_proxy = vec![("a process".into(), true)], "KUBE_PROXY", Warning),
        (|it| it.enforcers = vec!["Cilium".into()], "OTHER_ENFORCER", Warning),
        (|it| it.local_ports = Some((1024..=60999, true)), "PORT_RANGES", Warning),
        (|it| it.masquerade_ports = Some((10000..=29999, true)), "PORT_RANGES", Warning),
        (|it| it.api_server = ApiServerFact::Unknown, "API_SERVER", Warning),
        (
            |it| it.api_server = ApiServerFact::Silent("u".into(), "f".into(), "refused".into()),
            "API_SERVER",
            Error,
        ),
    ];
    for (change, code, severity) in cases {
        let mut facts = good();
        change(&mut facts);
        let rows = machine(&facts);
        assert_eq!(found(&rows), [(code, severity)]);
        assert_eq!(fails(&rows, CheckFailOn::Error), severity == Error, "{code}");
        assert!(fails(&rows, CheckFailOn::Warning), "{code}");
        let row = rows.iter().find(|row| row.code == code).unwrap();
        assert!(!row.hint.is_empty() && row.docs.starts_with("docs/src/check.md#"), "{row:?}");
    }
}

#[test]
fn what_the_agent_says_counts_after_the_installation() {
    let line = |name: &str, state| crate::status::StatusLine {
        subsystem: name.into(),
        state,
        detail: "x".into(),
    };
    let report = Report {
        verdict: "DEGRADED".into(),
        because: "maps".into(),
        node: "n1".into(),
        subsystems: vec![
            line("agent", State::Failed),
            line("api", State::Ok),
            line("maps", State::Degraded),
        ],
        issues: Vec::new(),
        counters: Vec::new(),
    };
    let rows = installed(&report);
    assert_eq!(
        found(&rows),
        [("AGENT", CheckSeverity::Error), ("SUBSYSTEM", CheckSeverity::Warning)]
    );
    assert_eq!(rows[2].detail, "maps: x");
}
