//! Bad input is named, and everything else works.

use testbed::{Shape, manifest::service as bare_service, wait};

use crate::stage::{SOON, Stage, port_80};

const WEB: [&str; 2] = ["10.96.0.10", "fd96::10"];
const NEXT: [&str; 2] = ["10.96.0.11", "fd96::11"];

/// Broken YAML, an unknown kind, port 0 and an address that is none: each is named in the log, and Services before
/// and after them are served.
#[test]
fn bad_manifests_are_named_and_the_rest_works() {
    let mut stage = Stage::new("einput", Shape::Routed);
    let a = stage.a.clone();
    let (web, next) = (stage.server(&a, "web"), stage.server(&a, "next"));
    let [client, _] = stage.clients();
    stage.announce("web", WEB, &[&web]);
    stage.wait_for(&client.netns, port_80(WEB[0]), &["web"]);

    stage.dir.write_text("broken", "apiVersion: v1\nkind: Service\n  metadata: [\n").unwrap();
    let unknown = "apiVersion: example.org/v1\nkind: Widget\nmetadata:\n  name: w\n";
    stage.dir.write_text("unknown", unknown).unwrap();
    let zero = bare_service("zero").selector("app", "web").tcp(0).ip("10.96.0.66");
    let no_ip = bare_service("noip").selector("app", "web").tcp(80).ip("10.96.0.256");
    stage.dir.write("bad", &[zero, no_ip]).unwrap();
    stage.announce("next", NEXT, &[&next]);

    for netns in [&client.netns, &a.netns] {
        for (ips, name) in [(WEB, "web"), (NEXT, "next")] {
            for ip in ips {
                stage.wait_for(netns, port_80(ip), &[name]);
            }
        }
    }
    for named in ["broken.yaml", "Widget", "default/zero", "default/noip"] {
        wait::until(&format!("{named} in the log"), SOON, || {
            let log = std::fs::read_to_string(&stage.agents[0].log)?;
            anyhow::ensure!(log.contains(named), "{log}");
            Ok(())
        })
        .unwrap();
    }

    // Mending the file is all it takes.
    let mended = crate::stage::service("mended", ["10.96.0.12", "fd96::12"])
        .set(&["spec", "selector"], serde_json::json!({"app": "web"}));
    stage.dir.write("broken", &[mended]).unwrap();
    stage.wait_for(&client.netns, port_80("10.96.0.12"), &["web"]);
}
