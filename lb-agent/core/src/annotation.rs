//! What users write on objects for the agent, and what it writes on theirs: annotations, and the reasons of Events.
#![forbid(unsafe_code)]

/// An annotation that the agent understands. A value that it does not understand is an issue of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Annotation {
    /// How a Service chooses an endpoint.
    Algorithm,
    /// Further addresses that a Pod may send from.
    AllowedSources,
    /// Whether a policy is enforced.
    Mode,
    /// Whether flows may go past the IP stack.
    Path,
    /// Shares of the endpoints of a Service.
    Weights,
}

impl Annotation {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Algorithm, Self::AllowedSources, Self::Mode, Self::Path, Self::Weights];

    /// Its key in `metadata.annotations`.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Algorithm => "lb-agent.io/algorithm",
            Self::AllowedSources => "lb-agent.io/allowed-sources",
            Self::Mode => "lb-agent.io/mode",
            Self::Path => "lb-agent.io/path",
            Self::Weights => "lb-agent.io/weights",
        }
    }

    /// The field of the object, as issues name it.
    pub fn field(self) -> String {
        format!("metadata.annotations[{}]", self.key())
    }

    /// The kinds of objects that may have it.
    pub const fn objects(self) -> &'static str {
        match self {
            Self::Algorithm | Self::Weights => "Service",
            Self::AllowedSources => "Pod",
            Self::Mode => "NetworkPolicy, ClusterNetworkPolicy",
            Self::Path => "Pod, Service",
        }
    }

    /// Its values; of several words, the first is assumed without it.
    pub const fn values(self) -> &'static str {
        match self {
            Self::Algorithm => "`random`, `maglev`, `least-connections`",
            Self::AllowedSources => "CIDRs, separated by commas",
            Self::Mode => "`enforce`, `shadow`",
            Self::Path => "`stack`",
            Self::Weights => "`NAME=N` or `ADDRESS=N`, separated by commas; N is 1 to 100",
        }
    }

    /// What it does.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Algorithm => "How an endpoint is chosen for a new connection",
            Self::AllowedSources => {
                "Addresses besides its own that the Pod may send from, within `allowed-source-cidrs`"
            }
            Self::Mode => "With `shadow`, what the policy would do is counted and shown, not done",
            Self::Path => "With `stack`, flows go through the IP stack of the node",
            Self::Weights => "Shares of the endpoints, by Pod name or address; 1 without it",
        }
    }
}

/// Why there is an Event on an object, its `reason`. All have the type Warning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventReason {
    /// Something of the object does not work on a node.
    NotProgrammed,
    /// A flow of the Pod was denied.
    PolicyDenied,
}

impl EventReason {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::NotProgrammed, Self::PolicyDenied];

    /// Its name in the Event.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotProgrammed => "NotProgrammed",
            Self::PolicyDenied => "PolicyDenied",
        }
    }

    /// The kinds of objects that have such Events.
    pub const fn objects(self) -> &'static str {
        match self {
            Self::NotProgrammed => "Service, policies, and others that cannot be read",
            Self::PolicyDenied => "Pod",
        }
    }

    /// What has happened.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::NotProgrammed => {
                "A node could not do all that the object says: it did not fit, or a field cannot be read"
            }
            Self::PolicyDenied => {
                "Policies denied flows of the Pod: how many, between which ends, by which policies"
            }
        }
    }
}
