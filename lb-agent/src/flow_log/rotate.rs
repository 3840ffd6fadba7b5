//! A file that is rotated by size: `PATH`, then `PATH.1`, the newest of the older ones, and so on.
//!
//! Not a crate: those for it drop what they cannot write without an error, and panic without a directory.
#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// For root only: flows show which workloads communicate.
const MODE: u32 = 0o600;

/// The current file.
#[derive(Debug)]
pub(super) struct RotatedFile {
    path: PathBuf,
    /// Bytes at which it is rotated.
    size: u64,
    /// Older files that are kept.
    files: u32,
    /// `None` after an error: the next write opens it again.
    file: Option<(File, u64)>,
}

impl RotatedFile {
    /// Continues the file, or begins it.
    ///
    /// # Errors
    /// When it cannot be opened, or its directory cannot be made.
    pub(super) fn open(path: &Path, size: u64, files: u32) -> io::Result<Self> {
        let mut rotated = Self { path: path.to_owned(), size, files, file: None };
        rotated.current(0)?;
        Ok(rotated)
    }

    /// The file that the next `n` bytes go to, and its length.
    fn current(&mut self, n: u64) -> io::Result<&mut (File, u64)> {
        if self.file.as_ref().is_some_and(|(_, length)| *length > 0 && length + n > self.size) {
            self.file = None;
            self.rotate()?;
        }
        match &mut self.file {
            Some(file) => Ok(file),
            none => {
                if let Some(directory) = self.path.parent() {
                    fs::create_dir_all(directory)?;
                }
                let mut options = OpenOptions::new();
                let file = options.create(true).append(true).mode(MODE).open(&self.path)?;
                let length = file.metadata()?.size();
                Ok(none.insert((file, length)))
            }
        }
    }

    /// Moves each file on by one; the last one makes room.
    fn rotate(&self) -> io::Result<()> {
        for number in (0..self.files).rev() {
            match fs::rename(self.name(number), self.name(number + 1)) {
                Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
                _ => {}
            }
        }
        Ok(())
    }

    fn name(&self, number: u32) -> PathBuf {
        match number {
            0 => self.path.clone(),
            number => {
                let mut name = self.path.as_os_str().to_owned();
                name.push(format!(".{number}"));
                name.into()
            }
        }
    }
}

impl Write for RotatedFile {
    /// Writes all of it to one file.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = bytes.len() as u64;
        let (file, length) = self.current(n)?;
        match file.write_all(bytes) {
            Ok(()) => {
                *length += n;
                Ok(bytes.len())
            }
            Err(err) => {
                self.file = None;
                Err(err)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;
    use std::os::unix::fs::PermissionsExt as _;

    use super::RotatedFile;

    #[test]
    fn lines_stay_whole_and_old_files_make_room() {
        let dir = std::env::temp_dir().join(format!("lb-rotate-{}", std::process::id()));
        let path = dir.join("sub/flows.jsonl");
        let mut file = RotatedFile::open(&path, 10, 2).unwrap();
        for line in ["aaaa\n", "bbbb\n", "cccccccccccccccc\n", "dddd\n"] {
            file.write_all(line.as_bytes()).unwrap();
        }
        drop(file);
        // A restart continues the file.
        let mut file = RotatedFile::open(&path, 10, 2).unwrap();
        file.write_all(b"eeee\n").unwrap();
        file.write_all(b"ffff\n").unwrap();
        let read = |name: &str| fs::read_to_string(dir.join("sub").join(name)).unwrap_or_default();
        assert_eq!(read("flows.jsonl"), "ffff\n");
        assert_eq!(read("flows.jsonl.1"), "dddd\neeee\n");
        assert_eq!(read("flows.jsonl.2"), "cccccccccccccccc\n");
        assert_eq!(read("flows.jsonl.3"), "", "the oldest made room");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::remove_dir_all(&dir).unwrap();
        // Its directory is gone: it is made again when the file is.
        file.write_all(b"gggggggg\n").unwrap();
        assert_eq!(read("flows.jsonl"), "gggggggg\n");
        fs::remove_dir_all(&dir).unwrap();
    }
}
