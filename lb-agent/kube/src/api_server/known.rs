//! The addresses that the API server had last, in a file that outlives a reboot: after one, neither the Service `kubernetes` works
//! on a node without kube-proxy, nor need there be a kubelet's kubeconfig that names a server.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

/// Name of the file: an address and a port on each line, as `10.0.0.1:6443` or `[fd00::1]:6443`.
pub const FILE: &str = "api-servers";

/// The file, which is written only when the addresses change.
#[derive(Debug)]
pub struct KnownServers {
    file: PathBuf,
    written: BTreeSet<SocketAddr>,
}

impl KnownServers {
    /// The file in this directory, which is made when there is something to write.
    pub fn new(dir: &Path) -> Self {
        Self { file: dir.join(FILE), written: BTreeSet::new() }
    }

    /// Notes the endpoints of the Service `default/kubernetes`. None at all means that they are not known yet.
    ///
    /// # Errors
    /// When the file cannot be written; it is tried again with the next change.
    pub fn note(&mut self, servers: BTreeSet<SocketAddr>) -> io::Result<()> {
        if servers.is_empty() || servers == self.written {
            return Ok(());
        }
        let lines: String = servers.iter().map(|server| format!("{server}\n")).collect();
        self.written = servers;
        if let Some(dir) = self.file.parent() {
            fs::create_dir_all(dir)?;
        }
        let partial = self.file.with_extension("new");
        fs::write(&partial, lines)?;
        fs::rename(&partial, &self.file)
    }
}

/// URLs of the servers in the file.
///
/// # Errors
/// When the file is not there, or a line is not an address.
pub(super) fn read(file: &Path) -> anyhow::Result<Vec<String>> {
    let text = fs::read_to_string(file).context("no API server was known before")?;
    let url = |line: &str| -> anyhow::Result<String> {
        let server: SocketAddr =
            line.parse().with_context(|| format!("{line:?} is not an address with a port"))?;
        Ok(format!("https://{server}"))
    };
    let urls: Vec<String> = text.lines().map(url).collect::<anyhow::Result<_>>()?;
    if urls.is_empty() {
        bail!("it is empty");
    }
    Ok(urls)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use super::{FILE, KnownServers, read};

    #[test]
    fn what_was_noted_is_read_and_an_empty_list_changes_nothing() {
        let dir = std::env::temp_dir().join(format!("lb-known-{}", std::process::id()));
        let file = dir.join(FILE);
        let mut known = KnownServers::new(&dir);
        let servers = |all: &[&str]| -> BTreeSet<_> {
            all.iter().map(|server| server.parse().unwrap()).collect()
        };
        known.note(servers(&[])).unwrap();
        assert!(read(&file).unwrap_err().to_string().contains("no API server was known before"));
        known.note(servers(&["[fd00::1]:6443", "10.0.0.1:6443"])).unwrap();
        let want = ["https://10.0.0.1:6443", "https://[fd00::1]:6443"];
        assert_eq!(read(&file).unwrap(), want);
        known.note(servers(&[])).unwrap();
        assert_eq!(read(&file).unwrap(), want);
        known.note(servers(&["10.0.0.2:443"])).unwrap();
        assert_eq!(read(&file).unwrap(), ["https://10.0.0.2:443"]);
        for (text, want) in
            [("", "it is empty"), ("10.0.0.1\n", "\"10.0.0.1\" is not an address with a port")]
        {
            fs::write(&file, text).unwrap();
            assert_eq!(read(&file).unwrap_err().to_string(), want);
        }
        fs::remove_dir_all(dir).unwrap();
    }
}
