//! Removes everything that carries a prefix: one shell script for all three occasions.
//!
//! It runs as a process of its own, outside our process group, and waits on a pipe that only we hold open. So it also
//! does its work when we end by Ctrl-C, a panic or SIGKILL; dropping a bed closes the pipe and waits for it; and a
//! first run of it, with nothing on its stdin, removes what a crashed machine's run may have left.

use std::{
    io::Write as _,
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, bail};

/// `$1` is the prefix: letters and digits only, so that no other bed's names begin with `$1-`.
const SCRIPT: &str = r#"
trap '' INT TERM HUP
read -r word
[ "$word" = keep ] && exit 0
for path in /run/netns/"$1"-*; do
  [ -e "$path" ] || continue
  for pid in $(ip netns pids "${path##*/}" 2>/dev/null); do kill -KILL "$pid" 2>/dev/null; done
done
for path in /run/netns/"$1"-*; do
  [ -e "$path" ] && ip netns del "${path##*/}"
done
rm -rf /sys/fs/bpf/"$1"-* /run/testbed-"$1"
exit 0
"#;

/// The waiting process.
#[derive(Debug)]
pub(crate) struct Reaper {
    child: Child,
}

impl Reaper {
    /// Removes leftovers of `prefix` now, then leaves a reaper behind that removes what comes.
    pub(crate) fn start(prefix: &str) -> anyhow::Result<Self> {
        let fits = (1..=9).contains(&prefix.len());
        if !fits || !prefix.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
            bail!("bed prefix {prefix:?}: want 1 to 9 lower-case letters and digits");
        }
        Self::spawn(prefix)?.finish()?;
        Self::spawn(prefix)
    }

    fn spawn(prefix: &str) -> anyhow::Result<Self> {
        let child = Command::new("sh")
            .args(["-c", SCRIPT, "reaper", prefix])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .context("start sh")?;
        Ok(Self { child })
    }

    /// Lets the reaper do its work and waits for its end.
    pub(crate) fn finish(&mut self) -> anyhow::Result<()> {
        drop(self.child.stdin.take());
        self.child.wait().context("wait for the reaper")?;
        Ok(())
    }

    /// Sends the reaper away: everything stays.
    pub(crate) fn dismiss(&mut self) -> anyhow::Result<()> {
        if let Some(mut stdin) = self.child.stdin.take() {
            stdin.write_all(b"keep\n").context("tell the reaper to keep the bed")?;
        }
        self.child.wait().context("wait for the reaper")?;
        Ok(())
    }
}
