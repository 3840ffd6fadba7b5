//! Why it is too early to remove kube-proxy's rules: it lives, or this agent does not do its work yet.
#![forbid(unsafe_code)]

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lb_core::names::{self, Names, State, StatusPart};
use lb_ctl::admin::Client;
use lb_ctl::running;
use lb_kernel::foreign::{self, Sign};

/// The agent writes its name table at least every ten seconds, unless it is very busy.
const FRESH: Duration = Duration::from_secs(60);

/// `None` when this agent does kube-proxy's work and kube-proxy is gone.
pub(super) fn find(state_dir: &Path) -> Option<String> {
    alive(&foreign::alive()).or_else(|| no_agent(state_dir)).or_else(|| match pods(state_dir) {
        Ok(pods) => alive(&pods),
        Err(err) => Some(format!("cannot list the Pods of this node: {err:#}")),
    })
}

fn alive(signs: &[Sign]) -> Option<String> {
    (!signs.is_empty()).then(|| {
        format!(
            "kube-proxy still runs on this node and would write its rules again ({}): delete its DaemonSet first",
            foreign::words(signs)
        )
    })
}

fn no_agent(state_dir: &Path) -> Option<String> {
    if running::is_locked(state_dir) == Some(false) {
        return Some(format!("no agent runs on {}: start it first", state_dir.display()));
    }
    match names::read(&state_dir.join(names::FILE)) {
        Ok(names) => unready(&names, SystemTime::now()),
        Err(err) => Some(format!("cannot read the agent's state: {err}")),
    }
}

/// kube-proxy's Pods on this node, which the agent knows from the API.
fn pods(state_dir: &Path) -> anyhow::Result<Vec<Sign>> {
    Ok(Client::new(state_dir).kube_proxy()?.into_iter().map(Sign::Pod).collect())
}

/// What the agent has yet to do before kube-proxy's rules can go.
fn unready(names: &Names<'_>, now: SystemTime) -> Option<String> {
    let written = UNIX_EPOCH + Duration::from_secs(names.agent.written);
    if now.duration_since(written).is_ok_and(|age| age > FRESH) {
        return Some(
            "the agent has not reported its state for a minute: check `lbctl status`".to_owned(),
        );
    }
    if names.agent.synced == 0 {
        return Some("the agent has not written all Services yet: check `lbctl status`".to_owned());
    }
    let needed =
        [StatusPart::Api, StatusPart::Programs, StatusPart::Services].map(StatusPart::name);
    let bad = names.subsystems.iter().find(|s| needed.contains(&&*s.name) && s.state != State::Ok);
    bad.map(|bad| format!("the agent's {} are not ready: {}", bad.name, bad.detail))
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::time::{Duration, UNIX_EPOCH};

    use super::unready;
    use lb_core::names::{Names, State, Subsystem};

    #[test]
    fn the_agent_must_have_synced_and_attached() {
        let names = |written: u64, synced: u64, programs: State| {
            let mut names = Names::default();
            (names.agent.written, names.agent.synced) = (written, synced);
            names.subsystems =
                [("api", State::Ok), ("programs", programs), ("kube-proxy", State::Degraded)]
                    .map(|(name, state)| Subsystem {
                        name: Cow::Borrowed(name),
                        state,
                        detail: Cow::Borrowed("3 of 4 Pods"),
                    })
                    .into();
            names
        };
        let now = UNIX_EPOCH + Duration::from_secs(1000);
        for (names, want) in [
            (names(995, 900, State::Ok), None),
            (names(900, 900, State::Ok), Some("the agent has not reported its state")),
            (names(995, 0, State::Ok), Some("the agent has not written all Services")),
            (names(995, 900, State::Waiting), Some("the agent's programs are not ready: 3 of 4")),
        ] {
            let got = unready(&names, now);
            match want {
                None => assert_eq!(got, None),
                Some(want) => {
                    assert!(got.as_deref().is_some_and(|got| got.starts_with(want)), "{got:?}")
                }
            }
        }
    }
}
