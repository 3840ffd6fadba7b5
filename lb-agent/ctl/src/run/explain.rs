//! `lbctl explain` and `lbctl policy`: gathers what they are made from.

use std::collections::HashSet;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::bail;
use lb_common::addr::Addr;
use lb_common::endpoint::PodEntry;

use crate::admin::Client;
use crate::attribution::PolicyNames;
use crate::columns::{self, Format, Row as _, Style};
use crate::ct;
use crate::explain::known::{KnownPod, complete};
use crate::explain::trace::Unseen;
use crate::explain::{
    self, Answered, Facts, Listening, Stale, args as flow_args, host, lookup, offline, socket,
};
use crate::network::protocol_name;
use crate::pinned::Pinned;
use crate::policies;
use crate::run::{TablePaths, remark, suggest, unix_now, what_if};
use crate::snapshot::{CtFilter, SnapshotExtent, TableSnapshot};
use crate::view::View;
use crate::{ExplainArgs, PolicyCommand, PolicyExplainArgs, PolicyShowArgs};
use lb_core::admin::context::{
    EndKind, FlowContext, FlowEnd, FlowQuery, Party, ServicePortContext,
};
use lb_core::cluster::{Name, NamedPort};
use lb_kernel::bpf::listening::ListeningProgram;
use lb_kernel::bpf::sockets;
use lb_kernel::devices::netns;

/// `lbctl explain SRC DST`.
pub(super) fn words(
    place: TablePaths<'_>,
    args: &ExplainArgs,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let wanted = flow_args::words(&args.src, &args.dst, args.namespace.as_deref())?;
    explain(place, &wanted, &args.known_pod, args.output, out)
}

/// `lbctl policy`.
pub(super) fn policy(
    place: TablePaths<'_>,
    command: &PolicyCommand,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    match command {
        PolicyCommand::List(args) => {
            let gather =
                |view: &View<'_>, _: &Pinned| Ok(policies::rows(view, args.namespace.as_deref()));
            place.show(&args.style, args.watch, SnapshotExtent::Tables, gather, out)?;
            Ok(ExitCode::SUCCESS)
        }
        PolicyCommand::Show(args) => show(place, args, out),
        PolicyCommand::Try(args) => what_if::try_policies(place, args, out),
        PolicyCommand::Suggest(args) => {
            suggest::suggest(place, args, out)?;
            Ok(ExitCode::SUCCESS)
        }
        PolicyCommand::Explain(args) => {
            let PolicyExplainArgs { from, to, port, namespace, known_pod, output } = args;
            let wanted = flow_args::flags(from, to, port.as_deref(), namespace.as_deref())?;
            explain(place, &wanted, known_pod, *output, out)
        }
    }
}

