//! Which Pod is behind which device, hence which groups are wanted where.
#![forbid(unsafe_code)]

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use lb_common::addr::Addr;

use super::Wanted;
use crate::model::policy::{self as model, Desired};

/// Which groups are wanted, and for which devices.
pub(super) struct Assigned {
    /// All of them, each once.
    pub(super) groups: Vec<Arc<model::Group>>,
    /// For each device the indices of its Pod's groups; `None` when its Pod is not known.
    pub(super) veths: Vec<Option<[Option<u32>; 4]>>,
    /// Whether unknown Pods are cut off: in ingress, in egress.
    pub(super) pending: [bool; 2],
    pub(super) pending_group: Option<Arc<model::Group>>,
}

impl Assigned {
    pub(super) fn of(desired: &Desired, wanted: &Wanted<'_>) -> Self {
        let mut at: HashMap<Addr, (usize, [Option<u32>; 4])> = HashMap::new();
        for (i, pod) in desired.pods.values().enumerate() {
            at.extend(pod.ips.iter().map(|ip| (*ip, (i, pod.groups))));
        }
        let mut met = BTreeSet::new();
        let veths = wanted.veths.iter().map(|veth| {
            let (i, groups) = veth.ips.iter().find_map(|ip| at.get(ip))?;
            met.insert(*i);
            Some(*groups)
        });
        let veths = veths.collect();
        let unmet = desired.pods.values().enumerate().filter(|(i, _)| !met.contains(i));
        let mut pending = [wanted.strict && desired.any; 2];
        for (_, pod) in unmet {
            let [ingress, egress, ..] = pod.groups;
            let [pending_ingress, pending_egress] = &mut pending;
            *pending_ingress |= ingress.is_some();
            *pending_egress |= egress.is_some();
        }
        let mut groups = desired.groups.clone();
        let pending_group = pending.contains(&true).then(|| Arc::new(model::Group::pending()));
        groups.extend(pending_group.clone());
        Self { groups, veths, pending, pending_group }
    }
}
