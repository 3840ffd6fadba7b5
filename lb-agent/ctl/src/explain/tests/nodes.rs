//! The wording of what is found at nodes: other nodes, hosts, sockets, full tables.

use expect_test::expect;
use lb_common::config::SettingFlags;
use lb_common::flow::proto;
use lb_common::hop::HopReason;
use lb_common::past::{LocalFlags, StackReason};
use lb_common::service::FrontendFlags;
use lb_common::verdict::DropReason;

use super::world::{World, pod, policy, service};
use super::{TO_WEB, base, check, check_in};
use crate::explain::code::Code;
use crate::explain::explanation::Step;
use crate::explain::render;
use lb_core::names::DropExample;

#[test]
fn sockets() {
    let mut world = World::new(&base());
    world.sockets = vec!["127.0.0.1:8080".parse().unwrap()];
    check_in(
        &world,
        TO_WEB,
        Some(Code::ListensOnLoopback),
        expect![[r#"
            STOPPED: default/client to svc:default/web:80/TCP: default/web-1 listens on 127.0.0.1:8080 only
              1  ok    source          Pod default/client 10.1.0.2 on this node
              2  ok    service         default/web:80 10.96.0.10:80/TCP: 1 backend
              3  ok    backend         10.1.0.3:8080 default/web-1 on n1, ready
              4  ok    egress policy   no policy selects default/client in egress
              5  ok    ingress policy  no policy selects default/web-1 in ingress
              6  ok    path            goes past the host's IP stack and netfilter to default/web-1
              7  STOP  socket          default/web-1 listens on 127.0.0.1:8080 only
            because: the process in default/web-1 listens on 127.0.0.1:8080, not on the Pod's address 10.1.0.3
            to fix: configure the process to listen on all addresses (0.0.0.0 or ::)
            code: LISTENS_ON_LOOPBACK
        "#]],
    );
    world.sockets = vec!["0.0.0.0:80".parse().unwrap(), "[::]:9090".parse().unwrap()];
    check_in(
        &world,
        TO_WEB,
        Some(Code::BackendRefuses),
        expect![[r#"
            STOPPED: default/client to svc:default/web:80/TCP: no process listens on 10.1.0.3:8080 in default/web-1
              1  ok    source          Pod default/client 10.1.0.2 on this node
              2  ok    service         default/web:80 10.96.0.10:80/TCP: 1 backend
              3  ok    backend         10.1.0.3:8080 default/web-1 on n1, ready
              4  ok    egress policy   no policy selects default/client in egress
              5  ok    ingress policy  no policy selects default/web-1 in ingress
              6  ok    path            goes past the host's IP stack and netfilter to default/web-1
              7  STOP  socket          no process listens on 10.1.0.3:8080 in default/web-1
            because: no process listens on port 8080 of default/web-1; it listens on 80, 9090
            to fix: set targetPort (or the destination port) to a port that the process listens on
            code: BACKEND_REFUSES
        "#]],
    );
}

#[test]
fn the_path_between_two_pods_of_the_node() {
    let mut world = World::new(&base());
    let path = |world: &World| {
        let steps = render(&world.trace(TO_WEB.0, TO_WEB.1)).steps;
        let alone = render(&world.trace_alone(TO_WEB.0, TO_WEB.1)).steps;
        let path =
            |steps: Vec<Step>| steps.into_iter().find(|step| step.what == "path").unwrap().text;
        let (asked, alone) = (path(steps), path(alone));
        assert_eq!(asked, alone, "the maps say so, with an agent or without");
        asked
    };
    assert_eq!(path(&world), "goes past the host's IP stack and netfilter to default/web-1");
    for frontend in &mut world.snapshot.frontends {
        frontend.frontend.flags |= FrontendFlags::BY_STACK;
    }
    assert_eq!(path(&world), "goes through the host's IP stack: annotation");
    let (ifindex, ..) =
        world.local_pods().into_iter().find(|(_, name, _)| &*name.name == "web-1").unwrap();
    let flags = LocalFlags::from_bits(StackReason::PortInside.bit());
    world.snapshot.past.ends.get_mut(&ifindex).unwrap().flags = flags;
    assert_eq!(path(&world), "goes through the host's IP stack: port-inside");
    world.snapshot.past.settings = SettingFlags::from_bits(StackReason::HostRule.bit());
    world.names.host_rule = "ip filter FORWARD: drop".into();
    assert_eq!(
        path(&world),
        "goes through the host's IP stack: host-rule (ip filter FORWARD: drop)"
    );
    world.names.host_rule = "".into();
    assert_eq!(path(&world), "goes through the host's IP stack: host-rule");
    for (.., pod) in &mut world.snapshot.pods {
        pod.bridge4 = 4;
    }
    assert_eq!(path(&world), "goes over the bridge of both Pods, past netfilter, to default/web-1");
}

#[test]
fn the_path_between_a_pod_of_the_node_and_one_of_another() {
    let other = pod("default/web-2", "10.1.1.3", "n2", "app: web", true);
    let mut world = World::new(&[base(), other].concat());
    let flow = ("client", "default/web-2:8080");
    let path = |world: &World| {
        let steps = render(&world.trace(flow.0, flow.1)).steps;
        steps.into_iter().find(|step| step.what == "path").unwrap().text
    };
    let past = "goes past the host's IP stack and netfilter between n1 and n2";
    assert_eq!(path(&world), past);
    world.snapshot.past.settings = SettingFlags::from_bits(HopReason::PolicyRouting.bit());
    assert_eq!(path(&world), "goes through the host's IP stack: policy-routing");
}

#[test]
fn a_table_without_room() {
    let mut world = World::new(&base());
    let drop = |reason: DropReason| DropExample {
        reason: reason as u8,
        ingress: false,
        protocol: proto::TCP,
        src: "10.1.0.9:4000".parse().unwrap(),
        dst: "10.96.0.10:80".parse().unwrap(),
        ifindex: 11,
        service_id: 1,
        at: 0,
        group: 0,
        judgement: 0,
    };
    world.names.drops = vec![drop(DropReason::NoEndpoints), drop(DropReason::ConntrackFull)];
    check_in(
        &world,
        TO_WEB,
        Some(Code::TableFull),
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
            because: 0 s ago a flow from 10.1.0.9:4000 to 10.96.0.10:80 was dropped on n1: CONNTRACK_FULL
            to fix: check `lbctl maps`; raise --ct-entries
            code: TABLE_FULL
        "#]],
    );
}

#[test]
fn a_node_that_does_not_forward() {
    let far = pod("default/far", "10.1.1.4", "n2", "app: far", true);
    let mut world = World::new(&format!("{}{far}", base()));
    world.forwards = [false, true];
    check_in(
        &world,
        ("client", "far:8080"),
        Some(Code::HostSetup),
        expect![[r#"
            CANNOT TELL: default/client to default/far:8080/TCP
              1  ok  source          Pod default/client 10.1.0.2 on this node
              2  ?   route           net.ipv4.ip_forward is 0: the node forwards no packets unless a device overrides it
              3  ok  egress policy   no policy selects default/client in egress
              4  ok  ingress policy  the cluster has no policies
              5  ok  path            goes past the host's IP stack and netfilter between n1 and n2
            because: net.ipv4.ip_forward is 0: the kernel does not forward IPv4 packets between devices, and so not between a Pod and another node, unless the receiving device overrides the setting
            to fix: run `sysctl -w net.ipv4.ip_forward=1`, add it to /etc/sysctl.d, and find out what set it to 0
            assumed: a process in default/far listens on port 8080
            code: HOST_SETUP
        "#]],
    );
    // On one node a bridge may do without.
    let near = world.trace(TO_WEB.0, TO_WEB.1);
    assert_eq!(near.code(), None, "{near:?}");
}

#[test]
fn another_node_is_judged_by_record() {
    let more = [
        pod("default/web-2", "10.1.1.3", "n2", "app: web", true),
        policy("default/deny-all", "{podSelector: {matchLabels: {app: web}}}"),
    ]
    .concat();
    check(
        &more,
        ("client", "default/web-2:8080"),
        Some(Code::DefaultDeny),
        expect![[r#"
            STOPPED: default/client to default/web-2:8080/TCP: default/deny-all isolates default/web-2 in ingress, and no rule allows 8080/TCP from default/client
              1  ok    source          Pod default/client 10.1.0.2 on this node
              2  ok    egress policy   no policy selects default/client in egress
              3  STOP  ingress policy  default/deny-all isolates default/web-2 in ingress, and no rule allows 8080/TCP from default/client (by record of n2)
            because: default/deny-all has no rule for ingress
            to fix: add a rule that allows 8080/TCP from default/client to a policy that selects default/web-2
            assumed: the agent of n2 has the same policies, Pods and namespaces as this one
            code: DEFAULT_DENY
        "#]],
    );
    check(
        &more,
        ("default/web-2", "default/client:8080"),
        None,
        expect![[r#"
            DELIVERED: default/web-2 to default/client:8080/TCP
              1  ok  source          Pod default/web-2 10.1.1.3 on n2
              2  ok  egress policy   no policy selects default/web-2 in egress (by record of n2)
              3  ok  ingress policy  no policy selects default/client in ingress
              4  ok  path            goes past the host's IP stack and netfilter between n1 and n2
              5  ok  socket          a process listens on 0.0.0.0:8080
            assumed: the agent of n2 has the same policies, Pods and namespaces as this one
        "#]],
    );
    // One backend here, denied, and one elsewhere.
    check(
        &more,
        TO_WEB,
        Some(Code::DefaultDeny),
        expect![[r#"
            STOPPED: default/client to svc:default/web:80/TCP: default/deny-all isolates default/web-1 in ingress, and no rule allows 8080/TCP from default/client
              1  ok    source          Pod default/client 10.1.0.2 on this node
              2  ok    service         default/web:80 10.96.0.10:80/TCP: 2 backends, random
              3  ok    backend         10.1.0.3:8080 default/web-1 on n1, ready
              4  ok    egress policy   no policy selects default/client in egress
              5  STOP  ingress policy  default/deny-all isolates default/web-1 in ingress, and no rule allows 8080/TCP from default/client
              6  ok    socket          a process listens on 0.0.0.0:8080
              7  ok    backend         10.1.1.3:8080 default/web-2 on n2, ready
              8  ok    egress policy   no policy selects default/client in egress
              9  STOP  ingress policy  default/deny-all isolates default/web-2 in ingress, and no rule allows 8080/TCP from default/client (by record of n2)
            because: default/deny-all has no rule for ingress
            to fix:
              add a rule that allows 8080/TCP from default/client to a policy that selects default/web-1
              add a rule that allows 8080/TCP from default/client to a policy that selects default/web-2
            assumed: the agent of n2 has the same policies, Pods and namespaces as this one
            code: DEFAULT_DENY
        "#]],
    );
}

#[test]
fn hosts_and_oneself() {
    let host = pod("default/agent", "10.0.0.2", "n2", "app: agent", true)
        .replace("spec: {nodeName", "spec: {hostNetwork: true, nodeName");
    let more = [
        host,
        service("default/agent", "10.96.0.13", "port: 80, targetPort: 8080", "app: agent", ""),
        policy("default/deny-all", "{podSelector: {}}"),
    ]
    .concat();
    check(
        &more,
        ("client", "svc:agent:80"),
        None,
        expect![[r#"
            DELIVERED: default/client to svc:default/agent:80/TCP, if a process in default/agent listens on port 8080 (not looked at)
              1  ok  source          Pod default/client 10.1.0.2 on this node
              2  ok  service         default/agent:80 10.96.0.13:80/TCP: 1 backend
              3  ok  backend         10.0.0.2:8080 default/agent on n2, ready
              4  ok  egress policy   no policy selects default/client in egress
              5  ok  ingress policy  NetworkPolicies never apply to a node or to a Pod on its host network
              6  ok  reply           the source of replies is translated from 10.0.0.2:8080 back to 10.96.0.13:80; policies do not evaluate replies
            assumed: a process in default/agent listens on port 8080
        "#]],
    );
    check(
        &more,
        ("client", "node/n2:10250"),
        None,
        expect![[r#"
            DELIVERED: default/client to node/n2:10250/TCP
              1  ok  source          Pod default/client 10.1.0.2 on this node
              2  ok  egress policy   no policy selects default/client in egress
              3  ok  ingress policy  NetworkPolicies never apply to a node or to a Pod on its host network
            assumed: a process of node n2 listens on port 10250
        "#]],
    );
    // Through no Service, and without leaving.
    check(
        &more,
        ("web-1", "web-1:8080"),
        None,
        expect![[r#"
            DELIVERED: default/web-1 to default/web-1:8080/TCP
              1  ok  source    Pod default/web-1 10.1.0.3 on this node
              2  ok  loopback  traffic from default/web-1 to itself never leaves the Pod
              3  ok  socket    a process listens on 0.0.0.0:8080
        "#]],
    );
}

#[test]
fn without_policies_no_other_node_has_anything_to_say() {
    let more = pod("default/web-2", "10.1.1.3", "n2", "app: web", true);
    check(
        &more,
        ("default/web-2", "svc:web:80"),
        None,
        expect![[r#"
            DELIVERED: default/web-2 to svc:default/web:80/TCP, if a process in default/web-2 listens on port 8080 (not looked at)
              1   ok  source          Pod default/web-2 10.1.1.3 on n2
              2   ok  service         default/web:80 10.96.0.10:80/TCP: 2 backends, random
              3   ok  backend         10.1.0.3:8080 default/web-1 on n1, ready
              4   ok  egress policy   the cluster has no policies
              5   ok  ingress policy  no policy selects default/web-1 in ingress
              6   ok  path            goes past the host's IP stack and netfilter between n1 and n2
              7   ok  socket          a process listens on 0.0.0.0:8080
              8   ok  backend         10.1.1.3:8080 default/web-2 on n2, ready
              9   ok  egress policy   the cluster has no policies
              10  ok  ingress policy  traffic from a Pod to itself is checked on egress only
              11  ok  reply           the source of replies is translated from the backend back to 10.96.0.10:80; policies do not evaluate replies
            assumed:
              the maps of n2, where the Service is translated, match those of this node
              a process in default/web-2 listens on port 8080
        "#]],
    );
}
