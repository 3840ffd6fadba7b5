//! `lbctl wait`, `diff`, `sysdump` and `check` beside a real agent, its real maps and real connections.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use lb_common::{addr::Addr, be::Be16, flow::proto, service::FrontendKey};
use lb_core::plan::{MapStore as _, Write};
use lb_kernel::bpf::{pins::Pins, store::Maps};
use testbed::{
    Shape,
    client::{Transport, ask},
    manifest::{node_of, pod_of},
    wait,
};

use crate::explain::run;
use crate::stage::{SOON, Stage, port_80, service};

const WEB: [&str; 2] = ["10.96.0.10", "fd96::10"];
const DENY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny, namespace: default}
spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}
";
const TRIED: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: tried, namespace: default, annotations: {lb-agent.io/mode: shadow}}
spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}
";

/// What is waited for is what happens to connections right after, and a map that something else changed is found and
/// repaired.
#[test]
fn lbctl_waits_for_objects_and_repairs_maps() {
    let mut stage = Stage::new("tools", Shape::Routed);
    let a = stage.a.clone();
    let web = stage.server(&a, "web");
    let client = a.pod("client").unwrap();
    let here = &stage.agents[0];
    let lbctl = |args: &[&str], status: i32, word: &str| {
        let (code, text) = run(here, args);
        assert!(code == Some(status) && text.contains(word), "lbctl {args:?}: {code:?} {text}");
    };
    let dial = |at: SocketAddr| {
        client.netns.enter(|| ask(Transport::Tcp, at, Duration::from_millis(500))).unwrap()
    };
    stage.dir.write("nodes", &[node_of(&a)]).unwrap();
    let objects = [service("web", WEB), pod_of(&web).label("app", "web"), pod_of(&client)];
    stage.dir.write("cast", &objects).unwrap();
    lbctl(&["wait", "svc/default/web", "--programmed"], 0, "svc/default/web programmed");
    stage.wait_for(&client.netns, port_80(WEB[0]), &["web"]);
    lbctl(&["wait", "svc/default/none", "--timeout", "0s"], 1, "knows no such object");
    lbctl(&["wait", "svc/default/web", "--enforced"], 1, "a Service is not enforced");

    // Something else removes a frontend: the agent does not know, the audit does.
    lbctl(&["diff"], 0, "the maps say what the agent wrote");
    let key = FrontendKey::new(Addr::from_ip(WEB[0].parse().unwrap()), Be16::new(80), proto::TCP);
    let mut maps = Maps::open(&Pins::existing(&here.pin_dir).unwrap()).unwrap();
    maps.apply(&Write::DeleteFrontend { key }).unwrap();
    assert!(dial(port_80(WEB[0])).is_err());
    lbctl(&["diff"], 2, "frontends 10.96.0.10:80/6");
    let (_, text) = run(here, &["diff", "-o", "json"]);
    assert!(text.contains("\"found\": \"none\""), "{text}");
    assert!(dial(port_80(WEB[0])).is_err(), "a diff repairs nothing");
    lbctl(&["diff", "--repair"], 0, "1 of 1 elements were written again");
    assert_eq!(dial(port_80(WEB[0])).unwrap(), "web");
    lbctl(&["diff"], 0, "the maps say what the agent wrote");
    assert_eq!(here.metric("lb_audit_drift_total{action=\"repaired\"}").unwrap(), 1.0);

    stage.dir.write_text("tried", TRIED).unwrap();
    lbctl(&["wait", "policy/default/tried", "--timeout", "2s"], 1, "it is in shadow mode");
    assert!(dial(port_80(WEB[0])).is_ok());
    stage.dir.write_text("deny", DENY).unwrap();
    lbctl(&["wait", "policy/default/deny", "--enforced"], 0, "policy/default/deny enforced");
    assert!(dial(port_80(WEB[0])).is_err());
    let later =
        ["wait", "policy/default/deny", "--enforced", "--generation", "9", "--timeout", "0s"];
    lbctl(&later, 1, "not 9 yet");
}

#[test]
fn a_sysdump_has_what_the_commands_say_and_a_redacted_one_no_names() {
    let mut stage = Stage::new("dump", Shape::Routed);
    let a = stage.a.clone();
    let web = stage.server(&a, "secret-web");
    stage.dir.write("nodes", &[node_of(&a)]).unwrap();
    let objects = [service("secret-web", WEB), pod_of(&web).label("app", "secret-web")];
    stage.dir.write("cast", &objects).unwrap();
    let here = &stage.agents[0];
    let (code, text) = run(here, &["wait", "svc/default/secret-web"]);
    assert_eq!(code, Some(0), "{text}");
    stage.wait_for(&a.netns, port_80(WEB[0]), &["secret-web"]);
    // The agent writes names a moment after the maps.
    let named = wait::until("the name table has the Service", SOON, || {
        let (_, text) = run(here, &["services", "-A"]);
        anyhow::ensure!(text.contains("secret-web"), "{text}");
        Ok(())
    });
    named.unwrap();
    let log = stage.bed.dir().join("given.log");
    let line =
        format!("attached pod=default/secret-web ip={} service=default/secret-web\n", web.v4);
    std::fs::write(&log, line).unwrap();
    let dump = |redact: bool| {
        let path = stage.bed.dir().join(if redact { "redacted.tar" } else { "dump.tar" });
        let mut args = vec!["sysdump", "-f", path.to_str().unwrap()];
        args.extend(["--log", log.to_str().unwrap()]);
        args.extend(redact.then_some("--redact"));
        let (code, text) = run(here, &args);
        assert_eq!(code, Some(0), "{text}");
        unpacked(&path)
    };
    let whole = dump(false);
    for file in ["version", "status", "check", "services", "backends", "pods", "ct", "maps", "diff"]
    {
        let text = whole.get(&format!("{file}.json"));
        let text = text.unwrap_or_else(|| panic!("no {file}: {:?}", whole.keys()));
        serde_json::from_str::<serde_json::Value>(text).unwrap();
    }
    for file in ["services.json", "agent.log"] {
        assert!(whole[file].contains("secret-web"), "{}", whole[file]);
    }
    let redacted = dump(true);
    assert_eq!(redacted.keys().collect::<Vec<_>>(), whole.keys().collect::<Vec<_>>());
    for (file, text) in &redacted {
        for secret in ["secret-web", WEB[0], WEB[1], &web.v4.to_string(), &web.v6.to_string()] {
            assert!(!text.contains(secret), "{secret} in {file}: {text}");
        }
    }
    let (code, text) = run(here, &["check", "-o", "json"]);
    assert!(matches!(code, Some(0 | 2)) && text.contains("\"KERNEL\""), "{code:?} {text}");
    let (_, text) = run(here, &["check", "--pre", "--api-server", "http://127.0.0.1:10256"]);
    assert!(text.contains("127.0.0.1:10256 answers (--api-server)"), "{text}");
    assert!(!text.contains("AGENT"), "{text}");
}

fn unpacked(path: &Path) -> BTreeMap<String, String> {
    let mut archive = tar::Archive::new(std::fs::File::open(path).unwrap());
    let read = |mut entry: tar::Entry<'_, std::fs::File>| {
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        (entry.path().unwrap().display().to_string(), text)
    };
    archive.entries().unwrap().map(|entry| read(entry.unwrap())).collect()
}
