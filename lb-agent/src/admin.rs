//! The server of the admin protocol: requests of lbctl to the running agent.
#![forbid(unsafe_code)]

mod handler;
mod server;

pub(crate) use self::handler::State;
pub(crate) use self::server::{Pending, Server, bind};
