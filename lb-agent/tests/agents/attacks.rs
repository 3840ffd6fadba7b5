//! Ring attacks: what an attacker in a Pod, outside or on another node sends as raw frames, at real agents on routed and
//! bridged nodes, over both families. Each attack stands beside its honest twin, which must arrive. Needs root and BPF.

mod lab;

mod connections;
mod frames;
mod replies;
mod sources;
mod tunnels;
