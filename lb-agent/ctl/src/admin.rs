//! The client of the admin protocol: requests to a running agent.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};

use lb_core::admin::audit::AuditReport;
use lb_core::admin::context::{FlowContext, FlowQuery};
use lb_core::admin::peers::{KnownPeers, PeersWanted};
use lb_core::admin::policy::PolicyView;
use lb_core::admin::progress::{AwaitedObject, ObjectProgress};
use lb_core::admin::what_if::{WhatIf, WhatIfAnswer};
use lb_core::admin::{AddressOwner, FlowsWanted, Remark, Request, Response, SOCKET};
use lb_core::cluster::Name;

/// The agent responds within this time, or reports that it is busy.
const PATIENCE: Duration = Duration::from_secs(15);

/// A client of the agent with one state directory. Each request is a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

/// The responses to one request.
#[derive(Debug)]
pub struct Responses {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Returns the client of the agent with this state directory.
    pub fn new(state_dir: &Path) -> Self {
        Self { socket: state_dir.join(SOCKET) }
    }

    /// Returns the names of the Pods and nodes that have these addresses.
    ///
    /// # Errors
    /// One sentence: when no agent responds, or it reports an error. The same applies to the other requests.
    pub fn who(&self, addrs: Vec<IpAddr>) -> anyhow::Result<Vec<AddressOwner>> {
        match self.one(&Request::Who(addrs))? {
            Response::Who(owners) => Ok(owners),
            other => Err(unexpected(&other)),
        }
    }

    /// Returns what the records say of a flow.
    ///
    /// # Errors
    /// As for [`Self::who`].
    pub fn explain(&self, wanted: &FlowQuery) -> anyhow::Result<FlowContext> {
        match self.one(&Request::Explain(wanted.clone()))? {
            Response::Explain(context) => Ok(*context),
            other => Err(unexpected(&other)),
        }
    }

    /// Returns the policy with this name, if there is one.
    ///
    /// # Errors
    /// As for [`Self::who`].
    pub fn policy(&self, name: &Name) -> anyhow::Result<Option<PolicyView>> {
        match self.one(&Request::Policy(name.clone()))? {
            Response::Policy(view) => Ok(view.map(|view| *view)),
            other => Err(unexpected(&other)),
        }
    }

    /// Returns what works differently than with kube-proxy.
    ///
    /// # Errors
    /// As for [`Self::who`].
    pub fn differences(&self) -> anyhow::Result<Vec<Remark>> {
        match self.one(&Request::Differences)? {
            Response::Differences(remarks) => Ok(remarks),
            other => Err(unexpected(&other)),
        }
    }

    /// Returns the Pods of this node that are kube-proxy.
    ///
    /// # Errors
    /// As for [`Self::who`].
    pub fn kube_proxy(&self) -> anyhow::Result<Vec<String>> {
        match self.one(&Request::KubeProxy)? {
            Response::KubeProxy(names) => Ok(names),
            other => Err(unexpected(&other)),
        }
    }

    /// Returns the Pods at the ends of flows, with their labels.
    ///
    /// # Errors
    /// As for [`Self::who`].
    pub fn peers(&self, wanted: PeersWanted) -> anyhow::Result<KnownPeers> {
        match self.one(&Request::Peers(wanted))? {
            Response::Peers(peers) => Ok(peers),
            other => Err(unexpected(&other)),
        }
    }

    /// Returns what a change of policies would do.
    ///
    /// # Errors
    /// As for [`Self::who`].
    pub fn what_if(&self, wanted: WhatIf) -> anyhow::Result<WhatIfAnswer> {
        match self.one(&Request::WhatIf(wanted))? {
            Response::WhatIf(answer) => Ok(answer),
            other => Err(unexpected(&other)),
        }
    }

