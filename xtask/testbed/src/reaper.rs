//! Removes everything that carries a prefix: one shell script for all three occasions.
//!
//! It runs as a process of its own, outside our process group, and waits on a pipe that only we hold open. So it also
//! does its work when we end by Ctrl-C, a panic or SIGKILL; dropping a bed closes the pipe and waits for it; and a
//! first run of it removes what an earlier bed may have left.
//!
//! One bed of a prefix at a time: the reaper holds an abstract socket of that name, which the kernel frees with it. So
//! a new bed never meets a reaper that still removes the old one.

use std::{
    io::Write as _,
    os::{
        fd::OwnedFd,
        linux::net::SocketAddrExt as _,
        unix::{
            net::{SocketAddr, UnixListener},
            process::CommandExt as _,
        },
    },
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};

use crate::wait;

/// `$1` is the prefix: letters and digits only, so that no other bed's names begin with `$1-`.
const SCRIPT: &str = r#"
trap '' INT TERM HUP
read -r word
[ "$word" = keep ] && exit 0
[ "$word" = remove ] || echo "testbed: removing what $1 left behind" >&2
for path in /run/netns/"$1"-*; do
  [ -e "$path" ] || continue
  for pid in $(ip netns pids "${path##*/}" 2>/dev/null); do kill -KILL "$pid" 2>/dev/null; done
done
for path in /run/netns/"$1"-*; do
  [ -e "$path" ] && ip netns del "${path##*/}"
done
rm -rf /sys/fs/bpf/"$1"-* /run/testbed-"$1"
[ "$word" = remove ] || echo "testbed: done" >&2
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
        let name = SocketAddr::from_abstract_name(format!("testbed-{prefix}"));
        let name = name.context("name of the bed's lock")?;
        let what = format!("bed {prefix}, which another process uses");
        // An earlier bed's reaper needs a second or two.
        let (lock, _) = wait::until(&what, Duration::from_secs(10), || {
            UnixListener::bind_addr(&name).context("bind the lock")
        })?;
        let lock = OwnedFd::from(lock);
        Self::spawn(prefix, lock.try_clone().context("clone the lock")?)?.finish()?;
        Self::spawn(prefix, lock)
    }

    /// `lock` becomes the script's stdout, on which it says nothing: it is held as long as the script lives.
    fn spawn(prefix: &str, lock: OwnedFd) -> anyhow::Result<Self> {
        let child = Command::new("sh")
            .args(["-c", SCRIPT, "reaper", prefix])
            .stdin(Stdio::piped())
            .stdout(lock)
            .process_group(0)
            .spawn()
            .context("start sh")?;
        Ok(Self { child })
    }

    /// Lets the reaper do its work and waits for its end.
    pub(crate) fn finish(&mut self) -> anyhow::Result<()> {
        self.tell("remove")
    }

    /// Sends the reaper away: everything stays.
    pub(crate) fn dismiss(&mut self) -> anyhow::Result<()> {
        self.tell("keep")
    }

    /// Says the word for which the script waits, and waits for its end; a second time is nothing.
    fn tell(&mut self, word: &str) -> anyhow::Result<()> {
        if let Some(mut stdin) = self.child.stdin.take() {
            writeln!(stdin, "{word}").context("tell the reaper what to do")?;
        }
        self.child.wait().context("wait for the reaper")?;
        Ok(())
    }
}
