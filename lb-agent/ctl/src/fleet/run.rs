//! From a command to what its nodes are asked and how the answers are printed.

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::CommandFactory as _;

use crate::check::CheckArgs;
use crate::columns::{self, Format, Style};
use crate::diff::DiffArgs;
use crate::explain::args;
use crate::fleet::args::{FleetCli, FleetCommand, Parsed};
use crate::fleet::ask::{FleetQuery, FromNode, no_answers};
use crate::fleet::{
    explain, flows, live, policy, shell, status, suggest, sysdump, tables, tree, trial, versions,
    wait,
};
use crate::status::Report;
use crate::wait::WaitArgs;
use crate::{
    Command, ExplainArgs, PolicyCommand, PolicyExplainArgs, ShadowCommand, StatusArgs, VersionArgs,
    completion,
};
use lb_core::admin::context::FlowQuery;

/// Exit status of a check that found problems.
const FOUND_PROBLEMS: u8 = 2;
/// Time between two looks of `--wait`.
const LOOK: Duration = Duration::from_secs(1);
/// The format of what nodes print, to be merged.
const ROWS: &str = "--output=rows";
const JSON: &str = "--output=json";
/// Stands for the context's namespace before that is known.
const DEFAULT_NAMESPACE: &str = "default";

/// Runs the command and prints to `out`; remarks go to standard error.
///
/// # Errors
/// One sentence for the operator.
pub fn run(parsed: &Parsed, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let cli = &parsed.cli;
    let command = match &cli.command {
        FleetCommand::Node(Command::Completion(args)) => {
            completion::script(args.shell, FleetCli::command(), "kubectl-lb", out)?;
            return Ok(ExitCode::SUCCESS);
        }
        FleetCommand::Man(args) => {
            shell::man(&args.dir)?;
            return Ok(ExitCode::SUCCESS);
        }
        FleetCommand::Complete(args) => {
            shell::complete(&args.words, out)?;
            return Ok(ExitCode::SUCCESS);
        }
        FleetCommand::Node(Command::Top(args)) => return live::top(&cli.cluster, args, out),
        FleetCommand::Node(Command::Ui(args)) => return live::ui(&cli.cluster, args, out),
        #[cfg(feature = "manifests")]
        FleetCommand::Node(Command::Analyze(args)) => return crate::analyze::run(args, out),
        FleetCommand::Node(command) => command,
    };
    // A mistake in the ends needs no cluster to be found, and the names of the context's namespace need one.
    flow(command, DEFAULT_NAMESPACE)?;
    let asked = FleetQuery { lasts: looks_for(command), ..FleetQuery::connect(&cli.cluster)? };
    let question = AskedCommand { asked: &asked, parsed };
    let rows = |style: &Style, watch: bool, out: &mut dyn Write| question.rows(style, watch, out);
    match command {
        Command::Status(args) => return question.status(args, out),
        Command::Services(args) if args.tree => {
            tree::print(&asked, |more| question.args(more), &args.style, out)?;
        }
        Command::Services(args) => rows(&args.style, args.watch, out)?,
        Command::Backends(args) => rows(&args.style, args.watch, out)?,
        Command::Pods(args) => rows(&args.style, args.watch, out)?,
        Command::Ct(args) => rows(&args.style, args.watch, out)?,
        Command::Affinity(args) => rows(&args.style, args.watch, out)?,
        Command::Drops(args) => rows(&args.style, args.watch, out)?,
        Command::Maps(args) => rows(&args.style, args.watch, out)?,
        Command::Programs(args) => rows(&args.style, false, out)?,
        Command::Policy(PolicyCommand::List(args)) => rows(&args.style, args.watch, out)?,
        Command::Policy(PolicyCommand::Show(args)) => {
            policy::show(&asked, question.args(&[ROWS]), args, out)?;
        }
        Command::Policy(PolicyCommand::Explain(PolicyExplainArgs { output, .. }))
        | Command::Explain(ExplainArgs { output, .. }) => {
            if let Some(wanted) = flow(command, question.namespace())? {
                return explain::explain(&asked, &wanted, *output, out);
            }
        }
        Command::Flows(args) if args.by.is_some() => rows(&args.style, false, out)?,
        Command::Policy(PolicyCommand::Try(args)) => {
            return trial::try_policies(&asked, args, out);
        }
        Command::Policy(PolicyCommand::Suggest(args)) => suggest::suggest(&asked, args, out)?,
        Command::Shadow(ShadowCommand::Report(args)) => rows(&args.style, false, out)?,
        Command::Flows(args) => flows::flows(&asked, question.args(&[ROWS]), args, out)?,
        Command::Wait(args) => {
            let namespace = args.namespace.clone().or_else(|| Some(question.namespace().into()));
            let args = WaitArgs { namespace, ..args.clone() };
            return wait::wait(&asked, &args, question.args(&["--timeout=0s"]), out);
        }
        Command::Check(CheckArgs { style, .. }) | Command::Diff(DiffArgs { style, .. }) => {
            let code = tables::checked(&asked, question.args(&[ROWS]), style, out)?;
            return Ok(u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from));
        }
        Command::Sysdump(args) => return sysdump::sysdump(&asked, args, out),
        Command::Version(args) => question.version(args, out)?,
        // They were answered above, or ask by commands of their own.
        Command::Completion(_) | Command::Top(_) | Command::Ui(_) => {}
        #[cfg(feature = "manifests")]
        Command::Analyze(_) => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// How long the nodes look for flows.
const fn looks_for(command: &Command) -> Duration {
    match command {
        Command::Policy(PolicyCommand::Try(args)) => args.span,
        Command::Policy(PolicyCommand::Suggest(args)) => args.span,
        Command::Shadow(ShadowCommand::Report(args)) => args.span,
        _ => Duration::ZERO,
    }
}

/// The flow that a command explains.
fn flow(command: &Command, namespace: &str) -> anyhow::Result<Option<FlowQuery>> {
    let own = |given: &Option<String>| given.clone().unwrap_or_else(|| namespace.to_owned());
    Ok(Some(match command {
        Command::Explain(args) => args::words(&args.src, &args.dst, Some(&own(&args.namespace)))?,
        Command::Policy(PolicyCommand::Explain(args)) => {
            let PolicyExplainArgs { from, to, port, namespace, .. } = args;
            args::flags(from, to, port.as_deref(), Some(&own(namespace)))?
        }
        _ => return Ok(None),
    }))
}

/// A command and the agents that it asks.
struct AskedCommand<'a> {
    asked: &'a FleetQuery,
    parsed: &'a Parsed,
}

