//! `lbctl sysdump`: what all commands say, in one archive to be attached to a report.
//!
//! The archive has JSON documents of lbctl and lines of the agent's log. It never has Secrets, tokens or environment variables:
//! nothing of these is read.
#![expect(missing_docs, reason = "a field without a comment is what its name says")]

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;
use tar::{Builder, Header};

use crate::redact::Redaction;

/// Permissions of the archive and its files.
const MODE: u32 = 0o600;

/// Flags of `sysdump`.
#[derive(Clone, Debug, clap::Args)]
pub struct SysdumpArgs {
    /// Replace addresses (IP and MAC), UIDs, zones, labels and names by hashes, the same ones in all documents
    #[arg(long)]
    pub redact: bool,
    /// The archive, or - for standard output [default: lb-sysdump-NODE.tar]
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// The agent's log, or - for standard input: in its container it cannot be found
    #[arg(long, value_name = "FILE", hide = true)]
    pub log: Option<PathBuf>,
}

/// One command whose document is a part of the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Name of the file, without its end.
    pub file: &'static str,
    pub arguments: &'static [&'static str],
    /// Whether its fields `name` hold names of objects.
    pub has_names: bool,
}

const fn part(file: &'static str, arguments: &'static [&'static str]) -> Part {
    Part { file, arguments, has_names: true }
}

const fn plain(file: &'static str, arguments: &'static [&'static str]) -> Part {
    Part { file, arguments, has_names: false }
}

/// The parts, in the order of the archive.
pub const PARTS: [Part; 14] = [
    plain("version", &["version"]),
    part("status", &["status", "--all"]),
    plain("check", &["check"]),
    part("services", &["services", "--all-namespaces"]),
    part("services-tree", &["services", "--all-namespaces", "--tree"]),
    part("backends", &["backends", "--all-namespaces"]),
    part("pods", &["pods", "--all-namespaces"]),
    part("policies", &["policy", "list"]),
    part("drops", &["drops", "--all"]),
    part("flows", &["flows"]),
    part("ct", &["ct", "--all", "--all-namespaces"]),
    part("affinity", &["affinity", "--all", "--all-namespaces"]),
    plain("maps", &["maps"]),
    plain("diff", &["diff"]),
];

/// What one command said.
#[derive(Clone, Debug, PartialEq)]
pub struct DumpDocument {
    pub part: Part,
    /// Its JSON, or why there is none.
    pub said: Result<Value, String>,
}

/// Replaces addresses and names in all of it.
pub fn redact(documents: &mut [DumpDocument], logs: &mut [String], node: &mut String) {
    let mut redaction = Redaction::default();
    redaction.learn(&serde_json::json!({ "node": &*node }));
    for document in documents.iter().filter(|document| document.part.has_names) {
        if let Ok(value) = &document.said {
            redaction.learn(value);
        }
    }
    for document in documents {
        match &mut document.said {
            Ok(value) => redaction.apply(value),
            Err(error) => *error = redaction.text(error),
        }
    }
    for line in logs {
        *line = redaction.text(line);
    }
    *node = redaction.text(node);
}

/// Creates the file of an archive, which only its owner may read, as the files in it.
///
/// # Errors
/// When it cannot be created.
pub fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, MODE);
    options.open(path)
}

/// Writes the archive. `at` is its time, in seconds since 1970.
///
/// # Errors
/// When the output cannot be written.
pub fn write(
    out: &mut dyn Write,
    documents: &[DumpDocument],
    logs: &[String],
    at: u64,
) -> io::Result<()> {
    let mut archive = Builder::new(out);
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(MODE);
        header.set_mtime(at);
        header.set_cksum();
        archive.append_data(&mut header, name, bytes)
    };
    for DumpDocument { part, said } in documents {
        match said {
            Ok(value) => {
                let mut text = serde_json::to_vec_pretty(value)?;
                text.push(b'\n');
                add(&format!("{}.json", part.file), &text)?;
            }
            Err(error) => {
                add(&format!("{}.error.txt", part.file), format!("{error}\n").as_bytes())?
            }
        }
    }
    if !logs.is_empty() {
        add("agent.log", (logs.join("\n") + "\n").as_bytes())?;
    }
    archive.finish()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use serde_json::json;

    use super::{DumpDocument, PARTS, create, redact, write};

    fn unpacked(archive: &[u8]) -> Vec<(String, String)> {
        let mut archive = tar::Archive::new(archive);
        let read = |mut entry: tar::Entry<'_, &[u8]>| {
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            (entry.path().unwrap().display().to_string(), text)
        };
        archive.entries().unwrap().map(|entry| read(entry.unwrap())).collect()
    }

    #[cfg(unix)]
    #[test]
    fn only_its_owner_reads_an_archive() {
        use std::os::unix::fs::PermissionsExt as _;
        let path = std::env::temp_dir().join(format!("lb-sysdump-{}.tar", std::process::id()));
        let file = create(&path).unwrap();
        let mode = file.metadata().unwrap().permissions().mode();
        std::fs::remove_file(path).unwrap();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn an_archive_has_a_document_of_each_command_and_errors_where_there_is_none() {
        let documents = [
            DumpDocument { part: PARTS[0], said: Ok(json!({"lbctl": "0.1.0"})) },
            DumpDocument { part: PARTS[1], said: Err("no agent answers".into()) },
        ];
        let mut archive = Vec::new();
        write(&mut archive, &documents, &["line 1".into(), "line 2".into()], 7).unwrap();
        assert_eq!(
            unpacked(&archive),
            [
                ("version.json".to_owned(), "{\n  \"lbctl\": \"0.1.0\"\n}\n".to_owned()),
                ("status.error.txt".to_owned(), "no agent answers\n".to_owned()),
                ("agent.log".to_owned(), "line 1\nline 2\n".to_owned()),
            ]
        );
    }

    #[test]
    fn a_redacted_archive_has_no_name_and_no_address() {
        let pods = json!([{"namespace": "shop", "name": "web-1", "ips": ["10.1.0.3"]}]);
        let mut documents = [
            DumpDocument { part: PARTS[6], said: Ok(pods) },
            DumpDocument { part: PARTS[9], said: Err("shop/web-1: 10.1.0.3 is gone".into()) },
            DumpDocument {
                part: PARTS[12],
                said: Ok(json!([{"name": "frontends", "pin": "/sys/fs/bpf/lb"}])),
            },
        ];
        let mut logs = vec!["INFO pod identified pod=shop/web-1 addr=10.1.0.3 node=n1".to_owned()];
        let mut node = "n1".to_owned();
        redact(&mut documents, &mut logs, &mut node);
        let mut archive = Vec::new();
        write(&mut archive, &documents, &logs, 7).unwrap();
        let text: String = unpacked(&archive).into_iter().map(|(_, text)| text).collect();
        for secret in ["shop", "web-1", "10.1.0.3", "=n1"] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
        assert!(text.contains("frontends") && text.contains("pod identified"), "{text}");
        assert!(node.starts_with("n-"), "{node}");
    }
}
