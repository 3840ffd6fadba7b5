//! From the flags to the output: opens what a command needs, makes its rows and prints them.

mod check;
mod diff;
mod evidence;
mod explain;
mod follow;
#[cfg(feature = "live")]
mod live;
mod suggest;
mod sysdump;
mod wait;
mod what_if;

use std::collections::HashSet;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::CommandFactory as _;
use lb_common::addr::Addr;

use crate::account::CountedFlows;
use crate::admin::Client;
use crate::columns::{self, Format, Row, Style};
use crate::ct::CountRow;
use crate::pinned::Pinned;
use crate::selection::Selection;
use crate::snapshot::{CtFilter, SnapshotExtent};
use crate::view::View;
use crate::{
    AffinityArgs, BackendsArgs, Cli, Command, CtArgs, DropsArgs, MapsArgs, PodsArgs, ProgramsArgs,
    ServicesArgs, ShadowCommand, StatusArgs, VersionArgs, affinity, analyze, backends, completion,
    ct, drops, maps, pods, running, services, status, tree, version,
};
use lb_core::escape::Escaped;
use lb_core::names::{self, Names};
use lb_kernel::bpf::programs;

/// Exit status of a check that found problems.
const FOUND_PROBLEMS: u8 = 2;
/// Addresses of one request for names, and all that names are asked for.
const ADDRESSES: usize = 200;
const MOST_ADDRESSES: usize = 4000;
/// Time between two looks of `--watch` and `--wait`.
const LOOK: Duration = Duration::from_secs(1);

