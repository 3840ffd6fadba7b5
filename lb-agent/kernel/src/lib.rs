//! This node's kernel: the BPF programs and their maps ([`bpf`]), the devices they are attached to ([`devices`]), what the
//! machine lacks ([`preflight`]), how it treats packets ([`netfilter`], [`routing`]), and the system calls that no library offers ([`syscall`]).

pub mod bpf;
pub mod devices;
pub mod foreign;
pub mod host_ports;
pub mod netfilter;
pub mod preflight;
pub mod routing;
pub mod syscall;
