//! `/healthz` and `/livez` as kube-proxy answers them, since load balancers and probes know that answer.
//!
//! The agent is healthy if no change has been pending for longer than `STALE`. A start without news from the API server is
//! healthy. `/healthz`
//! also fails on a node that the autoscaler is about to remove (KEP-3836), so that no new traffic comes; `/livez`
//! does not, since a restart would not help. `/readyz` is ours: whether the tables have once been brought to what the
//! API server says. Its loss afterwards changes none of the three, or all nodes would fail at once.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant, SystemTime};

use hyper::StatusCode;
use jiff::Timestamp;

use crate::observe::Status;

/// A change that is pending for longer makes the agent unhealthy (kube-proxy: `2 * iptables.syncPeriod` = 2 min).
pub(crate) const STALE: Duration = Duration::from_secs(120);

/// Which question is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Probe {
    /// `/healthz`: may traffic come?
    Healthz,
    /// `/livez`: would a restart help?
    Livez,
    /// `/readyz`: has it begun to work?
    Readyz,
}

impl Probe {
    /// The probe at this path.
    pub(crate) fn at(path: &str) -> Option<Self> {
        match path {
            "/healthz" => Some(Self::Healthz),
            "/livez" => Some(Self::Livez),
            "/readyz" => Some(Self::Readyz),
            _ => None,
        }
    }
}

/// The moment of a probe, on both clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    /// For durations.
    pub instant: Instant,
    /// For the answer.
    pub time: SystemTime,
}

impl Moment {
    pub(crate) fn now() -> Self {
        Self { instant: Instant::now(), time: SystemTime::now() }
    }
}

/// Status code and body (kube-proxy's `healthzHandler`).
pub(crate) fn answer(probe: Probe, status: &Status, now: Moment) -> (StatusCode, String) {
    let stale = is_stale(status, now);
    let ok = match probe {
        Probe::Healthz => !stale && status.node_eligible,
        Probe::Livez => !stale,
        Probe::Readyz => status.synced,
    };
    // While all is well, the last update is now: nothing was left to do.
    let updated = if stale { status.updated } else { now.time };
    let body = format!(
        r#"{{"lastUpdated": "{}","currentTime": "{}", "nodeEligible": {}}}"#,
        go_time(updated),
        go_time(now.time),
        status.node_eligible
    );
    (if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, body)
}

/// Whether a change has been pending for too long.
pub(crate) fn is_stale(status: &Status, now: Moment) -> bool {
    status.pending_since.is_some_and(|since| now.instant.duration_since(since) > STALE)
}

/// A time as Go prints it, in UTC.
fn go_time(time: SystemTime) -> String {
    let time = Timestamp::try_from(time).unwrap_or_default();
    time.strftime("%Y-%m-%d %H:%M:%S.%9f +0000 UTC").to_string()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant, UNIX_EPOCH};

    use super::{Moment, Probe, answer};
    use crate::observe::Status;

    #[test]
    fn answers() {
        let start = Instant::now();
        let now = Moment {
            instant: start + Duration::from_secs(300),
            time: UNIX_EPOCH + Duration::new(1_800_000_000, 5),
        };
        let quiet = Status {
            synced: true,
            updated: UNIX_EPOCH + Duration::from_secs(951_782_400),
            pending_since: None,
            node_eligible: true,
        };
        let busy = Status { pending_since: Some(start + Duration::from_secs(200)), ..quiet };
        let stuck = Status { pending_since: Some(start + Duration::from_secs(100)), ..quiet };
        let leaving = Status { node_eligible: false, ..quiet };
        let without_server = Status { synced: false, ..quiet };
        let cases = [
            ("quiet", quiet, 200, 200, 200),
            ("busy", busy, 200, 200, 200),
            ("stuck", stuck, 503, 503, 200),
            ("leaving", leaving, 503, 200, 200),
            ("without news", without_server, 200, 200, 503),
        ];
        for (name, status, healthz, livez, readyz) in cases {
            assert_eq!(answer(Probe::Healthz, &status, now).0, healthz, "{name}");
            assert_eq!(answer(Probe::Livez, &status, now).0, livez, "{name}");
            assert_eq!(answer(Probe::Readyz, &status, now).0, readyz, "{name}");
        }
        let (_, body) = answer(Probe::Healthz, &stuck, now);
        let want = r#"{"lastUpdated": "2000-02-29 00:00:00.000000000 +0000 UTC","currentTime": "2027-01-15 08:00:00.000000005 +0000 UTC", "nodeEligible": true}"#;
        assert_eq!(body, want);
        assert!(serde_json::from_str::<serde_json::Value>(&body).is_ok());
    }
}
