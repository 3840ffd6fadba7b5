//! A command for the nodes → their answers. A node that does not answer is a line on standard error.

use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::de::DeserializeOwned;

use crate::fleet::args::ClusterArgs;
use crate::fleet::merge::nodes_text;
use crate::fleet::remark::remark;
use lb_remote::{Fleet, NodeAgent, NodeAnswer, RemoteCommand, RemoteOutput};

/// Exit status of `lbctl` when it could not do what it was asked for.
const FAILED: i32 = 1;

/// The agents that are asked.
pub struct FleetQuery {
    /// All agents, and the API server.
    pub fleet: Fleet,
    /// Those of the nodes that were asked for.
    pub agents: Vec<NodeAgent>,
    /// Whether these are all.
    pub is_all: bool,
    /// How long the nodes look before they answer.
    pub lasts: Duration,
}

/// What one node answered.
#[derive(Debug)]
pub struct FromNode<T> {
    /// The node.
    pub node: String,
    /// Exit status.
    pub code: i32,
    /// What it printed.
    pub answer: T,
}

/// Why a node has no answer.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct NoAnswer {
    /// The node.
    pub node: String,
    /// One sentence.
    pub error: String,
}

impl FleetQuery {
    /// Finds the agents of the nodes that the flags name.
    ///
    /// # Errors
    /// One sentence, when the cluster or one of the nodes cannot be found.
    pub fn connect(args: &ClusterArgs) -> anyhow::Result<Self> {
        let fleet = Fleet::connect(&args.options())?;
        let all = fleet.agents();
        for node in &args.node {
            if !all.iter().any(|agent| agent.node == *node) {
                let known: Vec<&str> = all.iter().map(|agent| agent.node.as_str()).collect();
                bail!("--node {node}: no agent on it; there are agents on {}", known.join(", "));
            }
        }
        let is_wanted = |node: &String| args.node.is_empty() || args.node.contains(node);
        let agents = all.iter().filter(|agent| is_wanted(&agent.node)).cloned().collect();
        Ok(Self { fleet, agents, is_all: args.node.is_empty(), lasts: Duration::ZERO })
    }

    /// Nodes that should have an agent and have none.
    pub fn without_agent(&self) -> Vec<NoAnswer> {
        let nodes = self.fleet.without_agent().iter().filter(|_| self.is_all);
        nodes
            .map(|node| NoAnswer { node: node.clone(), error: "no agent on it".to_owned() })
            .collect()
    }

    /// Runs a command on all these nodes. The answers are JSON documents, one a node.
    pub fn json<T: DeserializeOwned>(
        &self,
        args: Vec<String>,
        stdin: Option<Vec<u8>>,
    ) -> (Vec<FromNode<T>>, Vec<NoAnswer>) {
        self.json_of(&self.agents, args, stdin)
    }

    /// The same on some of them.
    pub fn json_of<T: DeserializeOwned>(
        &self,
        agents: &[NodeAgent],
        args: Vec<String>,
        stdin: Option<Vec<u8>>,
    ) -> (Vec<FromNode<T>>, Vec<NoAnswer>) {
        let answers = self.fleet.run(&RemoteCommand { args, stdin, lasts: self.lasts }, agents);
        sort_out(answers, |output| {
            serde_json::from_slice(&output.stdout)
                .context("unexpected output: its lbctl may be of another version")
        })
    }

    /// The same; what is wrong is reported.
    ///
    /// # Errors
    /// When no node answers.
    pub fn json_or_remark<T: DeserializeOwned>(
        &self,
        args: Vec<String>,
        stdin: Option<Vec<u8>>,
    ) -> anyhow::Result<Vec<FromNode<T>>> {
        self.or_remark(self.json(args, stdin))
    }

    /// The same for what they print as it is.
    ///
    /// # Errors
    /// When no node answers.
    pub fn text_or_remark(&self, args: Vec<String>) -> anyhow::Result<Vec<FromNode<String>>> {
        self.or_remark(self.lines(args))
    }

    /// Runs a command on all these nodes and takes what they print as it is.
    pub fn lines(&self, args: Vec<String>) -> (Vec<FromNode<String>>, Vec<NoAnswer>) {
        let command = RemoteCommand { args, stdin: None, lasts: self.lasts };
        let answers = self.fleet.run(&command, &self.agents);
        sort_out(answers, |output| Ok(String::from_utf8_lossy(&output.stdout).into_owned()))
    }

    /// The same for bytes, of a command that also takes the last lines of the agents' logs; what is wrong is reported.
    ///
    /// # Errors
    /// When no node answers.
    pub fn bytes_with_log(
        &self,
        args: Vec<String>,
        lines: i64,
    ) -> anyhow::Result<Vec<FromNode<Vec<u8>>>> {
        let command = RemoteCommand { args, stdin: None, lasts: self.lasts };
        let answers = self.fleet.run_with_log(&command, &self.agents, lines);
        self.or_remark(sort_out(answers, |output| Ok(output.stdout.clone())))
    }

