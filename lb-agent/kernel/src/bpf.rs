//! The kernel side as the agent sees it: the only code that knows aya, maps and programs.
//!
//! ```text
//! pins → load → attach        programs and maps into the kernel, and onto their hooks
//! read ← maps → store         tables out of the maps and into them
//! growing                     tables that grow while packets come
//! addresses                   the tables that follow the node's own devices and addresses
//! policy                      the tables of policies
//! usage, programs, judge      what pinned maps hold and cost, how long programs run, and what the policies say, for those who only look
//! conntrack, resize           conntrack tables as they are pinned; another capacity or layout while connections go on
//! gc, sockets, events, dialed  what is left behind: dead conntrack entries, connected sockets, dropped packets
//! ```

pub mod pins;

pub mod load;

pub mod attach;

pub mod neighbors;

mod typed;

pub mod growing;

pub mod maps;

pub mod read;

pub mod usage;

pub mod programs;

pub mod judge;

pub mod store;

pub mod addresses;

pub mod policy;

pub mod clock;

pub mod conntrack;

pub mod gc;

pub mod resize;

pub mod refusal;

#[cfg(feature = "trace")]
pub mod stages;

pub mod ports;

pub mod sockets;

pub mod listening;

pub mod dialed;

pub mod events;
