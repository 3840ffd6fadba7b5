//! The pinned maps, read only: from the pin directory to plain data. It needs no agent.

mod fields;

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context as _, anyhow, bail};
use lb_common::account::{AccountEntry, AccountKey};
use lb_common::conntrack::{CtEntry, CtKey};
use lb_common::endpoint::{Dev, Ident, PodEntry};
use lb_common::fragment::{FragmentKey, FragmentPorts};
use lb_common::limits::{
    MAP_ACCOUNTS, MAP_AFFINITY, MAP_BACKENDS, MAP_CIDRS, MAP_COUNTERS, MAP_CT, MAP_DEVS,
    MAP_FORMER_PORTS, MAP_FRAGMENTS, MAP_FRONTEND_PORTS, MAP_FRONTENDS, MAP_GROUPS, MAP_HITS,
    MAP_HOST_PORTS, MAP_IDENT, MAP_KEPT, MAP_LOADS, MAP_LOCALS, MAP_MACS, MAP_PEER_BITS, MAP_PODS,
    MAP_POLICY, MAP_PORT_BITS, MAP_SETTINGS, MAP_SLOTS, MAP_SOURCE_RANGES, MAPS, MapSpec,
};
use lb_common::past::LocalEnd;
use lb_common::policy::{Bits, PeerKey};
use lb_common::service::{Affinity, AffinityKey, Backend, Frontend, FrontendKey, state};

use crate::account::Accounts;
use crate::frontend::FrontendSlots;
use crate::programs::ProgramRow;
use crate::snapshot::{CtFilter, MapUse, Now, SnapshotExtent, TableSnapshot, count_flow};
use lb_core::counts::Counts;
use lb_kernel::bpf::attach::Role;
use lb_kernel::bpf::clock::Clock;
use lb_kernel::bpf::judge::PinnedPolicies;
use lb_kernel::bpf::listening::ListeningProgram;
use lb_kernel::bpf::maps::{self, MapsError, Tables};
use lb_kernel::bpf::pins::{Pin, Pins};
use lb_kernel::bpf::programs::{self, Runs};
use lb_kernel::bpf::usage::{self, Element, Usage};
use lb_kernel::syscall;

/// What [`Pinned::snapshot`] opens.
const READ: [MapSpec; 12] = [
    MAP_FRONTENDS,
    MAP_SLOTS,
    MAP_BACKENDS,
    MAP_LOADS,
    MAP_PODS,
    MAP_LOCALS,
    MAP_SOURCE_RANGES,
    MAP_AFFINITY,
    MAP_FRONTEND_PORTS,
    MAP_HOST_PORTS,
    MAP_FORMER_PORTS,
    MAP_SETTINGS,
];

/// The pin directory of an agent, running or not.
#[derive(Clone, Debug)]
pub struct Pinned {
    pins: Pins,
    list: Vec<Pin>,
}

impl Pinned {
    /// Looks into the pin directory.
    ///
    /// # Errors
    /// One sentence: when there are no tables, they may not be read, or they are of another version.
    pub fn open(dir: &Path) -> anyhow::Result<Self> {
        let place = dir.display();
        if let Err(error) = fs::read_dir(dir)
            && error.kind() == io::ErrorKind::PermissionDenied
        {
            bail!("{place}: {DENIED}");
        }
        let nothing = || {
            anyhow!("no maps at {place}: lb-agent has not run on this node yet, or has cleaned it")
        };
        let pins = Pins::existing(dir).ok_or_else(nothing)?;
        let list: Vec<Pin> = pins.list()?.into_iter().map(|(_, pin)| pin).collect();
        if !list.iter().any(|pin| matches!(pin, Pin::Map(..))) {
            return Err(nothing());
        }
        Ok(Self { pins, list })
    }

