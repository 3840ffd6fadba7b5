//! `kubectl lb`: what `lbctl` shows on a node, of all nodes of a cluster, from wherever there is a kubeconfig.

use std::process::ExitCode;

use lb_ctl::entry;
use lb_ctl::fleet::{args, run};

fn main() -> ExitCode {
    match args::parse(std::env::args_os()) {
        Ok(parsed) => entry::run("kubectl-lb", |out| run::run(&parsed, out)),
        Err(error) => entry::usage(&error),
    }
}
