//! A node of its own: a network namespace for the test's thread, others for Pods, a pin directory, a cgroup.

use std::cell::Cell;
use std::fs::{self, File};
use std::net::UdpSocket;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use aya::Ebpf;
use lb_common::addr::Addr;
use lb_common::config::{self, Config, Features};
use lb_common::limits;
use lb_kernel::bpf::load::{self, LoadOptions};
use lb_kernel::bpf::pins::Pins;
use lb_kernel::syscall;
use nix::sched::{CloneFlags, setns, unshare};
use tokio::runtime::{Builder, Runtime};

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Runs `test` on a node of its own and removes it, also after a panic.
pub(crate) fn in_node(test: impl FnOnce(&Node) + Send) {
    let result = std::thread::scope(|scope| {
        scope
            .spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).unwrap();
                let number = NUMBER.fetch_add(1, Ordering::Relaxed);
                let name = format!("lb-test-{}-{number}", std::process::id());
                let node = Node { name, cgroups: Cell::new(0) };
                node.ip("link set lo up");
                test(&node);
            })
            .join()
    });
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

pub(crate) struct Node {
    name: String,
    cgroups: Cell<u32>,
}

/// A Pod's network namespace; it goes with the value.
pub(crate) struct Pod {
    netns: File,
}

impl Node {
    pub(crate) fn pin_dir(&self) -> PathBuf {
        Path::new("/sys/fs/bpf").join(&self.name)
    }

    pub(crate) fn pins(&self) -> Pins {
        Pins::existing(&self.pin_dir()).unwrap_or_else(|| Pins::create(&self.pin_dir()).unwrap())
    }

    /// The kernel object on the node's pinned maps.
    pub(crate) fn load(&self) -> Ebpf {
        self.load_with(Features::NONE)
    }

    /// The same, with programs that count packets.
    pub(crate) fn load_counting(&self) -> Ebpf {
        self.load_with(Features::ACCOUNTS)
    }

    fn load_with(&self, features: Features) -> Ebpf {
        let config = Config {
            features,
            netns_cookie: syscall::netns_cookie().unwrap(),
            hz: lb_kernel::bpf::clock::Clock::detect().unwrap().hz,
            hairpin4: Addr::from_ip(config::HAIRPIN4.into()),
            hairpin6: Addr::from_ip(config::HAIRPIN6.into()),
            ..Config::ZERO
        };
        let pins = self.pins();
        let pin_dir = Some(pins.dir());
        load::load(&LoadOptions { pin_dir, config, ct_entries: limits::CT }).unwrap()
    }

    pub(crate) fn runtime(&self) -> Runtime {
        Builder::new_current_thread().enable_all().build().unwrap()
    }

    /// A new cgroup.
    pub(crate) fn cgroup(&self) -> PathBuf {
        let number = self.cgroups.get();
        self.cgroups.set(number + 1);
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let root = mounts.lines().find(|line| line.contains(" cgroup2 ")).expect("cgroup v2");
        let root = root.split(' ').nth(1).unwrap();
        let path = Path::new(root).join(format!("{}-{number}", self.name));
        fs::create_dir(&path).unwrap();
        path
    }

    pub(crate) fn pod(&self, _name: &str) -> Pod {
        let netns = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        Pod { netns: netns.join().unwrap() }
    }

    /// Connects a Pod by a veth without a bridge, as the CNI plugins do: made in the Pod, moved here.
    pub(crate) fn routed(&self, pod: &Pod, host_end: &str, addresses: &[&str]) -> u32 {
        self.routed_at(pod, host_end, addresses, None)
    }

