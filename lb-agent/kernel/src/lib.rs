//! This node's kernel: the BPF programs and their maps ([`bpf`]), the devices they are attached to ([`devices`]), what the
//! machine lacks ([`preflight`]), and the system calls that no library offers ([`syscall`]).

pub mod bpf;
pub mod devices;
pub mod netfilter;
pub mod preflight;
pub mod syscall;
