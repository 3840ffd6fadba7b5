//! `kubectl lb policy show`: each node counts its own hits.

use std::io::Write;

use crate::PolicyShowArgs;
use crate::columns::{self, Format};
use crate::fleet::ask::{FleetQuery, FromNode};
use crate::policies;
use lb_core::admin::policy::{PolicyView, RuleView, Selected};

/// Prints the policy.
///
/// # Errors
/// When there is no such policy, no node answers, or the output cannot be written.
pub fn show(
    asked: &FleetQuery,
    args: Vec<String>,
    wanted: &PolicyShowArgs,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let answers: Vec<FromNode<PolicyView>> = asked.json_or_remark(args, None)?;
    let views = answers.into_iter().map(|answer| answer.answer);
    let Some(policy) = views.reduce(|whole, one| together(whole, &one)) else { return Ok(()) };
    match wanted.output {
        Format::Json | Format::Yaml | Format::JsonPath(_) => {
            columns::document(out, &policies::document(&policy), wanted.output)
        }
        Format::Name => Ok(columns::line(out, &policy.name)?),
        Format::Rows => columns::json_line(out, &policy),
        Format::Table | Format::Wide => Ok(policies::print(out, &policy)?),
    }
}

/// The policy with the hits of both nodes. A node that does not watch all Pods counts fewer of them.
fn together(mut whole: PolicyView, one: &PolicyView) -> PolicyView {
    whole.default_denied.ingress += one.default_denied.ingress;
    whole.default_denied.egress += one.default_denied.egress;
    most(&mut whole.subject.1, &one.subject.1);
    // Rules of another generation are other rules.
    if whole.generation == one.generation {
        add(whole.ingress.as_deref_mut(), one.ingress.as_deref());
        add(whole.egress.as_deref_mut(), one.egress.as_deref());
    }
    whole
}

fn add(whole: Option<&mut [RuleView]>, one: Option<&[RuleView]>) {
    let rules = whole.into_iter().flatten().zip(one.into_iter().flatten());
    for (rule, other) in rules {
        rule.hits += other.hits;
        let peers = rule.peers.as_deref_mut().into_iter().flatten();
        for ((_, known), (_, other)) in peers.zip(other.peers.iter().flatten()) {
            most(known, other);
        }
    }
}

fn most(known: &mut Selected, other: &Selected) {
    if other.count > known.count {
        *known = other.clone();
    }
}
