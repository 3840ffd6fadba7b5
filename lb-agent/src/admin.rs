//! The server of the admin protocol: requests of lbctl to the running agent.
#![forbid(unsafe_code)]

mod handler;
mod recent;
mod server;

pub(crate) use self::handler::{HandlerState, reply};
pub(crate) use self::recent::Recent;
pub(crate) use self::server::{PendingRequest, Server, bind};
