//! The node agent, in reading order: what the API server says becomes records, records become desired tables,
//! the difference to the maps becomes a plan, and the plan is written.

pub mod escape;

pub mod issue;

pub mod watch;

pub mod cluster;

pub mod model;

pub mod plan;

pub mod bpf;

pub mod devices;

pub mod names;

pub mod api;

pub mod inquiry;

pub mod observe;

pub mod agent;

pub mod cleanup;

pub mod bpffs;

pub mod takeover;

pub mod config;

pub mod ports;

pub mod preflight;

pub mod syscall;

pub mod ctl;