fn show(
    place: TablePaths<'_>,
    args: &PolicyShowArgs,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let found = match Client::new(place.state_dir).policy(&Name::parse(&args.name)) {
        Ok(found) => found,
        Err(error) => return show_alone(place, args, &error, out),
    };
    let Some(policy) = found else {
        bail!("{}: no such policy (NAMESPACE/NAME, or NAME of a ClusterNetworkPolicy)", args.name)
    };
    match args.output {
        Format::Json | Format::Yaml | Format::JsonPath(_) => {
            columns::document(out, &policies::document(&policy), args.output)?;
        }
        Format::Name => columns::line(out, &policy.name)?,
        Format::Rows => columns::json_line(out, &policy)?,
        Format::Table | Format::Wide => policies::print(out, &policy)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Without the agent there is the line of the list, from the name table.
fn show_alone(
    place: TablePaths<'_>,
    args: &PolicyShowArgs,
    error: &anyhow::Error,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let names = place.names().names;
    let snapshot = TableSnapshot::default();
    let view = View::new(&snapshot, &names, unix_now());
    let mut rows = policies::rows(&view, None);
    rows.retain(|row| row.name().as_deref() == Some(&args.name));
    // Who merges the policies of several nodes takes the rules from those that have them.
    if rows.is_empty() || args.output == Format::Rows {
        bail!("{error:#}");
    }
    remark(&format!("{error:#}: showing only what the name table has; the rules are unknown"));
    let style = Style { output: args.output, ..Style::default() };
    columns::print(out, &rows, view.directory.node, &style)?;
    Ok(ExitCode::SUCCESS)
}

fn explain(
    place: TablePaths<'_>,
    wanted: &FlowQuery,
    pods: &[KnownPod],
    output: Format,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let pinned = Pinned::open(place.pin_dir)?;
    let snapshot = pinned.snapshot(SnapshotExtent::Fields)?;
    let tables = pinned.policies()?;
    let names = place.names_or_remark().names;
    let view = View::new(&snapshot, &names, unix_now());
    let known = |wanted: &FlowQuery, alone: bool| {
        if alone {
            return Ok(offline::context(&view, wanted));
        }
        Client::new(place.state_dir).explain(wanted)
    };
    let mut wanted = wanted.clone();
    let mut context = match known(&wanted, false) {
        Ok(context) => context,
        Err(error) => {
            remark(&format!("{error:#}: using names and reasons from the name table"));
            known(&wanted, true)?
        }
    };
    complete(&wanted, &mut context, pods);
    exists(&wanted.src.to_string(), &context.src)?;
    exists(&wanted.dst.to_string(), &context.dst)?;
    if let Some((port, protocol)) = meant_port(&wanted, &context)? {
        (wanted.port, wanted.protocol) = (Some(port), protocol);
        wanted.port_name = None;
        context = known(&wanted, !context.agent)?;
        complete(&wanted, &mut context, pods);
    }
    let (stale, answers) = past_flows(&pinned, &view, &context)?;
    // An older agent has not pinned it.
    let program = pinned.listening().ok();
    let policies = PolicyNames::of(&names);
    let follow = |wanted: &FlowQuery, context: &FlowContext| {
        explain::trace(&Facts {
            wanted,
            context,
            view: &view,
            policies: &policies,
            tables: &tables,
            epoch: tables.state().epoch,
            stale: &stale,
            answers: &answers,
            forwards: host::forwards(),
            listening: &|pod, protocol, at| listening(program.as_ref(), pod, protocol, at),
            host_listening: &host_listening,
        })
    };
    let mut trace = follow(&wanted, &context);
    let ask = |wanted: &FlowQuery| {
        let mut found = known(wanted, !context.agent)?;
        complete(wanted, &mut found, pods);
        Ok(found)
    };
    trace.lookup = lookup::follow((&wanted, &context), &ask, &follow)?;
    if let Some(error) = tables.take_error() {
        bail!("cannot read the policy maps: {error}");
    }
    if output == Format::Rows {
        columns::json_line(out, &trace)?;
        return Ok(ExitCode::from(trace.outcome().exit()));
    }
    let explanation = explain::render(&trace);
    match output {
        Format::Json | Format::Yaml | Format::JsonPath(_) => {
            columns::document(out, &explanation, output)?
        }
        Format::Name | Format::Rows => bail!("an explanation cannot be printed as names"),
        Format::Table | Format::Wide => explain::print(out, &explanation)?,
    }
    Ok(ExitCode::from(explanation.outcome.exit()))
}

fn exists(name: &str, end: &FlowEnd) -> anyhow::Result<()> {
    if end.kind != EndKind::Missing {
        return Ok(());
    }
    let similar: Vec<String> = end.similar.iter().map(Name::to_string).collect();
    match similar.as_slice() {
        [] => bail!("{name}: no such object in the cluster"),
        similar => bail!("{name}: no such object in the cluster; similar: {}", similar.join(", ")),
    }
}

/// The port and protocol that are meant by a name, or, of a Service, when none is given.
fn meant_port(wanted: &FlowQuery, context: &FlowContext) -> anyhow::Result<Option<(u16, u8)>> {
    let known: Vec<NamedPort> = match (&wanted.dst, &context.service) {
        (Party::Service(_), Some(service)) => service.ports.iter().map(named).collect(),
        _ => context.dst.ports.clone(),
    };
    let list = |word: fn(&NamedPort) -> String| {
        let mut words: Vec<String> = known.iter().map(word).collect();
        words.dedup();
        if words.is_empty() { "none".to_owned() } else { words.join(", ") }
    };
    if let Some(name) = &wanted.port_name {
        let mut found: Vec<&NamedPort> = known.iter().filter(|port| port.name == *name).collect();
        // A name may stand for one port of each protocol.
        found.sort_by_key(|port| port.protocol != wanted.protocol);
        let Some(port) = found.first() else {
            let names = list(|port| port.name.to_string());
            bail!("{}: it has no port with the name {name}; it has {names}", wanted.dst)
        };
        return Ok(Some((port.port, port.protocol)));
    }
    match (&wanted.dst, wanted.port, known.as_slice()) {
        (Party::Service(_), None, [port]) => Ok(Some((port.port, port.protocol))),
        (Party::Service(name), None, _) if context.service.is_some() => {
            let ports = list(|port| format!("{}/{}", port.port, protocol_name(port.protocol)));
            bail!("{name}: no port given; it has {ports}")
        }
        _ => Ok(None),
    }
}

fn named(port: &ServicePortContext) -> NamedPort {
    let ServicePortContext { name, protocol, port, .. } = port;
    NamedPort { name: Arc::clone(name), protocol: *protocol, port: *port }
}

/// Returns the open flows of the source whose backend was removed, and how its last connections were answered.
fn past_flows(
    pinned: &Pinned,
    view: &View<'_>,
    context: &FlowContext,
) -> anyhow::Result<(Vec<Stale>, Vec<Answered>)> {
    if context.src.ips.is_empty() {
        return Ok(Default::default());
    }
    let addrs: HashSet<Addr> = context.src.ips.iter().map(|ip| Addr::from_ip(*ip)).collect();
    let filter = CtFilter { addrs: Some(addrs), ..CtFilter::default() };
    let (entries, now) = pinned.flows(&filter)?;
    Ok((ct::stale(view, &entries, now), ct::answers(&entries, now)))
}

/// The sockets of this node's own processes.
fn host_listening(protocol: u8) -> Listening {
    match sockets::listening(protocol) {
        Ok(found) => Listening::On(found.iter().map(address).collect()),
        Err(error) => Listening::Unknown(Unseen::Error(error.to_string())),
    }
}

fn address((addr, port): &sockets::Destination) -> SocketAddr {
    SocketAddr::new(addr.to_ip(), port.get())
}

/// Which sockets of a Pod of this node tell whether it takes what is sent to the address: all of them, if its network namespace can
/// be entered, or those that the kernel finds for questions.
fn listening(
    program: Option<&ListeningProgram>,
    pod: &PodEntry,
    protocol: u8,
    at: SocketAddr,
) -> Listening {
    let look = || -> io::Result<Option<Vec<SocketAddr>>> {
        let Some(netns) = netns::find(pod.nsid)? else { return Ok(None) };
        let sockets = netns::within(&netns, || sockets::listening(protocol))?;
        Ok(Some(sockets.iter().map(address).collect()))
    };
    if let Ok(Some(sockets)) = look() {
        return Listening::On(sockets);
    }
    match program.map(|program| program.ask(pod.nsid, protocol, at)) {
        Some(Ok(answer)) => Listening::Asked(socket::answered(answer, at)),
        Some(Err(error)) => Listening::Unknown(Unseen::Error(error.to_string())),
        None => Listening::Unknown(Unseen::Namespace),
    }
}
