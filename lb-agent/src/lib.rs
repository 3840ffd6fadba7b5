//! The node agent, in reading order: what the API server says becomes records, records become desired tables,
//! the difference to the maps becomes a plan, and the plan is written.

pub mod bpf;
