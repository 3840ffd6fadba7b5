//! What the value of a frontend says, in words: its scope, its traffic policy, how it chooses, what happens to
//! new flows if there is nothing to choose from.

use std::net::SocketAddr;

use lb_common::service::{Frontend, FrontendFlags, FrontendKey};

use crate::network::socket;
use lb_core::cluster::Algorithm;

/// One frontend with the backend ids in its slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontendSlots {
    /// Its key.
    pub key: FrontendKey,
    /// Its value.
    pub frontend: Frontend,
    /// Backend ids in the slots for clients in the cluster, in order; one may occur several times.
    pub backend_ids: Vec<u32>,
    /// The same of the slots of traffic policy Local.
    pub local_ids: Vec<u32>,
}

/// Word for `externalTrafficPolicy` and `internalTrafficPolicy`.
const CLUSTER: &str = "Cluster";
/// The other one.
const LOCAL: &str = "Local";

impl FrontendSlots {
    /// `address:port` as clients dial it.
    pub fn socket(&self) -> SocketAddr {
        socket(self.key.addr, self.key.port)
    }

    /// Whether all these flags are set.
    pub fn has(&self, flags: FrontendFlags) -> bool {
        self.frontend.flags.contains(flags)
    }

    /// Whether it is for clients outside the cluster.
    pub fn is_external(&self) -> bool {
        self.has(FrontendFlags::EXTERNAL)
    }

    /// Whether it is a NodePort at localhost.
    pub fn is_localhost(&self) -> bool {
        self.has(FrontendFlags::SOCKET_ONLY)
    }

    /// What its address is, as far as the maps tell: not which of the external ones.
    pub fn scope(&self) -> &'static str {
        if self.is_localhost() {
            "Localhost"
        } else if self.is_external() {
            "External"
        } else {
            "ClusterIP"
        }
    }

    /// The traffic policy that applies, which for processes of the host is always Cluster; `None` when a ClusterIP has no endpoint at all, which looks the same with either.
    pub fn policy(&self) -> Option<&'static str> {
        if self.is_localhost() {
            return Some(CLUSTER);
        }
        if self.is_external() {
            let is_local = self.has(FrontendFlags::EXTERNAL_LOCAL);
            return Some(if is_local { LOCAL } else { CLUSTER });
        }
        let Frontend { base, n, local_base, local_n, .. } = self.frontend;
        // Only the policy can empty the list of a ClusterIP.
        let is_emptied = self.has(FrontendFlags::ELSEWHERE);
        match n {
            0 => is_emptied.then_some(LOCAL),
            _ if (base, n) == (local_base, local_n) => Some(LOCAL),
            _ => Some(CLUSTER),
        }
    }

    /// How a backend is chosen.
    pub fn algorithm(&self) -> Algorithm {
        if self.frontend.maglev_n != 0 {
            Algorithm::Maglev
        } else if self.has(FrontendFlags::LEAST_CONNECTIONS) {
            Algorithm::LeastConnections
        } else {
            Algorithm::Random
        }
    }

    /// The same in ipvsadm's words, where it has one.
    pub fn scheduler(&self) -> &'static str {
        match self.algorithm() {
            Algorithm::Maglev => "mh",
            Algorithm::LeastConnections => "lc",
            Algorithm::Random => Algorithm::Random.name(),
        }
    }

    /// Number of slots of a backend: its weight, 0 when it takes no new flows.
    pub fn weight(&self, backend_id: u32) -> u64 {
        let count = |ids: &[u32]| ids.iter().filter(|id| **id == backend_id).count() as u64;
        let local = if self.is_localhost() { 0 } else { count(&self.local_ids) };
        count(&self.backend_ids).max(local)
    }

    /// The lists that a backend is in: `cluster`, `local`.
    pub fn lists(&self, backend_id: u32) -> Vec<&'static str> {
        let is_local_only = !self.is_external() && self.policy() == Some(LOCAL);
        let mut lists = Vec::new();
        if self.backend_ids.contains(&backend_id) && !is_local_only {
            lists.push("cluster");
        }
        if !self.is_localhost() && self.local_ids.contains(&backend_id) {
            lists.push("local");
        }
        lists
    }

    /// Which clients' new flows find no backend, and what happens to them.
    pub fn unserved(&self) -> Option<&'static str> {
        let fate = [["new=refused", "new=dropped"], ["outside=refused", "outside=dropped"]];
        let [all, outside] =
            fate.map(
                |[refused, dropped]| {
                    if self.has(FrontendFlags::ELSEWHERE) { dropped } else { refused }
                },
            );
        let Frontend { n, local_n, .. } = self.frontend;
        let is_local = self.has(FrontendFlags::EXTERNAL_LOCAL);
        match (n, local_n) {
            (0, 0) => Some(all),
            (_, 0) if is_local && !self.is_localhost() => Some(outside),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use lb_common::service::{Frontend, FrontendFlags, FrontendKey};

    use super::FrontendSlots;

    fn words(frontend: Frontend) -> String {
        let frontend = FrontendSlots {
            key: FrontendKey::ZERO,
            frontend,
            backend_ids: Vec::new(),
            local_ids: Vec::new(),
        };
        let or_dash = |word: Option<&'static str>| word.unwrap_or("-");
        format!(
            "{} {} {} {}",
            frontend.scope(),
            or_dash(frontend.policy()),
            frontend.algorithm().name(),
            or_dash(frontend.unserved())
        )
    }

    #[test]
    fn values_in_words() {
        let value = |flags, (base, n), (local_base, local_n)| Frontend {
            flags,
            base,
            n,
            local_base,
            local_n,
            ..Frontend::ZERO
        };
        let none = (0, 0);
        let cases = [
            (value(FrontendFlags::NONE, (4, 2), none), "ClusterIP Cluster random -"),
            (value(FrontendFlags::NONE, (4, 2), (4, 2)), "ClusterIP Local random -"),
            (value(FrontendFlags::NONE, none, none), "ClusterIP - random new=refused"),
            (value(FrontendFlags::ELSEWHERE, none, none), "ClusterIP Local random new=dropped"),
            (
                value(FrontendFlags::LEAST_CONNECTIONS, (4, 2), none),
                "ClusterIP Cluster least-connections -",
            ),
            (value(FrontendFlags::EXTERNAL, (4, 2), none), "External Cluster random -"),
            (
                value(FrontendFlags::EXTERNAL | FrontendFlags::EXTERNAL_LOCAL, (4, 2), (5, 1)),
                "External Local random -",
            ),
            (
                value(
                    FrontendFlags::EXTERNAL
                        | FrontendFlags::EXTERNAL_LOCAL
                        | FrontendFlags::ELSEWHERE,
                    (4, 2),
                    none,
                ),
                "External Local random outside=dropped",
            ),
            (
                value(FrontendFlags::EXTERNAL | FrontendFlags::EXTERNAL_LOCAL, none, none),
                "External Local random new=refused",
            ),
            (
                value(
                    FrontendFlags::SOCKET_ONLY
                        | FrontendFlags::EXTERNAL_LOCAL
                        | FrontendFlags::ELSEWHERE,
                    (4, 2),
                    none,
                ),
                "Localhost Cluster random -",
            ),
            (
                Frontend { maglev_n: 1021, ..value(FrontendFlags::EXTERNAL, (4, 2), none) },
                "External Cluster maglev -",
            ),
        ];
        for (frontend, want) in cases {
            assert_eq!(words(frontend), want, "{frontend:?}");
        }
    }
}
