//! The bed: a fabric without a way out, and the nodes on it.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use anyhow::{Context as _, bail};

use crate::{
    manifest::Directory,
    netns::Netns,
    node::{Node, Shape},
    reaper::Reaper,
};

/// Most nodes of a bed: each knows the Pod networks of all of these.
const MAX_NODES: u8 = 4;

/// Owner of all namespaces of one prefix; dropping it removes them with the processes in them.
#[derive(Debug)]
pub struct Bed {
    prefix: String,
    fabric: Netns,
    n_nodes: AtomicU8,
    n_outsiders: AtomicU8,
    reaper: Reaper,
}

impl Bed {
    /// Removes what an earlier bed of this prefix left behind and makes the fabric. `prefix`: 1 to 9 lower-case
    /// letters and digits.
    pub fn new(prefix: &str) -> anyhow::Result<Self> {
        let reaper = Reaper::start(prefix)?;
        mount_bpffs()?;
        let fabric = Netns::create(&format!("{prefix}-fabric"))?;
        fabric.ip("link add br0 type bridge\n\
                   link set br0 up\n\
                   addr add 172.31.0.1/24 dev br0\n\
                   addr add fd31::1/64 dev br0\n")?;
        let bed = Self {
            prefix: prefix.to_owned(),
            fabric,
            n_nodes: AtomicU8::new(0),
            n_outsiders: AtomicU8::new(0),
            reaper,
        };
        std::fs::create_dir_all(bed.dir()).context("create the bed's directory")?;
        Ok(bed)
    }

    /// Directory of the bed's files: manifests, the agents' state and logs.
    pub fn dir(&self) -> PathBuf {
        run_dir(&self.prefix)
    }

    /// The manifests that every agent of the bed reads unless told otherwise.
    pub fn manifests(&self) -> anyhow::Result<Directory> {
        Directory::create(&self.dir().join("manifests"))
    }

    /// Adds a node whose Pods have the given shape.
    pub fn node(&self, name: &str, shape: Shape) -> anyhow::Result<Node> {
        let number = self.n_nodes.fetch_add(1, Ordering::Relaxed) + 1;
        if number > MAX_NODES {
            bail!("node {name}: a bed has at most {MAX_NODES} nodes");
        }
        let node = Node {
            name: name.to_owned(),
            netns: Netns::create(&format!("{}-{name}", self.prefix))?,
            v4: Ipv4Addr::new(172, 31, 0, 10 + number),
            v6: format!("fd31::1{number}").parse().context("node address")?,
            number,
            shape,
            prefix: self.prefix.clone(),
            n_pods: Arc::new(AtomicU8::new(0)),
        };
        self.connect(&node)?;
        node.shape.prepare(&node)?;
        Ok(node)
    }

    /// A machine outside the cluster (`172.31.0.200`, `fd31::200` the first), without routes but its own network's.
    pub fn outsider(&self, name: &str) -> anyhow::Result<Netns> {
        let n = self.n_outsiders.fetch_add(1, Ordering::Relaxed);
        let netns = Netns::create(&format!("{}-{name}", self.prefix))?;
        self.fabric.ip(&format!(
            "link add to-{name} type veth peer name eth0 netns {netns}\n\
             link set to-{name} master br0 up\n"
        ))?;
        let (v4, v6) = Self::outsider_addrs(n);
        netns.ip(&format!(
            "link set eth0 up\n\
             addr add {v4}/24 dev eth0\n\
             addr add {v6}/64 dev eth0\n"
        ))?;
        Ok(netns)
    }

    /// Addresses on the fabric of outsider number `n`, from 0 on.
    pub const fn outsider_addrs(n: u8) -> (Ipv4Addr, Ipv6Addr) {
        let last = 200 + n;
        let v6 = Ipv6Addr::new(0xfd31, 0, 0, 0, 0, 0, 0, 0x200 + n as u16);
        (Ipv4Addr::new(172, 31, 0, last), v6)
    }

    /// Leaves everything up; a later bed of the same prefix removes it.
    pub fn keep(mut self) -> anyhow::Result<()> {
        self.reaper.dismiss()
    }

    fn connect(&self, node: &Node) -> anyhow::Result<()> {
        let Node { name, netns, v4, v6, number, .. } = node;
        netns.sysctl(&[
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/ipv6/conf/default/forwarding", "1"),
            // Strict, as most distributions have it: a datapath that answers on another path must show here.
            ("net/ipv4/conf/all/rp_filter", "1"),
            ("net/ipv4/conf/default/rp_filter", "1"),
        ])?;
        self.fabric.ip(&format!(
            "link add to-{name} type veth peer name eth0 netns {netns}\n\
             link set to-{name} master br0 up\n"
        ))?;
        let mut lines = format!(
            "link set eth0 up\n\
             addr add {v4}/24 dev eth0\n\
             addr add {v6}/64 dev eth0\n\
             route add default via 172.31.0.1\n\
             route add default via fd31::1\n"
        );
        for other in (1..=MAX_NODES).filter(|other| other != number) {
            lines += &format!("route add 10.244.{other}.0/24 via 172.31.0.1{other}\n");
            lines += &format!("route add fd44:0:0:{other}::/64 via fd31::1{other}\n");
        }
        netns.ip(&lines)
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Err(err) = self.reaper.finish() {
            eprintln!("bed {}: {err:#}", self.prefix);
        }
    }
}

/// Directory of the files of the bed with this prefix.
pub(crate) fn run_dir(prefix: &str) -> PathBuf {
    Path::new("/run").join(format!("testbed-{prefix}"))
}

/// Mounts the bpf file system where systemd would have, so that pins have a place.
fn mount_bpffs() -> anyhow::Result<()> {
    use nix::mount::{MsFlags, mount};
    let mounts = std::fs::read_to_string("/proc/mounts").context("read /proc/mounts")?;
    if mounts.lines().any(|line| line.split(' ').nth(1) == Some("/sys/fs/bpf")) {
        return Ok(());
    }
    mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), None::<&str>)
        .context("mount the bpf file system on /sys/fs/bpf")
}
