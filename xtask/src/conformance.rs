//! `cargo xtask conformance`: deploys the agent to a real cluster without kube-proxy and checks, with real Pods, that Services
//! work there; or to one with kube-proxy, whose place it takes and gives back. The submodules: how to reach the cluster, what is put into it, the checks. Everything asked of a Pod
//! has a deadline, and every check ends in one line.

pub(crate) mod ask;
pub(crate) mod bed;
mod choice;
pub(crate) mod cluster;
pub(crate) mod deploy;
mod explain;
pub(crate) mod faults;
mod laptop;
mod latency;
mod outside;
mod policies;
pub(crate) mod report;
mod services;
mod takeover;
pub(crate) mod traffic;
pub(crate) use self::takeover::load;

use anyhow::Result;
use clap::Args;

use crate::kubectl::KUBECTL;

use self::{bed::Bed, cluster::Cluster, report::Report};

const AGNHOST: &str = "registry.k8s.io/e2e-test-images/agnhost:2.63.0";

/// A cluster, and how to deploy to it.
#[derive(Args)]
pub(crate) struct Target {
    /// Load the image archive onto every node with this command after building it. Without it, the nodes must have the
    /// image
    #[arg(long, value_name = "COMMAND {tar}")]
    pub(crate) load: Option<String>,
    /// Load the existing target/lb-agent.tar
    #[arg(long)]
    pub(crate) no_build: bool,
    /// The kubectl command. By default it uses $KUBECONFIG
    #[arg(long, value_name = "COMMAND", default_value = KUBECTL)]
    pub(crate) kubectl: String,
    /// Run host processes of a node with this command. By default they run in a privileged Pod
    #[arg(long, value_name = "COMMAND {node}")]
    pub(crate) node_exec: Option<String>,
    /// Image of the test Pods
    #[arg(long, default_value = AGNHOST)]
    pub(crate) image: String,
}

/// Options of the task.
#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    target: Target,
    /// Run kubectl-lb with this command. By default it uses $KUBECONFIG; without it and with another kubectl, its checks are left out
    #[arg(long, value_name = "COMMAND {kubectl-lb}")]
    kubectl_lb: Option<String>,
    /// Run clients, and `ip route`, with this command on a machine outside the cluster that reaches the nodes. Without it,
    /// the checks with an external client are left out
    #[arg(long, value_name = "COMMAND")]
    outside_exec: Option<String>,
    /// Run only the checks whose names contain this word
    #[arg(long, value_name = "WORD")]
    only: Option<String>,
    /// Run only the takeover: replace kube-proxy under load, and restore it
    #[arg(long, value_name = "WAY")]
    takeover: Option<takeover::Way>,
    /// Check the Service implementation that the cluster already has
    #[arg(long)]
    skip_deploy: bool,
    /// Leave the agent deployed
    #[arg(long)]
    keep: bool,
}

/// Deploys, checks, reports, cleans up.
///
/// # Errors
/// When the cluster cannot be prepared, or a check failed.
pub(crate) fn run(options: &Options) -> Result<()> {
    let cluster = Cluster::new(&options.target, options.outside_exec.clone())?;
    let mut report = Report::new(options.only.clone());
    let outcome = match options.takeover {
        Some(way) => Bed::make(&cluster, &options.target.image)
            .and_then(|bed| takeover::check(&bed, &mut report, options, way)),
        None => {
            if !options.skip_deploy {
                deploy::agent(&cluster, &options.target)?;
            }
            checks(&cluster, options, &mut report)
        }
    };
    bed::remove(&cluster)?;
    outcome?;
    report.end()
}

fn checks(cluster: &Cluster, options: &Options, report: &mut Report) -> Result<()> {
    let bed = Bed::make(cluster, &options.target.image)?;
    services::check(&bed, report);
    choice::check(&bed, report);
    match options.outside_exec {
        Some(_) => outside::check(&bed, report, options.skip_deploy),
        None => eprintln!("not run without --outside-exec: the checks with an external client"),
    }
    policies::check(&bed, report, !options.skip_deploy);
    let laptop = laptop::command(report, options);
    if let Some(command) = &laptop {
        laptop::check(&bed, report, command, !options.skip_deploy);
    }
    explain::check(&bed, report, laptop.as_deref());
    latency::check(&bed, report);
    if options.skip_deploy {
        eprintln!("not run with --skip-deploy: the checks that stop the agent");
    } else {
        faults::check(&bed, report);
        if !options.keep {
            report.check("cleanup removes everything from all nodes", || deploy::remove(&bed));
        }
    }
    Ok(())
}
