//! `cargo xtask conformance`: deploys the agent to a real cluster without kube-proxy and checks, with real Pods, that Services
//! work there; or to one with kube-proxy, whose place it takes and gives back. The submodules: how to reach the cluster, what is put into it, the checks. Everything asked of a Pod
//! has a deadline, and every check ends in one line.

mod ask;
mod bed;
mod choice;
mod cluster;
mod deploy;
mod faults;
mod latency;
mod outside;
mod policies;
mod report;
mod services;
mod takeover;

use anyhow::{Result, bail};

use crate::{args::Args, command::found};

use self::{bed::Bed, cluster::Cluster, report::Report};

pub(crate) const USAGE: &str = "conformance [--load 'COMMAND {tar}'] [OPTIONS]
  --load 'COMMAND {tar}'        loads the image archive onto every node after building it; without it, the nodes must have the image
  --no-build                    loads the existing target/lb-agent.tar
  --kubectl 'COMMAND'           the kubectl command; by default kubectl with $KUBECONFIG
  --node-exec 'COMMAND {node}'  runs its arguments as a host process of the node; by default in a privileged Pod
  --outside-exec 'COMMAND'      runs its arguments, including `ip route`, on a machine outside the cluster that reaches the nodes
  --image IMAGE                 image of the test Pods [default: agnhost]
  --only WORD                   only the checks whose names contain WORD
  --takeover manual|when-gone   only the takeover: replace kube-proxy under load, and restore it
  --skip-deploy                 check the Service implementation that the cluster already has
  --keep                        leave the agent deployed";

const AGNHOST: &str = "registry.k8s.io/e2e-test-images/agnhost:2.63.0";

/// What the command line asks for.
pub(crate) struct Options {
    load: Option<String>,
    kubectl: String,
    node_exec: Option<String>,
    outside_exec: Option<String>,
    image: String,
    only: Option<String>,
    no_build: bool,
    skip_deploy: bool,
    keep: bool,
    takeover: Option<takeover::Way>,
}

impl Options {
    fn parse(words: &[String]) -> Result<Self> {
        let mut args = Args::new(words);
        let options = Self {
            load: args.value("--load")?,
            kubectl: args.value("--kubectl")?.unwrap_or_else(|| "kubectl".to_owned()),
            node_exec: args.value("--node-exec")?,
            outside_exec: args.value("--outside-exec")?,
            image: args.value("--image")?.unwrap_or_else(|| AGNHOST.to_owned()),
            only: args.value("--only")?,
            no_build: args.flag("--no-build"),
            skip_deploy: args.flag("--skip-deploy"),
            keep: args.flag("--keep"),
            takeover: match args.value("--takeover")? {
                Some(way) => Some(takeover::Way::parse(&way)?),
                None => None,
            },
        };
        args.finish(USAGE)?;
        if options.kubectl == "kubectl" && found("kubectl").is_none() {
            bail!("kubectl is missing: install the cluster's version, or set --kubectl");
        }
        Ok(options)
    }
}

/// Deploys, checks, reports, cleans up.
///
/// # Errors
/// When the cluster cannot be prepared, or a check failed.
pub(crate) fn run(words: &[String]) -> Result<()> {
    let options = Options::parse(words)?;
    let cluster = Cluster::new(&options)?;
    let mut report = Report::new(options.only.clone());
    let outcome = match options.takeover {
        Some(way) => Bed::make(&cluster, &options.image)
            .and_then(|bed| takeover::check(&bed, &mut report, &options, way)),
        None => {
            if !options.skip_deploy {
                deploy::agent(&cluster, &options)?;
            }
            checks(&cluster, &options, &mut report)
        }
    };
    bed::remove(&cluster)?;
    outcome?;
    report.end()
}

fn checks(cluster: &Cluster, options: &Options, report: &mut Report) -> Result<()> {
    let bed = Bed::make(cluster, &options.image)?;
    services::check(&bed, report);
    choice::check(&bed, report);
    match options.outside_exec {
        Some(_) => outside::check(&bed, report, options.skip_deploy),
        None => eprintln!("not run without --outside-exec: the checks with an external client"),
    }
    policies::check(&bed, report, !options.skip_deploy);
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