    /// Returns whether the maps say what an object says.
    ///
    /// # Errors
    /// As for [`Self::who`].
    pub fn progress(&self, wanted: &AwaitedObject) -> anyhow::Result<ObjectProgress> {
        match self.one(&Request::Progress(wanted.clone()))? {
            Response::Progress(progress) => Ok(progress),
            other => Err(unexpected(&other)),
        }
    }

    /// Has the agent compare its maps with what it wrote, and write again what differs if wanted.
    ///
    /// # Errors
    /// As for [`Self::who`].
    pub fn audit(&self, repair: bool) -> anyhow::Result<AuditReport> {
        match self.one(&Request::Audit { repair })? {
            Response::Audit(report) => Ok(report),
            other => Err(unexpected(&other)),
        }
    }

    /// Returns the last flows and, if wanted, those to come.
    ///
    /// # Errors
    /// As for [`Self::who`].
    pub fn flows(&self, wanted: FlowsWanted) -> anyhow::Result<Responses> {
        self.send(&Request::Flows(wanted))
    }

    fn one(&self, request: &Request) -> anyhow::Result<Response> {
        let response = self.send(request)?.next().transpose()?;
        response.context("the agent closed the connection without an answer")
    }

    fn send(&self, request: &Request) -> anyhow::Result<Responses> {
        let path = self.socket.display();
        let mut stream = UnixStream::connect(&self.socket).map_err(|err| match err.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                anyhow!("no agent answers at {path}: is lb-agent running on this node?")
            }
            io::ErrorKind::PermissionDenied => {
                anyhow!("{path}: permission denied: run lbctl as root, or in the agent's container")
            }
            _ => anyhow!("{path}: {err}"),
        })?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        stream.write_all(&line).context("send the request to the agent")?;
        Ok(Responses { stream: BufReader::new(stream) })
    }
}

/// Returns the error for a response that belongs to another request.
pub fn unexpected(response: &Response) -> anyhow::Error {
    anyhow!("unexpected answer from the agent, which may be of another version ({response:?})")
}

impl Responses {
    /// Removes the time limit: the next response may take any time.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn follow(&self) -> io::Result<()> {
        self.stream.get_ref().set_read_timeout(None)
    }

    fn read(&mut self) -> anyhow::Result<Option<Response>> {
        let mut line = String::new();
        if self.stream.read_line(&mut line).context("read the agent's answer")? == 0 {
            return Ok(None);
        }
        match serde_json::from_str(&line) {
            Ok(Response::Error(error)) => bail!("the agent reports: {error}"),
            Ok(response) => Ok(Some(response)),
            Err(err) => Err(err)
                .context("unexpected answer from the agent, which may be of another version"),
        }
    }
}

impl Iterator for Responses {
    type Item = anyhow::Result<Response>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::os::unix::net::UnixListener;

    use super::{Client, SOCKET};

    /// What a client says when an agent answers this line.
    fn error_of(answer: &str) -> String {
        let name = format!("lb-other-version-{}-{}", std::process::id(), answer.len());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        let listener = UnixListener::bind(dir.join(SOCKET)).unwrap();
        let error = std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                BufReader::new(&stream).read_line(&mut String::new()).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
            });
            Client::new(&dir).kube_proxy().unwrap_err()
        });
        std::fs::remove_dir_all(dir).unwrap();
        format!("{error:#}")
    }

    #[test]
    fn an_agent_of_another_version_is_an_error_that_says_so() {
        let earlier = error_of(
            "{\"error\":\"not a valid request for lb-agent 0.0.9: unknown variant `kube-proxy`\"}\n",
        );
        let want = "the agent reports: not a valid request for lb-agent 0.0.9: unknown variant";
        assert!(earlier.starts_with(want), "{earlier}");
        for later in ["{\"proxies\":[\"kube-system/kube-proxy\"]}\n", "{\"now\":[]}\n", "\"now\"\n"]
        {
            let error = error_of(later);
            let want = "unexpected answer from the agent, which may be of another version";
            assert!(error.starts_with(want), "{later}: {error}");
        }
    }
}
