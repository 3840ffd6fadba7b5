//! One agent a state directory: two would undo each other's writes.
#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read as _, Write as _};
use std::path::Path;

use anyhow::{Context as _, bail};

/// Name of the file in the state directory. It stays when the agent ends; the lock does not.
pub(crate) const FILE: &str = "lock";

/// Held as long as the agent lives; the kernel releases it when the process ends, however it ends.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Makes the directory and takes the lock.
    ///
    /// # Errors
    /// When another agent has it, or the directory cannot be written.
    pub(crate) fn take(state_dir: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(state_dir)
            .with_context(|| format!("--state-dir: create {}", state_dir.display()))?;
        let path = state_dir.join(FILE);
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .with_context(|| format!("--state-dir: open {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Only for the message: who holds it may not have written its number yet.
                let known = file.read_to_string(&mut holder).is_ok() && !holder.trim().is_empty();
                let holder = if known { holder.trim() } else { "unknown" };
                bail!(
                    "another agent (process {holder}) uses {}: stop it first, or use another --state-dir and --pin-dir",
                    state_dir.display()
                );
            }
            Err(TryLockError::Error(e)) => {
                return Err(e).with_context(|| format!("lock {}", path.display()));
            }
        }
        file.set_len(0).with_context(|| format!("write {}", path.display()))?;
        writeln!(file, "{}", std::process::id())
            .with_context(|| format!("write {}", path.display()))?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::Lock;

    #[test]
    fn the_second_agent_is_refused_in_one_sentence() {
        let dir = std::env::temp_dir().join(format!("lb-lock-{}", std::process::id()));
        let first = Lock::take(&dir).unwrap();
        let error = format!("{:#}", Lock::take(&dir).unwrap_err());
        let want = format!("another agent (process {}) uses ", std::process::id());
        assert!(error.starts_with(&want), "{error}");
        drop(first);
        drop(Lock::take(&dir).unwrap());
        std::fs::remove_dir_all(dir).unwrap();
    }
}