    /// The same with a wanted ifindex.
    pub(crate) fn routed_at(
        &self,
        pod: &Pod,
        host: &str,
        addresses: &[&str],
        index: Option<u32>,
    ) -> u32 {
        let path = pod.path();
        let index = index.map(|index| format!("index {index}")).unwrap_or_default();
        let inside = format!("eth{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        self.ip(&format!("link add {host} {index} type veth peer name {inside} netns {path}"));
        for address in addresses {
            self.address_at(pod, &inside, address);
        }
        self.inside(pod, "ip", &format!("link set {inside} up"));
        self.ip(&format!("link set {host} up"));
        self.ifindex(host)
    }

    /// Adds an address to the first device of a Pod.
    pub(crate) fn address(&self, pod: &Pod, address: &str) {
        let links = self.inside(pod, "ip", "-o link show type veth");
        let device = links.split(": ").nth(1).unwrap().split('@').next().unwrap().to_owned();
        self.address_at(pod, &device, address);
    }

    fn address_at(&self, pod: &Pod, device: &str, address: &str) {
        let family = if address.contains(':') { "-6 " } else { "" };
        let flags = if address.contains(':') { " nodad" } else { "" };
        self.inside(pod, "ip", &format!("{family}addr add {address} dev {device}{flags}"));
    }

    /// Moves a device into a Pod.
    pub(crate) fn give(&self, device: &str, pod: &Pod) {
        self.ip(&format!("link set {device} netns {}", pod.path()));
    }

    pub(crate) fn ifindex(&self, device: &str) -> u32 {
        let line = self.ip(&format!("-o link show {device}"));
        line.split(':').next().unwrap().parse().unwrap()
    }

    /// Name of a device.
    pub(crate) fn device(&self, ifindex: u32) -> String {
        let links = self.ip("-o link show");
        let line = links.lines().find(|line| line.starts_with(&format!("{ifindex}: "))).unwrap();
        line.split(": ").nth(1).unwrap().split('@').next().unwrap().to_owned()
    }

    /// Whether the kernel must have TCX: Linux 6.6.
    pub(crate) fn has_tcx(&self) -> bool {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        lb_kernel::preflight::version(&release).unwrap() >= (6, 6)
    }

    pub(crate) fn ip(&self, arguments: &str) -> String {
        self.run("ip", arguments)
    }

    pub(crate) fn run(&self, program: &str, arguments: &str) -> String {
        run(program, arguments)
    }

    pub(crate) fn inside(&self, pod: &Pod, program: &str, arguments: &str) -> String {
        pod.enter(|| run(program, arguments))
    }

    /// Sends one datagram out of a Pod. No host answers it.
    pub(crate) fn send_udp(&self, pod: &Pod, to: &str) {
        let links = self.inside(pod, "ip", "-o link show type veth");
        let device = links.split(": ").nth(1).unwrap().split('@').next().unwrap().to_owned();
        let (address, _) = to.rsplit_once(':').unwrap();
        let mac = self.ip("-o link show type veth");
        let mac = mac.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap();
        self.inside(pod, "ip", &format!("route add {address} dev {device}"));
        let neighbour = format!("neigh add {address} lladdr {mac} dev {device}");
        self.inside(pod, "ip", &neighbour);
        pod.enter(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.send_to(b"?", to).unwrap();
        });
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(pins) = Pins::existing(&self.pin_dir()) {
            pins.remove_all().unwrap();
        }
        for number in 0..self.cgroups.get() {
            let name = format!("{}-{number}", self.name);
            let mounts = fs::read_to_string("/proc/mounts").unwrap();
            for line in mounts.lines().filter(|line| line.contains(" cgroup2 ")) {
                let path = Path::new(line.split(' ').nth(1).unwrap()).join(&name);
                if path.exists() {
                    fs::remove_dir(path).unwrap();
                }
            }
        }
    }
}

impl Pod {
    /// A name for the namespace that `ip` understands.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.netns.as_raw_fd())
    }

    pub(crate) fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.netns, CloneFlags::CLONE_NEWNET).unwrap();
                f()
            });
            inside.join().unwrap()
        })
    }
}

fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split_whitespace()).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}
