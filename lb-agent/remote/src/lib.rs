//! The agents of a cluster, as a user's laptop reaches them: with a kubeconfig and the permission for `pods/exec`.
//!
//! ```text
//! connect (kubeconfig → client) ─► agents (Pods of the DaemonSet) ─► exec (one command in one agent's Pod)
//!                                                       └──── fleet (one command in many, at once) ────┘
//! ```
//! It knows Kubernetes, and not what the commands mean: that is up to the caller, `lb-ctl`. The functions of [`Fleet`]
//! wait for the answers; no caller needs a runtime of its own. No type of Kubernetes leaves this crate.
#![forbid(unsafe_code)]

mod agents;
mod connect;
mod exec;
mod fleet;
mod follow;
mod objects;
mod unready;

pub use self::agents::NodeAgent;
pub use self::connect::FleetOptions;
pub use self::exec::{RemoteCommand, RemoteOutput};
pub use self::fleet::{Fleet, NodeAnswer};
pub use self::follow::{Follow, FollowEvent, FollowStep};
pub use self::objects::{PodController, RemotePod};
pub use self::unready::Unreadiness;
