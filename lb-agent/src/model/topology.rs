//! Endpoint choice: which endpoints of a service port serve, given their conditions and where they are.
//!
//! The rules are those of kube-proxy's `CategorizeEndpoints` (`pkg/proxy/topology.go`). Two lists come out, since
//! one Service can need both at once (an internal policy of Local beside an external one of Cluster):
//!
//! - **Cluster list**: all ready endpoints; if none is ready, all that are serving and terminating (KEP-1669).
//! - **Local list**: the same rule applied to the endpoints of this node alone. So a node whose only endpoints are
//!   terminating goes on serving with them although other nodes have ready ones.
//!
//! An endpoint that is neither ready nor serving-and-terminating is in no list. Endpoints are told apart by what
//! the slice says of their conditions, never by the state of a Pod.
#![forbid(unsafe_code)]

use crate::cluster::Conditions;

use super::{Class, EndpointState};

/// What the choice depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its conditions.
    pub conditions: Conditions,
    /// Whether it is on this node.
    pub local: bool,
}

/// For each candidate whether it was chosen, for which traffic, and as what.
pub fn choose(candidates: &[Candidate]) -> Vec<Option<(Class, EndpointState)>> {
    let cluster_state = state_of_list(candidates.iter());
    let local_state = state_of_list(candidates.iter().filter(|candidate| candidate.local));
    let choice = |candidate: &Candidate| {
        let state = state_of(candidate.conditions)?;
        let for_cluster = cluster_state == Some(state);
        let for_local = candidate.local && local_state == Some(state);
        let class = match (for_cluster, for_local) {
            (true, false) => Class::Cluster,
            (true, true) => Class::Both,
            (false, true) => Class::Local,
            (false, false) => return None,
        };
        Some((class, state))
    };
    candidates.iter().map(choice).collect()
}

/// The state in which an endpoint may serve at all.
fn state_of(conditions: Conditions) -> Option<EndpointState> {
    match conditions {
        Conditions { ready: true, .. } => Some(EndpointState::Ready),
        Conditions { serving: true, terminating: true, .. } => Some(EndpointState::Terminating),
        Conditions { .. } => None,
    }
}

/// The state that an endpoint needs to be in a list of these candidates.
fn state_of_list<'a>(candidates: impl Iterator<Item = &'a Candidate>) -> Option<EndpointState> {
    candidates.filter_map(|candidate| state_of(candidate.conditions)).min()
}

#[cfg(test)]
mod tests {
    use super::{Candidate, choose};
    use crate::cluster::Conditions;
    use crate::model::Class::{Both, Cluster, Local};
    use crate::model::EndpointState::{Ready, Terminating};

    /// `r` ready, `t` serving and terminating, `d` terminating and no longer serving, `n` not ready; capitals are
    /// on this node.
    fn candidate(letter: char) -> Candidate {
        let conditions = match letter.to_ascii_lowercase() {
            'r' => Conditions { ready: true, serving: true, terminating: false },
            't' => Conditions { ready: false, serving: true, terminating: true },
            'd' => Conditions { ready: false, serving: false, terminating: true },
            'n' => Conditions { ready: false, serving: false, terminating: false },
            _ => panic!("no such letter"),
        };
        Candidate { conditions, local: letter.is_ascii_uppercase() }
    }

    #[test]
    fn semantics_05_terminating_fallback_is_separate_for_each_list() {
        let cases: [(&str, &str, &[_]); 10] = [
            ("nothing", "", &[]),
            ("ready ones", "rR", &[Some((Cluster, Ready)), Some((Both, Ready))]),
            (
                "a ready one hides terminating ones",
                "tTr",
                &[None, Some((Local, Terminating)), Some((Cluster, Ready))],
            ),
            ("a ready local one hides both", "tTR", &[None, None, Some((Both, Ready))]),
            (
                "none ready: terminating ones",
                "tT",
                &[Some((Cluster, Terminating)), Some((Both, Terminating))],
            ),
            ("terminating but not serving never serves", "dD", &[None, None]),
            ("not ready never serves", "nN", &[None, None]),
            ("local not ready, remote ready", "Nr", &[None, Some((Cluster, Ready))]),
            ("local not ready, remote terminating", "Nt", &[None, Some((Cluster, Terminating))]),
            ("all on this node", "RR", &[Some((Both, Ready)), Some((Both, Ready))]),
        ];
        for (name, given, want) in cases {
            let candidates: Vec<_> = given.chars().map(candidate).collect();
            assert_eq!(choose(&candidates), want, "{name}");
        }
    }

    #[test]
    fn not_ready_serving_needs_terminating() {
        // KEP-1669: the fallback is for Pods that shut down, not for those that fail their readiness probe.
        let conditions = Conditions { ready: false, serving: true, terminating: false };
        assert_eq!(choose(&[Candidate { conditions, local: true }]), [None]);
    }
}
