//! Drift: elements of the maps that say something else than what was written there. Something else has changed them, or a map
//! was restored from elsewhere: the agent is their only writer.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;
use std::hash::Hash;

use lb_common::addr::Addr;
use lb_common::endpoint::{Dev, Ident, PodEntry};
use lb_common::past::LocalEnd;
use lb_common::policy::{Group, PolicyState};
use lb_common::service::{Backend, Frontend, FrontendKey};

use super::actual::Actual;
use super::write::Write;

/// An element that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drift {
    /// Which element of its map.
    pub element: String,
    /// Its fields that differ; one without a name where the whole element is there on one side only.
    pub fields: Vec<DriftField>,
    /// What brings it back; its map is that of this write.
    pub repair: Write,
}

/// A field that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriftField {
    /// Its name in the layout of the map.
    pub name: &'static str,
    /// What was written.
    pub wanted: String,
    /// What the map says.
    pub found: String,
}

/// Where an element is missing.
const NONE: &str = "none";

/// Returns the elements of the maps that differ from what was written, in the order of the maps. Elements that only the programs
/// write are not compared.
pub fn drift(wanted: &Actual, found: &Actual) -> Vec<Drift> {
    let mut all = Vec::new();
    services(wanted, found, &mut all);
    policies(wanted, found, &mut all);
    devices(wanted, found, &mut all);
    all
}

fn services(wanted: &Actual, found: &Actual, all: &mut Vec<Drift>) {
    let at = |key: &FrontendKey| format!("{}:{}/{}", key.addr, key.port.get(), key.proto);
    all.extend(tables(
        (&wanted.frontends, &found.frontends),
        at,
        Frontend::each_difference,
        |key, value| {
            let key = *key;
            match value {
                Some(frontend) => Write::PutFrontend { key, frontend: *frontend },
                None => Write::DeleteFrontend { key },
            }
        },
    ));
    let id = |id: u32| id.to_string();
    let put = |id, backend_id: &u32| Write::PutSlot { slot: id, backend_id: *backend_id };
    all.extend(arrays((&wanted.slots, &found.slots), 0, id, whole, put));
    let of_backend = |at: u32| match wanted.backends.get(at as usize) {
        Some(backend) => format!("{at} {}:{}", backend.addr, backend.port.get()),
        None => at.to_string(),
    };
    let put = |id, backend: &Backend| Write::PutBackend { id, backend: *backend };
    let backends = (&wanted.backends[..], &found.backends[..]);
    all.extend(arrays(backends, Backend::ZERO, of_backend, Backend::each_difference, put));
    let put = |key| Write::PutSourceRange { key };
    let delete = |key| Write::DeleteSourceRange { key };
    all.extend(sets((&wanted.source_ranges, &found.source_ranges), put, delete));
    let ports = |word: u32| format!("ports {}-{}", word * 64, word * 64 + 63);
    let put = |word, bits: &u64| Write::PutFrontendPorts { word, bits: *bits };
    all.extend(arrays((&wanted.frontend_ports, &found.frontend_ports), 0, ports, whole, put));
    let put = |word, bits: &u64| Write::PutHostPorts { word, bits: *bits };
    all.extend(arrays((&wanted.host_ports, &found.host_ports), 0, ports, whole, put));
    let put = |word, bits: &u64| Write::PutFormerPorts { word, bits: *bits };
    all.extend(arrays((&wanted.former_ports, &found.former_ports), 0, ports, whole, put));
    if let (Some(wanted), Some(found)) = (&wanted.settings, &found.settings)
        && wanted != found
    {
        let fields = fields(|report| wanted.each_difference(found, report));
        let repair = Write::PutSettings(wanted.clone());
        all.push(Drift { element: "0".to_owned(), fields, repair });
    }
}