/// Runs the command and prints to `out`; remarks go to standard error.
///
/// # Errors
/// One sentence for the operator.
pub fn run(cli: &Cli, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let place = TablePaths { pin_dir: &cli.pin_dir, state_dir: &cli.state_dir };
    match &cli.command {
        Command::Status(args) => return place.status(args, out),
        Command::Services(args) => place.services(args, out)?,
        Command::Backends(args) => place.backends(args, out)?,
        Command::Pods(args) => place.pods(args, out)?,
        Command::Ct(args) => place.ct(args, out)?,
        Command::Affinity(args) => place.affinity(args, out)?,
        Command::Drops(args) => place.drops(args, out)?,
        Command::Policy(command) => return explain::policy(place, command, out),
        Command::Shadow(ShadowCommand::Report(args)) => {
            what_if::shadow_report(place, args, out)?;
        }
        Command::Explain(args) => return explain::words(place, args, out),
        Command::Flows(args) => follow::flows(place, args, out)?,
        Command::Analyze(args) => return analyze::run(args, out),
        Command::Diff(args) => return diff::diff(place, args, out),
        Command::Check(args) => return check::check(place, args, out),
        Command::Sysdump(args) => return sysdump::sysdump(place, args, out),
        Command::Wait(args) => return wait::wait(place, args, out),
        Command::Maps(args) => place.maps(args, out)?,
        #[cfg(feature = "live")]
        Command::Top(args) => lb_live::top::run(args, "", live::lbctl(place)?, out)?,
        #[cfg(feature = "live")]
        Command::Ui(args) => lb_live::ui::run(args, live::lbctl(place)?, out)?,
        Command::Programs(args) => place.programs(args, out)?,
        Command::Completion(args) => completion::script(args.shell, Cli::command(), "lbctl", out)?,
        Command::Version(args) => place.version(args, out)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Where the tables are.
#[derive(Clone, Copy)]
struct TablePaths<'a> {
    pin_dir: &'a Path,
    state_dir: &'a Path,
}

/// The name table, or an empty one and why.
struct Named {
    names: Names<'static>,
    error: Option<String>,
}

impl TablePaths<'_> {
    fn status(self, args: &StatusArgs, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        let started = Instant::now();
        let left = || args.wait.is_some_and(|wait| started.elapsed() < wait);
        let report = loop {
            match self.report() {
                Ok(report) if report.is_ok(args.strict) || !left() => break report,
                Err(error) if !left() => return Err(error),
                Ok(_) | Err(_) => std::thread::sleep(LOOK),
            }
        };
        match args.style.output {
            Format::Json | Format::Yaml | Format::JsonPath(_) => {
                columns::document(out, &report, args.style.output)?
            }
            Format::Name | Format::Rows => {
                anyhow::bail!("status can only be printed as text, JSON or YAML")
            }
            Format::Table | Format::Wide => {
                status::print(out, &report, args.all, !args.style.no_headers)?;
            }
        }
        Ok(if report.is_ok(args.strict) {
            ExitCode::SUCCESS
        } else {
            ExitCode::from(FOUND_PROBLEMS)
        })
    }

    fn report(self) -> anyhow::Result<status::Report> {
        let tables = Pinned::open(self.pin_dir)?;
        let named = self.names();
        let snapshot = tables.snapshot(SnapshotExtent::Tables)?;
        let view = View::new(&snapshot, &named.names, unix_now());
        Ok(status::report(&status::StatusFacts {
            view: &view,
            maps: &tables.map_uses(&snapshot)?,
            counts: &tables.counts()?,
            running: running::is_locked(self.state_dir),
            names_error: named.error.as_deref(),
        }))
    }

    fn services(self, args: &ServicesArgs, out: &mut dyn Write) -> anyhow::Result<()> {
        let selection = args.selection.clone().complete(args.name.clone(), false)?;
        if !args.tree {
            let gather = |view: &View<'_>, _: &Pinned| Ok(services::rows(view, &selection));
            return self.show(&args.style, args.watch, SnapshotExtent::Flows, gather, out);
        }
        let snapshot = Pinned::open(self.pin_dir)?.snapshot(SnapshotExtent::Flows)?;
        let named = self.names_or_remark();
        let view = View::new(&snapshot, &named.names, unix_now());
        let branches = tree::branches(&view, &services::rows(&view, &selection));
        match args.style.output {
            Format::Json | Format::Yaml | Format::JsonPath(_) => {
                columns::document(out, &branches, args.style.output)?
            }
            Format::Name | Format::Rows => {
                anyhow::bail!("--tree can only be printed as text, JSON or YAML")
            }
            Format::Table | Format::Wide => {
                tree::print(out, &branches, !args.style.no_headers)?;
            }
        }
        Ok(())
    }

    fn backends(self, args: &BackendsArgs, out: &mut dyn Write) -> anyhow::Result<()> {
        let selection = args.selection.clone().complete(args.name.clone(), false)?;
        let gather = |view: &View<'_>, _: &Pinned| Ok(backends::rows(view, &selection));
        self.show(&args.style, args.watch, SnapshotExtent::Flows, gather, out)
    }

    fn pods(self, args: &PodsArgs, out: &mut dyn Write) -> anyhow::Result<()> {
        let selection = args.selection.clone().complete(args.name.clone(), true)?;
        let gather = |view: &View<'_>, _: &Pinned| Ok(pods::rows(view, &selection));
        self.show(&args.style, args.watch, SnapshotExtent::Tables, gather, out)
    }

    fn ct(self, args: &CtArgs, out: &mut dyn Write) -> anyhow::Result<()> {
        let selection = args.selection.clone().complete(args.name.clone(), true)?;
        let rows = |view: &View<'_>, tables: &Pinned| {
            let filter = ct_filter(view, &selection, args.protocol);
            let (entries, now) = tables.flows(&filter)?;
            let mut view = view.clone();
            view.directory.learn(self.owners(&ct::strangers(&view, &entries)));
            // They change with each packet: each flow would be shown again and again.
            let accounts = if args.watch { None } else { tables.accounts()? };
            Ok(ct::rows(&view, &CountedFlows { entries, accounts }, now, args.all))
        };
        if !args.count {
            return self.show(&args.style, args.watch, SnapshotExtent::Tables, rows, out);
        }
        let counts = |view: &View<'_>, tables: &Pinned| {
            let rows = rows(view, tables)?;
            Ok(match args.by {
                Some(by) => ct::count(&rows, by),
                None => vec![CountRow { key: "all".to_owned(), count: rows.len() as u64 }],
            })
        };
        self.show(&args.style, false, SnapshotExtent::Tables, counts, out)
    }

    /// The names of what has these addresses; without an agent there are none.
    fn owners(self, addrs: &[IpAddr]) -> Vec<(IpAddr, String)> {
        let client = Client::new(self.state_dir);
        let ask = |some: &[IpAddr]| client.who(some.to_vec()).unwrap_or_default();
        let some = addrs.get(..MOST_ADDRESSES).unwrap_or(addrs);
        let owners = some.chunks(ADDRESSES).flat_map(ask);
        owners.map(|owner| (owner.addr, owner.name)).collect()
    }

    fn affinity(self, args: &AffinityArgs, out: &mut dyn Write) -> anyhow::Result<()> {
        let selection = args.selection.clone().complete(args.name.clone(), false)?;
        let gather = |view: &View<'_>, _: &Pinned| Ok(affinity::rows(view, &selection, args.all));
        self.show(&args.style, args.watch, SnapshotExtent::Fields, gather, out)
    }

    fn drops(self, args: &DropsArgs, out: &mut dyn Write) -> anyhow::Result<()> {
        let gather =
            |view: &View<'_>, tables: &Pinned| Ok(drops::rows(view, &tables.counts()?, args.all));
        self.show(&args.style, args.watch, SnapshotExtent::Tables, gather, out)
    }

    fn maps(self, args: &MapsArgs, out: &mut dyn Write) -> anyhow::Result<()> {
        let gather =
            |view: &View<'_>, tables: &Pinned| Ok(maps::rows(&tables.map_uses(view.snapshot)?));
        self.show(&args.style, args.watch, SnapshotExtent::Tables, gather, out)
    }

    fn programs(self, args: &ProgramsArgs, out: &mut dyn Write) -> anyhow::Result<()> {
        let gather = |_: &View<'_>, tables: &Pinned| tables.program_rows();
        self.show(&args.style, false, SnapshotExtent::Tables, gather, out)?;
        if !programs::are_counted() {
            remark("the kernel does not count now: sysctl kernel.bpf_stats_enabled=1 makes it");
        }
        Ok(())
    }

    fn version(self, args: &VersionArgs, out: &mut dyn Write) -> anyhow::Result<()> {
        let named = self.names();
        let versions = version::versions(named.error.is_none().then_some(&named.names));
        match args.style.output {
            Format::Json | Format::Yaml | Format::JsonPath(_) => {
                columns::document(out, &versions, args.style.output)
            }
            Format::Table | Format::Wide | Format::Name | Format::Rows => {
                Ok(version::print(out, &versions)?)
            }
        }
    }

    /// Prints the rows, once or repeatedly.
    fn show<R: Row>(
        self,
        style: &Style,
        watch: bool,
        extent: SnapshotExtent,
        gather: impl Fn(&View<'_>, &Pinned) -> anyhow::Result<Vec<R>>,
        out: &mut dyn Write,
    ) -> anyhow::Result<()> {
        let mut style = style.clone();
        if watch && style.output == Format::Rows {
            end_with_input();
        }
        let mut seen: Option<HashSet<Vec<String>>> = None;
        loop {
            let tables = Pinned::open(self.pin_dir)?;
            let snapshot = tables.snapshot(extent)?;
            let named = if seen.is_none() { self.names_or_remark() } else { self.names() };
            let view = View::new(&snapshot, &named.names, unix_now());
            let mut rows = gather(&view, &tables)?;
            if !watch {
                if rows.is_empty() && style.output != Format::Rows {
                    remark(&format!("no {} found", R::NOUN));
                }
                return columns::print(out, &rows, view.directory.node, &style);
            }
            let lasting = |row: &R| columns::lasting(&row.cells());
            let now_seen: HashSet<Vec<String>> = rows.iter().map(lasting).collect();
            let changed = match &seen {
                // Who merges the rows of several nodes needs all of them, without those that are gone.
                seen if style.output == Format::Rows => seen.as_ref() != Some(&now_seen),
                seen => {
                    let known = |row: &R| seen.as_ref().is_some_and(|s| s.contains(&lasting(row)));
                    rows.retain(|row| !known(row));
                    !rows.is_empty()
                }
            };
            if changed {
                columns::print(out, &rows, view.directory.node, &style)?;
                out.flush()?;
                style.no_headers = true;
            }
            seen = Some(now_seen);
            std::thread::sleep(LOOK);
        }
    }

    fn names(self) -> Named {
        match names::read(&self.state_dir.join(names::FILE)) {
            Ok(names) => Named { names, error: None },
            Err(error) => Named { names: Names::default(), error: Some(error.to_string()) },
        }
    }

    fn names_or_remark(self) -> Named {
        let named = self.names();
        if let Some(error) = &named.error {
            remark(&format!("showing ids instead of names: {error}"));
        }
        named
    }
}

