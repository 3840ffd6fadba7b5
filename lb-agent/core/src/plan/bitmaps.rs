//! Which ports the programs look at: the three bitmaps, kept beside the elements that need them.
#![forbid(unsafe_code)]

use std::time::Duration;

use lb_common::addr::Addr;
use lb_common::flow::proto;
use lb_common::service::{Backend, Frontend, FrontendFlags, FrontendKey, state};

use super::actual::Actual;
use super::flows::Flows;
use super::ports::{Former, PortBitmap};
use super::write::Write;

/// The bitmaps as they should be.
#[derive(Debug)]
pub(super) struct Bitmaps {
    /// Ports of frontends, and those of `former`.
    frontend: PortBitmap,
    /// Ports of backends that are processes of this host.
    host: PortBitmap,
    /// Ports of frontends that are gone, while flows to them may be left.
    former: PortBitmap,
    /// Since when these.
    gone: Former,
    /// Addresses of this host, sorted.
    host_addrs: Box<[Addr]>,
    /// Number of frontends at those that datagrams come to.
    at_host: usize,
}

impl Bitmaps {
    pub(super) fn new(actual: &Actual) -> Self {
        let gone = Former::restore(&actual.former_ports);
        let frontends =
            actual.frontends.iter().filter_map(|(key, value)| frontend_port(key, value));
        let mut frontend = PortBitmap::default();
        frontend.recount(frontends.chain(gone.ports()), &actual.frontend_ports);
        let mut former = PortBitmap::default();
        former.recount(gone.ports(), &actual.former_ports);
        let (host, host_addrs) = (PortBitmap::default(), Box::default());
        Self { frontend, former, gone, host, host_addrs, at_host: 0 }
    }

    /// A plan begins, for a host with these addresses: the writes that mend the bitmaps.
    ///
    /// At the very first, and when the host has other addresses, what is missing is added at once; what is too much
    /// goes when it is `due`.
    pub(super) fn begin(
        &mut self,
        actual: &Actual,
        host: &[Addr],
        first: bool,
        due: bool,
    ) -> Vec<Write> {
        self.frontend.begin();
        self.host.begin();
        self.former.begin();
        if first || *self.host_addrs != *host {
            self.host_addrs = host.into();
            let backends = actual.backends.iter();
            let ports = backends.filter_map(|backend| host_port(&self.host_addrs, backend));
            self.host.recount(ports, &actual.host_ports);
            let frontends = actual.frontends.iter();
            self.at_host = frontends.filter(|(key, value)| self.is_at_host(key, value)).count();
        }
        let write = if due { PortBitmap::sweep } else { PortBitmap::add };
        let former = write(&mut self.former, &actual.former_ports);
        let frontend = write(&mut self.frontend, &actual.frontend_ports);
        let host = write(&mut self.host, &actual.host_ports);
        let former = former.into_iter().map(|(word, bits)| Write::PutFormerPorts { word, bits });
        let frontend =
            frontend.into_iter().map(|(word, bits)| Write::PutFrontendPorts { word, bits });
        let host = host.into_iter().map(|(word, bits)| Write::PutHostPorts { word, bits });
        former.chain(frontend).chain(host).collect()
    }

    /// A write has failed.
    pub(super) fn doubt(&mut self) {
        self.frontend.doubt();
        self.host.doubt();
        self.former.doubt();
    }

    /// Whether some word has to be looked at.
    pub(super) fn is_doubtful(&self) -> bool {
        self.frontend.is_doubtful() || self.host.is_doubtful() || self.former.is_doubtful()
    }

    /// Returns whether packets that leave the node must be seen: a backend is a process of this host, so its answers must be
    /// translated; or this host may send from the port of a frontend, so the answers to it do not belong to a client.
    pub(super) fn watches_departures(&self) -> bool {
        !self.host.is_empty() || self.at_host > 0
    }

    /// Whether a write brings a backend or a frontend for which packets that leave the node must be seen.
    pub(super) fn needs_departures(&self, op: &Write) -> bool {
        match op {
            Write::PutBackend { backend, .. } => host_port(&self.host_addrs, backend).is_some(),
            Write::PutFrontend { key, frontend } => self.is_at_host(key, frontend),
            _ => false,
        }
    }

    /// Not for TCP: its flags show which packets are answers.
    fn is_at_host(&self, key: &FrontendKey, value: &Frontend) -> bool {
        key.proto != proto::TCP
            && value.flags.contains(FrontendFlags::EXTERNAL)
            && frontend_port(key, value).is_some()
            && self.host_addrs.binary_search(&key.addr).is_ok()
    }

