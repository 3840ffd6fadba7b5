//! What the maps `ident` and `devs` should say of this node's addresses and devices; of `devs`, also the writes that
//! are missing. `ident` is written with what policies say of the same addresses.
//!
//! Everything is computed anew from the devices as they are: a few hundred elements. What an earlier run left and
//! nobody has any more differs like everything else, and goes.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use lb_common::addr::Addr;
use lb_common::endpoint::{Dev, Ident, dev_flags, ident_flags};
use tracing::debug;

use lb_core::cluster::Name;
use lb_core::issue::{Issue, ObjectRef};
use lb_core::plan::MapError;
use lb_kernel::bpf::addresses::{AddressTables, Contents};
use lb_kernel::devices::Devices;
use lb_kernel::devices::addresses::Addresses as OfDevice;

/// Failed writes are tried again after so long.
const RETRY: Duration = Duration::from_secs(1);
const LOCAL_NODE: Ident = Ident { flags: ident_flags::LOCAL_NODE, ..Ident::ZERO };

/// The two maps, and what they should say of this node.
pub(super) struct Addresses {
    tables: AddressTables,
    /// What `ident` should say.
    ident: BTreeMap<Addr, Ident>,
    devs: BTreeMap<u32, Dev>,
    node: ObjectRef,
    /// The node's own addresses as of the last update.
    named: Box<[Addr]>,
    issues: Vec<Issue>,
    retry: Option<Instant>,
}

impl Addresses {
    /// Takes over what an earlier run left.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub(super) fn take_over(tables: AddressTables, node_name: &str) -> Result<Self, MapError> {
        let Contents { ident, devs } = tables.load()?;
        let ident = ident.into_iter().map(|(addr, known)| (addr, of_device(&known))).collect();
        let node = ObjectRef::new("Node", &Name::new("", node_name));
        let named = Box::default();
        Ok(Self { tables, ident, devs, node, named, issues: Vec::new(), retry: None })
    }

    /// All that `ident` says.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub(super) fn load(&self) -> Result<HashMap<Addr, Ident>, MapError> {
        Ok(self.tables.load()?.ident.into_iter().collect())
    }

    /// Computes `ident` from what lies behind each of the Pods' devices.
    pub(super) fn claim(&mut self, devices: &Devices, behind: &[Claim]) {
        self.ident = idents(devices.host().reachable(), behind, &self.ident);
    }

    /// Writes what differs in `devs`. `node` are the node's own addresses as Kubernetes knows them.
    pub(super) fn update(&mut self, devices: &Devices, node: &[Addr]) {
        self.named = node.into();
        let host: HashSet<Addr> = devices.host().reachable().map(Addr::from_ip).collect();
        let named = node.iter().filter(|addr| host.contains(addr));
        let standing = first(named).or(devices.node_addresses());
        let pod_bridges = devices.pod_bridges();
        let devs = devices.routed().map(|(ifindex, uplink)| {
            let main = devices.host().main(ifindex);
            (ifindex, dev(main.or(standing), uplink.mtu, pod_bridges.contains(&ifindex)))
        });
        let devs: BTreeMap<u32, Dev> = devs.collect();
        let tables = &mut self.tables;
        let mut failures = Failures::default();
        settle(&mut self.devs, &devs, |ifindex, dev| failures.note(tables.set_dev(ifindex, dev)));
        let issue = |(map, message): (&str, String)| {
            Issue::new(self.node.clone(), format!("map {map}"), message)
        };
        self.retry = (!failures.by_map.is_empty()).then(|| Instant::now() + RETRY);
        self.issues = failures.by_map.into_iter().map(issue).collect();
    }

    /// Whether these are other addresses of the node than those of the last update.
    pub(super) fn is_news(&self, node: &[Addr]) -> bool {
        *self.named != *node
    }

    /// When failed writes are to be tried again.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.retry
    }

    /// What could not be written.
    pub(super) fn issues(&self) -> impl Iterator<Item = &Issue> {
        self.issues.iter()
    }

    /// Elements of `devs` in use.
    pub(super) fn n_devs(&self) -> usize {
        self.devs.len()
    }

    /// What `ident` should say of this node's addresses, and the maps to write it to.
    pub(super) fn idents(&mut self) -> (&BTreeMap<Addr, Ident>, &mut AddressTables) {
        (&self.ident, &mut self.tables)
    }
}

/// Failed writes, the first of each map.
#[derive(Default)]
struct Failures {
    by_map: BTreeMap<&'static str, String>,
}

impl Failures {
    fn note(&mut self, result: Result<(), MapError>) -> bool {
        let Err(err) = result else { return true };
        debug!(map = err.map, %err, "write failed");
        let what = if err.full { "no room left" } else { "write refused" };
        self.by_map.entry(err.map).or_insert_with(|| {
            format!("{what} ({err}): external traffic to some addresses of this node fails")
        });
        false
    }
}

/// Brings what is written to what is wanted; removals first, since they make room. A write that fails is missing
/// from `written` and is tried again with the next call.
pub(super) fn settle<K: Ord + Copy, V: Copy + PartialEq>(
    written: &mut BTreeMap<K, V>,
    wanted: &BTreeMap<K, V>,
    mut write: impl FnMut(&K, Option<&V>) -> bool,
) {
    written.retain(|key, _| wanted.contains_key(key) || !write(key, None));
    for (key, value) in wanted {
        if written.get(key) != Some(value) && write(key, Some(value)) {
            written.insert(*key, *value);
        }
    }
}

