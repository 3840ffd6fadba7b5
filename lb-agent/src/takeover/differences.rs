//! What of the cluster's objects will not work here, or different from kube-proxy: the agent's issues, and what it
//! answers when asked.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::path::Path;

use lb_core::admin::Remark;
use lb_core::escape::Escaped;
use lb_core::names::{self, Names};
use lb_ctl::admin::Client;

/// What was found, for people.
#[derive(Debug)]
pub(super) struct Differences {
    issues: Vec<Remark>,
    remarks: Result<Vec<Remark>, String>,
}

impl Differences {
    /// Gathers them from the agent with this state directory.
    pub(super) fn gather(state_dir: &Path) -> Self {
        let names = names::read(&state_dir.join(names::FILE));
        let issues = names.map(|names| issues(&names)).unwrap_or_default();
        let remarks = Client::new(state_dir).differences();
        Self { issues, remarks: remarks.map_err(|err| format!("{err:#}")) }
    }

    /// Writes all of it; nothing when there is nothing.
    pub(super) fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        list(out, "will not work as configured (also in `lbctl status`):", &self.issues)?;
        match &self.remarks {
            Ok(remarks) => list(out, "different from kube-proxy:", remarks),
            Err(err) => writeln!(out, "cannot list differences from kube-proxy: {err}"),
        }
    }
}

fn issues(names: &Names<'_>) -> Vec<Remark> {
    let remark = |issue: &names::IssueLine<'_>| Remark {
        object: issue.object.to_string(),
        field: issue.field.to_string(),
        message: issue.message.to_string(),
    };
    names.issues.iter().map(remark).collect()
}

fn list(out: &mut dyn Write, title: &str, remarks: &[Remark]) -> io::Result<()> {
    if remarks.is_empty() {
        return Ok(());
    }
    writeln!(out, "{title}")?;
    for Remark { object, field, message } in remarks {
        // Names and values in them are users' text.
        let line = format!("{object}: {field}: {message}");
        writeln!(out, "  {}", Escaped(&line))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Differences, Remark};

    #[test]
    fn what_is_found_is_written_line_by_line() {
        let remark = |object: &str, message: &str| Remark {
            object: object.to_owned(),
            field: "spec".to_owned(),
            message: message.to_owned(),
        };
        let shown = |issues: &[Remark], remarks: Result<Vec<Remark>, String>| {
            let mut out = Vec::new();
            Differences { issues: issues.to_vec(), remarks }.show(&mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(shown(&[], Ok(Vec::new())), "");
        let issue = remark("Service a/b", "not\x1b[2J served\nOK");
        let got = shown(&[issue], Ok(vec![remark("Service c/d", "is SCTP")]));
        assert!(!got.contains('\x1b'), "{got:?}");
        let lines: Vec<&str> = got.lines().collect();
        assert_eq!(lines.len(), 4, "{got}");
        assert!(lines[1].starts_with("  Service a/b: spec: not"), "{got}");
        assert_eq!(lines[2..], ["different from kube-proxy:", "  Service c/d: spec: is SCTP"]);
        let got = shown(&[], Err("no agent answers".to_owned()));
        assert_eq!(got, "cannot list differences from kube-proxy: no agent answers\n");
    }
}