/// What of the selection the dump itself can leave out.
fn ct_filter(view: &View<'_>, selection: &Selection, protocol: Option<u8>) -> CtFilter {
    let Selection { namespace, pod, .. } = selection;
    let own = Selection { namespace: namespace.clone(), pod: pod.clone(), ..Selection::default() };
    let locals = || {
        let rows = pods::rows(view, &own);
        rows.iter().flat_map(|row| &row.ips).copied().map(Addr::from).collect()
    };
    let of_service = Selection { service: selection.service.clone(), ..Selection::default() };
    let backends = || backends::rows(view, &of_service).iter().map(|row| row.id).collect();
    CtFilter {
        addrs: selection.ip.map(|ip| [Addr::from(ip)].into()),
        locals: (namespace.is_some() || pod.is_some()).then(locals),
        backend_ids: selection.service.is_some().then(backends),
        protocol,
    }
}

/// Ends the process with its standard input, which is the connection of a laptop: nothing else shows that it is gone.
fn end_with_input() {
    std::thread::spawn(|| {
        // Whether it ends or breaks, there is no one to print to.
        drop(io::copy(&mut io::stdin().lock(), &mut io::sink()));
        std::process::exit(0)
    });
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn remark(text: &str) {
    eprintln!("lbctl: {}", Escaped(text));
}