/// What an element of `ident` says of a device of this node.
fn of_device(known: &Ident) -> Ident {
    let flags = known.flags & ident_flags::LOCAL_NODE;
    Ident { flags, ifindex: known.ifindex, ..Ident::ZERO }
}

/// Number of a device, which addresses lie behind it, and whether those stay that are written: the agent has just
/// started.
pub(super) type Claim = (u32, (Vec<Addr>, bool));

/// Who has which address. A host's own address is never a Pod's.
fn idents(
    host: impl Iterator<Item = IpAddr>,
    behind: &[Claim],
    written: &BTreeMap<Addr, Ident>,
) -> BTreeMap<Addr, Ident> {
    let mut idents = BTreeMap::new();
    for (ifindex, (_, stay)) in behind {
        let stay = |(_, old): &(&Addr, &Ident)| *stay && old.ifindex == *ifindex;
        idents.extend(written.iter().filter(stay).map(|(addr, old)| (*addr, *old)));
    }
    for (ifindex, (addresses, _)) in behind {
        let ident = Ident { ifindex: *ifindex, ..Ident::ZERO };
        idents.extend(addresses.iter().map(|addr| (*addr, ident)));
    }
    idents.extend(host.map(|ip| (Addr::from_ip(ip), LOCAL_NODE)));
    idents
}

/// The first address of each family.
fn first<'a>(addresses: impl Iterator<Item = &'a Addr>) -> OfDevice {
    addresses.fold(OfDevice::default(), |found, addr| {
        let ip = addr.to_ip();
        found.or(match ip {
            IpAddr::V4(_) => OfDevice { ip4: Some(ip), ip6: None },
            IpAddr::V6(_) => OfDevice { ip4: None, ip6: Some(ip) },
        })
    })
}

fn dev(source: OfDevice, mtu: u32, of_pods: bool) -> Dev {
    let addr = |ip: Option<IpAddr>| ip.map_or(Addr::NONE, Addr::from_ip);
    let flags = if of_pods { dev_flags::PODS } else { 0 };
    Dev { masquerade4: addr(source.ip4), masquerade6: addr(source.ip6), mtu, flags }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{Addr, Ident, LOCAL_NODE, OfDevice, dev, dev_flags, first, idents, settle};

    fn addr(text: &str) -> Addr {
        Addr::from_ip(text.parse().unwrap())
    }

    #[test]
    fn who_has_which_address() {
        let of = |ifindex: u32| Ident { ifindex, ..Ident::ZERO };
        let host = ["192.0.2.1", "fe80::1", "10.1.0.1"].map(|ip| ip.parse().unwrap());
        let behind = |ifindex, ips: &[&str], stay| {
            (ifindex, (ips.iter().map(|ip| addr(ip)).collect(), stay))
        };
        let behind = [
            behind(5, &["10.1.0.2", "fd01::2"], false),
            behind(6, &["10.1.0.7"], true),
            behind(7, &[], false),
            behind(8, &["10.1.0.1"], false),
        ];
        let left = [
            (addr("10.1.0.6"), of(6)),
            (addr("10.1.0.9"), of(9)),
            (addr("10.1.0.70"), of(7)),
            (addr("10.1.0.66"), of(5)),
            (addr("192.0.2.77"), LOCAL_NODE),
        ];
        let got = idents(host.into_iter(), &behind, &BTreeMap::from(left));
        let want = [
            ("10.1.0.1", LOCAL_NODE),
            ("10.1.0.2", of(5)),
            ("10.1.0.6", of(6)),
            ("10.1.0.7", of(6)),
            ("192.0.2.1", LOCAL_NODE),
            ("fd01::2", of(5)),
            ("fe80::1", LOCAL_NODE),
        ];
        assert_eq!(got, want.map(|(ip, ident)| (addr(ip), ident)).into());
    }

    #[test]
    fn the_source_of_masqueraded_flows() {
        let node = [addr("2001:db8::1"), addr("192.0.2.1"), addr("192.0.2.2")];
        let main = OfDevice { ip4: Some("198.51.100.1".parse().unwrap()), ip6: None };
        let got = dev(main.or(first(node.iter())), 1450, false);
        assert_eq!((got.masquerade4, got.masquerade6), (addr("198.51.100.1"), addr("2001:db8::1")));
        let got = dev(OfDevice::default().or(first(node.iter())), 1450, true);
        assert_eq!(
            (got.masquerade4, got.mtu, got.flags),
            (addr("192.0.2.1"), 1450, dev_flags::PODS)
        );
        assert_eq!(dev(OfDevice::default(), 9, false).masquerade4, Addr::NONE);
    }

    #[test]
    fn failed_writes_and_removals_stay_pending() {
        let mut written = BTreeMap::from([(1, 'a'), (2, 'b'), (3, 'c')]);
        let wanted = BTreeMap::from([(2, 'b'), (3, 'x'), (4, 'd'), (5, 'e')]);
        let mut calls = Vec::new();
        let refused = [1, 4];
        settle(&mut written, &wanted, |key, value| {
            calls.push((*key, value.copied()));
            !refused.contains(key)
        });
        assert_eq!(calls, [(1, None), (3, Some('x')), (4, Some('d')), (5, Some('e'))]);
        assert_eq!(written, BTreeMap::from([(1, 'a'), (2, 'b'), (3, 'x'), (5, 'e')]));
        calls.clear();
        settle(&mut written, &wanted, |key, value| {
            calls.push((*key, value.copied()));
            true
        });
        assert_eq!(calls, [(1, None), (4, Some('d'))]);
        assert_eq!(written, wanted);
    }
}
