//! A thread that closes the host's UDP sockets to backends that are gone: the kernel walks all sockets for it, during
//! which the loop must go on.
//!
//! It looks three times, a second apart: a `connect(2)` may have chosen its backend just before the tables changed,
//! and a walk over sockets that come and go may miss one.
#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use lb_common::flow::proto;
use lb_common::service::{Backend, state};
use prometheus_client::metrics::counter::Counter;
use tracing::{info, warn};

use lb_core::plan::Write;
use lb_kernel::bpf::sockets::{self, Destination};

/// A socket may live so long after its backend has left.
const GRACE: Duration = Duration::from_millis(250);
/// How often sockets are looked for.
const PASSES: u8 = 3;
/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);

/// What happened to UDP backends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Turnover {
    /// No Service sends to them any more.
    pub left: Vec<Destination>,
    /// Some Service sends to them.
    pub serving: Vec<Destination>,
}

impl Turnover {
    /// What these writes mean.
    pub(super) fn of(writes: &[Write]) -> Self {
        let mut found = Self::default();
        for write in writes {
            let Write::PutBackend { backend, .. } = write else { continue };
            if backend.proto != proto::UDP {
                continue;
            }
            let list = match backend.state {
                state::ACTIVE => &mut found.serving,
                state::DRAINING | state::DEAD => &mut found.left,
                _ => continue,
            };
            list.push((backend.addr, backend.port));
        }
        found
    }

    /// The same with the tables as they are after the writes: a backend that another Service still has is not gone,
    /// since who is connected to it may have come through that one.
    #[must_use]
    pub(super) fn after(mut self, backends: &[Backend]) -> Self {
        if !self.left.is_empty() {
            let serves = |b: &&Backend| b.proto == proto::UDP && b.state == state::ACTIVE;
            let serving: HashSet<Destination> =
                backends.iter().filter(serves).map(|b| (b.addr, b.port)).collect();
            self.left.retain(|backend| !serving.contains(backend));
        }
        self
    }
}

/// The thread's mailbox. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Disconnecter {
    inbox: mpsc::Sender<Turnover>,
}

impl Disconnecter {
    /// Starts the thread, which works on the network namespace of the caller.
    ///
    /// # Errors
    /// When the system has no room for a thread.
    pub(super) fn spawn(closed: Counter) -> anyhow::Result<Self> {
        let (inbox, turnovers) = mpsc::channel();
        thread::Builder::new()
            .name("disconnect".to_owned())
            .spawn(move || run(&turnovers, &closed))
            .context("start the thread that closes sockets")?;
        Ok(Self { inbox })
    }

    /// Tells the thread.
    pub(super) fn send(&self, turnover: Turnover) {
        if turnover != Turnover::default() && self.inbox.send(turnover).is_err() {
            tracing::error!("the thread that closes sockets has ended");
        }
    }
}

fn run(turnovers: &mpsc::Receiver<Turnover>, closed: &Counter) {
    let mut pending = PendingDisconnects::default();
    loop {
        let received = if pending.0.is_empty() {
            turnovers.recv().map_err(|_ended| RecvTimeoutError::Disconnected)
        } else {
            turnovers.recv_timeout(PAUSE)
        };
        match received {
            Ok(turnover) => pending.take(turnover),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        // A question that was asked just before is answered still: only sockets that stay are in the way.
        thread::sleep(GRACE);
        while let Ok(turnover) = turnovers.try_recv() {
            pending.take(turnover);
        }
        let backends = pending.next_pass();
        if backends.is_empty() {
            continue;
        }
        match sockets::close(&backends) {
            Ok(0) => {}
            Ok(n) => {
                closed.inc_by(n as u64);
                info!(sockets = n, "closed this host's UDP sockets to removed backends");
            }
            Err(err) => warn!(%err, "cannot close this host's UDP sockets to removed backends"),
        }
    }
}

/// Backends whose sockets are looked for, and how often yet.
#[derive(Debug, Default)]
struct PendingDisconnects(HashMap<Destination, u8>);

impl PendingDisconnects {
    fn take(&mut self, turnover: Turnover) {
        let Turnover { left, serving } = turnover;
        for backend in serving {
            self.0.remove(&backend);
        }
        self.0.extend(left.into_iter().map(|backend| (backend, PASSES)));
    }

    fn next_pass(&mut self) -> HashSet<Destination> {
        let backends = self.0.keys().copied().collect();
        self.0.retain(|_, passes| {
            *passes -= 1;
            *passes > 0
        });
        backends
    }
}

#[cfg(test)]
mod tests {
    use lb_common::addr::Addr;
    use lb_common::be::Be16;
    use lb_common::flow::proto;
    use lb_common::service::{Backend, state};

    use super::{PendingDisconnects, Turnover, Write};

    #[test]
    fn only_udp_backends_that_no_service_has_are_gone() {
        let backend = |last: u8, proto: u8, state: u8| Backend {
            addr: Addr::from_ip([10, 1, 0, last].into()),
            port: Be16::new(53),
            proto,
            state,
            ..Backend::ZERO
        };
        let put = |backend| Write::PutBackend { id: 1, backend };
        let ops = [
            put(backend(1, proto::UDP, state::DRAINING)),
            put(backend(2, proto::UDP, state::DEAD)),
            put(backend(3, proto::UDP, state::DRAINING)),
            put(backend(4, proto::TCP, state::DRAINING)),
            put(backend(5, proto::UDP, state::ACTIVE)),
            put(backend(6, proto::UDP, state::UNUSED)),
        ];
        let after = [
            backend(2, proto::TCP, state::ACTIVE),
            backend(3, proto::UDP, state::ACTIVE),
            backend(1, proto::UDP, state::DRAINING),
        ];
        let at = |last: u8| (Addr::from_ip([10, 1, 0, last].into()), Be16::new(53));
        let want = Turnover { left: vec![at(1), at(2)], serving: vec![at(5)] };
        assert_eq!(Turnover::of(&ops).after(&after), want);
    }

    #[test]
    fn a_backend_is_looked_for_three_times_unless_it_comes_back() {
        let [a, b] =
            ["10.1.0.1", "10.1.0.2"].map(|ip| (Addr::from_ip(ip.parse().unwrap()), Be16::new(53)));
        let mut pending = PendingDisconnects::default();
        pending.take(Turnover { left: vec![a, b], serving: vec![] });
        assert_eq!(pending.next_pass(), [a, b].into());
        pending.take(Turnover { left: vec![], serving: vec![b] });
        assert_eq!(pending.next_pass(), [a].into());
        assert_eq!(pending.next_pass(), [a].into());
        assert_eq!(pending.next_pass(), [].into());
    }
}
