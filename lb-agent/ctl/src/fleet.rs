//! `kubectl lb`: the commands of `lbctl`, asked in the agents of all nodes at once, with one answer.
//!
//! ```text
//! arguments ─► ask (the nodes' own lbctl, by exec) ─► merge (pure) ─► the same text, JSON and YAML
//! ```
//! A node prints its rows with their cells and JSON (`-o rows`), so that merging knows columns and not what the rows are
//! about. It only asks: nothing is changed in the cluster, except by `diff --repair`.

pub mod args;
pub mod ask;
pub mod explain;
pub mod flows;
pub mod live;
pub mod merge;
pub mod policy;
pub mod remark;
pub mod run;
pub mod shell;
pub mod status;
pub mod suggest;
pub mod sysdump;
pub mod tables;
pub mod tree;
pub mod trial;
pub mod unready;
pub mod versions;
pub mod wait;
