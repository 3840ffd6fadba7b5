//! One command in one agent's Pod, by `pods/exec` over a WebSocket.

use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::api::{AttachParams, AttachedProcess, LogParams};
use kube::{Api, Client};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::agents::{CONTAINER, NodeAgent};
use crate::connect::explained;

/// Bytes of each stream on the way.
const BUFFER: usize = 1 << 16;
/// A node that has not answered in this time is reported as not answering.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

/// A command of the node's own `lbctl`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RemoteCommand {
    /// Its arguments, without the name of the program.
    pub args: Vec<String>,
    /// What it reads from its standard input, such as a manifest.
    pub stdin: Option<Vec<u8>>,
    /// How long it looks before it answers.
    pub lasts: Duration,
}

/// What a command printed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RemoteOutput {
    /// Exit status.
    pub code: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: String,
}

/// Where agents are reached.
#[derive(Clone)]
pub(crate) struct AgentApi {
    pub(crate) client: Client,
    pub(crate) namespace: String,
}

/// Returns the last lines of an agent's log.
///
/// # Errors
/// One sentence, when the API server refuses or does not answer in time.
pub(crate) async fn log(place: &AgentApi, agent: &NodeAgent, lines: i64) -> anyhow::Result<String> {
    let pods: Api<Pod> = Api::namespaced(place.client.clone(), &place.namespace);
    let wanted = LogParams {
        container: Some(CONTAINER.to_owned()),
        tail_lines: Some(lines),
        ..LogParams::default()
    };
    match tokio::time::timeout(PATIENCE, pods.logs(&agent.pod, &wanted)).await {
        Ok(text) => text.map_err(explained),
        Err(_elapsed) => bail!("no answer within {} s", PATIENCE.as_secs()),
    }
}

/// Runs a command and returns all that it printed.
///
/// # Errors
/// One sentence, when the command cannot be started or does not end in time.
pub(crate) async fn run(
    place: &AgentApi,
    agent: &NodeAgent,
    command: &RemoteCommand,
) -> anyhow::Result<RemoteOutput> {
    let patience = PATIENCE.saturating_add(command.lasts);
    match tokio::time::timeout(patience, whole(place, agent, command)).await {
        Ok(output) => output,
        Err(_elapsed) => bail!("no answer within {} s", patience.as_secs()),
    }
}

async fn whole(
    place: &AgentApi,
    agent: &NodeAgent,
    command: &RemoteCommand,
) -> anyhow::Result<RemoteOutput> {
    let mut process = start(place, agent, command).await?;
    let status = process.take_status();
    let (stdin, stdout, stderr) = (process.stdin(), process.stdout(), process.stderr());
    let write = async {
        if let (Some(mut stdin), Some(bytes)) = (stdin, &command.stdin) {
            stdin.write_all(bytes).await?;
            stdin.shutdown().await?;
        }
        Ok::<(), std::io::Error>(())
    };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let read_out = async {
        match stdout {
            Some(mut stdout) => stdout.read_to_end(&mut out).await,
            None => Ok(0),
        }
    };
    let read_err = async {
        match stderr {
            Some(mut stderr) => stderr.read_to_end(&mut err).await,
            None => Ok(0),
        }
    };
    let (written, read_out, read_err) = tokio::join!(write, read_out, read_err);
    read_out.and(read_err).context("read the output of lbctl")?;
    let status = match status {
        Some(status) => status.await,
        None => None,
    };
    let Some(status) = status else {
        // A command that does not read its input is not wrong, and one whose connection broke is.
        written.context("send the standard input of lbctl")?;
        bail!("the connection ended before the command did")
    };
    Ok(RemoteOutput { code: exit_code(&status)?, stdout: out, stderr: text(&err) })
}

/// Starts a command.
///
/// # Errors
/// One sentence, when the API server or the kubelet refuses.
pub(crate) async fn start(
    place: &AgentApi,
    agent: &NodeAgent,
    command: &RemoteCommand,
) -> anyhow::Result<AttachedProcess> {
    if let Some(why) = &agent.down {
        bail!("the container of Pod {} does not run ({why})", agent.pod);
    }
    let pods: Api<Pod> = Api::namespaced(place.client.clone(), &place.namespace);
    let params = AttachParams {
        container: Some(CONTAINER.to_owned()),
        stdin: command.stdin.is_some(),
        stdout: true,
        stderr: true,
        tty: false,
        max_stdin_buf_size: Some(BUFFER),
        max_stdout_buf_size: Some(BUFFER),
        max_stderr_buf_size: Some(BUFFER),
    };
    let args = std::iter::once("lbctl").chain(command.args.iter().map(String::as_str));
    pods.exec(&agent.pod, args, &params).await.map_err(|error| refused(place, agent, error))
}

/// Why a command could not be started.
fn refused(place: &AgentApi, agent: &NodeAgent, error: kube::Error) -> anyhow::Error {
    let (namespace, pod) = (&place.namespace, &agent.pod);
    match error {
        // The same for all nodes, so that it is said once.
        kube::Error::Api(status) if status.code == 403 => anyhow!(
            "exec in the agents is forbidden: you need the verbs get and create of pods/exec in namespace {namespace}"
        ),
        kube::Error::Api(status) if status.code == 404 => anyhow!("Pod {namespace}/{pod} is gone"),
        error => explained(error).context(format!("exec in Pod {namespace}/{pod}")),
    }
}

/// Returns the exit status that the kubelet reports (`metav1.Status` of the channel `error`).
fn exit_code(status: &Status) -> anyhow::Result<i32> {
    if status.status.as_deref() == Some("Success") {
        return Ok(0);
    }
    let causes = status.details.iter().flat_map(|details| details.causes.iter().flatten());
    let code = causes.into_iter().find(|cause| cause.reason.as_deref() == Some("ExitCode"));
    match code.and_then(|cause| cause.message.as_deref()?.parse().ok()) {
        Some(code) => Ok(code),
        None => bail!("{}", status.message.as_deref().unwrap_or("the command failed")),
    }
}

/// Returns what a program printed as text.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Status, StatusCause, StatusDetails};

    use super::exit_code;

    #[test]
    fn the_exit_status_is_in_the_causes() {
        let success = Status { status: Some("Success".to_owned()), ..Status::default() };
        assert_eq!(exit_code(&success).unwrap(), 0);
        let cause = StatusCause {
            reason: Some("ExitCode".to_owned()),
            message: Some("3".to_owned()),
            ..StatusCause::default()
        };
        let stopped = Status {
            status: Some("Failure".to_owned()),
            reason: Some("NonZeroExitCode".to_owned()),
            details: Some(StatusDetails { causes: Some(vec![cause]), ..StatusDetails::default() }),
            ..Status::default()
        };
        assert_eq!(exit_code(&stopped).unwrap(), 3);
        let broken = Status {
            status: Some("Failure".to_owned()),
            message: Some("exec: \"lbctl\": executable file not found".to_owned()),
            ..Status::default()
        };
        let error = exit_code(&broken).unwrap_err().to_string();
        assert_eq!(error, "exec: \"lbctl\": executable file not found");
    }
}
