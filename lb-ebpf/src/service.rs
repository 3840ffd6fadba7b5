//! Destination → frontend → backend.

use lb_common::addr::Addr;
use lb_common::be::Be16;
use lb_common::hash;
use lb_common::service::{Backend, Frontend, FrontendKey, state};

use crate::maps;

/// What a destination is.
pub(crate) enum Destination {
    /// No Service.
    Plain,
    /// This frontend, which has backends.
    Frontend(&'static Frontend),
    /// This frontend, which has none.
    Empty(&'static Frontend),
    /// A ClusterIP, but none of its ports.
    UndefinedPort,
}

/// Looks a destination up: exactly, then by the wildcard of its address.
#[inline(always)]
pub(crate) fn lookup(addr: Addr, port: Be16, proto: u8) -> Destination {
    if let Some(frontend) = maps::frontend(&FrontendKey::new(addr, port, proto)) {
        return if frontend.n == 0 {
            Destination::Empty(frontend)
        } else {
            Destination::Frontend(frontend)
        };
    }
    match maps::frontend(&FrontendKey::wildcard(addr)) {
        Some(_) => Destination::UndefinedPort,
        None => Destination::Plain,
    }
}

/// Where a flow goes.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    pub(crate) addr: Addr,
    pub(crate) port: Be16,
    /// Backend id; 0 when it is no Service's choice.
    pub(crate) id: u32,
    pub(crate) generation: u32,
}

/// Chooses a backend at random; `None` only when the tables are being changed under our feet.
#[inline(always)]
pub(crate) fn choose(frontend: &Frontend) -> Option<Target> {
    let slot = frontend.base.wrapping_add(hash::scale(maps::random(), frontend.n));
    let id = maps::slot(slot)?;
    let backend = maps::backend(id)?;
    let Backend { addr, port, generation, .. } = *backend;
    let usable = matches!(backend.state, state::ACTIVE | state::DRAINING);
    usable.then_some(Target { addr, port, id, generation })
}

/// How a remembered backend is doing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Health {
    /// Takes new flows.
    Active,
    /// Keeps its connections, takes no new flow.
    Draining,
    /// Gone, or its id means another endpoint now.
    Gone,
}

/// Whether `id` still is what it was when it had this generation. Id 0 is no backend and never leaves.
#[inline(always)]
pub(crate) fn health(id: u32, generation: u32) -> Health {
    if id == 0 {
        return Health::Active;
    }
    match maps::backend(id) {
        Some(backend) if backend.generation == generation => match backend.state {
            state::ACTIVE => Health::Active,
            state::DRAINING => Health::Draining,
            _ => Health::Gone,
        },
        _ => Health::Gone,
    }
}
