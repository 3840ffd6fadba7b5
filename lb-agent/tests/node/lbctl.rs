//! `lbctl` on the real maps, pinned in a bpf file system of the test's own, with nothing attached: what it prints,
//! what it says when something is missing, and its exit status.

mod filled;
mod live;

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use expect_test::{Expect, expect};
use filled::Node;
use serde_json::Value;

fn check(node: &Node, args: &[&str], status: i32, want: Expect) {
    let output = node.lbctl(args).output().unwrap();
    // The directories differ from run to run.
    let text = |bytes: &[u8]| node.anonymous(std::str::from_utf8(bytes).unwrap());
    let text = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(status), "lbctl {args:?}: {text}");
    want.assert_eq(&text);
}

#[test]
fn tables_with_names() {
    let node = Node::new();
    node.write_names();
    check(
        &node,
        &["services"],
        0,
        expect![[r#"
        NAMESPACE  NAME  PORT         TYPE       FRONTENDS     READY  LOCAL  FLOWS  AGE  ISSUE
        shop       web   http:80/TCP  ClusterIP  10.96.0.1:80  2/2    1      1      9d
    "#]],
    );
    check(
        &node,
        &["svc", "shop/web", "--tree"],
        0,
        expect![[r#"
            Prot LocalAddress:Port Scheduler Service Scope Flags
              -> RemoteAddress:Port  Forward  Weight  ActiveConn  InActConn  Pod         Node  Zone  State  List     Why-Not
            TCP  10.96.0.1:80 random shop/web:http ClusterIP policy=Cluster
              -> 10.1.0.2:8080       Masq     1       0           0          shop/web-1  n1    a     ready  cluster
              -> 10.1.1.2:8080       Masq     1       1           0          shop/web-2  n2    b     ready  cluster
        "#]],
    );
    check(
        &node,
        &["backends", "-n", "shop", "-o", "wide"],
        0,
        expect![[r#"
            ADDRESS        POD         NODE  ZONE  STATE  SERVICE        FRONTENDS     ACTIVE  INACTIVE  LOAD    PROTO  ID  GENERATION  IFINDEX
            10.1.0.2:8080  shop/web-1  n1    a     ready  shop/web:http  10.96.0.1:80  0       0         <none>  TCP    1   7           <none>
            10.1.1.2:8080  shop/web-2  n2    b     ready  shop/web:http  10.96.0.1:80  1       0         <none>  TCP    2   7           <none>
        "#]],
    );
    check(
        &node,
        &["pods"],
        0,
        expect![[r#"
            NAMESPACE  NAME    IP        IFACE  INGRESS  EGRESS  AGE  ISSUE
            shop       client  10.1.0.9  lo     open     open    9d
        "#]],
    );
    check(
        &node,
        &["pods", "-o", "name", "--ip", "10.1.0.2"],
        0,
        expect![[r#"
        lbctl: no pods found
    "#]],
    );
}

#[test]
fn a_template_selects_from_what_json_would_print() {
    let node = Node::new();
    node.write_names();
    let template = "jsonpath={range .items[*]}{.pod}{'\\t'}{.address}{\"\\n\"}{end}";
    check(
        &node,
        &["backends", "shop/web", "-o", template],
        0,
        expect![[r#"
            shop/web-1	10.1.0.2:8080
            shop/web-2	10.1.1.2:8080
        "#]],
    );
    let status = ["status", "-o", "jsonpath={.node}{\"\\n\"}"];
    let output = node.lbctl(&status).output().unwrap();
    assert_eq!(output.stdout, b"n1\n", "{output:?}");
    // As with every mistake on the command line, the exit status is kubectl's: 2 says that a check found problems.
    check(
        &node,
        &["services", "-o", "jsonpath={.items[}"],
        1,
        expect![[r#"
            error: invalid value 'jsonpath={.items[}' for '--output <FORMAT>': {.items[} is not a JSONPath expression: expected selector

            For more information, try '--help'.
        "#]],
    );
}

#[test]
fn flows_and_drops_with_names() {
    let node = Node::new();
    node.write_names();
    check(
        &node,
        &["ct"],
        0,
        expect![[r#"
            PROTO  SRC                DST           VIA            BACKEND          MASQUERADE  PATH   STATE        IDLE  EXPIRES
            UDP    shop/client:5353   10.0.0.10:53  <none>         <none>           <none>      stack  NEW          ##s   ##s
            TCP    shop/client:40000  10.96.0.1:80  shop/web:http  shop/web-2:8080  <none>      stack  ESTABLISHED  ##s   23h
        "#]],
    );
    check(
        &node,
        &["ct", "--service", "shop/web", "--count", "--by", "backend"],
        0,
        expect![[r#"
        BY               COUNT
        shop/web-2:8080  1
    "#]],
    );
    check(
        &node,
        &["ct", "--count", "--protocol", "udp", "-o", "json"],
        0,
        expect![[r#"
        {
          "node": "n1",
          "items": [
            {
              "key": "all",
              "count": 1
            }
          ]
        }
    "#]],
    );
    check(
        &node,
        &["drops"],
        0,
        expect![[r#"
            REASON        DIRECTION  COUNT  LAST    EXAMPLE  BY      WHAT-TO-DO
            NO_ENDPOINTS  egress     1000   <none>  <none>   <none>  check the Service's selector and the readiness of its Pods
        "#]],
    );
    check(
        &node,
        &["services", "shop/none"],
        0,
        expect![[r#"
        lbctl: no services found
    "#]],
    );
    check(
        &node,
        &["backends", "--ip", "10.1.1.2", "-o", "yaml"],
        0,
        expect![[r#"
            node: n1
            items:
            - address: 10.1.1.2:8080
              protocol: TCP
              pod: shop/web-2
              node: n2
              zone: b
              state: ready
              service: shop/web:http
              frontends:
              - 10.96.0.1:80
              active: 1
              inactive: 0
              load: null
              id: 2
              generation: 7
              ifindex: 0
        "#]],
    );
}

#[test]
fn tables_without_names() {
    let node = Node::new();
    check(
        &node,
        &["services", "--no-headers"],
        0,
        expect![[r#"
            <none>  #1  80/TCP  <none>  10.96.0.1:80  2/2  0  1  <none>
            lbctl: showing ids instead of names: name table ROOT/run/names.json: No such file or directory (os error 2)
        "#]],
    );
    check(
        &node,
        &["ct", "--sort-by", "idle"],
        0,
        expect![[r#"
            PROTO  SRC             DST           VIA     BACKEND        MASQUERADE  PATH   STATE        IDLE  EXPIRES
            UDP    10.1.0.9:5353   10.0.0.10:53  <none>  <none>         <none>      stack  NEW          ##s   ##s
            TCP    10.1.0.9:40000  10.96.0.1:80  #1      10.1.1.2:8080  <none>      stack  ESTABLISHED  ##s   23h
            lbctl: showing ids instead of names: name table ROOT/run/names.json: No such file or directory (os error 2)
        "#]],
    );
    check(
        &node,
        &["pods", "a/b/c"],
        1,
        expect![[r#"
            lbctl: a/b/c: expected NAME or NAMESPACE/NAME
        "#]],
    );
}

#[test]
fn every_field_of_a_service() {
    let node = Node::new();
    node.write_names();
    node.add_load_balancer();
    check(
        &node,
        &["service", "shop/web", "--tree"],
        0,
        expect![[r#"
        Prot LocalAddress:Port Scheduler Service Scope Flags
          -> RemoteAddress:Port  Forward  Weight  ActiveConn  InActConn  Pod         Node  Zone  State      List           Why-Not
        TCP  10.96.0.1:80 random shop/web:http ClusterIP policy=Cluster
          -> 10.1.0.2:8080       Masq     1       0           0          shop/web-1  n1    a     ready      cluster
          -> 10.1.1.2:8080       Masq     1       2           0          shop/web-2  n2    b     ready      cluster
          -> 10.1.1.3:8080       -        0       0           0          shop/web-3  n2    b     not-ready  <none>         not ready
        TCP  198.51.100.1:80 lc shop/web:http LoadBalancer policy=Local affinity=3600s clients=1 sources=203.0.113.0/24
          -> 10.1.0.2:8080       Masq     1       0           0          shop/web-1  n1    a     ready      cluster,local
          -> 10.1.1.2:8080       Masq     1       2           0          shop/web-2  n2    b     ready      cluster
          -> 10.1.1.3:8080       -        0       0           0          shop/web-3  n2    b     not-ready  <none>         not ready
    "#]],
    );
    check(
        &node,
        &["affinity", "shop/web"],
        0,
        expect![[r#"
        CLIENT       SERVICE        BACKEND          AGE  EXPIRES
        shop/client  shop/web:http  shop/web-2:8080  ##s  59m
    "#]],
    );
    check(
        &node,
        &["affinity", "--all", "-o", "wide"],
        0,
        expect![[r#"
            CLIENT       SERVICE        BACKEND          AGE  EXPIRES  STATE    CLIENT-ADDRESS  BACKEND-ADDRESS
            203.0.113.5  shop/web:http  shop/web-1:8080  61m  #s       EXPIRED  203.0.113.5     10.1.0.2:8080
            shop/client  shop/web:http  shop/web-2:8080  ##s  59m      VALID    10.1.0.9        10.1.1.2:8080
        "#]],
    );
    check(
        &node,
        &["affinity", "-n", "other"],
        0,
        expect![[r#"
        lbctl: no clients with affinity found
    "#]],
    );
    check(
        &node,
        &["ct", "--ip", "192.0.2.1", "--no-headers"],
        0,
        expect![[r#"
            TCP  203.0.113.5:4000  198.51.100.1:80  shop/web:http  shop/web-2:8080  192.0.2.1:61000  hop  ESTABLISHED  ##s  23h
        "#]],
    );
    check(
        &node,
        &["backends", "--no-headers", "-o", "wide"],
        0,
        expect![[r#"
        10.1.0.2:8080  shop/web-1  n1  a  ready  shop/web:http  10.96.0.1:80,198.51.100.1:80  0  0  0  TCP  1  7  <none>
        10.1.1.2:8080  shop/web-2  n2  b  ready  shop/web:http  10.96.0.1:80,198.51.100.1:80  2  0  5  TCP  2  7  <none>
    "#]],
    );
}

#[test]
fn every_field_without_names() {
    let node = Node::new();
    node.add_load_balancer();
    check(
        &node,
        &["services", "--tree"],
        0,
        expect![[r#"
            Prot LocalAddress:Port Scheduler Service Scope Flags
              -> RemoteAddress:Port  Forward  Weight  ActiveConn  InActConn  Pod     Node    Zone    State   List           Why-Not
            TCP  10.96.0.1:80 random #1 ClusterIP policy=Cluster
              -> 10.1.0.2:8080       Masq     1       0           0          <none>  <none>  <none>  active  cluster
              -> 10.1.1.2:8080       Masq     1       2           0          <none>  <none>  <none>  active  cluster
            TCP  198.51.100.1:80 lc #1 External policy=Local affinity=3600s clients=1 sources=203.0.113.0/24
              -> 10.1.0.2:8080       Masq     1       0           0          <none>  <none>  <none>  active  cluster,local
              -> 10.1.1.2:8080       Masq     1       2           0          <none>  <none>  <none>  active  cluster
            lbctl: showing ids instead of names: name table ROOT/run/names.json: No such file or directory (os error 2)
        "#]],
    );
    check(
        &node,
        &["affinity", "-o", "name"],
        0,
        expect![[r#"
            10.1.0.9
            lbctl: showing ids instead of names: name table ROOT/run/names.json: No such file or directory (os error 2)
        "#]],
    );
    check(
        &node,
        &["ct", "--protocol", "tcp"],
        0,
        expect![[r#"
            PROTO  SRC               DST              VIA  BACKEND        MASQUERADE       PATH   STATE        IDLE  EXPIRES
            TCP    10.1.0.9:40000    10.96.0.1:80     #1   10.1.1.2:8080  <none>           stack  ESTABLISHED  ##s   23h
            TCP    203.0.113.5:4000  198.51.100.1:80  #1   10.1.1.2:8080  192.0.2.1:61000  hop    ESTABLISHED  ##s   23h
            lbctl: showing ids instead of names: name table ROOT/run/names.json: No such file or directory (os error 2)
        "#]],
    );
}

#[test]
fn programs_are_those_that_use_the_maps_of_the_directory() {
    let node = Node::new();
    let output = node.lbctl(&["programs", "-o", "json"]).output().unwrap();
    let listed: Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = listed["items"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["program"].as_str().unwrap()).collect();
    assert_eq!(names[..3], ["pod_out", "pod_in", "dev_in"]);
    // Nothing is loaded here, whatever other agents of this machine have loaded.
    for row in rows {
        assert_eq!((&row["runs"], &row["ns_per_run"]), (&0.into(), &Value::Null), "{row}");
        assert_eq!(row["verified_instructions"], Value::Null, "{row}");
    }
}

#[test]
fn maps_are_real() {
    let node = Node::new();
    let output = node.lbctl(&["maps", "--no-headers"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [map, kind, used, size, max, _, bytes, pin] = words[..] else { panic!("{line}") };
        assert_ne!(bytes, "<none>", "{line}: the kernel accounts the memory");
        let size = if size == max { size.to_owned() } else { format!("{size}..{max}") };
        lines.push(format!("{map} {kind} {used} {size} {}", node.anonymous(pin)));
    }
    expect![[r#"
        frontends hash 2 262144..1048576 ROOT/bpf/lb/frontends_v2
        slots array 2 131072..4194304 ROOT/bpf/lb/slots_v1
        backends array 2 65536..2097152 ROOT/bpf/lb/backends_v1
        pods hash 1 4096 ROOT/bpf/lb/pods_v4
        ct lru_hash 3 131072 ROOT/bpf/lb/ct_v2
        fragments lru_hash 0 8192 ROOT/bpf/lb/fragments_v2
        sk_nat sk_storage <none> <none> ROOT/bpf/lb/sk_nat_v1
        sk_more lru_hash <none> 16384 ROOT/bpf/lb/sk_more_v1
        counters percpu_array <none> 256 ROOT/bpf/lb/counters_v1
        samples percpu_array <none> 8192 ROOT/bpf/lb/samples_v2
        events ringbuf <none> 262144 ROOT/bpf/lb/events_v2
        affinity lru_hash 0 65536 ROOT/bpf/lb/affinity_v2
        source_ranges lpm_trie <none> 16384..262144 ROOT/bpf/lb/source_ranges_v1
        ident hash 0 524288..1048576 ROOT/bpf/lb/ident_v1
        devs hash 0 1024 ROOT/bpf/lb/devs_v1
        settings array <none> 1 ROOT/bpf/lb/settings_v2
        frontend_ports array <none> 1024 ROOT/bpf/lb/frontend_ports_v1
        host_ports array <none> 1024 ROOT/bpf/lb/host_ports_v1
        former_ports array <none> 1024 ROOT/bpf/lb/former_ports_v1
        own_flows lru_hash <none> 8192 ROOT/bpf/lb/own_flows_v1
        loads array <none> 65536..2097152 ROOT/bpf/lb/loads_v1
        groups array <none> 8192 ROOT/bpf/lb/groups_v1
        peer_bits hash 0 262144 ROOT/bpf/lb/peer_bits_v1
        port_bits lpm_trie <none> 65536 ROOT/bpf/lb/port_bits_v2
        cidrs lpm_trie <none> 65536 ROOT/bpf/lb/cidrs_v1
        policy array <none> 1 ROOT/bpf/lb/policy_v1
        hits percpu_hash 0 16384 ROOT/bpf/lb/hits_v1
        pod_sources lpm_trie <none> 4096 ROOT/bpf/lb/pod_sources_v1
        pod_ranges lpm_trie <none> 65536 ROOT/bpf/lb/pod_ranges_v1
        kept lru_hash 0 65536 ROOT/bpf/lb/kept_v2
        budgets array <none> 8192 ROOT/bpf/lb/budgets_v1
        links array <none> 16384 ROOT/bpf/lb/links_v1
        macs hash 0 5120 ROOT/bpf/lb/macs_v1
        locals array <none> 4096 ROOT/bpf/lb/locals_v1
        frontends_now array_of_maps <none> 1 ROOT/bpf/lb/frontends_now_v1
        ranges_now array_of_maps <none> 1 ROOT/bpf/lb/ranges_now_v1
        ident_now array_of_maps <none> 1 ROOT/bpf/lb/ident_now_v1
        slots_parts array_of_maps <none> 32 ROOT/bpf/lb/slots_parts_v1
        backends_parts array_of_maps <none> 32 ROOT/bpf/lb/backends_parts_v1
        loads_parts array_of_maps <none> 32 ROOT/bpf/lb/loads_parts_v1"#]]
    .assert_eq(&lines.join("\n"));
}

#[test]
fn status_and_its_exit_status() {
    let node = Node::new();
    check(
        &node,
        &["status"],
        2,
        expect![[r#"
            DEGRADED: agent failed, names failed

            SUBSYSTEM  STATE   DETAIL
            agent      FAILED  not running: traffic continues with the maps as they are
            names      FAILED  name table ROOT/run/names.json: No such file or directory (os error 2)
            tables     OK      service ports 1, frontends 1, backends 2, pods 1
            maps       OK      frontends 2/1048576 (0%), slots 2/4194304 (0%), backends 2/2097152 (0%), pods 1/4096 (0%), ct 3/131072 (0%), fragments 0/8192 (0%), affinity 0/65536 (0%), ident 0/1048576 (0%), devs 0/1024 (0%), peer_bits 0/262144 (0%), hits 0/16384 (0%), kept 0/65536 (0%), macs 0/5120 (0%)
        "#]],
    );
    node.write_names();
    let lock = node.lock();
    check(
        &node,
        &["status"],
        0,
        expect![[r#"
            OK

            SUBSYSTEM  STATE  DETAIL
            agent      OK     0.1.0 on n1, up 4d3h, synced 10m ago
            api        OK     5 kinds listed
            tables     OK     service ports 1, frontends 1, backends 2, pods 1
            maps       OK     frontends 2/1048576 (0%), slots 2/4194304 (0%), backends 2/2097152 (0%), pods 1/4096 (0%), ct 3/131072 (0%), fragments 0/8192 (0%), affinity 0/65536 (0%), ident 0/1048576 (0%), devs 0/1024 (0%), peer_bits 0/262144 (0%), hits 0/16384 (0%), kept 0/65536 (0%), macs 0/5120 (0%)
        "#]],
    );
    check(
        &node,
        &["status", "--wait=1s", "--no-headers"],
        0,
        expect![[r#"
            OK

            agent   OK  0.1.0 on n1, up 4d3h, synced 10m ago
            api     OK  5 kinds listed
            tables  OK  service ports 1, frontends 1, backends 2, pods 1
            maps    OK  frontends 2/1048576 (0%), slots 2/4194304 (0%), backends 2/2097152 (0%), pods 1/4096 (0%), ct 3/131072 (0%), fragments 0/8192 (0%), affinity 0/65536 (0%), ident 0/1048576 (0%), devs 0/1024 (0%), peer_bits 0/262144 (0%), hits 0/16384 (0%), kept 0/65536 (0%), macs 0/5120 (0%)
        "#]],
    );
    drop(lock);
    check(
        &node,
        &["status"],
        2,
        expect![[r#"
            DEGRADED: agent failed

            SUBSYSTEM  STATE   DETAIL
            agent      FAILED  not running: traffic continues with the maps written 10m ago; last was 0.1.0 on n1, synced 10m ago
            api        OK      last known: 5 kinds listed
            tables     OK      service ports 1, frontends 1, backends 2, pods 1
            maps       OK      frontends 2/1048576 (0%), slots 2/4194304 (0%), backends 2/2097152 (0%), pods 1/4096 (0%), ct 3/131072 (0%), fragments 0/8192 (0%), affinity 0/65536 (0%), ident 0/1048576 (0%), devs 0/1024 (0%), peer_bits 0/262144 (0%), hits 0/16384 (0%), kept 0/65536 (0%), macs 0/5120 (0%)
        "#]],
    );
}

#[test]
fn what_is_missing_is_one_sentence() {
    let node = Node::new();
    node.write_names();
    let elsewhere = node.pin_dir.join("elsewhere");
    let output = node.lbctl(&["maps", "--pin-dir"]).arg(&elsewhere).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    expect![[r#"
        lbctl: no maps at ROOT/bpf/lb/elsewhere: lb-agent has not run on this node yet, or has cleaned it
    "#]]
    .assert_eq(&node.anonymous(&String::from_utf8(output.stderr).unwrap()));

    let pin = |name: &str| node.pin_dir.join(name);
    std::fs::rename(pin("frontends_v2"), pin("frontends_v3")).unwrap();
    check(
        &node,
        &["services"],
        1,
        expect![[r#"
        lbctl: frontends_v3 is pinned, this lbctl reads frontends_v2: use the lbctl of the running agent
    "#]],
    );
    std::fs::remove_file(pin("frontends_v3")).unwrap();
    check(
        &node,
        &["services"],
        1,
        expect![[r#"
            lbctl: frontends_v2 is not pinned at ROOT/bpf/lb: did lb-agent start on this node?
        "#]],
    );
    check(
        &node,
        &["flow-log"],
        1,
        expect![[r#"
            error: unrecognized subcommand 'flow-log'

              tip: some similar subcommands exist: 'flows', 'flow'

            Usage: lbctl [OPTIONS] <COMMAND>

            For more information, try '--help'.
        "#]],
    );
}

#[test]
fn explanations_come_from_the_pins() {
    let node = Node::new();
    node.isolate();
    let web = ["explain", "10.1.0.9", "10.96.0.1:80"];
    check(
        &node,
        &web,
        3,
        expect![[r#"
            STOPPED: 10.1.0.9 to 10.96.0.1:80/TCP: #1 isolates 10.1.0.9 in egress, and no rule allows 8080/TCP to 10.1.0.2
              1  ok    source         Pod 10.1.0.9 10.1.0.9 on this node
              2  ok    service        #1 10.96.0.1:80/TCP: 2 backends, random
              3  ok    backend        10.1.0.2:8080, active
              4  STOP  egress policy  #1 isolates 10.1.0.9 in egress, and no rule allows 8080/TCP to 10.1.0.2
              5  ok    backend        10.1.1.2:8080, active
              6  STOP  egress policy  #1 isolates 10.1.0.9 in egress, and no rule allows 8080/TCP to 10.1.1.2
            because: why no rule matches is only known to the agent, which does not answer
            to fix:
              add a rule that allows 8080/TCP to 10.1.0.2 to a policy that selects 10.1.0.9
              add a rule that allows 8080/TCP to 10.1.1.2 to a policy that selects 10.1.0.9
            assumed: agent not reachable: using cached names; reasons may be missing
            code: DEFAULT_DENY
            lbctl: showing ids instead of names: name table ROOT/run/names.json: No such file or directory (os error 2)
            lbctl: no agent answers at ROOT/run/agent.sock: is lb-agent running on this node?: using names and reasons from the name table
        "#]],
    );
    node.write_names();
    node.isolate();
    check(
        &node,
        &["explain", "shop/client", "svc:shop/web"],
        3,
        expect![[r#"
            STOPPED: shop/client to svc:shop/web:80/TCP: shop/deny-all isolates shop/client in egress, and no rule allows 8080/TCP to shop/web-1
              1  ok    source          Pod shop/client 10.1.0.9 on this node
              2  ok    service         shop/web:http 10.96.0.1:80/TCP: 2 backends, random
              3  ok    backend         10.1.0.2:8080 shop/web-1 on n1, ready
              4  STOP  egress policy   shop/deny-all isolates shop/client in egress, and no rule allows 8080/TCP to shop/web-1
              5  ?     ingress policy  shop/web-1 runs on this node, but its device is not known yet
              6  ok    backend         10.1.1.2:8080 shop/web-2 on n2, ready
              7  STOP  egress policy   shop/deny-all isolates shop/client in egress, and no rule allows 8080/TCP to shop/web-2
              8  ?     ingress policy  evaluated on n2, where shop/web-2 runs
            because: why no rule matches is only known to the agent, which does not answer
            to fix:
              add a rule that allows 8080/TCP to shop/web-1 to a policy that selects shop/client
              add a rule that allows 8080/TCP to shop/web-2 to a policy that selects shop/client
            assumed:
              agent not reachable: using cached names; reasons may be missing
              ingress policy of shop/web-1: check `lbctl pods` and `lbctl status`
              ingress policy of shop/web-2: n2 decides; ask it: kubectl -n kube-system exec "$(kubectl -n kube-system get pods -l k8s-app=lb-agent --field-selector spec.nodeName=n2 -o name)" -- lbctl explain shop/client svc:shop/web:80/tcp
            code: DEFAULT_DENY
            lbctl: no agent answers at ROOT/run/agent.sock: is lb-agent running on this node?: using names and reasons from the name table
        "#]],
    );
    check(
        &node,
        &["explain", "-n", "shop", "client", "10.9.9.9:53/udp"],
        0,
        expect![[r#"
            DELIVERED: shop/client to 10.9.9.9:53/UDP
              1  ok  source         Pod shop/client 10.1.0.9 on this node
              2  ok  egress policy  allowed by shop/deny-all egress[2]
            assumed:
              agent not reachable: using cached names; reasons may be missing
              the network routes packets to 10.9.9.9 and back
            lbctl: no agent answers at ROOT/run/agent.sock: is lb-agent running on this node?: using names and reasons from the name table
        "#]],
    );
    check(
        &node,
        &["pods"],
        0,
        expect![[r#"
            NAMESPACE  NAME    IP        IFACE  INGRESS  EGRESS       AGE  ISSUE
            shop       client  10.1.0.9  lo     open     isolated(1)  9d
        "#]],
    );
    check(
        &node,
        &["explain", "shop/web-2", "shop/client:80"],
        4,
        expect![[r#"
            CANNOT TELL: shop/web-2 to shop/client:80/TCP: another node decides
              1  ok  source          Pod shop/web-2 10.1.1.2 on another node
              2  ?   egress policy   evaluated on another node, where shop/web-2 runs
              3  ok  ingress policy  no policy selects shop/client in ingress
              4  ok  path            goes through the host's IP stack: rules-unread
              5  ?   socket          the Pod's sockets are not visible from here
            assumed:
              agent not reachable: using cached names; reasons may be missing
              egress policy of shop/web-2: another node decides
              a process in shop/client listens on port 80; to see its sockets: kubectl debug node/n1 --profile=sysadmin --image="$(kubectl -n kube-system get ds lb-agent -o jsonpath='{.spec.template.spec.containers[0].image}')" -- /bin/lbctl --pin-dir /host/sys/fs/bpf/lb --state-dir /host/run/lb explain shop/web-2 shop/client:80/tcp
            code: OTHER_NODE
            lbctl: no agent answers at ROOT/run/agent.sock: is lb-agent running on this node?: using names and reasons from the name table
        "#]],
    );
    check(
        &node,
        &["explain", "shop/missing", "shop/client:80"],
        1,
        expect![[r#"
            lbctl: no agent answers at ROOT/run/agent.sock: is lb-agent running on this node?: using names and reasons from the name table
            lbctl: shop/missing: no such object in the cluster
        "#]],
    );
    check(
        &node,
        &["policy", "show", "shop/deny-all"],
        0,
        expect![[r#"
            NAMESPACE  NAME      TIER           PRIO  SUBJECTS  RULES  HITS  LAST-HIT  STATE     GENERATION  AGE
            shop       deny-all  NetworkPolicy  0     1         3      0     <none>    enforced  1           <none>
            lbctl: no agent answers at ROOT/run/agent.sock: is lb-agent running on this node?: showing only what the name table has; the rules are unknown
        "#]],
    );
    check(
        &node,
        &["policy", "show", "shop/other"],
        1,
        expect![[r#"
        lbctl: no agent answers at ROOT/run/agent.sock: is lb-agent running on this node?
    "#]],
    );
    check(
        &node,
        &["policy", "list", "-o", "wide"],
        0,
        expect![[r#"
        NAMESPACE  NAME      TIER           PRIO  SUBJECTS  RULES  HITS  LAST-HIT  STATE     GENERATION  AGE     ISSUE
        shop       deny-all  NetworkPolicy  0     1         3      0     <none>    enforced  1           <none>
    "#]],
    );
    check(
        &node,
        &["flows"],
        1,
        expect![[r#"
        lbctl: no agent answers at ROOT/run/agent.sock: is lb-agent running on this node?
    "#]],
    );
}

#[test]
fn without_privileges_it_says_what_is_needed() {
    let node = Node::new();
    // An unprivileged user may not open the pins, wherever they are.
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
        .arg(node.binary_for_all())
        .args(["maps", "--pin-dir"])
        .arg(&node.pin_dir)
        .arg("--state-dir")
        .arg(&node.state_dir)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    expect![[r#"
        lbctl: map frontends: permission denied: run lbctl as root, or in the agent's container, which has CAP_BPF
    "#]].assert_eq(&node.anonymous(&String::from_utf8(output.stderr).unwrap()));
}

#[test]
fn a_closed_pipe_is_not_an_error() {
    let node = Node::new();
    node.write_names();
    let mut child = node.lbctl(&["services"]).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn watching_prints_what_changes() {
    let node = Node::new();
    node.write_names();
    let mut child = node.lbctl(&["pods", "--watch"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut next =
        || lines.next().unwrap().split_whitespace().take(4).collect::<Vec<_>>().join(" ");
    assert_eq!(next(), "NAMESPACE NAME IP IFACE");
    assert_eq!(next(), "shop client 10.1.0.9 lo");
    // No device has this number: the largest is 2^31 - 1.
    node.put_pod(u32::MAX, "10.1.0.77");
    assert_eq!(next(), "<none> <none> 10.1.0.77 <none>");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn completions_need_no_node() {
    for (shell, word) in
        [("bash", "complete -F"), ("zsh", "#compdef lbctl"), ("fish", "complete -c lbctl")]
    {
        let output =
            Command::new(env!("CARGO_BIN_EXE_lbctl")).args(["completion", shell]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && text.contains(word), "{shell}: {text}");
    }
}