    fn or_remark<T>(
        &self,
        (answers, mut failed): (Vec<FromNode<T>>, Vec<NoAnswer>),
    ) -> anyhow::Result<Vec<FromNode<T>>> {
        failed.extend(self.without_agent());
        if answers.is_empty() {
            return Err(no_answers(&failed));
        }
        report(&failed, self.agents.len());
        Ok(answers)
    }
}

/// The answers that are usable, and why the others are not. What the nodes remark is passed on, equal remarks once.
fn sort_out<T>(
    answers: Vec<NodeAnswer>,
    read: impl Fn(&RemoteOutput) -> anyhow::Result<T>,
) -> (Vec<FromNode<T>>, Vec<NoAnswer>) {
    let total = answers.len();
    let (mut good, mut failed, mut remarks) = (Vec::new(), Vec::new(), Vec::new());
    for NodeAnswer { node, result } in answers {
        let answer = result.and_then(|output| {
            let lines = output.stderr.trim().lines().map(|line| own_words(line).to_owned());
            let mut lines: Vec<String> = lines.collect();
            // The last line is the error, those before are remarks.
            let error = if output.code == FAILED { Some(lines.pop()) } else { None };
            remarks.extend(lines.into_iter().map(|line| (node.clone(), line)));
            if let Some(error) = error {
                bail!("{}", error.unwrap_or_default())
            }
            let answer = read(&output)?;
            Ok(FromNode { node: node.clone(), code: output.code, answer })
        });
        match answer {
            Ok(answer) => good.push(answer),
            Err(error) => failed.push(NoAnswer { node, error: format!("{error:#}") }),
        }
    }
    for (text, nodes) in once_each(remarks.iter().map(|(node, text)| (&**node, &**text))) {
        remark(&format_args!("{}: {text}", nodes_text(&nodes, total, false)));
    }
    (good, failed)
}

/// What the program says, without its name before it.
pub fn own_words(line: &str) -> &str {
    line.strip_prefix("lbctl: ").unwrap_or(line)
}

/// Reports the nodes without an answer, equal reasons once.
pub fn report(failed: &[NoAnswer], total: usize) {
    let pairs = failed.iter().map(|one| (one.node.as_str(), one.error.as_str()));
    for (error, nodes) in once_each(pairs) {
        remark(&format_args!("{}: {error}", nodes_text(&nodes, total, false)));
    }
}

/// Returns the error when no node has answered.
pub fn no_answers(failed: &[NoAnswer]) -> anyhow::Error {
    let pairs = failed.iter().map(|one| (one.node.as_str(), one.error.as_str()));
    let texts = once_each(pairs).into_iter().map(|(error, nodes)| match nodes.len() {
        n if n == failed.len() => error.to_owned(),
        _ => format!("{}: {error}", nodes.join(", ")),
    });
    anyhow::anyhow!("{}", texts.collect::<Vec<_>>().join("; "))
}

fn once_each<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<(&'a str, Vec<&'a str>)> {
    let mut texts: Vec<(&str, Vec<&str>)> = Vec::new();
    for (node, text) in pairs {
        match texts.iter_mut().find(|(known, _)| *known == text) {
            Some((_, nodes)) => nodes.push(node),
            None => texts.push((text, vec![node])),
        }
    }
    texts
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;
    use lb_remote::{NodeAnswer, RemoteOutput};

    use super::{NoAnswer, no_answers, sort_out};

    fn answer(node: &str, code: i32, stdout: &str, stderr: &str) -> NodeAnswer {
        let (stdout, stderr) = (stdout.as_bytes().to_vec(), stderr.to_owned());
        NodeAnswer { node: node.to_owned(), result: Ok(RemoteOutput { code, stdout, stderr }) }
    }

    #[test]
    fn an_exit_status_is_an_answer_and_a_failure_is_none() {
        let dead = NodeAnswer { node: "n3".to_owned(), result: Err(anyhow!("it does not run")) };
        let answers = vec![
            answer("n1", 2, "7", ""),
            // What it said before is a remark.
            answer("n2", 1, "", "lbctl: a: the Service is ignored\nlbctl: no maps in /pins\n"),
            dead,
            answer("n4", 0, "", ""),
        ];
        let (good, failed) =
            sort_out(answers, |out| Ok(serde_json::from_slice::<u8>(&out.stdout)?));
        let good: Vec<_> =
            good.iter().map(|one| (one.node.as_str(), one.code, one.answer)).collect();
        assert_eq!(good, [("n1", 2, 7)]);
        let failed: Vec<_> = failed.iter().map(|one| (&*one.node, &*one.error)).collect();
        assert_eq!(
            failed,
            [
                ("n2", "no maps in /pins"),
                ("n3", "it does not run"),
                ("n4", "EOF while parsing a value at line 1 column 0"),
            ]
        );
    }

    #[test]
    fn one_reason_is_said_once() {
        let failed =
            |node: &str, error: &str| NoAnswer { node: node.to_owned(), error: error.to_owned() };
        assert_eq!(no_answers(&[failed("n1", "a"), failed("n2", "a")]).to_string(), "a");
        assert_eq!(
            no_answers(&[failed("n1", "a"), failed("n2", "b"), failed("n3", "a")]).to_string(),
            "n1, n3: a; n2: b"
        );
    }
}