impl AskedCommand<'_> {
    /// The namespace of names that have none.
    fn namespace(&self) -> &str {
        let given = self.parsed.cli.namespace.as_deref();
        given.unwrap_or_else(|| self.asked.fleet.default_namespace())
    }

    fn version(&self, args: &VersionArgs, out: &mut dyn Write) -> anyhow::Result<()> {
        let words = vec!["version".to_owned(), JSON.to_owned()];
        let found = versions::versions(self.asked.json_or_remark(words, None)?);
        match args.style.output {
            Format::Json | Format::Yaml | Format::JsonPath(_) => {
                columns::document(out, &found, args.style.output)
            }
            Format::Table | Format::Wide | Format::Name | Format::Rows => {
                Ok(versions::print(out, &found)?)
            }
        }
    }

    /// What the nodes are called with.
    fn args(&self, more: &[&str]) -> Vec<String> {
        self.parsed.forwarded.with(more, self.asked.fleet.default_namespace())
    }

    fn rows(&self, style: &Style, watch: bool, out: &mut dyn Write) -> anyhow::Result<()> {
        let args = self.args(&[ROWS]);
        match watch {
            true => tables::watch(self.asked, args, style, out),
            false => tables::once(self.asked, args, style, out),
        }
    }

    fn status(&self, args: &StatusArgs, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        let started = Instant::now();
        let left = || args.wait.is_some_and(|wait| started.elapsed() < wait);
        let report = loop {
            let words = vec!["status".to_owned(), JSON.to_owned()];
            let (reports, mut silent) = self.asked.json::<Report>(words, None);
            silent.extend(self.asked.without_agent());
            if reports.is_empty() && !left() {
                return Err(no_answers(&silent));
            }
            let reports = reports.into_iter().map(|FromNode { node, answer, .. }| (node, answer));
            let report = status::cluster_report(reports.collect(), &silent);
            if report.is_ok(args.strict) || !left() {
                break report;
            }
            std::thread::sleep(LOOK);
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
        Ok(match report.is_ok(args.strict) {
            true => ExitCode::SUCCESS,
            false => ExitCode::from(FOUND_PROBLEMS),
        })
    }
}
