//! The flags of the flow log.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum as _};

use lb_ctl::flows::{FlowRow, FlowVerdict};

const MIB: u64 = 1 << 20;
/// Defaults of `--audit-log-maxsize` and its like are unlimited; a node's disk is not.
const SIZE: u64 = 100;
const FILES: u32 = 5;

/// Flags of the flow log. They are named like those of kube-apiserver's audit log.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct FlowLogArgs {
    /// Write flows as JSON lines: `stdout`, or `file:` and an absolute path [default: nowhere]
    #[arg(long, env = "LB_FLOW_LOG", value_name = "WHERE")]
    pub flow_log: Option<String>,
    /// Size in MiB at which the file of the flow log is rotated [default: 100]
    #[arg(long, env = "LB_FLOW_LOG_MAXSIZE", value_name = "MIB")]
    pub flow_log_maxsize: Option<String>,
    /// Rotated files of the flow log that are kept, the newest as PATH.1 [default: 5]
    #[arg(long, env = "LB_FLOW_LOG_MAXBACKUP", value_name = "N")]
    pub flow_log_maxbackup: Option<String>,
    /// Verdicts in the flow log, of dropped, would-deny, would-allow and allowed (a sample, while policies exist)
    /// [default: dropped,would-deny,would-allow]
    #[arg(long, env = "LB_FLOW_LOG_VERDICTS", value_name = "VERDICTS")]
    pub flow_log_verdicts: Option<String>,
    /// Fields of the flow log, such as time,verdict,src,dst,by [default: all]
    #[arg(long, env = "LB_FLOW_LOG_FIELDS", value_name = "FIELDS")]
    pub flow_log_fields: Option<String>,
}

/// Where the stream goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FlowLogTarget {
    Stdout,
    File(PathBuf),
}

/// A valid configuration of the flow log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FlowLogConfig {
    pub(crate) destination: FlowLogTarget,
    /// Bytes at which a file is rotated.
    pub(crate) size: u64,
    /// Rotated files that are kept.
    pub(crate) files: u32,
    pub(crate) verdicts: Box<[FlowVerdict]>,
    /// The fields that are written; `None` = all.
    pub(crate) fields: Option<Box<[String]>>,
}

impl FlowLogConfig {
    /// Reads the flags; `None` = there is no flow log.
    ///
    /// # Errors
    /// Names the flag.
    pub(crate) fn resolve(args: FlowLogArgs) -> anyhow::Result<Option<Self>> {
        let Some(destination) = given(args.flow_log) else { return Ok(None) };
        let destination = match destination.split_once(':') {
            None if destination == "stdout" => FlowLogTarget::Stdout,
            Some(("file", path)) if path.starts_with('/') => FlowLogTarget::File(path.into()),
            _ => bail!("--flow-log: {destination:?} is neither stdout nor file:/PATH"),
        };
        let size = number("--flow-log-maxsize", given(args.flow_log_maxsize), SIZE)?;
        let files = number("--flow-log-maxbackup", given(args.flow_log_maxbackup), FILES.into())?;
        let verdicts = match given(args.flow_log_verdicts) {
            None => [FlowVerdict::Dropped, FlowVerdict::WouldDeny, FlowVerdict::WouldAllow].into(),
            Some(list) => words(&list).map(|word| verdict(&word)).collect::<anyhow::Result<_>>()?,
        };
        let fields = given(args.flow_log_fields).map(|list| words(&list).collect::<Box<[_]>>());
        for field in fields.iter().flatten() {
            if field != "node" && !FlowRow::FIELDS.contains(&field.as_str()) {
                let known = FlowRow::FIELDS.join(", ");
                bail!("--flow-log-fields: there is no field {field:?}, only node, {known}");
            }
        }
        Ok(Some(Self {
            destination,
            size: size.saturating_mul(MIB),
            files: u32::try_from(files).context("--flow-log-maxbackup: too many")?,
            verdicts,
            fields,
        }))
    }
}

fn given(value: Option<String>) -> Option<String> {
    value.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn words(list: &str) -> impl Iterator<Item = String> {
    list.split(',').map(|word| word.trim().to_owned()).filter(|word| !word.is_empty())
}

fn number(flag: &str, text: Option<String>, default: u64) -> anyhow::Result<u64> {
    let Some(text) = text else { return Ok(default) };
    match text.parse() {
        Ok(number @ 1..=1_000_000) => Ok(number),
        _ => bail!("{flag}: {text:?} is not a number from 1 to 1000000"),
    }
}

fn verdict(word: &str) -> anyhow::Result<FlowVerdict> {
    FlowVerdict::from_str(word, false).map_err(|_unknown| {
        let known = "dropped, would-deny, would-allow or allowed";
        anyhow::anyhow!("--flow-log-verdicts: {word:?} is not {known}")
    })
}
