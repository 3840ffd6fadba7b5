//! kube-proxy beside us: a thread searches for it, and with `--takeover when-gone` removes what it left behind once it
//! is gone and this agent does its work.
#![forbid(unsafe_code)]

use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::sync::mpsc::Sender;
use tracing::{info, warn};

use crate::agent::Agent;
use crate::agent::background::News;
use crate::config::Takeover;
use crate::takeover;
use lb_core::cluster::{self, Cluster};
use lb_kernel::foreign::{self, Sign};

/// Between two searches: while something of it is here, so that its end shows at once; and else.
const INTERVAL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// For so long nothing of it may have lived before its rules go by themselves: while its DaemonSet is updated a node has
/// none for a moment.
const GONE: Duration = Duration::from_secs(5);
/// Between two tries to remove what cannot be removed.
const RETRY: Duration = Duration::from_secs(60);

/// What is known of kube-proxy on this node.
pub(super) struct KubeProxy {
    /// What the thread found last.
    signs: Vec<Sign>,
    takeover: Takeover,
    /// Since when only its rules are here.
    gone_since: Option<Instant>,
    not_before: Option<Instant>,
    /// Why its rules could not be removed.
    failure: Option<String>,
    /// Orders to the thread: remove the rules.
    orders: mpsc::Sender<()>,
}

impl KubeProxy {
    /// Starts the thread, which ends with the receiver of its news.
    ///
    /// # Errors
    /// When the system has no room for a thread.
    pub(super) fn spawn(takeover: Takeover, news: Sender<News>) -> anyhow::Result<Self> {
        let (orders, ordered) = mpsc::channel();
        thread::Builder::new()
            .name("kube-proxy".to_owned())
            .spawn(move || search(&news, &ordered))
            .context("start the thread that detects kube-proxy")?;
        Ok(Self {
            signs: Vec::new(),
            takeover,
            gone_since: None,
            not_before: None,
            failure: None,
            orders,
        })
    }

    /// All signs of it: what the thread found, and its Pods on this node.
    pub(super) fn signs(&self, cluster: &Cluster) -> Vec<Sign> {
        let pods = cluster.kube_proxies().map(|name| Sign::Pod(name.to_string()));
        pods.chain(self.signs.iter().cloned()).collect()
    }

    /// Why its rules could not be removed.
    pub(super) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Takes in what the thread found.
    fn found(&mut self, signs: Vec<Sign>) {
        if signs != self.signs {
            match signs.is_empty() {
                true => info!("no sign of kube-proxy on this node any more"),
                false => warn!("kube-proxy detected on this node: {}", foreign::words(&signs)),
            }
        }
        if signs.is_empty() {
            self.failure = None;
        }
        self.signs = signs;
    }

    /// Whether its rules are to go now.
    fn is_due(&mut self, all: &[Sign], ready: bool, now: Instant) -> bool {
        let over = !all.is_empty() && !all.iter().any(Sign::is_alive) && ready;
        if self.takeover != Takeover::WhenGone || !over {
            self.gone_since = None;
            return false;
        }
        let since = *self.gone_since.get_or_insert(now);
        if now.duration_since(since) < GONE || self.not_before.is_some_and(|at| now < at) {
            return false;
        }
        self.not_before = Some(now + RETRY);
        true
    }
}

fn search(news: &Sender<News>, orders: &Receiver<()>) {
    loop {
        let signs = foreign::detect();
        let (beside, else_) = INTERVAL;
        let pause = if signs.is_empty() { else_ } else { beside };
        if news.blocking_send(News::Foreign(signs)).is_err() {
            return;
        }
        match orders.recv_timeout(pause) {
            Ok(()) => {
                let removed = takeover::remove().map_err(|err| format!("{err:#}"));
                if news.blocking_send(News::TakenOver(removed)).is_err() {
                    return;
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

impl Agent {
    /// The thread has searched.
    pub(super) fn searched(&mut self, signs: Vec<Sign>) {
        if !signs.is_empty() {
            self.dirty.merge(self.cluster.apply(cluster::Event::OtherProxy));
        }
        self.kube_proxy.found(signs);
        let all = self.kube_proxy.signs(&self.cluster);
        self.metrics.ours.foreign_proxy.set(i64::from(!all.is_empty()));
        let ready = self.replaces_kube_proxy();
        if self.kube_proxy.is_due(&all, ready, Instant::now())
            && self.kube_proxy.orders.send(()).is_err()
        {
            warn!("the thread that detects kube-proxy has ended");
        }
        self.housekeeping.touch();
    }

    /// The thread has removed kube-proxy's rules, or could not.
    pub(super) fn taken_over(&mut self, removed: Result<usize, String>) {
        self.kube_proxy.failure = match removed {
            Ok(parts) => {
                info!(parts, "kube-proxy has stopped, removed its rules");
                None
            }
            Err(err) => {
                warn!(err, "cannot remove kube-proxy's rules, retrying");
                Some(err)
            }
        };
        self.housekeeping.touch();
    }

    /// Whether all of kube-proxy's work is done here: every Service is written, and every device has its programs.
    fn replaces_kube_proxy(&self) -> bool {
        self.holds() && self.queue.oldest().is_none() && self.planner.issues().next().is_none()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    use super::{GONE, KubeProxy, RETRY, Sign, Takeover};

    #[test]
    fn rules_go_once_only_they_are_left_for_a_while() {
        let (orders, _ordered) = mpsc::channel();
        let mut state = KubeProxy {
            signs: Vec::new(),
            takeover: Takeover::WhenGone,
            gone_since: None,
            not_before: None,
            failure: None,
            orders,
        };
        let start = Instant::now();
        let rules = [Sign::Iptables];
        let alive = [Sign::Pod("kube-system/kube-proxy-x".to_owned()), Sign::Iptables];
        let later = |by: Duration| start + by;
        assert!(!state.is_due(&rules, true, start));
        assert!(!state.is_due(&rules, true, later(GONE / 2)));
        assert!(!state.is_due(&alive, true, later(GONE)), "it has come back");
        assert!(!state.is_due(&rules, true, later(GONE * 2)), "and has just gone again");
        assert!(!state.is_due(&rules, false, later(GONE * 3)), "not all is written");
        assert!(!state.is_due(&rules, true, later(GONE * 4)));
        assert!(state.is_due(&rules, true, later(GONE * 5)));
        assert!(!state.is_due(&rules, true, later(GONE * 6)), "that is being done");
        assert!(state.is_due(&rules, true, later(GONE * 5 + RETRY)));
        assert!(!state.is_due(&[], true, later(GONE * 20)));
        state.takeover = Takeover::Manual;
        assert!(!state.is_due(&rules, true, later(GONE * 30)));
        assert!(!state.is_due(&rules, true, later(GONE * 40)));
    }
}
