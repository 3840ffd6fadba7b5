//! `kubectl lb top` and `kubectl lb ui`: they run this program again for each answer, on the same cluster.

use std::env;
use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use anyhow::Context as _;
use lb_live::lbctl::Lbctl;
use lb_live::top::{self, TopArgs};
use lb_live::ui::{self, UiArgs};

use crate::fleet::args::ClusterArgs;
use crate::fleet::ask::FleetQuery;

/// Follows the cluster on one screen.
///
/// # Errors
/// One sentence for the operator.
pub fn top(cluster: &ClusterArgs, args: &TopArgs, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let asked = FleetQuery::connect(cluster)?;
    top::run(args, asked.fleet.context(), lbctl(cluster)?, out)?;
    Ok(ExitCode::SUCCESS)
}

/// Serves the page about the cluster.
///
/// # Errors
/// One sentence for the operator.
pub fn ui(cluster: &ClusterArgs, args: &UiArgs, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    // A cluster that cannot be reached is an error here, and not only in the page.
    FleetQuery::connect(cluster)?;
    ui::run(args, lbctl(cluster)?, out)?;
    Ok(ExitCode::SUCCESS)
}

/// How this program is run for this cluster.
fn lbctl(cluster: &ClusterArgs) -> anyhow::Result<Lbctl> {
    let program = env::current_exe().context("find the file of this program")?;
    Ok(Lbctl::new(program, flags(cluster)))
}

/// The flags that name the cluster and its nodes.
fn flags(cluster: &ClusterArgs) -> Vec<OsString> {
    let ClusterArgs { kubeconfig, context, cluster, user, agent_namespace, node } = cluster;
    let named = |name: &str, value: &str| OsString::from(format!("--{name}={value}"));
    let mut flags = vec![named("agent-namespace", agent_namespace)];
    if let Some(file) = kubeconfig {
        flags.extend([OsString::from("--kubeconfig"), file.clone().into_os_string()]);
    }
    for (name, value) in [("context", context), ("cluster", cluster), ("user", user)] {
        flags.extend(value.iter().map(|value| named(name, value)));
    }
    flags.extend(node.iter().map(|node| named("node", node)));
    flags
}

#[cfg(test)]
mod tests {
    use super::flags;
    use crate::fleet::args::parse;

    #[test]
    fn the_same_cluster_is_asked() {
        for line in [
            "kubectl-lb --kubeconfig=/a b --context=c --cluster=d --user=e --agent-namespace=f --node=n1,n2 top",
            "kubectl-lb ui",
        ] {
            let words = line.replace("/a b", "/a\u{a0}b");
            let words = words.split(' ').map(|word| word.replace('\u{a0}', " "));
            let cluster = parse(words.map(Into::into)).unwrap().cli.cluster;
            let again = flags(&cluster);
            let words = ["kubectl-lb".into()].into_iter().chain(again.clone());
            let same = parse(words.chain(["maps".into()])).unwrap().cli.cluster;
            assert_eq!(flags(&same), again);
            assert_eq!(same.node, cluster.node);
            assert_eq!(same.kubeconfig, cluster.kubeconfig);
        }
    }
}
