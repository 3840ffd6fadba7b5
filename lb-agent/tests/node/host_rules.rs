//! The firewall rules that real tools write, loaded by real `nft` and `iptables`, read and judged as the agent does it: which of
//! them matter to packets between Pods, and what the rule is called.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::{fs, io::Write as _};

use expect_test::expect;
use lb_common::addr::Addr;
use lb_core::host_rules::routing::RoutingDoubt;
use lb_core::host_rules::{HostJudgement, PodTraffic, judge, judge_across};
use lb_kernel::{netfilter, routing};
use testbed::Netns;

/// A ruleset, and how the tools put it into the kernel.
const LOADED: [(&str, &[&str]); 14] = [
    ("none", &[]),
    ("kubelet.rules", &IPTABLES),
    ("flannel.rules", &IPTABLES),
    ("docker.rules", &IPTABLES),
    ("docker-flannel.rules", &IPTABLES),
    ("kube-proxy.rules", &IPTABLES),
    ("bridge-plugin.rules", &IPTABLES),
    ("calico.rules", &IPTABLES),
    ("ufw.rules", &IPTABLES),
    ("k3s.rules", &IPTABLES),
    ("kindnet.nft", &["nft"]),
    ("kube-proxy.nft", &["nft"]),
    ("firewalld.nft", &["nft"]),
    ("other-devices.nft", &["nft"]),
];
const IPTABLES: [&str; 2] = ["iptables-nft-restore", "iptables-legacy-restore"];

/// Two Pods of 10.244.1.0/24 and their IPv6 addresses, behind veths of their own or behind one bridge, other nodes' Pods, and
/// other nodes.
fn traffic(bridged: bool) -> PodTraffic {
    let addresses = ["10.244.1.2", "10.244.1.3", "fd00:10::2", "fd00:10::3"];
    let addresses = addresses.map(|text| Addr::from_ip(text.parse().unwrap()));
    let device = |(index, name): (u32, &str)| (index, name.to_owned());
    let veths: BTreeSet<_> = [(11, "veth11"), (12, "veth12")].map(device).into();
    let bridge: BTreeSet<_> = [device((4, "cni0"))].into();
    let (routed, ports) = if bridged { (bridge, veths) } else { (veths, BTreeSet::new()) };
    let elsewhere = ["10.244.0.0/24", "10.244.2.0/24", "fd00:10:0:2::/64"];
    let nodes = ["172.18.0.3", "10.244.2.0", "2001:db8::3"];
    PodTraffic {
        addresses: addresses.into(),
        routed,
        ports,
        outward: [device((2, "eth0")), device((3, "flannel.1"))].into(),
        elsewhere: elsewhere.map(|text| text.parse().unwrap()).into(),
        nodes: nodes.map(|text| Addr::from_ip(text.parse().unwrap())).into(),
    }
}

/// A namespace that goes with its owner.
struct Emptied(Netns);

impl Emptied {
    fn new(name: &str) -> Self {
        Self(Netns::create(&format!("{name}{}", std::process::id())).unwrap())
    }
}

impl Drop for Emptied {
    fn drop(&mut self) {
        if let Err(err) = self.0.remove() {
            eprintln!("{err:#}");
        }
    }
}

fn load(netns: &Netns, program: &str, rules: &str) {
    let arguments: &[&str] = if program == "nft" { &["-f", "-"] } else { &[] };
    let mut command = Command::new(program);
    let mut child = netns.spawn(command.args(arguments).stdin(Stdio::piped())).unwrap();
    child.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{program}");
}

fn word(judgement: HostJudgement) -> String {
    match judgement {
        HostJudgement::Harmless => "past".to_owned(),
        HostJudgement::Rule(rule) => format!("rule: {rule}"),
        HostJudgement::Engine(engine) => format!("engine: {engine}"),
        HostJudgement::Unknown(error) => format!("unknown: {error}"),
    }
}

