//! A command of lbctl → its JSON: the live views ask what an operator would ask, and run lbctl itself for the answer. So
//! they work wherever lbctl does, on a node and through the agents of a cluster, and show nothing that it does not.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};

/// A command that takes longer is stopped.
const PATIENCE: Duration = Duration::from_secs(60);

/// How lbctl is run.
#[derive(Clone, Debug)]
pub struct Lbctl {
    /// The program.
    program: PathBuf,
    /// Flags before each command: where the tables or the cluster are.
    flags: Vec<OsString>,
}

/// What one command printed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CommandOutput {
    /// Exit status; `None` when a signal ended it.
    pub code: Option<i32>,
    /// What `-o json` prints: one document, or one per row of a stream; none when the command failed.
    pub documents: Vec<Value>,
    /// Lines of standard error: remarks, such as a node without an answer, or why it failed.
    pub remarks: Vec<String>,
}

/// A command that keeps running. Dropping it ends the command.
#[derive(Debug)]
pub struct Followed {
    /// Killed when it is dropped.
    child: Child,
    rows: Lines<BufReader<ChildStdout>>,
    remarks: Lines<BufReader<ChildStderr>>,
    has_remarks: bool,
}

/// What a command that keeps running prints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FollowedLine {
    /// A row: one JSON object.
    Row(String),
    /// A line of standard error.
    Remark(String),
}

impl Lbctl {
    /// Returns how `program` is run with these flags before each command.
    pub fn new(program: PathBuf, flags: Vec<OsString>) -> Self {
        Self { program, flags }
    }

    /// Runs a command to its end, with `input` on its standard input.
    ///
    /// # Errors
    /// When it cannot be started, does not end in time, or prints anything but JSON.
    pub async fn run(&self, words: &[String], input: Option<&[u8]>) -> Result<CommandOutput> {
        let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
        let mut child = (self.command(words).stdin(stdin).stderr(Stdio::piped()).spawn())
            .with_context(|| format!("run {}", self.program.display()))?;
        let pipe = child.stdin.take();
        let write = async {
            if let (Some(mut pipe), Some(input)) = (pipe, input) {
                // A command that fails early does not read it all; it says why on standard error.
                drop(pipe.write_all(input).await);
            }
        };
        let whole = async { tokio::join!(write, child.wait_with_output()).1 };
        let output = match tokio::time::timeout(PATIENCE, whole).await {
            Ok(output) => output.context("read the output of lbctl")?,
            Err(_) => bail!("lbctl {}: no answer within {PATIENCE:?}", words.join(" ")),
        };
        let text = String::from_utf8_lossy(&output.stderr);
        let remarks = text.lines().filter(|line| !line.trim().is_empty()).map(own_words);
        let documents = serde_json::Deserializer::from_slice(&output.stdout).into_iter();
        Ok(CommandOutput {
            code: output.status.code(),
            documents: (documents.collect::<Result<_, _>>())
                .with_context(|| format!("lbctl {}: the output is not JSON", words.join(" ")))?,
            remarks: remarks.collect(),
        })
    }

    /// Starts a command that prints one JSON object per line until it is dropped.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn follow(&self, words: &[String]) -> Result<Followed> {
        let mut child = (self.command(words).stdin(Stdio::null()).stderr(Stdio::piped()).spawn())
            .with_context(|| format!("run {}", self.program.display()))?;
        let stdout = child.stdout.take().context("no standard output")?;
        let stderr = child.stderr.take().context("no standard error")?;
        Ok(Followed {
            child,
            rows: BufReader::new(stdout).lines(),
            remarks: BufReader::new(stderr).lines(),
            has_remarks: true,
        })
    }

    fn command(&self, words: &[String]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.flags).args(words).stdout(Stdio::piped()).kill_on_drop(true);
        command
    }
}