    /// The tables, as far as asked for.
    ///
    /// # Errors
    /// One sentence: when a map is missing, has another version, or may not be read.
    pub fn snapshot(&self, extent: SnapshotExtent) -> anyhow::Result<TableSnapshot> {
        for spec in &READ {
            self.check(spec)?;
        }
        let tables = Tables::open(&self.pins).map_err(refused)?;
        // Readers follow the order of a packet, writers the reverse order: what a frontend leads to exists.
        let (frontends, n_slots) = frontends(&tables)?;
        let listed = frontends.iter().flat_map(|f| f.backend_ids.iter().chain(&f.local_ids));
        let end = listed.max().map_or(0, |last| last + 1);
        let mut snapshot = TableSnapshot {
            backends: backends(&tables, end)?,
            frontends,
            n_slots,
            hooks: self.hooks(),
            ifaces: ifaces().context("list network devices")?,
            ..TableSnapshot::default()
        };
        syscall::for_each(&tables.pods, |ifindex: &u32, pod: &PodEntry| {
            snapshot.pods.insert(*ifindex, *pod);
        })
        .context("read pods")?;
        let settings = tables.settings.get(&0, 0).context("read settings")?;
        snapshot.past.settings = settings.flags;
        let cidrs = settings.service_cidrs.iter().take(settings.n_service_cidrs as usize);
        snapshot.service_cidrs = cidrs.copied().collect();
        let locals = maps::open_locals(&self.pins).map_err(refused)?;
        syscall::for_each(&locals, |id: &u32, end: &LocalEnd| {
            if end.ifindex != 0 {
                snapshot.past.ends.insert(*id, *end);
            }
        })
        .context("read locals")?;
        if extent >= SnapshotExtent::Fields {
            let last = snapshot.backends.keys().max();
            snapshot.fields = fields::read(&tables, last.map_or(0, |last| last + 1))?;
        }
        if extent >= SnapshotExtent::Flows {
            let now = now()?;
            let flows = &mut snapshot.flows;
            self.each_flow(|key, entry| count_flow(flows, key, entry, now))?;
        }
        Ok(snapshot)
    }

    /// What asks for the sockets of Pods.
    ///
    /// # Errors
    /// When the program is not pinned, or may not be opened.
    pub fn listening(&self) -> anyhow::Result<ListeningProgram> {
        ListeningProgram::open(&self.pins)
    }

    /// The conntrack entries that `filter` keeps, and when they were read.
    ///
    /// # Errors
    /// As for [`Self::snapshot`].
    pub fn flows(&self, filter: &CtFilter) -> anyhow::Result<(Vec<(CtKey, CtEntry)>, Now)> {
        let now = now()?;
        let mut entries = Vec::new();
        self.each_flow(|key, entry| {
            if filter.keeps(key, entry) {
                entries.push((*key, *entry));
            }
        })?;
        Ok((entries, now))
    }

    /// What was counted of flows; `None` while they are not counted.
    ///
    /// # Errors
    /// As for [`Self::snapshot`].
    pub fn accounts(&self) -> anyhow::Result<Option<Accounts>> {
        let Some(map) = maps::open_accounts(&self.pins).map_err(refused)? else { return Ok(None) };
        let mut accounts = Accounts::new();
        syscall::for_each(&map, |key: &AccountKey, account: &AccountEntry| {
            accounts.insert(*key, *account);
        })
        .context("read accounts")?;
        Ok(Some(accounts))
    }

    /// The policy tables, for the evaluator.
    ///
    /// # Errors
    /// As for [`Self::snapshot`].
    pub fn policies(&self) -> anyhow::Result<PinnedPolicies> {
        for spec in
            [MAP_IDENT, MAP_CIDRS, MAP_GROUPS, MAP_PEER_BITS, MAP_PORT_BITS, MAP_POLICY].iter()
        {
            self.check(spec)?;
        }
        PinnedPolicies::open(&self.pins).map_err(refused)
    }

    /// The counters, all CPUs together.
    ///
    /// # Errors
    /// As for [`Self::snapshot`].
    pub fn counts(&self) -> anyhow::Result<Counts> {
        self.check(&MAP_COUNTERS)?;
        usage::counts(&self.pins).map_err(refused)
    }

    /// How full each pinned map is, in the order of [`MAPS`]; one that is not pinned is left out.
    ///
    /// # Errors
    /// As for [`Self::snapshot`].
    pub fn map_uses(&self, snapshot: &TableSnapshot) -> anyhow::Result<Vec<MapUse>> {
        let is_pinned = |spec: &&MapSpec| self.versions(spec).next().is_some();
        MAPS.iter().filter(is_pinned).map(|spec| self.map_use(spec, snapshot)).collect()
    }

