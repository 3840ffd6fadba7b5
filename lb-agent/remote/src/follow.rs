//! Commands that print lines until they are stopped, on many nodes at once.

use std::time::Duration;

use futures_util::FutureExt as _;
use kube::api::AttachedProcess;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::agents::NodeAgent;
use crate::exec::{self, AgentApi, RemoteCommand};

/// Lines that wait to be read. A reader that is slower than the nodes slows them down.
const QUEUE: usize = 1024;
/// How long the rest of standard error is awaited after the end of standard output.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// The lines of the commands, in the order in which they arrive. Dropping it closes the connections, and with them the
/// standard input of the commands.
pub struct Follow {
    runtime: Handle,
    events: mpsc::Receiver<FollowEvent>,
}

/// What a node sent.
#[derive(Debug)]
pub enum FollowEvent {
    /// A line of standard output, without its end.
    Line {
        /// The node.
        node: String,
        /// The line.
        line: String,
    },
    /// A line of standard error.
    Remark {
        /// The node.
        node: String,
        /// The line.
        line: String,
    },
    /// The command ended.
    Closed {
        /// The node.
        node: String,
        /// Why.
        why: String,
    },
}

/// What a wait for the next event brought.
#[derive(Debug)]
pub enum FollowStep {
    /// An event.
    Event(FollowEvent),
    /// None in that time.
    Silence,
    /// All commands have ended.
    End,
}

impl Follow {
    pub(crate) fn start(
        runtime: &Handle,
        place: &AgentApi,
        command: &RemoteCommand,
        agents: &[NodeAgent],
    ) -> Self {
        let (send, events) = mpsc::channel(QUEUE);
        for agent in agents {
            let (place, agent, send) = (place.clone(), agent.clone(), send.clone());
            // The input stays open as long as the connection does; the node's lbctl ends with it.
            let args = command.args.clone();
            let command = RemoteCommand { args, stdin: Some(Vec::new()), ..command.clone() };
            runtime.spawn(async move {
                let node = agent.node.clone();
                let why = match exec::start(&place, &agent, &command).await {
                    Ok(process) => lines(process, &node, &send).await,
                    Err(error) => format!("{error:#}"),
                };
                // Without a receiver, there is no one to report it to.
                drop(send.send(FollowEvent::Closed { node, why }).await);
            });
        }
        Self { runtime: runtime.clone(), events }
    }

    /// Waits for the next event, for this time at most.
    pub fn next(&mut self, patience: Duration) -> FollowStep {
        let events = &mut self.events;
        let next = async { tokio::time::timeout(patience, events.recv()).await };
        match self.runtime.block_on(next) {
            Ok(Some(event)) => FollowStep::Event(event),
            Ok(None) => FollowStep::End,
            Err(_elapsed) => FollowStep::Silence,
        }
    }
}

/// Sends the lines of a command until it ends or there is no receiver; returns why.
async fn lines(
    mut process: AttachedProcess,
    node: &str,
    send: &mpsc::Sender<FollowEvent>,
) -> String {
    let (stdin, stderr) = (process.stdin(), process.stderr());
    let Some(stdout) = process.stdout() else { return "no output".to_owned() };
    let mut stdout = BufReader::new(stdout).lines();
    let remarks = async {
        let mut stderr = BufReader::new(stderr?).lines();
        while let Ok(Some(line)) = stderr.next_line().await {
            send.send(FollowEvent::Remark { node: node.to_owned(), line }).await.ok()?;
        }
        Some(())
    };
    let output = async {
        loop {
            match stdout.next_line().await {
                Ok(Some(line)) => {
                    let event = FollowEvent::Line { node: node.to_owned(), line };
                    if send.send(event).await.is_err() {
                        return "not read any more".to_owned();
                    }
                }
                Ok(None) => return "the connection was closed".to_owned(),
                Err(error) => return error.to_string(),
            }
        }
    };
    let remarks = remarks.fuse();
    tokio::pin!(remarks, output);
    let why = tokio::select! {
        why = &mut output => why,
        _read = &mut remarks => output.await,
    };
    // The last words say why it ended.
    drop(tokio::time::timeout(LAST_WORDS, remarks).await);
    drop(stdin);
    why
}
