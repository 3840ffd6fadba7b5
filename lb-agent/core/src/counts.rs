//! The counters of the programs, as plain numbers.

use lb_common::policy::tier;
use lb_common::verdict::{Counter, DropReason, Outcome};

/// What the programs have counted since the maps were made, all CPUs together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets by reason and direction (`true` = entering the Pod), every reason present.
    pub drops: Vec<(DropReason, bool, u64)>,
    /// The slow path, every counter present.
    pub counters: Vec<(Counter, u64)>,
    /// New flows that policies judged: outcome, `policy::tier`, whether the flow enters the Pod; all combinations.
    pub verdicts: Vec<(Outcome, u8, bool, u64)>,
}

/// All verdicts that are counted.
pub fn verdicts() -> impl Iterator<Item = (Outcome, u8, bool)> {
    let tiers = [tier::NONE, tier::ADMIN, tier::NETWORK_POLICY, tier::BASELINE];
    Outcome::ALL.into_iter().flat_map(move |outcome| {
        tiers
            .into_iter()
            .flat_map(move |tier| [false, true].map(|ingress| (outcome, tier, ingress)))
    })
}
