//! What `lbctl explain` prints, word by word; the causes behind it are compared as data in `causes.rs`.

use expect_test::{Expect, expect};

use self::world::{World, pod, policy, service, text};
use crate::explain::{Code, render};

mod causes;
#[cfg(feature = "cluster")]
mod combine;
mod denials;
mod names;
mod nodes;
mod services;
mod worked;
mod world;

/// A client and a Service with one Pod, here.
fn base() -> String {
    [
        pod("default/client", "10.1.0.2", "n1", "app: client", true),
        pod("front/shop", "10.1.0.5", "n1", "app: shop", true),
        pod("default/web-1", "10.1.0.3", "n1", "app: web", true),
        service("default/web", "10.96.0.10", "port: 80, targetPort: 8080", "app: web", ""),
    ]
    .concat()
}

/// Explains a flow in the base world with more in it.
fn check(more: &str, (src, dst): (&str, &str), code: Option<Code>, want: Expect) {
    check_in(&World::new(&format!("{}{more}", base())), (src, dst), code, want);
}

fn check_in(world: &World, (src, dst): (&str, &str), code: Option<Code>, want: Expect) {
    let trace = world.trace(src, dst);
    want.assert_eq(&text(&trace));
    assert_eq!(trace.code(), code, "{trace:?}");
}

const TO_WEB: (&str, &str) = ("client", "svc:web:80");

#[test]
fn delivered() {
    check(
        "",
        TO_WEB,
        None,
        expect![[r#"
            DELIVERED: default/client to svc:default/web:80/TCP
              1  ok  source          Pod default/client 10.1.0.2 on this node
              2  ok  service         default/web:80 10.96.0.10:80/TCP: 1 backend
              3  ok  backend         10.1.0.3:8080 default/web-1 on n1, ready
              4  ok  egress policy   no policy selects default/client in egress
              5  ok  ingress policy  no policy selects default/web-1 in ingress
              6  ok  path            goes past the host's IP stack and netfilter to default/web-1
              7  ok  socket          a process listens on 0.0.0.0:8080
              8  ok  reply           the source of replies is translated from 10.1.0.3:8080 back to 10.96.0.10:80; policies do not evaluate replies
        "#]],
    );
}

#[test]
fn the_document_has_stable_keys() {
    let more = policy(
        "default/access",
        "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: api}}}]}]}",
    );
    let trace = World::new(&format!("{}{more}", base())).trace("client", "svc:web:80");
    let explanation = render(&trace);
    let text = serde_json::to_string_pretty(&explanation).unwrap();
    expect![[r#"
        {
          "outcome": "stopped",
          "verdict": "default/client to svc:default/web:80/TCP: default/access isolates default/web-1 in ingress, and no rule allows 8080/TCP from default/client",
          "branches": {
            "all": 1,
            "stopped": 1,
            "unknown": 0
          },
          "steps": [
            {
              "state": "ok",
              "what": "source",
              "text": "Pod default/client 10.1.0.2 on this node"
            },
            {
              "state": "ok",
              "what": "service",
              "text": "default/web:80 10.96.0.10:80/TCP: 1 backend"
            },
            {
              "state": "ok",
              "what": "backend",
              "text": "10.1.0.3:8080 default/web-1 on n1, ready"
            },
            {
              "state": "ok",
              "what": "egress policy",
              "text": "no policy selects default/client in egress"
            },
            {
              "state": "stop",
              "what": "ingress policy",
              "text": "default/access isolates default/web-1 in ingress, and no rule allows 8080/TCP from default/client"
            },
            {
              "state": "ok",
              "what": "socket",
              "text": "a process listens on 0.0.0.0:8080"
            }
          ],
          "code": "DENY_INGRESS_PEER",
          "object": "NetworkPolicy default/access",
          "path": "spec.ingress[0].from[0]",
          "headline": "default/access isolates default/web-1 in ingress, and no rule allows 8080/TCP from default/client",
          "because": [
            "default/access ingress[0].from[0] wants app=api, but default/client has app=client"
          ],
          "toFix": [
            "change the rule, or the labels of default/client to app=api if nothing else needs app=client"
          ],
          "nearest": {
            "policy": "default/access",
            "path": "ingress[0].from[0]",
            "wants": "app=api",
            "has": "default/client has app=client"
          },
          "evidence": [
            "group 2: no rule applies"
          ],
          "also": [],
          "assumed": [],
          "lookup": null
        }"#]].assert_eq(&text);
    assert_eq!(explanation.outcome.exit(), 3);
}