    /// How often each program ran, and for how long.
    ///
    /// # Errors
    /// When the kernel does not list its programs.
    pub fn program_rows(&self) -> anyhow::Result<Vec<ProgramRow>> {
        let row = |runs: Runs| {
            let time_ns = runs.time.as_nanos().try_into().unwrap_or(u64::MAX);
            ProgramRow {
                program: runs.program,
                runs: runs.count,
                time_ns,
                ns_per_run: time_ns.checked_div(runs.count),
                verified_instructions: runs.verified.map(u64::from),
            }
        };
        Ok(programs::runs(&self.pins)?.into_iter().map(row).collect())
    }

    fn map_use(&self, spec: &MapSpec, snapshot: &TableSnapshot) -> anyhow::Result<MapUse> {
        self.check(spec)?;
        let Usage { kind, size, max, bytes } = usage::usage(&self.pins, spec).map_err(refused)?;
        let used: Option<usize> = match *spec {
            MAP_FRONTENDS => Some(snapshot.frontends.len()),
            MAP_SLOTS => Some(snapshot.n_slots),
            MAP_BACKENDS => Some(snapshot.backends.len()),
            MAP_PODS => Some(snapshot.pods.len()),
            MAP_CT => {
                let mut n = 0;
                self.each_flow(|_, _| n += 1)?;
                Some(n)
            }
            MAP_KEPT => Some(self.n_elements::<CtKey, CtEntry>(spec)?),
            MAP_ACCOUNTS => Some(self.n_elements::<AccountKey, AccountEntry>(spec)?),
            MAP_FRAGMENTS => Some(self.n_elements::<FragmentKey, FragmentPorts>(spec)?),
            MAP_AFFINITY => Some(self.n_elements::<AffinityKey, Affinity>(spec)?),
            MAP_IDENT => Some(self.n_elements::<[u32; 4], Ident>(spec)?),
            MAP_PEER_BITS => Some(self.n_elements::<PeerKey, Bits>(spec)?),
            MAP_DEVS => Some(self.n_elements::<u32, Dev>(spec)?),
            MAP_MACS => Some(self.n_elements::<u64, u32>(spec)?),
            MAP_HITS => Some(usage::n_hits(&self.pins).map_err(refused)?),
            // Socket storage, ring buffers and arrays that are always whole: the kernel does not tell.
            MapSpec { .. } => None,
        };
        let pin = self.pins.map(spec).display().to_string();
        Ok(MapUse { name: spec.name, kind, used: used.map(|n| n as u64), size, max, bytes, pin })
    }

    fn n_elements<K: Element, V: Element>(&self, spec: &MapSpec) -> anyhow::Result<usize> {
        usage::n_elements::<K, V>(&self.pins, spec).map_err(refused)
    }

    fn each_flow(&self, each: impl FnMut(&CtKey, &CtEntry)) -> anyhow::Result<()> {
        self.check(&MAP_CT)?;
        let map = maps::open_ct(&self.pins).map_err(refused)?;
        syscall::for_each(&map, each).context("read ct")
    }

    /// What carries our programs at each Pod's veth: the programs with a link of their own, or the qdisc.
    fn hooks(&self) -> HashMap<u32, Vec<String>> {
        let mut hooks: HashMap<u32, Vec<String>> = HashMap::new();
        for pin in &self.list {
            match pin {
                Pin::DeviceLink(ifindex, hook) => {
                    let program = Role::Pod.program(*hook).unwrap_or_default();
                    hooks.entry(*ifindex).or_default().push(program.to_owned());
                }
                Pin::Qdisc(ifindex) => hooks.entry(*ifindex).or_default().push("clsact".to_owned()),
                Pin::Map(..)
                | Pin::Aside(..)
                | Pin::Next(..)
                | Pin::Part(..)
                | Pin::AccountLink(..)
                | Pin::SocketLink(_)
                | Pin::Program(_) => {}
            }
        }
        for words in hooks.values_mut() {
            words.sort();
        }
        hooks
    }

    /// Versions of a map that are pinned.
    fn versions(&self, spec: &MapSpec) -> impl Iterator<Item = u32> {
        self.list.iter().filter_map(|pin| match pin {
            Pin::Map(name, version) if *name == spec.name => Some(*version),
            Pin::Map(..)
            | Pin::Aside(..)
            | Pin::Next(..)
            | Pin::Part(..)
            | Pin::DeviceLink(..)
            | Pin::AccountLink(..)
            | Pin::SocketLink(_)
            | Pin::Program(_)
            | Pin::Qdisc(_) => None,
        })
    }

