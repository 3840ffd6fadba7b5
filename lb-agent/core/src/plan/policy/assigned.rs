//! Which Pod is behind which device, hence which groups are wanted where.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::sync::Arc;

use super::{Behind, DesiredTables};
use crate::cluster::Name;
use crate::model::policy::{self as model, DesiredPolicies, LocalPod};

/// A device may be this much older than the Pod behind it: clocks differ.
const SKEW: i64 = 60;

/// Which groups are wanted, and for which devices.
pub(super) struct Assigned {
    /// All of them, each once.
    pub(super) groups: Vec<Arc<model::RuleSet>>,
    /// What each device gets.
    pub(super) veths: Vec<Whose>,
    /// Whether devices that have just appeared are cut off: in ingress, in egress.
    pub(super) pending: [bool; 2],
    pub(super) pending_group: Option<Arc<model::RuleSet>>,
}

/// What a device gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// The groups of its Pod, by their indices.
    Pod([Option<u32>; 4]),
    /// No Pod's: whether it is cut off in ingress, in egress.
    NoPod([bool; 2]),
}

impl Assigned {
    pub(super) fn of(desired: &DesiredPolicies, wanted: &DesiredTables<'_>) -> Self {
        let met: HashSet<&Name> =
            wanted.veths.iter().filter_map(|veth| name(&veth.behind)).collect();
        let awaited = || desired.pods.iter().filter(|(name, _)| !met.contains(name));
        let strict = wanted.strict && desired.any;
        // What those may be under who are younger than this.
        let cut = |since: i64| {
            let awaited = awaited().map(|(_, pod)| pod);
            let awaited = awaited.filter(|pod| since.saturating_add(SKEW) >= pod.created);
            awaited.fold([strict; 2], |[ingress, egress], pod| {
                [ingress || pod.groups[0].is_some(), egress || pod.groups[1].is_some()]
            })
        };
        let whose = |behind: &Behind| match (pod(desired, behind), behind) {
            (Some(pod), _) => Whose::Pod(pod.groups),
            // Not compiled yet: it may be one that is isolated.
            (None, Behind::Pod(..) | Behind::Impostor) => Whose::NoPod([desired.any; 2]),
            (None, Behind::Unknown(since)) => Whose::NoPod(cut(*since)),
            (None, Behind::NoPod) => Whose::NoPod([false; 2]),
        };
        let veths: Vec<Whose> = wanted.veths.iter().map(|veth| whose(&veth.behind)).collect();
        let pending = cut(i64::MAX);
        let uses = |whose: &Whose| matches!(whose, Whose::NoPod(cut) if cut.contains(&true));
        let any = pending.contains(&true) || veths.iter().any(uses);
        let pending_group = any.then(|| Arc::new(model::RuleSet::pending()));
        let mut groups = desired.groups.clone();
        groups.extend(pending_group.clone());
        Self { groups, veths, pending, pending_group }
    }
}

/// The Pod behind a device, if it has policies of its own.
pub(super) fn pod<'a>(desired: &'a DesiredPolicies, behind: &Behind) -> Option<&'a LocalPod> {
    let Behind::Pod(name, uid) = behind else { return None };
    desired.pods.get(name).filter(|pod| pod.uid == *uid)
}

fn name(behind: &Behind) -> Option<&Name> {
    match behind {
        Behind::Pod(name, _) => Some(name),
        Behind::Unknown(_) | Behind::NoPod | Behind::Impostor => None,
    }
}
