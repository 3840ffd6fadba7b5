//! The lookup of a name in words.

use super::render;
use crate::explain::explanation::{Finding, LookupResult, Step};
use crate::explain::trace::{HopState, Lookup, Trace, TraceOutcome};

/// The step of the lookup, which comes after the source.
pub(super) fn step(lookup: &Lookup) -> Step {
    let service = &lookup.service;
    let (state, text) = match lookup.trace.outcome() {
        TraceOutcome::Delivered => (HopState::Ok, format!("lookups reach {service}")),
        TraceOutcome::Stopped => {
            let inner = render(&lookup.trace);
            (HopState::Stop, format!("lookups at {service} fail: {}", inner.finding.headline))
        }
        TraceOutcome::CannotTell => {
            (HopState::Unknown, format!("whether lookups reach {service} is not known here"))
        }
    };
    Step { state, what: "name", text }
}

/// Why a lookup fails, and what to change.
pub(super) fn finding(trace: &Trace, lookup: &Lookup) -> Finding {
    let inner = render(&lookup.trace).finding;
    let (src, dst) = (&trace.wanted.src, &trace.wanted.dst);
    let mut because = vec![format!(
        "{src} dials a name: without an answer of {} no packet is sent to {dst}",
        lookup.service
    )];
    because.extend(inner.because);
    Finding {
        code: Some(lookup.code()),
        headline: format!("lookups at {} fail: {}", lookup.service, inner.headline),
        because,
        ..inner
    }
}

/// What is taken for granted where a lookup fails.
pub(super) fn assumption(lookup: &Lookup) -> String {
    format!(
        "the Pod asks the cluster's DNS (dnsPolicy ClusterFirst) at {}; a client that dials the address does not need it",
        lookup.service
    )
}

/// The lookup, in short.
pub(super) fn result(lookup: &Lookup) -> LookupResult {
    LookupResult {
        service: lookup.service.to_string(),
        outcome: lookup.trace.outcome(),
        code: lookup.trace.code(),
    }
}