    /// Whether our version of the map is there.
    fn check(&self, spec: &MapSpec) -> anyhow::Result<()> {
        let MapSpec { name, version } = *spec;
        if self.versions(spec).any(|found| found == version) {
            return Ok(());
        }
        match self.versions(spec).max() {
            Some(other) => bail!(
                "{name}_v{other} is pinned, this lbctl reads {name}_v{version}: use the lbctl of the running agent"
            ),
            None => bail!(
                "{name}_v{version} is not pinned at {}: did lb-agent start on this node?",
                self.pins.dir().display()
            ),
        }
    }
}

/// The frontends, and the number of slots that they refer to: most of a Service's share theirs.
fn frontends(tables: &Tables) -> anyhow::Result<(Vec<FrontendSlots>, usize)> {
    let mut frontends = Vec::new();
    syscall::for_each(&*tables.frontends, |key: &FrontendKey, frontend: &Frontend| {
        frontends.push((*key, *frontend));
    })
    .context("read frontends")?;
    let ranges = |frontend: &Frontend| {
        let Frontend { base, n, local_base, local_n, maglev_base, maglev_n, .. } = *frontend;
        [(base, n), (local_base, local_n), (maglev_base, maglev_n)]
    };
    let ends = frontends.iter().flat_map(|(_, frontend)| ranges(frontend));
    let end = ends.map(|(base, n)| base.saturating_add(n)).max().unwrap_or_default();
    let mut slots = HashMap::new();
    let read = tables.slots.for_each_below(end, |slot, backend_id| {
        if *backend_id != 0 {
            slots.insert(slot, *backend_id);
        }
    });
    read.context("read slots")?;
    let last = tables.slots.len();
    let range = |base: u32, n: u32| base..base.saturating_add(n).min(last);
    let ids = |base, n| range(base, n).filter_map(|slot| slots.get(&slot).copied()).collect();
    let mut used = HashSet::new();
    let resolve = |(key, frontend): (FrontendKey, Frontend)| {
        for (base, n) in ranges(&frontend) {
            used.extend(range(base, n));
        }
        let Frontend { base, n, local_base, local_n, .. } = frontend;
        let (backend_ids, local_ids) = (ids(base, n), ids(local_base, local_n));
        FrontendSlots { key, frontend, backend_ids, local_ids }
    };
    let frontends = frontends.into_iter().map(resolve).collect();
    Ok((frontends, used.len()))
}

/// The backends in use, those below `end` and all others. Ids are given away in order, and a row keeps the generation of
/// its last owner.
fn backends(tables: &Tables, end: u32) -> anyhow::Result<HashMap<u32, Backend>> {
    let mut backends = HashMap::new();
    let is_written = |backend: &Backend| backend.state != state::UNUSED || backend.generation != 0;
    let read = tables.backends.for_each_written(end, is_written, |id, backend| {
        if backend.state != state::UNUSED {
            backends.insert(id, *backend);
        }
    });
    read.context("read backends")?;
    Ok(backends)
}

fn now() -> anyhow::Result<Now> {
    let clock = Clock::detect().context("find the kernel's tick rate")?;
    Ok(Now { stamp: clock.stamp().context("read the monotonic clock")?, hz: clock.hz })
}

fn ifaces() -> nix::Result<HashMap<u32, String>> {
    let devices = nix::net::if_::if_nameindex()?;
    Ok(devices.iter().map(|d| (d.index(), d.name().to_string_lossy().into_owned())).collect())
}

/// What to do when the kernel does not let us look.
const DENIED: &str =
    "permission denied: run lbctl as root, or in the agent's container, which has CAP_BPF";

/// Adds what to do, when the reason is the usual one.
fn refused(error: MapsError) -> anyhow::Error {
    let mut cause: Option<&(dyn Error + 'static)> = Some(&error);
    while let Some(current) = cause {
        if let Some(io) = current.downcast_ref::<io::Error>()
            && io.kind() == io::ErrorKind::PermissionDenied
        {
            return match error {
                MapsError::Missing { map } | MapsError::Unusable { map, .. } => {
                    anyhow!("map {map}: {DENIED}")
                }
            };
        }
        cause = current.source();
    }
    error.into()
}
