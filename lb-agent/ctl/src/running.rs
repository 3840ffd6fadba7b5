//! Whether an agent runs on this state directory: it holds a lock on `<state-dir>/lock` as long as it lives.
#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::sys::stat::{major, minor};

/// Name of the file that the agent locks (`flock`).
const LOCK: &str = "lock";

/// Returns whether a process holds the lock; `None` if /proc does not show it.
///
/// It looks and does not touch: trying the lock would make an agent that starts in this moment give up. The kernel
/// lists the locks of processes in our PID namespace only (`locks_show()`), so this works on the node and in the
/// agent's own container.
pub fn is_locked(state_dir: &Path) -> Option<bool> {
    let Ok(lock) = fs::metadata(state_dir.join(LOCK)) else { return Some(false) };
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let id = format!("{:02x}:{:02x}:{}", major(lock.dev()), minor(lock.dev()), lock.ino());
    Some(holds(&locks, &id))
}

/// Whether a line like `1: FLOCK  ADVISORY  WRITE 815 00:1a:4711 0 EOF` is about the file `id`.
fn holds(locks: &str, id: &str) -> bool {
    locks.lines().any(|line| {
        let mut words = line.split_whitespace();
        words.nth(1) == Some("FLOCK") && words.nth(3) == Some(id)
    })
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::{LOCK, holds, is_locked};

    #[test]
    fn lines_of_proc_locks() {
        let locks = "1: POSIX  ADVISORY  WRITE 7 00:1a:5 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 815 00:1a:4711 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 816 00:1a:6 0 EOF\n";
        assert!(holds(locks, "00:1a:4711"));
        assert!(!holds(locks, "00:1a:5"), "a POSIX lock is not ours");
        assert!(!holds(locks, "00:1a:6"), "waiting is not holding");
    }

    #[test]
    fn a_lock_is_seen_while_it_is_held() {
        let dir = std::env::temp_dir().join(format!("lb-running-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        assert_eq!(is_locked(&dir), Some(false), "no file");
        let file = File::create(dir.join(LOCK)).unwrap();
        assert_eq!(is_locked(&dir), Some(false), "a file of an agent that died");
        file.lock().unwrap();
        assert_eq!(is_locked(&dir), Some(true));
        drop(file);
        assert_eq!(is_locked(&dir), Some(false));
        fs::remove_dir_all(dir).unwrap();
    }
}
