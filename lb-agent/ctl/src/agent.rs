//! The running agent, asked at its socket.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};

use lb_core::api::{Answer, Owner, Question, SOCKET};

/// The agent answers within this time, or says that it is busy.
const PATIENCE: Duration = Duration::from_secs(15);

/// What the agent answers to one question.
#[derive(Debug)]
pub struct Answers {
    stream: BufReader<UnixStream>,
}

/// Asks the agent with this state directory.
///
/// # Errors
/// One sentence: when no agent answers there.
pub fn ask(state_dir: &Path, question: &Question) -> anyhow::Result<Answers> {
    let path = state_dir.join(SOCKET);
    let mut stream = UnixStream::connect(&path).map_err(|err| match err.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            anyhow!("no agent answers at {}: is lb-agent running on this node?", path.display())
        }
        io::ErrorKind::PermissionDenied => {
            anyhow!(
                "{}: permission denied: run lbctl as root, or in the agent's container",
                path.display()
            )
        }
        _ => anyhow!("{}: {err}", path.display()),
    })?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(question)?;
    line.push(b'\n');
    stream.write_all(&line).context("send the request to the agent")?;
    Ok(Answers { stream: BufReader::new(stream) })
}

/// Who has these addresses.
///
/// # Errors
/// As for [`ask`].
pub fn who(state_dir: &Path, addrs: Vec<IpAddr>) -> anyhow::Result<Vec<Owner>> {
    match ask(state_dir, &Question::Who(addrs))?.next().transpose()? {
        Some(Answer::Who(owners)) => Ok(owners),
        other => Err(unexpected(other.as_ref())),
    }
}

/// What to say of an answer to another question.
pub fn unexpected(answer: Option<&Answer>) -> anyhow::Error {
    match answer {
        Some(answer) => {
            anyhow!(
                "unexpected answer from the agent, which may be of another version ({answer:?})"
            )
        }
        None => anyhow!("the agent closed the connection without an answer"),
    }
}

impl Answers {
    /// From now on, wait for ever.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn follow(&self) -> io::Result<()> {
        self.stream.get_ref().set_read_timeout(None)
    }

    fn read(&mut self) -> anyhow::Result<Option<Answer>> {
        let mut line = String::new();
        if self.stream.read_line(&mut line).context("read the agent's answer")? == 0 {
            return Ok(None);
        }
        match serde_json::from_str(&line) {
            Ok(Answer::Error(error)) => bail!("the agent reports: {error}"),
            Ok(answer) => Ok(Some(answer)),
            Err(err) => Err(err)
                .context("unexpected answer from the agent, which may be of another version"),
        }
    }
}

impl Iterator for Answers {
    type Item = anyhow::Result<Answer>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}