    /// The write that is needed before this frontend.
    pub(super) fn want_frontend(
        &mut self,
        actual: &Actual,
        key: &FrontendKey,
        value: &Frontend,
    ) -> Option<Write> {
        let (word, bits) =
            self.frontend.want(frontend_port(key, value)?, &actual.frontend_ports)?;
        Some(Write::PutFrontendPorts { word, bits })
    }

    /// The write that is needed before this frontend goes: flows to it may be left.
    pub(super) fn want_former(&mut self, actual: &Actual, key: &FrontendKey) -> Option<Write> {
        let port = frontend_port(key, actual.frontends.get(key)?)?;
        let (word, bits) = self.former.want(port, &actual.former_ports)?;
        Some(Write::PutFormerPorts { word, bits })
    }

    /// The write that is needed before this backend.
    pub(super) fn want_host(&mut self, actual: &Actual, backend: &Backend) -> Option<Write> {
        let (word, bits) =
            self.host.want(host_port(&self.host_addrs, backend)?, &actual.host_ports)?;
        Some(Write::PutHostPorts { word, bits })
    }

    /// The map that lacks something which must be there before this write: the write for it has failed, in whichever
    /// group it was.
    pub(super) fn lacks(&self, actual: &Actual, op: &Write) -> Option<&'static str> {
        let (port, map, bits) = match op {
            Write::PutFrontend { key, frontend } => {
                (frontend_port(key, frontend)?, "frontend_ports", &actual.frontend_ports)
            }
            Write::DeleteFrontend { key } => {
                let port = frontend_port(key, actual.frontends.get(key)?)?;
                (port, "former_ports", &actual.former_ports)
            }
            Write::PutBackend { backend, .. } => {
                (host_port(&self.host_addrs, backend)?, "host_ports", &actual.host_ports)
            }
            _ => return None,
        };
        (!PortBitmap::has(port, bits)).then_some(map)
    }

    /// A frontend was written where `before` was.
    pub(super) fn frontend_put(
        &mut self,
        key: &FrontendKey,
        frontend: &Frontend,
        before: Option<Frontend>,
    ) {
        frontend_port(key, frontend).into_iter().for_each(|port| self.frontend.count(port));
        self.at_host += usize::from(self.is_at_host(key, frontend));
        self.uncount_frontend(key, before);
    }

    /// The frontend `before` is gone.
    pub(super) fn frontend_deleted(&mut self, key: &FrontendKey, before: Option<Frontend>) {
        if let Some(port) = before.and_then(|before| frontend_port(key, &before))
            && self.gone.gone(port)
        {
            self.former.count(port);
            self.frontend.count(port);
        }
        self.uncount_frontend(key, before);
    }

    fn uncount_frontend(&mut self, key: &FrontendKey, before: Option<Frontend>) {
        if let Some(port) = before.and_then(|before| frontend_port(key, &before)) {
            self.frontend.uncount(port);
        }
        self.at_host -= usize::from(before.is_some_and(|before| self.is_at_host(key, &before)));
    }

    /// A backend was written where `before` was.
    pub(super) fn backend_put(&mut self, backend: &Backend, before: &Backend) {
        if let Some(port) = host_port(&self.host_addrs, backend) {
            self.host.count(port);
        }
        if let Some(port) = host_port(&self.host_addrs, before) {
            self.host.uncount(port);
        }
    }

    /// The frontends that were deleted until now were gone at this time.
    pub(super) fn stamp(&mut self, now: Duration) {
        self.gone.stamp(now);
    }

    /// A pass over the connection table has ended that began at `begun`: ports without flows to former frontends go.
    pub(super) fn passed(&mut self, begun: Duration, flows: &Flows) {
        for port in self.gone.over(begun, &flows.former_ports) {
            self.former.uncount(port);
            self.frontend.uncount(port);
        }
    }
}

/// The port that packets to this frontend have; `None` where it is not to be looked for in packets: a wildcard is for
/// clients that the programs see anyway, a loopback address for sockets.
fn frontend_port(key: &FrontendKey, value: &Frontend) -> Option<u16> {
    let none = key.is_wildcard() || value.flags.contains(FrontendFlags::SOCKET_ONLY);
    (!none).then(|| key.port.get())
}

/// The port that a process of this host serves a live backend at.
fn host_port(host: &[Addr], backend: &Backend) -> Option<u16> {
    let live = matches!(backend.state, state::ACTIVE | state::DRAINING);
    (live && host.binary_search(&backend.addr).is_ok()).then(|| backend.port.get())
}