fn policies(wanted: &Actual, found: &Actual, all: &mut Vec<Drift>) {
    let id = |id: &u32| id.to_string();
    all.extend(tables((&wanted.groups, &found.groups), id, Group::each_difference, |id, group| {
        Write::PutGroup { id: *id, group: Box::new(group.copied().unwrap_or(Group::ZERO)) }
    }));
    all.extend(tables((&wanted.peer_bits, &found.peer_bits), debug, whole, |key, bits| {
        let key = *key;
        match bits {
            Some(bits) => Write::PutPeerBits { key, bits: *bits },
            None => Write::DeletePeerBits { key },
        }
    }));
    all.extend(tables((&wanted.port_bits, &found.port_bits), debug, whole, |(len, key), bits| {
        let (len, key) = (*len, *key);
        match bits {
            Some(bits) => Write::PutPortBits { len, key, bits: *bits },
            None => Write::DeletePortBits { len, key },
        }
    }));
    let cidrs = |actual: &Actual| actual.cidrs.iter().collect::<BTreeMap<_, _>>();
    all.extend(tables((&cidrs(wanted), &cidrs(found)), debug, whole, |range, ident| {
        let range = *range;
        match ident {
            Some(ident) => Write::PutCidr { range, ident: *ident },
            None => Write::DeleteCidr { range },
        }
    }));
    // The flags belong to the clients that follow flows.
    let state = |actual: &Actual| PolicyState { flags: wanted.policy.flags, ..actual.policy };
    if state(wanted) != state(found) {
        let fields = fields(|report| state(wanted).each_difference(&state(found), report));
        let repair = Write::PutPolicyState(wanted.policy);
        all.push(Drift { element: "0".to_owned(), fields, repair });
    }
    let addr = |addr: &Addr| addr.to_string();
    all.extend(tables(
        (&wanted.ident, &found.ident),
        addr,
        Ident::each_difference,
        |addr, ident| {
            let addr = *addr;
            match ident {
                Some(ident) => Write::PutIdent { addr, ident: *ident },
                None => Write::DeleteIdent { addr },
            }
        },
    ));
}

fn devices(wanted: &Actual, found: &Actual, all: &mut Vec<Drift>) {
    let id = |id: &u32| id.to_string();
    all.extend(tables(
        (&wanted.pods, &found.pods),
        id,
        PodEntry::each_difference,
        |ifindex, pod| {
            let ifindex = *ifindex;
            match pod {
                Some(pod) => Write::PutPod { ifindex, pod: Box::new(*pod) },
                None => Write::DeletePod { ifindex },
            }
        },
    ));
    all.extend(tables(
        (&wanted.locals, &found.locals),
        id,
        LocalEnd::each_difference,
        |id, local| Write::PutLocal { id: *id, local: local.copied().unwrap_or(LocalEnd::ZERO) },
    ));
    all.extend(tables((&wanted.devs, &found.devs), id, Dev::each_difference, |ifindex, dev| {
        let ifindex = *ifindex;
        match dev {
            Some(dev) => Write::PutDev { ifindex, dev: *dev },
            None => Write::DeleteDev { ifindex },
        }
    }));
    let mac = |mac: &u64| format!("{mac:012x}");
    all.extend(tables((&wanted.macs, &found.macs), mac, whole, |mac, holder| {
        let mac = *mac;
        match holder {
            Some(holder) => Write::PutMac { mac, holder: *holder },
            None => Write::DeleteMac { mac },
        }
    }));
    all.extend(tables((&wanted.links, &found.links), id, whole, |index, element| Write::PutLink {
        index: *index,
        element: element.copied().unwrap_or_default(),
    }));
    let put = |range| Write::PutPodRange { range };
    let delete = |range| Write::DeletePodRange { range };
    all.extend(sets((&wanted.pod_ranges, &found.pod_ranges), put, delete));
    let put = |key| Write::PutPodSource { key };
    let delete = |key| Write::DeletePodSource { key };
    all.extend(sets((&wanted.pod_sources, &found.pod_sources), put, delete));
}