/// For packets within the node, and for those between nodes.
fn judged(netns: &Netns, bridged: bool) -> [String; 2] {
    let read = netns.enter(netfilter::read).unwrap().unwrap();
    let traffic = traffic(bridged);
    [word(judge(&read, &traffic)), word(judge_across(&read, &traffic))]
}

/// Both, or one if it is as the other.
fn line([within, across]: &[String; 2]) -> String {
    if within == across { within.clone() } else { format!("{within}; between nodes {across}") }
}

#[test]
fn the_rules_of_real_tools_are_understood() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/node/rulesets");
    let mut known: BTreeSet<String> = ["none".to_owned()].into();
    known.extend(
        fs::read_dir(&dir).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()),
    );
    assert_eq!(known, LOADED.map(|(name, _)| name.to_owned()).into(), "each file is loaded");
    let mut found = String::new();
    for (name, programs) in LOADED {
        let rules = fs::read_to_string(dir.join(name)).unwrap_or_default();
        for program in if programs.is_empty() { &["nothing"] } else { programs } {
            let netns = Emptied::new("nrules");
            if !programs.is_empty() {
                load(&netns.0, program, &rules);
            }
            let routed = judged(&netns.0, false);
            assert_eq!(routed, judged(&netns.0, true), "{name} is not about devices of Pods");
            writeln!(found, "{name} by {program}: {}", line(&routed)).unwrap();
        }
    }
    expect![[r#"
        none by nothing: past
        kubelet.rules by iptables-nft-restore: past
        kubelet.rules by iptables-legacy-restore: past
        flannel.rules by iptables-nft-restore: past
        flannel.rules by iptables-legacy-restore: past
        docker.rules by iptables-nft-restore: rule: ip filter FORWARD: policy drop
        docker.rules by iptables-legacy-restore: rule: iptables-legacy filter FORWARD: policy drop
        docker-flannel.rules by iptables-nft-restore: past
        docker-flannel.rules by iptables-legacy-restore: past
        kube-proxy.rules by iptables-nft-restore: past
        kube-proxy.rules by iptables-legacy-restore: past
        bridge-plugin.rules by iptables-nft-restore: past; between nodes rule: ip nat CNI-5a3b9d4f2cbb93f8d7bf1: handle 5: MASQUERADE
        bridge-plugin.rules by iptables-legacy-restore: past; between nodes rule: iptables-legacy nat CNI-5a3b9d4f2cbb93f8d7bf1: rule 2: MASQUERADE
        calico.rules by iptables-nft-restore: engine: ip filter cali-FORWARD
        calico.rules by iptables-legacy-restore: engine: iptables-legacy filter cali-FORWARD
        ufw.rules by iptables-nft-restore: rule: ip filter ufw-after-logging-forward: handle 17: LOG
        ufw.rules by iptables-legacy-restore: rule: iptables-legacy filter ufw-after-logging-forward: rule 1: LOG
        k3s.rules by iptables-nft-restore: engine: ip filter KUBE-ROUTER-FORWARD
        k3s.rules by iptables-legacy-restore: engine: iptables-legacy filter KUBE-ROUTER-FORWARD
        kindnet.nft by nft: engine: inet kindnet-network-policies postrouting
        kube-proxy.nft by nft: past
        firewalld.nft by nft: rule: inet firewalld filter_FORWARD: handle 18: reject
        other-devices.nft by nft: past; between nodes rule: inet filter forward: policy drop
    "#]].assert_eq(&found);
}

/// One rule beside an accepting chain, and what it is called.
#[test]
fn a_rule_that_does_something_to_pods_is_named() {
    let filter = |hook: &str, rules: &str| {
        format!(
            "table inet t {{ counter c {{}}; chain x {{ type filter hook {hook} priority 0; policy accept; {rules}; }}\n}}\n"
        )
    };
    let cases = [
        filter("forward", "counter accept"),
        filter("forward", "ct state invalid drop"),
        filter("forward", "counter name c"),
        filter("forward", "ip saddr 10.244.1.2 ip daddr 10.244.1.3 drop"),
        filter("forward", "ip saddr 10.244.1.7 drop"),
        filter("forward", "ip6 daddr fd00:10::3 tcp dport 80 reject"),
        filter("forward", "tcp dport 25 drop"),
        filter("forward", "meta l4proto tcp log"),
        filter("forward", "meta mark 1 drop"),
        filter("forward", "iifname \"veth*\" drop"),
        filter("forward", "iifname \"cni0\" drop"),
        filter("forward", "iifname \"eth*\" drop"),
        filter("forward", "iif lo drop"),
        filter("prerouting", "meta mark set 7"),
        filter("prerouting", "ct mark set 7"),
        filter("prerouting", "notrack"),
        filter("prerouting", "oifname \"veth11\" drop"),
        filter("postrouting", "ip dscp set cs1"),
        filter("input", "drop"),
        filter("output", "drop"),
        "table ip n { chain p { type nat hook postrouting priority srcnat; masquerade; }\n}\n".to_owned(),
        "table ip n { chain p { type nat hook postrouting priority srcnat; ip daddr != 10.244.0.0/16 masquerade; }\n}\n".to_owned(),
        "table ip n { chain p { type nat hook prerouting priority dstnat; tcp dport 80 redirect to :8080; }\n}\n".to_owned(),
        "table bridge b { chain f { type filter hook forward priority 0; drop; }\n}\n".to_owned(),
        filter("forward", "oifname \"eth0\" drop"),
        filter("forward", "iifname \"eth0\" oifname \"veth*\" drop"),
        filter("forward", "ip saddr 10.244.2.0/25 drop"),
        "table ip n { chain p { type nat hook postrouting priority srcnat; ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 masquerade; }\n}\n".to_owned(),
        "table ip n { chain p { type nat hook postrouting priority srcnat; ip saddr 10.244.1.0/24 ip daddr != 10.244.1.0/24 masquerade; }\n}\n".to_owned(),
        "table bridge b { chain i { type filter hook input priority 0; drop; }\n}\n".to_owned(),
        "table netdev d { chain i { type filter hook ingress device \"lo\" priority 0; drop; }\n}\n".to_owned(),
        "table arp a { chain f { type filter hook input priority 0; drop; }\n}\n".to_owned(),
    ];
    let mut found = String::new();
    for case in cases {
        let netns = Emptied::new("nrule");
        load(&netns.0, "nft", &case);
        let (routed, bridged) = (judged(&netns.0, false), judged(&netns.0, true));
        let rule = case.split("policy accept; ").last().unwrap();
        let rule = rule.trim_end_matches(['\n', ' ', '}', ';']);
        writeln!(found, "{rule}\n  routed: {}", line(&routed)).unwrap();
        if routed != bridged {
            writeln!(found, "  bridged: {}", line(&bridged)).unwrap();
        }
    }
    expect![[r#"
        counter accept
          routed: past
        ct state invalid drop
          routed: past
        counter name c
          routed: rule: inet t x: handle 3: counts or limits by name
        ip saddr 10.244.1.2 ip daddr 10.244.1.3 drop
          routed: rule: inet t x: handle 3: drop; between nodes past
        ip saddr 10.244.1.7 drop
          routed: past
        ip6 daddr fd00:10::3 tcp dport 80 reject
          routed: rule: inet t x: handle 3: reject
        tcp dport 25 drop
          routed: rule: inet t x: handle 3: drop
        meta l4proto tcp log
          routed: rule: inet t x: handle 3: log
        meta mark 1 drop
          routed: past
        iifname "veth*" drop
          routed: rule: inet t x: handle 3: drop
          bridged: past
        iifname "cni0" drop
          routed: past
          bridged: rule: inet t x: handle 3: drop
        iifname "eth*" drop
          routed: past; between nodes rule: inet t x: handle 3: drop
        iif lo drop
          routed: past
        meta mark set 7
          routed: rule: inet t x: handle 3: sets the mark
        ct mark set 7
          routed: rule: inet t x: handle 3: changes the connection's entry
        notrack
          routed: rule: inet t x: handle 3: notrack
        oifname "veth11" drop
          routed: past
        ip dscp set cs1
          routed: rule: inet t x: handle 3: changes packets
        drop
          routed: past
        drop
          routed: past
        table ip n { chain p { type nat hook postrouting priority srcnat; masquerade
          routed: rule: ip n p: handle 2: masq
        table ip n { chain p { type nat hook postrouting priority srcnat; ip daddr != 10.244.0.0/16 masquerade
          routed: past
        table ip n { chain p { type nat hook prerouting priority dstnat; tcp dport 80 redirect to :8080
          routed: rule: ip n p: handle 2: redir
        table bridge b { chain f { type filter hook forward priority 0; drop
          routed: past
          bridged: rule: bridge b f: handle 2: drop
        oifname "eth0" drop
          routed: past; between nodes rule: inet t x: handle 3: drop
        iifname "eth0" oifname "veth*" drop
          routed: past; between nodes rule: inet t x: handle 3: drop
          bridged: past
        ip saddr 10.244.2.0/25 drop
          routed: past; between nodes rule: inet t x: handle 3: drop
        table ip n { chain p { type nat hook postrouting priority srcnat; ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 masquerade
          routed: past
        table ip n { chain p { type nat hook postrouting priority srcnat; ip saddr 10.244.1.0/24 ip daddr != 10.244.1.0/24 masquerade
          routed: past; between nodes rule: ip n p: handle 2: masq
        table bridge b { chain i { type filter hook input priority 0; drop
          routed: past
          bridged: past; between nodes rule: bridge b i: handle 2: drop
        table netdev d { chain i { type filter hook ingress device "lo" priority 0; drop
          routed: past
        table arp a { chain f { type filter hook input priority 0; drop
          routed: past
    "#]].assert_eq(&found);
}

/// Policies of IPsec and rules about routes, made by real `ip`.
#[test]
fn what_else_the_node_does_to_packets_is_read() {
    let policy = "src 10.244.1.0/24 dst 10.244.2.0/24 dir out tmpl src 192.0.2.1 dst 192.0.2.2 proto esp mode tunnel";
    let block = "xfrm policy setdefault fwd block";
    let cases: [(&str, Option<RoutingDoubt>); 9] = [
        ("", None),
        ("rule add priority 100 from 10.244.1.0/24 lookup main", None),
        ("rule add priority 100 from 172.20.0.0/16 lookup 77", None),
        ("rule add priority 100 iif lo lookup 77", None),
        ("rule add priority 100 from 10.244.1.2 lookup 77", Some(rule("ip rule 100"))),
        ("rule add priority 100 fwmark 0x10/0xf0 lookup 77", Some(rule("ip rule 100"))),
        ("-6 rule add priority 200 to fd00:10:0:2::/64 lookup 1000", Some(rule("ip -6 rule 200"))),
        (&format!("xfrm policy add {policy}"), Some(RoutingDoubt::Ipsec)),
        (block, Some(RoutingDoubt::Ipsec)),
    ];
    for (arguments, want) in cases {
        let netns = Emptied::new("nroute");
        if !arguments.is_empty() {
            netns.0.output(Command::new("ip").args(arguments.split(' '))).unwrap();
        }
        let read = netns.0.enter(routing::read).unwrap().unwrap();
        assert_eq!(read.doubt(&traffic(false)), want, "{arguments}: {read:?}");
    }
}

fn rule(text: &str) -> RoutingDoubt {
    RoutingDoubt::Rule(text.to_owned())
}
