//! `lb-agent`: the node agent.

mod admin;
mod agent;
mod bpffs;
mod cleanup;
mod config;
mod flow_log;
mod observe;
mod takeover;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use crate::config::{
    AgentCli, AgentCommand, AgentConfig, CleanupArgs, Dirs, LogFormat, LogLevel, RunArgs,
    TakeoverArgs,
};
use clap::Parser as _;
use lb_core::escape::Lines;
use tokio::runtime::Runtime;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let result = match AgentCli::parse().command {
        AgentCommand::Run(args) => run(*args),
        AgentCommand::Cleanup(args) => {
            start_log(LogFormat::Text, LogLevel::default());
            clean(args)
        }
        AgentCommand::MountBpffs(args) => {
            start_log(LogFormat::Text, LogLevel::default());
            bpffs::run(&args.dir)
        }
        AgentCommand::Takeover(args) => {
            start_log(LogFormat::Text, LogLevel::default());
            takeover(args)
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            tracing::error!("{err:#}");
            ExitCode::FAILURE
        }
    }
}

fn clean(args: CleanupArgs) -> anyhow::Result<()> {
    // What is wrong with the address is said before anything is removed.
    let probes = args.probes()?;
    cleanup::run(&Dirs::resolve(args.dirs)?)?;
    match probes {
        Some(address) => runtime()?.block_on(cleanup::stay(address)),
        None => Ok(()),
    }
}

fn takeover(args: TakeoverArgs) -> anyhow::Result<()> {
    let patience = args.patience()?;
    let dirs = Dirs::resolve(args.dirs)?;
    let out = &mut std::io::stdout();
    match args.dry_run {
        true => takeover::show(&dirs, out),
        false => takeover::run(&dirs, patience, out),
    }
}

fn run(args: RunArgs) -> anyhow::Result<()> {
    let format = LogFormat::resolve(args.log_format.clone());
    let level = LogLevel::resolve(args.log_level.clone());
    // What is wrong with one of them is logged, too.
    start_log(
        *format.as_ref().unwrap_or(&LogFormat::Text),
        *level.as_ref().unwrap_or(&LogLevel::Info),
    );
    format?;
    level?;
    let cfg = AgentConfig::resolve(args)?;
    let runtime = runtime()?;
    let result = runtime.block_on(agent::run(cfg));
    // Threads that wait in the kernel are not waited for: nothing they do needs an end.
    runtime.shutdown_background();
    result
}

fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// `RUST_LOG` selects what is logged in place of the level, if it is set.
fn start_log(format: LogFormat, level: LogLevel) {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_unset| EnvFilter::new(level.filter()));
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colour);
    match format {
        LogFormat::Text => {
            log.with_writer(move || Lines::new(std::io::stderr(), colour)).with_target(false).init()
        }
        LogFormat::Json => {
            log.with_writer(std::io::stderr).json().flatten_event(true).init();
        }
    }
}
