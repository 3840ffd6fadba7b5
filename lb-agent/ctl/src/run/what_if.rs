//! `lbctl policy try` and `lbctl shadow report`: what was seen on this node, judged by the agent as if policies were changed.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use lb_common::event::outcome;

use crate::admin::Client;
use crate::columns::{self, Format};
use crate::pairs::LivePair;
use crate::run::evidence::{FlowEvidence, seen};
use crate::run::{FOUND_PROBLEMS, TablePaths, remark};
use crate::trial::{self, TrialAnswer, TrialFacts, TrialReport};
use crate::{PolicyTryArgs, ShadowReportArgs, shadow};
use lb_core::admin::FlowRecord;
use lb_core::admin::what_if::{FLOWS, PolicyChange, SeenFlow, WhatIf};
use lb_core::cluster::{Change, Event, Name, Policy};
use lb_kube::manifests;

/// `lbctl policy try`.
pub(super) fn try_policies(
    place: TablePaths<'_>,
    args: &PolicyTryArgs,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let put = args.file.iter().map(|file| policies(file)).collect::<anyhow::Result<Vec<_>>>()?;
    let put: Vec<(Name, Policy)> = put.into_iter().flatten().collect();
    if put.is_empty() && args.delete.is_empty() {
        bail!("nothing to try: give policies with -f FILE, or names with --delete");
    }
    let put = put.into_iter().map(|(name, policy)| {
        if policy.shadow && !args.enforce {
            remark(&format!(
                "{name} is in shadow mode, so applying it denies nothing; --enforce tries it without"
            ));
        }
        let shadow = policy.shadow && !args.enforce;
        (name, Policy { shadow, ..policy })
    });
    let put = put.collect();
    let delete = args.delete.iter().map(|name| Name::parse(name)).collect();
    let mut seen = FlowEvidence::gather(place, args.span)?;
    seen.live.retain(LivePair::may_arrive);
    let denied = denied(&seen.sample);
    let change = PolicyChange::Apply { put, delete };
    let answer = ask(place, &change, [&seen.live, &denied])?;
    if let Some(missing) = answer.missing.first() {
        bail!(
            "--delete {missing}: no such policy (NAMESPACE/NAME, or NAME of a ClusterNetworkPolicy)"
        );
    }
    let owners = seen.owners(place)?;
    let names = names_of(&seen.sample);
    let owner = |ip| owners.get(&ip).or_else(|| names.get(&ip)).cloned().unwrap_or_default();
    let for_laptop = args.style.output == Format::Rows;
    let is_counted = |pair: &LivePair| !for_laptop || seen.is_opened_here(pair, &owner);
    let facts = TrialFacts {
        node: &seen.node,
        live: &seen.live,
        denied: &denied,
        owner: &owner,
        is_counted: &is_counted,
    };
    let trial = trial::trial(&facts, answer);
    if !trial.complete {
        remark(
            "this agent does not know the Pods of all nodes: those are judged as clients outside",
        );
    }
    // A laptop says those of all nodes once.
    for issue in trial.issues.iter().filter(|_| !for_laptop) {
        remark(&trial::remark_line(issue));
    }
    let dialed = if for_laptop { trial::dialed(&facts) } else { Vec::new() };
    let trial = TrialReport { seconds: args.span.as_secs(), dialed, ..trial };
    trial::print_as(out, &trial, &args.style)?;
    Ok(if trial.breaks() { ExitCode::from(FOUND_PROBLEMS) } else { ExitCode::SUCCESS })
}

/// `lbctl shadow report`.
pub(super) fn shadow_report(
    place: TablePaths<'_>,
    args: &ShadowReportArgs,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let mut seen = FlowEvidence::gather(place, args.span)?;
    seen.live.retain(LivePair::may_arrive);
    let answer = ask(place, &PolicyChange::EnforceShadow, [&seen.live, &[]])?;
    let owners = seen.owners(place)?;
    let rows = shadow::rows(&shadow::ShadowFacts {
        live: &seen.live,
        fates: &answer.fates,
        sample: &seen.sample,
        owner: &|ip| owners.get(&ip).cloned().unwrap_or_default(),
        now_ms: seen.covers.now_ms,
        namespace: args.namespace.as_deref(),
        policy: args.policy.as_deref(),
    });
    if rows.is_empty() && args.style.output != Format::Rows {
        remark("enforcing the policies in shadow mode would change nothing that was seen");
    }
    columns::print(out, &rows, &seen.node, &args.style)
}

/// The policies of a file, or of standard input.
fn policies(file: &Path) -> anyhow::Result<Vec<(Name, Policy)>> {
    let (source, text) = if file == Path::new("-") {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).context("read standard input")?;
        ("standard input".to_owned(), text)
    } else {
        let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
        (file.display().to_string(), text)
    };
    let read = manifests::read(&text, &source, "");
    if let Some(fault) = read.faults.iter().find(|fault| fault.lossy) {
        bail!("{}", fault.issue);
    }
    for fault in &read.faults {
        remark(&fault.issue.to_string());
    }
    let mut policies = Vec::new();
    for object in read.objects {
        object.issues.iter().for_each(|issue| remark(&issue.to_string()));
        match object.event {
            Event::NetworkPolicy(Change::Applied(name, policy))
            | Event::ClusterNetworkPolicy(Change::Applied(name, policy)) => {
                policies.push((name, policy));
            }
            _ => remark(&format!(
                "{source}:{}: {} {} is not a policy: skipped",
                object.line,
                object.kind.name(),
                object.name
            )),
        }
    }
    Ok(policies)
}

/// What the agent says of the flows, asked in requests of bounded size.
fn ask(
    place: TablePaths<'_>,
    change: &PolicyChange,
    pairs: [&[LivePair]; 2],
) -> anyhow::Result<TrialAnswer> {
    let mut flows: Vec<SeenFlow> = pairs.into_iter().flatten().map(|pair| pair.flow).collect();
    flows.sort_unstable();
    flows.dedup();
    let mut answer = TrialAnswer { complete: true, ..TrialAnswer::default() };
    let client = Client::new(place.state_dir);
    // Without flows, too: what is wrong with the change is to be said.
    let parts = flows.chunks(FLOWS).chain(flows.is_empty().then_some(&[][..]));
    for some in parts {
        let wanted = WhatIf { change: change.clone(), flows: some.to_vec() };
        answer.add(some, client.what_if(wanted)?);
    }
    Ok(answer)
}

/// Flows of the sample that policies denied.
fn denied(sample: &[FlowRecord]) -> Vec<LivePair> {
    let mut counts = BTreeMap::<(SeenFlow, String), u64>::new();
    for record in sample.iter().filter(|record| is_denied(record)) {
        *counts.entry((seen(record), record.via.to_string())).or_default() += 1;
    }
    counts
        .into_iter()
        .map(|((flow, via), count)| LivePair {
            flow,
            via,
            is_answered: false,
            count,
            idle: 0,
            totals: None,
        })
        .collect()
}

/// Whether policies denied it.
fn is_denied(record: &FlowRecord) -> bool {
    record.group != 0
        && record.reason != 0
        && matches!(record.outcome, outcome::DROPPED | outcome::WOULD_ALLOW)
}

/// Who had the addresses of the sample when they were seen last.
fn names_of(sample: &[FlowRecord]) -> BTreeMap<std::net::IpAddr, String> {
    let ends = sample.iter().flat_map(|record| {
        [(record.src.ip(), &record.src_owner), (record.dst.ip(), &record.dst_owner)]
    });
    ends.map(|(ip, owner)| (ip, owner.to_string())).filter(|(_, name)| !name.is_empty()).collect()
}
