//! Whether processes of Pods listen, asked in the kernel: for callers that cannot enter the Pods' network namespaces.
//!
//! The agent pins a program for it, which looks sockets up in a namespace by its number. A question is one
//! `BPF_PROG_TEST_RUN` (3 µs), which needs the capabilities that the agent has anyway.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use aya::Ebpf;
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use lb_common::addr::Addr;
use lb_common::be::{Be16, Be32};
use lb_common::limits::LISTENING_PROGRAM;
use lb_common::listening::{LISTENS, ListenQuery};

use crate::bpf::load::LoadError;
use crate::bpf::pins::{self, Pins};

/// Length of an Ethernet header, which the kernel wants in front of the question.
const ETHERNET: usize = 14;

/// The pinned program.
#[derive(Debug)]
pub struct ListeningProgram(SchedClassifier);

impl ListeningProgram {
    /// Pins the program in place of that of an earlier agent.
    ///
    /// # Errors
    /// When the object lacks it, or the pin is refused.
    pub fn pin(ebpf: &mut Ebpf, pins: &Pins) -> anyhow::Result<()> {
        let name = LISTENING_PROGRAM;
        let program = ebpf.program_mut(name).ok_or(LoadError::NoProgram(name))?;
        let path = pins.program(name);
        pins::remove(&path)?;
        <&mut SchedClassifier>::try_from(program)?.pin(&path)?;
        Ok(())
    }

    /// Opens it.
    ///
    /// # Errors
    /// When it is not there, or may not be opened.
    pub fn open(pins: &Pins) -> anyhow::Result<Self> {
        Ok(Self(SchedClassifier::from_pin(pins.program(LISTENING_PROGRAM))?))
    }

    /// Whether a socket takes what is sent to this address of the network namespace with this number.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn takes(&self, netns: u32, proto: u8, at: SocketAddr) -> anyhow::Result<bool> {
        let (addr, port) = (Addr::from_ip(at.ip()), Be16::new(at.port()));
        let query = ListenQuery { addr, netns, port, proto, pad: 0 };
        let packet = frame(&query);
        let mut options = TestRunOptions::new();
        options.data_in = Some(&packet);
        Ok(self.0.test_run(options)?.return_value == LISTENS)
    }

    /// Who takes what is sent to this address of the network namespace with this number.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn ask(&self, netns: u32, proto: u8, at: SocketAddr) -> anyhow::Result<ListenAnswer> {
        if self.takes(netns, proto, at)? {
            return Ok(ListenAnswer::Taken);
        }
        let mut elsewhere = Vec::new();
        for [loopback, any, unspecified] in ADDRESSES {
            for (asked, found) in [(any, unspecified), (loopback, loopback)] {
                if self.takes(netns, proto, SocketAddr::new(asked, at.port()))? {
                    elsewhere.push(SocketAddr::new(found, at.port()));
                    break;
                }
            }
        }
        if !elsewhere.is_empty() {
            return Ok(ListenAnswer::Elsewhere(elsewhere));
        }
        let mut ports = Vec::new();
        for port in 1..=u16::MAX {
            if self.takes(netns, proto, SocketAddr::new(at.ip(), port))? {
                ports.push(port);
            }
        }
        Ok(ListenAnswer::Refused(ports))
    }
}

/// Of each family: the loopback address; an address that no host has (RFC 5737, RFC 3849), which only sockets without an address of
/// their own take; the address that such sockets have.
const ADDRESSES: [[IpAddr; 3]; 2] = [
    [
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
        IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    ],
    [
        IpAddr::V6(Ipv6Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    ],
];

/// See [`ListeningProgram::ask`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAnswer {
    /// A socket takes it.
    Taken,
    /// None; but these have the port, at other addresses.
    Elsewhere(Vec<SocketAddr>),
    /// None; at the address there are sockets with these ports.
    Refused(Vec<u16>),
}

fn frame(query: &ListenQuery) -> [u8; ETHERNET + size_of::<ListenQuery>()] {
    let ListenQuery { addr, netns, port, proto, pad } = query;
    let addr = addr.words().map(|word| Be32::to_wire(word).to_ne_bytes()).into_iter().flatten();
    let rest = netns.to_ne_bytes().into_iter().chain(port.to_wire().to_ne_bytes());
    let bytes = addr.chain(rest).chain([*proto, *pad]);
    let mut frame = [0; ETHERNET + size_of::<ListenQuery>()];
    frame.iter_mut().skip(ETHERNET).zip(bytes).for_each(|(to, from)| *to = from);
    frame
}
