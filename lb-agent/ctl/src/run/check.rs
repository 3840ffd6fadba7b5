//! `lbctl check`: reads what the machine says, has it judged and prints it.

use std::fs;
use std::io::Write;
use std::net::{TcpStream, ToSocketAddrs as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use serde::Deserialize;

use crate::check::{ApiServerFact, CheckArgs, MachineFacts, fails, installed, machine};
use crate::columns;
use crate::explain::host;
use crate::run::{FOUND_PROBLEMS, TablePaths};
use lb_kernel::foreign;
use lb_kernel::host_ports::{HostPorts, Ports};
use lb_kernel::preflight::Machine;

/// Where the kubelet's kubeconfig is, as the agent looks for it, and where a node debug Pod sees it.
const KUBELET: [&str; 2] = ["/etc/kubernetes/kubelet.conf", "/host/etc/kubernetes/kubelet.conf"];
/// Where the bpf file system is; in a node debug Pod below `/host`. The agent's own Pod only has the directory of its pins.
const BPFFS: [&str; 2] = ["/sys/fs/bpf", "/host/sys/fs/bpf"];
/// The API server takes a connection within this time.
const CONNECT: Duration = Duration::from_secs(2);

/// Prints the checks.
///
/// # Errors
/// When the output cannot be written.
pub(super) fn check(
    place: TablePaths<'_>,
    args: &CheckArgs,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let names = place.names().names;
    // The agent's, which a setting may have chosen; before there is one, what it would take.
    let masquerade = names.masquerade_ports.filter(|_| !args.pre);
    let masquerade = masquerade.map(|[first, last]| first..=last);
    let mut rows = machine(&read(place.pin_dir, args.api_server.as_deref(), masquerade));
    if !args.pre {
        rows.extend(installed(&place.report()?));
    }
    columns::print(out, &rows, &names.node, &args.style)?;
    let code = if fails(&rows, args.fail_on) { FOUND_PROBLEMS } else { 0 };
    Ok(ExitCode::from(code))
}

fn read(pin_dir: &Path, api_server: Option<&str>, masquerade: Option<Ports>) -> MachineFacts {
    let facts = Machine::read();
    let ports = HostPorts::read();
    let masquerade = masquerade.unwrap_or_else(|| ports.widest_rest());
    let is_shared = masquerade.clone().any(|port| ports.has(port));
    let node_ports = ports.has_node_ports();
    let signs = foreign::detect();
    MachineFacts {
        kernel_obstacle: facts.too_old(),
        kernel_weakness: facts.weakness(),
        missing_capabilities: facts.missing_capabilities(),
        btf: facts.btf,
        kernel: facts.kernel,
        bpffs: BPFFS.iter().map(Path::new).chain([pin_dir]).any(is_bpffs),
        cgroup2: has_cgroup2(&fs::read_to_string("/proc/mounts").unwrap_or_default()),
        forwards: host::forwards(),
        kube_proxy: signs.iter().map(|sign| (sign.to_string(), sign.is_alive())).collect(),
        enforcers: foreign::enforcers::find(),
        local_ports: ports.given.map(|given| (given, node_ports)),
        masquerade_ports: Some((masquerade, is_shared)),
        api_server: api_server_fact(api_server),
    }
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}

fn has_cgroup2(mounts: &str) -> bool {
    mounts.lines().any(|line| line.split(' ').nth(2) == Some("cgroup2"))
}

fn api_server_fact(given: Option<&str>) -> ApiServerFact {
    let found = match given.filter(|url| !url.is_empty()) {
        Some(url) => Some((url.to_owned(), "--api-server".to_owned())),
        None => KUBELET.iter().find_map(|path| Some((kubelet_server(path)?, (*path).to_owned()))),
    };
    let Some((url, from)) = found else { return ApiServerFact::Unknown };
    match connect(&url) {
        Ok(()) => ApiServerFact::Answers(url, from),
        Err(error) => ApiServerFact::Silent(url, from, format!("{error:#}")),
    }
}

/// Opens a connection and closes it.
fn connect(url: &str) -> anyhow::Result<()> {
    let url: http::Uri = url.parse().context("not a URL")?;
    let host = url.host().context("the URL has no host")?;
    let default = if url.scheme_str() == Some("http") { 80 } else { 443 };
    let port = url.port_u16().unwrap_or(default);
    // An IPv6 address is in brackets.
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let mut last = None;
    for at in (host, port).to_socket_addrs().context("cannot be resolved")? {
        match TcpStream::connect_timeout(&at, CONNECT) {
            Ok(_) => return Ok(()),
            Err(error) => last = Some(error),
        }
    }
    match last {
        Some(error) => Err(error.into()),
        None => bail!("has no address"),
    }
}

/// The parts of a kubeconfig that say where the server is.
#[derive(Deserialize)]
struct Kubeconfig {
    clusters: Vec<NamedCluster>,
}

#[derive(Deserialize)]
struct NamedCluster {
    cluster: KubeconfigCluster,
}

#[derive(Deserialize)]
struct KubeconfigCluster {
    server: String,
}

fn kubelet_server(path: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let config: Kubeconfig = serde_saphyr::from_str(&text).ok()?;
    config.clusters.into_iter().next().map(|named| named.cluster.server)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::{api_server_fact, connect, has_cgroup2};
    use crate::check::ApiServerFact;

    #[test]
    fn an_api_server_answers_or_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        connect(&format!("https://{at}")).unwrap();
        assert!(matches!(
            api_server_fact(Some(&format!("https://{at}"))),
            ApiServerFact::Answers(..)
        ));
        drop(listener);
        let silent = api_server_fact(Some(&format!("https://{at}")));
        assert!(
            matches!(&silent, ApiServerFact::Silent(_, from, _) if from == "--api-server"),
            "{silent:?}"
        );
        assert_eq!(
            format!("{:#}", connect("x y").unwrap_err()),
            "not a URL: invalid uri character"
        );
        assert_eq!(connect("/path").unwrap_err().to_string(), "the URL has no host");
    }

    #[test]
    fn a_cgroup_hierarchy_is_found_among_the_mounts() {
        assert!(has_cgroup2("proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n"));
        assert!(!has_cgroup2("cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n"));
    }
}