impl Followed {
    /// Returns the next line; `None` when the command has ended. A call that is given up loses nothing.
    ///
    /// # Errors
    /// When the output cannot be read.
    pub async fn next(&mut self) -> Result<Option<FollowedLine>> {
        let mut has_rows = true;
        while has_rows || self.has_remarks {
            tokio::select! {
                biased;
                line = self.remarks.next_line(), if self.has_remarks => match line? {
                    Some(line) => return Ok(Some(FollowedLine::Remark(own_words(&line)))),
                    None => self.has_remarks = false,
                },
                line = self.rows.next_line(), if has_rows => match line? {
                    Some(line) => return Ok(Some(FollowedLine::Row(line))),
                    None => has_rows = false,
                },
            }
        }
        self.child.wait().await.context("wait for lbctl")?;
        Ok(None)
    }
}

/// What the program says, without its name before it.
fn own_words(line: &str) -> String {
    let prefixes = ["lbctl: ", "kubectl-lb: "];
    let words = prefixes.iter().find_map(|prefix| line.strip_prefix(prefix));
    words.unwrap_or(line).to_owned()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::json;

    use super::{CommandOutput, FollowedLine, Lbctl};

    /// A shell in the place of lbctl.
    fn shell(script: &str) -> Lbctl {
        Lbctl::new(PathBuf::from("/bin/sh"), vec!["-c".into(), script.into(), "lbctl".into()])
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(future)
    }

    #[test]
    fn output_remarks_and_exit_status_are_kept_apart() {
        let lbctl =
            shell(r#"echo "lbctl: node b: no answer" >&2; echo "{\"arg\": \"$1\"}"; exit 2"#);
        let got = block_on(lbctl.run(&["status".to_owned()], None)).unwrap();
        let want = CommandOutput {
            code: Some(2),
            documents: vec![json!({"arg": "status"})],
            remarks: vec!["node b: no answer".to_owned()],
        };
        assert_eq!(got, want);
    }

    #[test]
    fn a_command_reads_its_input_to_the_end() {
        let input = vec![b'x'; 300_000];
        let got = block_on(shell("wc -c").run(&[], Some(&input))).unwrap();
        assert_eq!(got.documents, [json!(300_000)]);
    }

    #[test]
    fn a_command_that_does_not_read_its_input_says_why() {
        let input = vec![b'x'; 300_000];
        let got = block_on(shell("echo no such command >&2; exit 1").run(&[], Some(&input)));
        let got = got.unwrap();
        assert_eq!((got.code, got.documents), (Some(1), Vec::new()));
        assert_eq!(got.remarks, ["no such command"]);
    }

    #[test]
    fn a_stream_of_rows_is_several_documents() {
        let got = block_on(shell("echo '{\"n\": 1}'; echo '{\"n\": 2}'").run(&[], None)).unwrap();
        assert_eq!(got.documents, [json!({"n": 1}), json!({"n": 2})]);
    }

    #[test]
    fn anything_but_json_is_an_error() {
        let error = block_on(shell("echo NAME").run(&["pods".to_owned()], None)).unwrap_err();
        assert_eq!(error.to_string(), "lbctl pods: the output is not JSON");
    }

    #[test]
    fn a_command_that_fails_ends_with_its_reason() {
        block_on(async {
            let mut followed = shell("echo no agent >&2; exit 1").follow(&[]).unwrap();
            let reason = FollowedLine::Remark("no agent".to_owned());
            assert_eq!(followed.next().await.unwrap(), Some(reason));
            assert_eq!(followed.next().await.unwrap(), None);
        });
    }

    #[test]
    fn lines_arrive_as_they_are_printed_and_the_command_ends_with_its_reader() {
        block_on(async {
            let script = "echo 1; echo 2; echo note >&2; exec sleep 1000";
            let mut followed = shell(script).follow(&[]).unwrap();
            let mut lines = Vec::new();
            while lines.len() < 3 {
                lines.push(followed.next().await.unwrap().unwrap());
            }
            lines.sort_by_key(|line| matches!(line, FollowedLine::Remark(_)));
            let row = |text: &str| FollowedLine::Row(text.to_owned());
            assert_eq!(lines, [row("1"), row("2"), FollowedLine::Remark("note".to_owned())]);
            let pid = followed.child.id().unwrap();
            drop(followed);
            let proc = PathBuf::from(format!("/proc/{pid}/exe"));
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
            while proc.read_link().is_ok() {
                assert!(std::time::Instant::now() < deadline, "{pid} still runs");
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        });
    }
}
