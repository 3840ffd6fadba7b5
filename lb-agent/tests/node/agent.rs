//! The agent as a process, in a network namespace of its own with the manifest source: start, restart, death, a
//! second one, bad input, health, metrics, cleanup.

mod differences;
mod worst;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lb_common::addr::Addr;
use lb_common::config::SettingFlags;
use lb_common::endpoint::{DevFlags, Ident, IdentFlags, PodFlags};
use lb_core::names::{self, Names, State};
use lb_core::plan::Actual;
use lb_kernel::bpf::clock::Clock;
use lb_kernel::bpf::maps::Tables;
use lb_kernel::bpf::store::Maps;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::node::{Node, in_node};

const SERVICE: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1]
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}]
"#;

fn pod(name: &str, ip: &str) -> String {
    format!(
        r#"---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: default, labels: {{app: web, is: {name}}}}}
spec: {{nodeName: n1, containers: [{{name: c, image: x}}]}}
status: {{phase: Running, podIP: {ip}, podIPs: [{{ip: {ip}}}], conditions: [{{type: Ready, status: "True"}}]}}
"#
    )
}

/// Directories and the process of an agent on a node.
struct Bed<'a> {
    node: &'a Node,
    dir: PathBuf,
    cgroup: PathBuf,
}

impl<'a> Bed<'a> {
    fn new(node: &'a Node) -> Self {
        let name = node.pin_dir().file_name().unwrap().to_owned();
        let dir = std::env::temp_dir().join(name);
        fs::create_dir_all(dir.join("manifests")).unwrap();
        Self { node, dir, cgroup: node.cgroup() }
    }

    fn write(&self, file: &str, text: &str) {
        // As a whole, as an editor does it.
        let part = self.dir.join(file);
        fs::write(&part, text).unwrap();
        fs::rename(part, self.dir.join("manifests").join(file)).unwrap();
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lb-agent"));
        command.arg(verb).arg("--pin-dir").arg(self.node.pin_dir());
        command.arg("--state-dir").arg(self.state_dir()).stdin(Stdio::null());
        command.arg("--cache-dir").arg(self.dir.join("cache"));
        command
    }

    fn start(&self) -> Child {
        self.start_with(&[])
    }

    fn start_with(&self, flags: &[&str]) -> Child {
        let mut command = self.command("run");
        command.args(flags);
        command.args(["--node-name", "n1", "--manifests"]).arg(self.dir.join("manifests"));
        command.arg("--cgroup").arg(&self.cgroup);
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    }

    fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// The name table, once it is as wanted.
    fn names(&self, what: &str, so: impl Fn(&Names<'_>) -> bool) -> Names<'static> {
        let deadline = Instant::now() + Duration::from_secs(90);
        loop {
            let names = names::read(&self.state_dir().join(names::FILE));
            match names {
                Ok(names) if so(&names) => return names,
                other => assert!(Instant::now() < deadline, "{what}: {other:#?}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Bed<'_> {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.dir).unwrap();
    }
}

fn is_ok(names: &Names<'_>, subsystem: &str) -> bool {
    names.subsystems.iter().any(|line| line.name == subsystem && line.state == State::Ok)
}

/// Ends the process and gives its exit code and what it logged.
fn end(mut child: Child, signal: Signal) -> (Option<i32>, String) {
    kill(Pid::from_raw(child.id() as i32), signal).unwrap();
    let mut log = String::new();
    child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    (child.wait().unwrap().code(), log)
}

fn get(port: u16, path: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(60);
    // A listener that is closed resets the connections that it has not accepted.
    let ask = || {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text).map(|_| text)
    };
    loop {
        match ask() {
            Ok(text) => return text,
            Err(e) => assert!(Instant::now() < deadline, "port {port}: {e}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn pins(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_life_of_an_agent() {
    in_node(|node| {
        let bed = Bed::new(node);
        let inside = node.pod("web-1");
        node.routed(&inside, "veth1", &["10.9.0.2/32"]);
        bed.write("web.yaml", &format!("{SERVICE}{}", pod("web-1", "10.9.0.2")));
        let first = bed.start();
        let names = bed.names("first", |names| {
            is_ok(names, "programs") && !names.backends.is_empty() && !names.pods[0].name.is_empty()
        });
        assert_eq!((&*names.pods[0].name, &*names.pods[0].iface), ("web-1", "veth1"));
        assert_eq!((names.services[0].id, names.services[0].ready), (1, 1));
        let before = Maps::open(&node.pins()).unwrap().load().unwrap();
        assert_eq!(before.frontends.len(), 2, "the frontend and the wildcard");
        let pinned = pins(&node.pin_dir());

        // Health and metrics.
        for path in ["/healthz", "/livez", "/readyz"] {
            let answer = get(10256, path);
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            assert!(answer.contains(r#""nodeEligible": true"#), "{answer}");
        }
        let metrics = get(10249, "/metrics");
        for line in [
            "lb_services{state=\"programmed\"} 1",
            "lb_pods{state=\"programmed\"} 1",
            "lb_programs_attached{hook=\"connect4\"} 1",
            "lb_map_entries{map=\"frontends\"} 2",
            "kubeproxy_proxy_healthz_total{code=\"200\"} 1",
        ] {
            assert!(metrics.contains(line), "{line} is missing:\n{metrics}");
        }
        let n_series = metrics.lines().filter(|line| line.contains(' ') && !line.starts_with('#'));
        assert!(n_series.count() <= 700, "{metrics}");

        // A second agent on the same directories is refused; so is a cleanup.
        for mut second in
            [bed.start(), bed.command("cleanup").stderr(Stdio::piped()).spawn().unwrap()]
        {
            assert_eq!(second.wait().unwrap().code(), Some(1));
            let mut log = String::new();
            second.stderr.take().unwrap().read_to_string(&mut log).unwrap();
            assert!(log.contains("another agent (process "), "{log}");
        }

        // SIGTERM leaves everything in place.
        let (code, log) = end(first, Signal::SIGTERM);
        assert_eq!(code, Some(0), "{log}");
        assert!(!log.contains("ERROR"), "{log}");
        assert_eq!(pins(&node.pin_dir()), pinned);
        assert_eq!(Maps::open(&node.pins()).unwrap().load().unwrap(), before);

        // While it is away, an endpoint comes, and a Pod's device goes.
        bed.write("more.yaml", &pod("web-2", "10.9.0.3"));
        node.ip("link del veth1");
        let second = bed.start();
        let names = bed.names("second", |names| names.services.iter().any(|s| s.ready == 2));
        assert!(names.pods.is_empty());
        let after = Maps::open(&node.pins()).unwrap().load().unwrap();
        assert_eq!(after.backends[1], before.backends[1], "ids are taken over");
        assert!(!pins(&node.pin_dir()).iter().any(|pin| pin.starts_with("l_")));

        // SIGKILL loses nothing either, and an unchanged cluster means no write.
        end(second, Signal::SIGKILL);
        assert_eq!(Maps::open(&node.pins()).unwrap().load().unwrap(), after);
        let third = bed.start();
        bed.names("third", |names| names.agent.pid == third.id() && is_ok(names, "services"));
        let metrics = get(10249, "/metrics");
        assert!(metrics.contains("lb_map_writes_total 0"), "{metrics}");
        end(third, Signal::SIGTERM);

        // Without an API server, everything stays as it is, names included.
        let mut command = bed.command("run");
        command.args(["--node-name", "n1", "--api-server", "http://127.0.0.1:1", "--cgroup"]);
        let fourth = command.arg(&bed.cgroup).stderr(Stdio::piped()).spawn().unwrap();
        let names = bed.names("fourth", |names| names.agent.pid == fourth.id());
        assert_eq!((names.services.len(), names.backends.len()), (1, 2));
        assert!(!is_ok(&names, "services") && !is_ok(&names, "api"));
        assert!(get(10256, "/healthz").starts_with("HTTP/1.1 200"));
        assert!(get(10256, "/readyz").starts_with("HTTP/1.1 503"));
        end(fourth, Signal::SIGTERM);
        assert_eq!(Maps::open(&node.pins()).unwrap().load().unwrap(), after);

        // Cleanup leaves nothing.
        let cleanup = bed.command("cleanup").output().unwrap();
        assert!(cleanup.status.success(), "{}", String::from_utf8_lossy(&cleanup.stderr));
        assert!(!node.pin_dir().exists());
        assert!(!bed.state_dir().exists());
        assert!(bed.command("cleanup").status().unwrap().success(), "once more is fine");
    });
}

#[test]
fn cleanup_that_waits_is_ready_when_the_node_is_clean() {
    in_node(|node| {
        let bed = Bed::new(node);
        bed.write("web.yaml", &format!("{SERVICE}{}", pod("web-1", "10.9.0.2")));
        let agent = bed.start();
        bed.names("agent", |names| is_ok(names, "programs"));

        // It never gets as far as an answer while the agent runs.
        let waiting = || {
            let mut command = bed.command("cleanup");
            command.args(["--wait", "--probe-bind-address", "127.0.0.1:10299"]);
            command.stderr(Stdio::piped()).spawn().unwrap()
        };
        let refused = waiting().wait_with_output().unwrap();
        assert_eq!(refused.status.code(), Some(1));
        TcpStream::connect(("127.0.0.1", 10299)).unwrap_err();
        assert!(node.pin_dir().exists());
        end(agent, Signal::SIGTERM);

        let cleanup = waiting();
        for path in ["/readyz", "/livez"] {
            let answer = get(10299, path);
            assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("clean\n"), "{answer}");
        }
        assert!(!node.pin_dir().exists());
        assert!(!bed.state_dir().exists());
        assert!(get(10299, "/metrics").starts_with("HTTP/1.1 404"));
        let (code, log) = end(cleanup, Signal::SIGTERM);
        assert_eq!(code, Some(0), "{log}");
    });
}

#[test]
fn bad_input_is_an_issue_and_stops_nothing() {
    in_node(|node| {
        let bed = Bed::new(node);
        bed.write("broken.yaml", "apiVersion: v1\nkind: [\n");
        bed.write("odd.yaml", "apiVersion: v1\nkind: Teapot\nmetadata: {name: t}\n");
        let zero = SERVICE.replace("name: web", "name: zero").replace("port: 80,", "port: 0,");
        bed.write("zero.yaml", &zero.replace("10.96.0.1", "10.96.0.2"));
        bed.write("web.yaml", &format!("{SERVICE}{}", pod("web-1", "10.9.0.2")));
        let agent = bed.start();
        let names = bed.names("issues", |names| {
            names.issues.len() >= 3 && names.services.iter().any(|s| s.name == "web" && s.id > 0)
        });
        let objects: Vec<String> =
            names.issues.iter().map(|i| format!("{} {}", i.object, i.message)).collect();
        for wanted in ["broken.yaml", "Teapot", "zero"] {
            assert!(objects.iter().any(|object| object.contains(wanted)), "{wanted}: {objects:#?}");
        }
        bed.write("broken.yaml", "");
        bed.names("repaired", |names| !names.issues.iter().any(|i| i.object.contains("broken")));
        let (code, log) = end(agent, Signal::SIGTERM);
        assert_eq!(code, Some(0), "{log}");
        assert!(log.contains("broken.yaml") && log.contains("issue resolved"), "{log}");
    });
}

#[test]
fn s23_ranges_of_ports_that_overlap_are_named_while_they_do() {
    in_node(|node| {
        let bed = Bed::new(node);
        node.ip("addr add 192.0.2.1/32 dev lo");
        let host = |range: &str| {
            fs::write("/proc/sys/net/ipv4/ip_local_port_range", range).unwrap();
        };
        host("20000 40000");
        let service = SERVICE.replace("spec:\n", "spec:\n  type: NodePort\n");
        bed.write("web.yaml", &service.replace("port: 80,", "port: 80, nodePort: 20080,"));
        bed.write("node.yaml", &this_node(""));
        // Left to itself it would take other ones.
        let agent = bed.start_with(&["--masquerade-ports", "10000-29999"]);
        let outcome = |names: &Names<'_>| {
            let ours = names.issues.iter().filter(|issue| issue.field == "--masquerade-ports");
            ours.map(|issue| format!("{} {}", issue.object, issue.message)).collect::<Vec<_>>()
        };
        let both = outcome(&bed.names("both", |names| outcome(names).len() == 2)).join("\n");
        for wanted in ["Node n1 10000-29999 overlaps", "20000-40000", "20080-20080"] {
            assert!(both.contains(wanted), "{wanted}: {both}");
        }
        host("32768 60999");
        bed.write("web.yaml", &service.replace("port: 80,", "port: 80, nodePort: 30080,"));
        bed.names("apart", |names| outcome(names).is_empty());
        let (code, log) = end(agent, Signal::SIGTERM);
        assert_eq!(code, Some(0), "{log}");
    });
}

#[test]
fn a_pinned_map_of_another_layout_is_refused_in_one_sentence() {
    in_node(|node| {
        let bed = Bed::new(node);
        let other: aya::maps::Array<aya::maps::MapData, u32> =
            aya::maps::Array::create(16, 0).unwrap();
        other.pin(node.pins().map(&lb_common::limits::MAP_SLOTS)).unwrap();
        let mut agent = bed.start();
        assert_eq!(agent.wait().unwrap().code(), Some(1));
        let mut log = String::new();
        agent.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        let want = "map slots: the map pinned in ";
        assert!(log.contains(want) && log.contains("lb-agent cleanup"), "{log}");
        // After the line that says what starts.
        assert_eq!(log.lines().skip(1).count(), 1, "{log}");
    });
}

#[test]
fn a_process_without_capabilities_is_told_which() {
    in_node(|node| {
        let bed = Bed::new(node);
        let arguments = format!(
            "--bounding-set=-all --inh-caps=-all -- {} run --node-name n1 --manifests {} --pin-dir {} --state-dir {}",
            env!("CARGO_BIN_EXE_lb-agent"),
            bed.dir.join("manifests").display(),
            node.pin_dir().display(),
            bed.state_dir().display()
        );
        let output = Command::new("setpriv").args(arguments.split_whitespace()).output().unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{log}");
        assert!(log.contains("missing CAP_BPF and CAP_NET_ADMIN"), "{log}");
    });
}

#[test]
fn addresses_and_devices_of_the_node_are_followed_over_a_death() {
    in_node(|node| {
        let bed = Bed::new(node);
        let inside = node.pod("web-1");
        let veth1 = node.routed(&inside, "veth1", &["10.9.0.2/32"]);
        node.ip("tuntap add dev eth0 mode tap");
        node.ip("tuntap add dev tun0 mode tun");
        node.ip("link set eth0 mtu 1400");
        node.ip("addr add 192.0.2.1/24 dev eth0");
        let [eth0, tun0] = ["eth0", "tun0"].map(|name| node.ifindex(name));
        let addr = |text: &str| Addr::from_ip(text.parse().unwrap());
        let ident = |contents: &Actual, ip: &str| contents.ident.get(&addr(ip)).copied();
        let host = Ident { flags: IdentFlags::LOCAL_NODE, ..Ident::ZERO };
        let dev = |contents: &Actual, ifindex: u32| {
            let dev = contents.devs.get(&ifindex)?;
            Some((dev.masquerade4.to_string(), dev.mtu))
        };
        let until = |what: &str, so: &dyn Fn(&Actual) -> bool| {
            let deadline = Instant::now() + Duration::from_secs(20);
            loop {
                let contents = Maps::open(&node.pins()).map(|maps| maps.load().unwrap());
                match contents {
                    Ok(contents) if so(&contents) => return,
                    other => assert!(Instant::now() < deadline, "{what}: {other:#?}"),
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        let at_uplinks = || {
            let pins = pins(&node.pin_dir()).into_iter().filter(|pin| pin.starts_with("l_"));
            let mut found: Vec<_> = pins.collect();
            found.sort();
            found
        };
        let mut child = bed.start();
        until("start", &|now| {
            ident(now, "10.9.0.2") == Some(Ident { ifindex: veth1, ..Ident::ZERO })
                && ident(now, "192.0.2.1") == Some(host)
                && dev(now, eth0) == Some(("192.0.2.1".to_owned(), 1400))
                && dev(now, tun0) == Some(("192.0.2.1".to_owned(), 1500))
        });
        bed.names("attached", |names| is_ok(names, "programs"));
        if node.has_tcx() {
            let mut want = vec![format!("l_{eth0}_in"), format!("l_{tun0}_in")];
            want.extend([format!("l_{veth1}_in"), format!("l_{veth1}_out")]);
            want.sort();
            assert_eq!(at_uplinks(), want);
        }

        // While it is dead, everything changes.
        kill(Pid::from_raw(child.id() as i32), Signal::SIGKILL).unwrap();
        child.wait().unwrap();
        node.ip("link del veth1");
        node.ip("addr del 192.0.2.1/24 dev eth0");
        node.ip("addr add 192.0.2.7/24 dev eth0");
        node.ip("addr add 203.0.113.9/32 dev lo");
        node.ip("link del tun0");
        let child = bed.start();
        until("second start", &|now| {
            ident(now, "10.9.0.2").is_none()
                && ident(now, "192.0.2.1").is_none()
                && ident(now, "127.0.0.1").is_none()
                && ident(now, "192.0.2.7") == Some(host)
                && ident(now, "203.0.113.9") == Some(host)
                && now.devs.keys().copied().collect::<Vec<_>>() == [eth0]
                && dev(now, eth0) == Some(("192.0.2.7".to_owned(), 1400))
        });
        // And while it lives.
        node.ip("addr add 2001:db8::7/64 dev eth0 nodad");
        node.ip("link set eth0 name wan0 mtu 1300");
        until("a new address", &|now| {
            ident(now, "2001:db8::7") == Some(host)
                && dev(now, eth0) == Some(("192.0.2.7".to_owned(), 1300))
        });
        let (code, log) = end(child, Signal::SIGTERM);
        assert_eq!(code, Some(0), "{log}");
        assert!(!log.contains("ERROR"), "{log}");
    });
}

#[test]
fn times_and_numbers_of_pods_outlive_the_agent() {
    in_node(|node| {
        let bed = Bed::new(node);
        node.ip("link add br0 type bridge");
        let insides = ["web-1", "web-2"].map(|name| node.pod(name));
        let [veth1, veth2] = [("veth1", "10.9.0.2/32"), ("veth2", "10.9.0.3/32")]
            .map(|(veth, ip)| node.routed(&insides[usize::from(veth == "veth2")], veth, &[ip]));
        node.ip("link set veth2 master br0");
        let pods = format!("{}{}", pod("web-1", "10.9.0.2"), pod("web-2", "10.9.0.3"));
        bed.write("web.yaml", &format!("{SERVICE}{pods}"));
        let now = || {
            let tables = Tables::open(&node.pins()).unwrap();
            let settings = tables.settings.get(&0, 0).unwrap();
            let pods = [veth1, veth2].map(|ifindex| tables.pods.get(&ifindex, 0).unwrap());
            (settings.flags, settings.pickup_until, pods)
        };
        let ready = |child: &Child| {
            bed.names("ready", |names| {
                names.agent.pid == child.id()
                    && is_ok(names, "services")
                    && is_ok(names, "programs")
            })
        };
        let first = bed.start();
        ready(&first);
        let (flags, pickup_until, pods) = now();
        assert!(flags.contains(SettingFlags::STRICT_SOURCE), "the default");
        let stamp = Clock::detect().unwrap().stamp().unwrap();
        assert!(pickup_until > stamp, "the conntrack table is new: {pickup_until}, now {stamp}");
        let mut ids = pods.map(|pod| pod.id);
        ids.sort_unstable();
        assert_eq!(ids, [1, 2]);
        let contents = Maps::open(&node.pins()).unwrap().load().unwrap();
        let [br0, lo] = ["br0", "lo"].map(|name| node.ifindex(name));
        assert_eq!(contents.devs[&br0].flags, DevFlags::PODS);
        assert_eq!(contents.devs.get(&lo), None);

        // Known without a policy, then under one: connections may be older.
        assert_eq!(pods.map(|pod| pod.pickup_until), [0, 0]);
        bed.write("policy.yaml", &isolate("web-1"));
        let deadline = Instant::now() + Duration::from_secs(20);
        while now().2[0].pickup_until == 0 {
            assert!(Instant::now() < deadline, "{:?}", now());
            std::thread::sleep(Duration::from_millis(5));
        }
        let before = now();
        assert!(before.2[0].pickup_until > stamp && before.2[1].pickup_until == 0, "{before:?}");
        end(first, Signal::SIGKILL);
        node.ip("link del veth2");
        let second = bed.start_with(&["--source-check", "others", "--pickup-grace", "7"]);
        ready(&second);
        let tables = Tables::open(&node.pins()).unwrap();
        assert_eq!(tables.pods.get(&veth1, 0).unwrap(), before.2[0]);
        let settings = tables.settings.get(&0, 0).unwrap();
        assert!(!settings.flags.contains(SettingFlags::STRICT_SOURCE));
        assert_eq!(settings.pickup_until, before.1, "the table is that of before");
        assert!(tables.pods.get(&veth2, 0).is_err());
        let (code, log) = end(second, Signal::SIGTERM);
        assert_eq!(code, Some(0), "{log}");
    });
}

#[test]
fn who_changes_addresses_inside_stays_who_he_is() {
    in_node(|node| {
        let bed = Bed::new(node);
        let with_uid = |name: &str, ip: &str| {
            pod(name, ip)
                .replace("namespace: default,", &format!("namespace: default, uid: uid-{name},"))
        };
        let [eve, vic, vm] = ["eve", "vic", "vm"].map(|name| node.pod(name));
        let veth_eve = node.routed(&eve, "veth1", &["10.9.0.2/32"]);
        let veth_vic = node.routed(&vic, "veth2", &["10.9.0.3/32"]);
        // A virtual machine: the Pod's address is on a bridge in it.
        let veth_vm = node.routed(&vm, "veth3", &[]);
        node.inside(&vm, "ip", "link add k0 type bridge");
        node.inside(&vm, "ip", "addr add 10.9.0.4/32 dev k0");
        let remote = with_uid("remote", "10.9.1.9").replace("nodeName: n1", "nodeName: n2");
        let pods =
            [with_uid("eve", "10.9.0.2"), with_uid("vic", "10.9.0.3"), with_uid("vm", "10.9.0.4")];
        bed.write("web.yaml", &format!("{SERVICE}{}{remote}", pods.concat()));
        let addr = |text: &str| Addr::from_ip(text.parse().unwrap());
        let here = |ip: &str| {
            let contents = Maps::open(&node.pins()).unwrap().load().unwrap();
            contents.ident.get(&addr(ip)).map(|known| (known.ifindex, known.flags))
        };
        let known = |names: &Names<'_>| {
            let mut pods: Vec<String> =
                names.pods.iter().map(|pod| format!("{}={}", pod.iface, pod.name)).collect();
            pods.sort();
            pods
        };
        let all = ["veth1=eve", "veth2=vic", "veth3=vm"];

        // Whose addresses are whose is known while there is no policy.
        let first = bed.start();
        bed.names("first", |names| names.agent.pid == first.id() && known(names) == all);
        const OF_POD: IdentFlags = IdentFlags::POD.with(IdentFlags::HERE);
        let whose = [
            ("10.9.0.2", Some((veth_eve, OF_POD))),
            ("10.9.0.3", Some((veth_vic, OF_POD))),
            ("10.9.0.4", Some((veth_vm, OF_POD))),
            ("10.9.1.9", Some((0, IdentFlags::POD))),
        ];
        for (ip, want) in whose {
            assert_eq!(here(ip), want, "{ip}");
        }
        bed.write("policy.yaml", &isolate("eve"));
        let groups = |veth: u32| {
            let pod = Tables::open(&node.pins()).unwrap().pods.get(&veth, 0).unwrap();
            (pod.ingress, pod.egress)
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        while groups(veth_eve) == (0, 0) {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(groups(veth_vic), (0, 0), "a control: only the selected one");
        let pods = || Maps::open(&node.pins()).unwrap().load().unwrap().pods;
        let before = pods();

        // Eve takes the addresses of others first, and another MAC address; then the agent starts again.
        end(first, Signal::SIGKILL);
        let links = node.inside(&eve, "ip", "-o link show type veth");
        let device = links.split(": ").nth(1).unwrap().split('@').next().unwrap().to_owned();
        node.inside(&eve, "ip", &format!("addr flush dev {device}"));
        for ip in ["10.9.0.3", "10.9.1.9", "10.9.0.2"] {
            node.inside(&eve, "ip", &format!("addr add {ip}/32 dev {device}"));
        }
        node.inside(&eve, "ip", &format!("link set {device} address 02:00:00:00:00:66"));
        let second = bed.start();
        let names = bed.names("second", |names| {
            names.agent.pid == second.id()
                && is_ok(names, "services")
                && names.issues.iter().any(|issue| issue.object == "Pod default/eve")
        });
        assert_eq!(known(&names), all);
        assert_eq!(pods(), before, "no group, no address, no number");
        for (ip, want) in whose {
            assert_eq!(here(ip), want, "{ip}");
        }

        // A Pod behind another device takes the address of vic: it is not vic, and is isolated. Its own namespace gives it up.
        let thief = node.pod("thief");
        let veth_thief = node.routed(&thief, "veth4", &["10.9.0.3/32"]);
        let names = bed.names("thief", |names| {
            let claims =
                |issue: &names::IssueLine<'_>| issue.message.contains("also bound behind veth4");
            names.issues.iter().any(|issue| issue.object == "Pod default/vic" && claims(issue))
        });
        assert_eq!(
            known(&names),
            ["veth1=eve", "veth2=vic", "veth3=vm", "veth4="].map(str::to_owned)
        );
        let deadline = Instant::now() + Duration::from_secs(20);
        while groups(veth_thief) == (0, 0) {
            assert!(Instant::now() < deadline, "{:?}", pods());
            std::thread::sleep(Duration::from_millis(5));
        }
        let thief = Tables::open(&node.pins()).unwrap().pods.get(&veth_thief, 0).unwrap();
        assert_eq!((thief.ip4, thief.ip6), (Addr::NONE, Addr::NONE));
        assert_eq!(here("10.9.0.3"), Some((veth_vic, OF_POD)));
        assert_eq!(groups(veth_vic), (0, 0));
        let (code, log) = end(second, Signal::SIGTERM);
        assert_eq!(code, Some(0), "{log}");
    });
}

#[test]
fn an_annotation_admits_sources_of_its_pod_alone() {
    in_node(|node| {
        let bed = Bed::new(node);
        let [vpn, other] = ["vpn", "other"].map(|name| node.pod(name));
        let veth = node.routed(&vpn, "veth1", &["10.9.0.2/32"]);
        let veth_other = node.routed(&other, "veth2", &["10.9.0.3/32"]);
        let annotated = |ranges: &str| {
            let annotation = format!(r#"annotations: {{lb-agent.io/allowed-sources: "{ranges}"}}"#);
            let vpn = pod("vpn", "10.9.0.2");
            let vpn =
                vpn.replace("namespace: default,", &format!("namespace: default, {annotation},"));
            format!("{SERVICE}{vpn}{}", pod("other", "10.9.0.3"))
        };
        let now = || {
            let maps = Maps::open(&node.pins()).unwrap().load().unwrap();
            let more = [veth, veth_other].map(|ifindex| {
                maps.pods
                    .get(&ifindex)
                    .is_some_and(|pod| pod.flags.contains(PodFlags::MORE_SOURCES))
            });
            let sources = maps.pod_sources.iter();
            let sources: Vec<_> = sources.map(|key| (key.ifindex, key.range.to_string())).collect();
            (more, sources)
        };
        let until = |want: ([bool; 2], &[&str])| {
            let list: Vec<_> = want.1.iter().map(|range| (veth, (*range).to_owned())).collect();
            let deadline = Instant::now() + Duration::from_secs(20);
            while now() != (want.0, list.clone()) {
                assert!(Instant::now() < deadline, "{:?}, wanted {want:?}", now());
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        // One is not allowed, one is nothing: the rest holds.
        bed.write("web.yaml", &annotated("fd00:8::/64, 10.8.0.0/24, 192.0.2.3, x"));
        let first = bed.start_with(&["--allowed-source-cidrs", "10.8.0.0/15,fd00:8::/32"]);
        bed.names("ready", |names| is_ok(names, "programs") && is_ok(names, "services"));
        until(([true, false], &["10.8.0.0/24", "fd00:8::/64"]));
        let names = bed.names("issues", |names| {
            let of_pod = names.issues.iter().filter(|issue| issue.object == "Pod default/vpn");
            of_pod.count() == 2
        });
        for part in ["192.0.2.3/32 is not within --allowed-source-cidrs", "`x` is not a CIDR"] {
            assert!(names.issues.iter().any(|issue| issue.message.starts_with(part)), "{names:#?}");
        }
        // As the operator allows it; what an earlier run wrote stays.
        end(first, Signal::SIGKILL);
        let second = bed.start_with(&["--allowed-source-cidrs", "10.8.0.0/16"]);
        until(([true, false], &["10.8.0.0/24"]));
        bed.write("web.yaml", &annotated("10.8.1.0/24"));
        until(([true, false], &["10.8.1.0/24"]));
        bed.write("web.yaml", &annotated(""));
        until(([false, false], &[]));
        let (code, log) = end(second, Signal::SIGTERM);
        assert_eq!(code, Some(0), "{log}");
    });
}

/// No client may open connections to Pods with this label `is`.
fn isolate(is: &str) -> String {
    format!(
        r#"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: isolate-{is}, namespace: default}}
spec: {{podSelector: {{matchLabels: {{is: {is}}}}}, policyTypes: [Ingress]}}
"#
    )
}

const LOAD_BALANCER: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1]
  externalTrafficPolicy: Local
  healthCheckNodePort: 30100
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080, nodePort: 30080}]
status: {loadBalancer: {ingress: [{ip: 198.51.100.1}]}}
"#;

fn this_node(taints: &str) -> String {
    format!(
        r#"---
apiVersion: v1
kind: Node
metadata: {{name: n1}}
spec: {{taints: [{taints}]}}
status: {{addresses: [{{type: InternalIP, address: 192.0.2.1}}]}}
"#
    )
}

/// Asks until the answer begins so.
fn answers(port: u16, path: &str, want: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let answer = get(port, path);
        if answer.starts_with(want) {
            return answer;
        }
        assert!(Instant::now() < deadline, "port {port}, {path}: wanted {want}: {answer}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn load_balancers_hear_of_endpoints_and_of_the_nodes_end() {
    in_node(|node| {
        let bed = Bed::new(node);
        node.ip("addr add 192.0.2.1/32 dev lo");
        node.ip("tuntap add dev eth0 mode tap");
        let eth0 = node.ifindex("eth0");
        bed.write("web.yaml", &format!("{LOAD_BALANCER}{}", pod("web-1", "10.9.0.2")));
        bed.write("node.yaml", &this_node(""));
        let mut child = bed.start();
        let answer = answers(30100, "/healthz", "HTTP/1.1 200");
        assert!(answer.contains("\"localEndpoints\": 1,"), "{answer}");
        assert!(answer.contains("x-load-balancing-endpoint-weight: 1\r\n"), "{answer}");

        // A device without an address uses the node's.
        let devs = Maps::open(&node.pins()).unwrap().load().unwrap().devs;
        assert_eq!(devs[&eth0].masquerade4.to_string(), "192.0.2.1");

        // After a crash the first answer is correct: the port has no listener before.
        kill(Pid::from_raw(child.id() as i32), Signal::SIGKILL).unwrap();
        child.wait().unwrap();
        let child = bed.start();
        let answer = get(30100, "/");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

        // Only a terminating endpoint is left: traffic still flows, but no more is asked for (KEP-1669).
        let ending = pod("web-1", "10.9.0.2")
            .replace("name: web-1,", "name: web-1, deletionTimestamp: \"2026-01-01T00:00:00Z\",");
        bed.write("web.yaml", &format!("{LOAD_BALANCER}{ending}"));
        let answer = answers(30100, "/", "HTTP/1.1 503");
        assert!(answer.contains("\"localEndpoints\": 0,"), "{answer}");

        // Another port; the old one is closed.
        let moved = LOAD_BALANCER.replace("30100", "30101");
        bed.write("web.yaml", &format!("{moved}{}", pod("web-1", "10.9.0.2")));
        answers(30101, "/", "HTTP/1.1 200");
        assert!(TcpStream::connect(("127.0.0.1", 30100)).is_err());

        // A port that is in use is an issue until it is free.
        let taken = TcpListener::bind("0.0.0.0:30102").unwrap();
        let moved = LOAD_BALANCER.replace("30100", "30102");
        bed.write("web.yaml", &format!("{moved}{}", pod("web-1", "10.9.0.2")));
        let named = |names: &Names<'_>| {
            names.issues.iter().any(|issue| issue.field == "spec.healthCheckNodePort")
        };
        bed.names("taken", named);
        // Tries come at 0.05, 0.15, 0.35, 0.75, 1.55 and 3.15 s, whatever else the agent does or does not do.
        std::thread::sleep(Duration::from_secs(2));
        drop(taken);
        let freed = Instant::now();
        answers(30102, "/", "HTTP/1.1 200");
        let waited = freed.elapsed();
        assert!(waited < Duration::from_secs(3), "a free port was tried after {waited:?}");
        bed.names("free", |names| !named(names));

        // The autoscaler is about to remove the node: no new traffic, and no restart either (KEP-3836).
        answers(10256, "/healthz", "HTTP/1.1 200");
        let taint = "{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}";
        bed.write("node.yaml", &this_node(taint));
        let answer = answers(10256, "/healthz", "HTTP/1.1 503");
        assert!(answer.contains(r#""nodeEligible": false"#), "{answer}");
        answers(10256, "/livez", "HTTP/1.1 200");
        answers(30102, "/", "HTTP/1.1 200");
        bed.write("node.yaml", &this_node(""));
        answers(10256, "/healthz", "HTTP/1.1 200");
        let (code, log) = end(child, Signal::SIGTERM);
        assert_eq!(code, Some(0), "{log}");
    });
}

/// Rules like kube-proxy's of both modes, beside those of others.
const RULES: &str = "
table ip kube-proxy {
    chain services { }
    chain nat-prerouting { type nat hook prerouting priority dstnat; jump services; }
}
table ip6 kube-proxy { chain services { } }
table ip nat {
    chain KUBE-SEP-1 { }
    chain KUBE-MARK-MASQ { }
    chain KUBE-SVC-1 { jump KUBE-MARK-MASQ; jump KUBE-SEP-1; }
    chain KUBE-SERVICES { ip daddr 10.96.0.1 jump KUBE-SVC-1; }
    chain KUBE-POSTROUTING { }
    chain OTHERS { }
    chain PREROUTING { type nat hook prerouting priority dstnat; jump KUBE-SERVICES; jump OTHERS; }
    chain POSTROUTING { type nat hook postrouting priority srcnat; counter jump KUBE-POSTROUTING; }
}
table ip6 filter {
    chain KUBE-FIREWALL { }
    chain KUBE-FORWARD { }
    chain INPUT { type filter hook input priority filter; jump KUBE-FIREWALL; }
    chain FORWARD { type filter hook forward priority filter; policy drop; jump KUBE-FORWARD; }
}
table inet theirs { chain KUBE-SERVICES { } }
";

#[test]
fn kube_proxys_rules_go_once_the_agent_is_ready_and_others_stay() {
    in_node(|node| {
        let bed = Bed::new(node);
        let file = bed.dir.join("rules.nft");
        // nft wants a line for each statement.
        let lines = RULES.replace("{ ", "{\n").replace("; ", "\n").replace(" }", "\n}");
        fs::write(&file, lines).unwrap();
        node.run("nft", &format!("-f {}", file.display()));
        let takeover = |flags: &[&str]| {
            let output = bed.command("takeover").args(flags).output().unwrap();
            let log = String::from_utf8_lossy(&output.stderr).into_owned();
            let shown = String::from_utf8_lossy(&output.stdout).into_owned();
            (output.status.code(), shown, log)
        };
        let before = node.run("nft", "list ruleset");
        let want = "nftables table ip kube-proxy: 2 chains
iptables-nft table ip nat: 5 chains, 2 rules jump to them
nftables table ip6 kube-proxy: 1 chains
iptables-nft table ip6 filter: 1 chains, 1 rules jump to them
  its FORWARD chain has policy drop: traffic that only kube-proxy's rules accepted will be dropped
";
        let (code, shown, log) = takeover(&["--dry-run"]);
        assert_eq!(code, Some(0), "{log}");
        assert!(
            shown.starts_with(want) && shown.contains("not possible now: no agent runs on "),
            "{shown}"
        );
        let (code, _, log) = takeover(&[]);
        assert_eq!(code, Some(1));
        assert!(log.contains("no agent runs on "), "{log}");
        assert_eq!(node.run("nft", "list ruleset"), before, "nothing was touched");

        bed.write("web.yaml", SERVICE);
        let child = bed.start();
        bed.names("ready", |names| {
            names.agent.synced != 0 && is_ok(names, "programs") && is_ok(names, "services")
        });
        let (code, shown, log) = takeover(&["--dry-run"]);
        assert_eq!((code, shown.as_str()), (Some(0), want), "{log}");
        assert_eq!(node.run("nft", "list ruleset"), before, "nothing was touched");
        let (code, shown, log) = takeover(&[]);
        assert_eq!(code, Some(0), "{log}");
        assert_eq!(shown, format!("{want}removed\n"));
        let after = node.run("nft", "list ruleset");
        for gone in ["kube-proxy", "KUBE-SVC", "KUBE-SEP", "KUBE-POSTROUTING", "KUBE-FORWARD"] {
            assert!(!after.contains(gone), "{gone}: {after}");
        }
        for stays in ["jump OTHERS", "jump KUBE-FIREWALL", "table inet theirs", "KUBE-SERVICES"] {
            assert!(after.contains(stays), "{stays}: {after}");
        }
        let (code, shown, _) = takeover(&[]);
        assert_eq!((code, shown.as_str()), (Some(0), "nothing to remove\n"), "once is enough");
        let (code, log) = end(child, Signal::SIGTERM);
        assert_eq!(code, Some(0), "{log}");
    });
}

#[test]
fn a_bpf_file_system_is_mounted_once() {
    let dir = std::env::temp_dir().join(format!("lb-bpffs-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let mounts = || {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        mounts.lines().filter(|line| line.contains(&format!(" {} bpf ", dir.display()))).count()
    };
    for log in ["mounted a bpf file system", "a bpf file system is already mounted"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lb-agent"));
        let output = command.arg("mount-bpffs").arg(&dir).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains(log), "{said}");
        assert_eq!(mounts(), 1);
    }
    nix::mount::umount(&dir).unwrap();
    fs::remove_dir(&dir).unwrap();
}

/// Answers at kube-proxy's metrics port as kube-proxy does, until it is dropped.
struct Proxy {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:10249").unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while let (Ok((mut stream, _)), false) = (listener.accept(), stopped.load(Relaxed)) {
                let mut request = [0; 512];
                let n = stream.read(&mut request).unwrap();
                assert!(request[..n].starts_with(b"GET /proxyMode "));
                stream.write_all(b"HTTP/1.0 200 OK\r\n\r\niptables").unwrap();
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        drop(TcpStream::connect("127.0.0.1:10249"));
        self.thread.take().unwrap().join().unwrap();
    }
}

const PROXY_POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: kube-proxy-x, namespace: kube-system}
spec: {nodeName: n1, hostNetwork: true, containers: [{name: c, image: "registry.k8s.io/kube-proxy:v1.36.3"}]}
status: {phase: Running, podIP: 192.0.2.1, podIPs: [{ip: 192.0.2.1}]}
"#;

#[test]
fn a_kube_proxy_that_lives_is_seen_and_waited_for() {
    in_node(|node| {
        let bed = Bed::new(node);
        bed.write("web.yaml", SERVICE);
        bed.write("proxy.yaml", PROXY_POD);
        node.run("nft", "add table ip kube-proxy");
        let proxy = Proxy::start();
        let child = bed.start_with(&["--takeover", "when-gone"]);
        let line = |names: &Names<'_>, wanted: &str| {
            let line = names.subsystems.iter().find(|line| line.name == "kube-proxy");
            line.is_some_and(|line| line.detail.contains(wanted))
        };
        bed.names("all of it is named", |names| {
            line(names, "its Pod kube-system/kube-proxy-x is on this node; it answers at 127.0.0.1:10249, mode iptables; its nftables table kube-proxy exists")
                && names.agent.synced != 0 && is_ok(names, "programs")
        });
        answers(10266, "/readyz", "HTTP/1.1 200");
        let takeover = || {
            let output = bed.command("takeover").output().unwrap();
            (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
        };
        let (code, log) = takeover();
        assert_eq!(code, Some(1), "{log}");
        assert!(log.contains("(it answers at 127.0.0.1:10249, mode iptables)"), "{log}");
        drop(proxy);
        let (code, log) = takeover();
        assert_eq!(code, Some(1), "{log}");
        assert!(log.contains("(its Pod kube-system/kube-proxy-x is on this node)"), "{log}");

        let mut waiting =
            bed.command("takeover").arg("--wait=60s").stdout(Stdio::piped()).spawn().unwrap();
        let mut shown = [0; 8];
        waiting.stdout.as_mut().unwrap().read_exact(&mut shown).unwrap();
        assert_eq!(&shown, b"waiting:");
        bed.write("proxy.yaml", "");
        assert!(waiting.wait().unwrap().success());
        assert!(!node.run("nft", "list tables").contains("kube-proxy"));
        bed.names("it is gone", |names| line(names, "not detected"));
        let answer = answers(10249, "/proxyMode", "HTTP/1.1 200");
        assert!(answer.ends_with("ebpf"), "{answer}");

        // Its rules are here once more, and it is not: they go by themselves.
        node.run("nft", "add table ip kube-proxy");
        let deadline = Instant::now() + Duration::from_secs(60);
        while node.run("nft", "list tables").contains("kube-proxy") {
            assert!(Instant::now() < deadline, "the rules stay");
            std::thread::sleep(Duration::from_millis(100));
        }
        let (code, log) = end(child, Signal::SIGTERM);
        assert_eq!(code, Some(0), "{log}");
        assert!(log.contains("kube-proxy has stopped, removed its rules"), "{log}");
    });
}

#[test]
fn ten_thousand_chains_go_in_seconds() {
    in_node(|node| {
        let bed = Bed::new(node);
        let mut rules = String::from("table ip nat {\n");
        for i in 0..5_000 {
            rules.push_str(&format!("chain KUBE-SEP-{i} {{\n}}\n"));
            rules.push_str(&format!("chain KUBE-SVC-{i} {{\njump KUBE-SEP-{i}\n}}\n"));
        }
        rules.push_str("chain KUBE-SERVICES {\n");
        for i in 0..5_000 {
            rules.push_str(&format!("jump KUBE-SVC-{i}\n"));
        }
        rules.push_str("}\nchain OUTPUT {\ntype nat hook output priority -100\n");
        rules.push_str("jump KUBE-SERVICES\n}\n}\n");
        let file = bed.dir.join("rules.nft");
        fs::write(&file, rules).unwrap();
        node.run("nft", &format!("-f {}", file.display()));
        let child = bed.start();
        bed.names("ready", |names| names.agent.synced != 0 && is_ok(names, "programs"));
        let begun = Instant::now();
        let output = bed.command("takeover").output().unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{log}");
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        assert!(!node.run("nft", "list ruleset").contains("KUBE-"));
        let (code, log) = end(child, Signal::SIGTERM);
        assert_eq!(code, Some(0), "{log}");
    });
}

#[test]
fn kube_proxys_legacy_rules_go_with_the_hosts_binaries() {
    in_node(|node| {
        let bed = Bed::new(node);
        for rule in [
            "-N KUBE-SERVICES",
            "-N KUBE-SVC-1",
            "-N CNI-HOSTPORT",
            "-A KUBE-SERVICES -d 10.96.0.1/32 -j KUBE-SVC-1",
            "-A KUBE-SVC-1 -j RETURN",
            "-A OUTPUT -j KUBE-SERVICES",
            "-A OUTPUT -j CNI-HOSTPORT",
        ] {
            node.run("iptables-legacy", &format!("-t nat {rule}"));
        }
        let child = bed.start();
        bed.names("ready", |names| names.agent.synced != 0 && is_ok(names, "programs"));
        let takeover = |path: Option<&str>| {
            let mut command = bed.command("takeover");
            if let Some(path) = path {
                command.env("PATH", path);
            }
            let output = command.output().unwrap();
            let log = String::from_utf8_lossy(&output.stderr).into_owned();
            (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned(), log)
        };
        bed.names("an issue", |names| {
            names.subsystems.iter().any(|line| line.detail.contains("legacy iptables"))
        });
        let (code, _, log) = takeover(Some("/nowhere"));
        assert_eq!(code, Some(1));
        assert!(log.contains("iptables-legacy-save is not installed to read them"), "{log}");
        let (code, shown, log) = takeover(None);
        assert_eq!(code, Some(0), "{log}");
        assert_eq!(shown, "legacy iptables: 2 chains, 1 rules jump to them\nremoved\n");
        let left = node.run("iptables-legacy", "-t nat -S");
        assert!(!left.contains("KUBE-") && left.contains("-A OUTPUT -j CNI-HOSTPORT"), "{left}");
        let (code, log) = end(child, Signal::SIGTERM);
        assert_eq!(code, Some(0), "{log}");
    });
}
