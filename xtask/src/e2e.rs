//! `cargo xtask e2e`: deploys the agent to a real cluster without kube-proxy and checks, with real Pods, that Services
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

pub(crate) const USAGE: &str = "e2e [--load 'COMMAND {tar}'] [OPTIONS]
  --load 'COMMAND {tar}'        puts the image archive on every node, after building it; without, the nodes have it
  --no-build                    loads target/lb-agent.tar as it is
  --kubectl 'COMMAND'           kubectl, with $KUBECONFIG if it is not named here
  --node-exec 'COMMAND {node}'  runs what follows as a host process of the node; without, in a privileged Pod there
  --outside-exec 'COMMAND'      runs what follows, `ip route` included, on a machine that is no node but reaches them
  --image IMAGE                 of the test Pods: agnhost
  --only WORD                   only the checks whose name has the word
  --takeover manual|when-gone   only this: take kube-proxy's place under load, and give it back
  --skip-deploy                 check whatever implements Services in the cluster already
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
            bail!(
                "kubectl is missing: install the one of the cluster's version, or name it by --kubectl"
            );
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
        None => eprintln!("not run without --outside-exec: the checks with a client outside"),
    }
    policies::check(&bed, report, !options.skip_deploy);
    latency::check(&bed, report);
    if options.skip_deploy {
        eprintln!("not run without a deployment of our own: the checks that stop the agent");
    } else {
        faults::check(&bed, report);
        if !options.keep {
            report.check("cleanup leaves nothing on any node", || deploy::remove(&bed));
        }
    }
    Ok(())
}
