//! `kubectl lb sysdump`: the archives of all nodes in one, a directory a node.

use std::io::{BufWriter, Read as _, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use tar::{Archive, Builder};

use crate::fleet::ask::{FleetQuery, FromNode};
use crate::fleet::remark::remark;
use crate::redact::Redaction;
use crate::sysdump::{SysdumpArgs, create};

/// The archive, unless it has another name.
const FILE: &str = "lb-sysdump.tar";
/// Lines of each agent's log.
const LINES: i64 = 2000;

/// Writes it.
///
/// # Errors
/// When no node answers, or the archive cannot be written.
pub fn sysdump(
    asked: &FleetQuery,
    args: &SysdumpArgs,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let mut words = vec!["sysdump".to_owned(), "--file=-".to_owned()];
    words.extend(args.redact.then(|| "--redact".to_owned()));
    let answers = asked.bytes_with_log(words, LINES)?;
    let path = args.file.clone().unwrap_or_else(|| PathBuf::from(FILE));
    if path == Path::new("-") {
        merge(&answers, args.redact, out)?;
        return Ok(ExitCode::SUCCESS);
    }
    let show = path.display();
    let mut file = BufWriter::new(create(&path).with_context(|| format!("create {show}"))?);
    merge(&answers, args.redact, &mut file).with_context(|| format!("write {show}"))?;
    file.flush().with_context(|| format!("write {show}"))?;
    remark(&format_args!("wrote {show}: {} nodes", answers.len()));
    Ok(ExitCode::SUCCESS)
}

/// One archive of those of the nodes.
fn merge(answers: &[FromNode<Vec<u8>>], redacted: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut whole = Builder::new(out);
    for FromNode { node, answer, .. } in answers {
        let node = match redacted {
            // As the node's own documents call it.
            true => Redaction::of_name(node).text(node),
            false => node.clone(),
        };
        let mut part = Archive::new(answer.as_slice());
        for entry in part.entries().with_context(|| format!("archive of {node}"))? {
            let mut entry = entry.with_context(|| format!("archive of {node}"))?;
            let name = Path::new(&node).join(entry.path()?);
            let mut header = entry.header().clone();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            whole.append_data(&mut header, &name, bytes.as_slice())?;
        }
    }
    whole.finish()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::merge;
    use crate::fleet::ask::FromNode;
    use crate::sysdump::{DumpDocument, PARTS, write};

    #[test]
    fn each_node_has_a_directory() {
        let of_node = |node: &str| {
            let documents = [DumpDocument { part: PARTS[0], said: Ok(json!({"node": node})) }];
            let mut answer = Vec::new();
            write(&mut answer, &documents, &[], 7).unwrap();
            FromNode { node: node.to_owned(), code: 0, answer }
        };
        let names = |redacted| {
            let mut whole = Vec::new();
            merge(&[of_node("n1"), of_node("n2")], redacted, &mut whole).unwrap();
            let mut archive = tar::Archive::new(whole.as_slice());
            let entries = archive.entries().unwrap();
            let name = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
                entry.unwrap().path().unwrap().display().to_string()
            };
            entries.map(name).collect::<Vec<_>>()
        };
        assert_eq!(names(false), ["n1/version.json", "n2/version.json"]);
        assert!(names(true).iter().all(|name| name.starts_with("n-") && !name.contains("n1/")));
    }
}