type DriftReport<'r> = &'r mut dyn FnMut(&'static str, &dyn Debug, &dyn Debug);

/// A value without fields.
fn whole<V: Debug>(wanted: &V, found: &V, report: DriftReport<'_>) {
    report("", wanted, found);
}

fn debug(value: &impl Debug) -> String {
    format!("{value:?}")
}

fn fields(mut each: impl FnMut(DriftReport<'_>)) -> Vec<DriftField> {
    let mut fields = Vec::new();
    each(&mut |name, wanted, found| {
        fields.push(DriftField { name, wanted: debug(&wanted), found: debug(&found) });
    });
    fields
}

/// A map of the kernel as a hash table or a sorted one.
trait Table {
    type Key;
    type Value: PartialEq + Debug;
    fn value(&self, key: &Self::Key) -> Option<&Self::Value>;
    fn all_keys(&self) -> Vec<&Self::Key>;
}

impl<K: Eq + Hash, V: PartialEq + Debug> Table for HashMap<K, V> {
    type Key = K;
    type Value = V;

    fn value(&self, key: &K) -> Option<&V> {
        self.get(key)
    }

    fn all_keys(&self) -> Vec<&K> {
        self.keys().collect()
    }
}

impl<K: Ord, V: PartialEq + Debug> Table for BTreeMap<K, V> {
    type Key = K;
    type Value = V;

    fn value(&self, key: &K) -> Option<&V> {
        self.get(key)
    }

    fn all_keys(&self) -> Vec<&K> {
        self.keys().collect()
    }
}

fn tables<T: Table>(
    (wanted, found): (&T, &T),
    name: impl Fn(&T::Key) -> String,
    differ: impl Fn(&T::Value, &T::Value, DriftReport<'_>),
    write: impl Fn(&T::Key, Option<&T::Value>) -> Write,
) -> Vec<Drift> {
    let mut keys = wanted.all_keys();
    keys.retain(|key| wanted.value(key) != found.value(key));
    keys.extend(found.all_keys().into_iter().filter(|key| wanted.value(key).is_none()));
    let drift = |key: &T::Key| {
        let fields = match (wanted.value(key), found.value(key)) {
            (Some(wanted), Some(found)) => fields(|report| differ(wanted, found, report)),
            (wanted, found) => {
                let text = |value: Option<&T::Value>| value.map_or(NONE.to_owned(), debug);
                vec![DriftField { name: "", wanted: text(wanted), found: text(found) }]
            }
        };
        Drift { element: name(key), fields, repair: write(key, wanted.value(key)) }
    };
    let mut found: Vec<Drift> = keys.into_iter().map(drift).collect();
    found.sort_by(|a, b| a.element.cmp(&b.element));
    found
}

/// Arrays, of which what is beyond the end is `empty`.
fn arrays<V: Copy + PartialEq + Debug>(
    (wanted, found): (&[V], &[V]),
    empty: V,
    name: impl Fn(u32) -> String,
    differ: impl Fn(&V, &V, DriftReport<'_>),
    write: impl Fn(u32, &V) -> Write,
) -> Vec<Drift> {
    let of = |array: &[V], index: usize| array.get(index).copied().unwrap_or(empty);
    let differing = (0..wanted.len().max(found.len())).filter_map(|index| {
        let (wanted, found) = (of(wanted, index), of(found, index));
        let number = u32::try_from(index).ok().filter(|_| wanted != found)?;
        let fields = fields(|report| differ(&wanted, &found, report));
        Some(Drift { element: name(number), fields, repair: write(number, &wanted) })
    });
    differing.collect()
}

fn sets<K: Copy + Ord + Debug>(
    (wanted, found): (&BTreeSet<K>, &BTreeSet<K>),
    put: impl Fn(K) -> Write,
    delete: impl Fn(K) -> Write,
) -> Vec<Drift> {
    let element = |key: &K, wanted: &str, found: &str, repair| {
        let (wanted, found) = (wanted.to_owned(), found.to_owned());
        let fields = vec![DriftField { name: "", wanted, found }];
        Drift { element: debug(key), fields, repair }
    };
    let missing = wanted.difference(found).map(|key| element(key, "present", NONE, put(*key)));
    let surplus = found.difference(wanted).map(|key| element(key, NONE, "present", delete(*key)));
    missing.chain(surplus).collect()
}

#[cfg(test)]
mod tests {
    use lb_common::be::Be16;

    use super::*;
    use crate::plan::MapStore as _;

    fn key(port: u16) -> FrontendKey {
        FrontendKey::new(Addr::from_ip([10, 96, 0, 1].into()), Be16::new(port), 6)
    }

    fn written() -> Actual {
        let mut actual = Actual::default();
        let pod =
            PodEntry { ip4: Addr::from_ip([10, 1, 0, 2].into()), ingress: 3, ..PodEntry::ZERO };
        for write in [
            Write::PutFrontend { key: key(80), frontend: Frontend { n: 2, ..Frontend::ZERO } },
            Write::PutSlot { slot: 1, backend_id: 7 },
            Write::PutBackend { id: 7, backend: Backend { generation: 4, ..Backend::ZERO } },
            Write::PutFrontendPorts { word: 1, bits: 1 << 16 },
            Write::PutSettings(Box::new(lb_common::config::Settings::ZERO)),
            Write::PutPod { ifindex: 5, pod: Box::new(pod) },
            Write::PutMac { mac: 0xa, holder: 5 },
            Write::PutPodRange { range: "10.2.0.0/16".parse().unwrap() },
        ] {
            actual.record(&write);
        }
        actual
    }

    fn said(all: &[Drift]) -> Vec<String> {
        let fields = |drift: &Drift| {
            let map = drift.repair.map();
            let field = |field: &DriftField| {
                let DriftField { name, wanted, found } = field;
                format!("{map} {} {name}: {wanted} {found}", drift.element)
            };
            drift.fields.iter().map(field).collect::<Vec<_>>()
        };
        all.iter().flat_map(fields).collect()
    }

    #[test]
    fn maps_as_they_were_written_have_no_drift() {
        assert_eq!(drift(&written(), &written()), []);
        // The clients that follow flows change the flags.
        let mut found = written();
        found.policy.flags = lb_common::policy::PolicyFlags::REPORT_ALLOWED;
        assert_eq!(drift(&written(), &found), []);
    }

    #[test]
    fn each_change_is_found_and_its_repair_undoes_it() {
        let mut found = written();
        let pod = PodEntry { ingress: 0, ..found.pods[&5] };
        for change in [
            Write::PutFrontend { key: key(80), frontend: Frontend { n: 1, ..Frontend::ZERO } },
            Write::PutFrontend { key: key(81), frontend: Frontend::ZERO },
            Write::PutSlot { slot: 1, backend_id: 8 },
            Write::PutSlot { slot: 9, backend_id: 8 },
            Write::PutBackend { id: 7, backend: Backend { generation: 5, ..Backend::ZERO } },
            Write::PutFrontendPorts { word: 1, bits: 0 },
            Write::PutPod { ifindex: 5, pod: Box::new(pod) },
            Write::DeleteMac { mac: 0xa },
            Write::DeletePodRange { range: "10.2.0.0/16".parse().unwrap() },
            Write::PutPodRange { range: "10.3.0.0/16".parse().unwrap() },
        ] {
            found.record(&change);
        }
        let differing = drift(&written(), &found);
        let said = said(&differing);
        for want in [
            "frontends 10.96.0.1:80/6 n: 2 1",
            "slots 1 : 7 8",
            "slots 9 : 0 8",
            "backends 7 :::0 generation: 4 5",
            "frontend_ports ports 64-127 : 65536 0",
            "pods 5 ingress: 3 0",
            "macs 00000000000a : 5 none",
        ] {
            assert!(said.iter().any(|line| line == want), "{want}: {said:#?}");
        }
        assert_eq!(said.len(), 10, "{said:#?}");
        for Drift { repair, .. } in &differing {
            found.apply(repair).unwrap();
        }
        assert_eq!(drift(&written(), &found), []);
    }
}
