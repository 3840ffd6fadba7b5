//! Frames in and out of a device, past the IP stack (AF_PACKET): what NET_RAW, which every container has, lets a Pod do.

use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, bail};
use nix::{
    errno::Errno,
    ifaddrs::getifaddrs,
    sys::socket::{
        AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recvfrom, send,
        setsockopt, socket, sockopt,
    },
};

use crate::{frame::Mac, netns::Netns};

/// Longer than any frame here.
const FRAME: usize = 65_536;
/// Room for what arrives between two looks.
const RECEIVE_BUFFER: usize = 8 << 20;

/// A device of a namespace, open for frames.
#[derive(Debug)]
pub struct Port {
    /// The device's address.
    pub mac: Mac,
    fd: OwnedFd,
}

impl Port {
    /// Opens `device` in `netns`.
    pub fn open(netns: &Netns, device: &str) -> anyhow::Result<Self> {
        netns.enter(|| open(device))?.with_context(|| format!("open {device} in {netns}"))
    }

    /// Opens `device` in the namespace of this thread.
    pub fn open_here(device: &str) -> anyhow::Result<Self> {
        open(device).with_context(|| format!("open {device}"))
    }

    /// Sends a frame.
    pub fn send(&self, frame: &[u8]) -> anyhow::Result<()> {
        loop {
            match send(self.fd.as_raw_fd(), frame, MsgFlags::empty()) {
                Ok(n) if n == frame.len() => return Ok(()),
                Ok(n) => bail!("{n} of {} bytes of a frame were sent", frame.len()),
                // The device's queue is full: nothing but to try again.
                Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::EINTR) => std::thread::yield_now(),
                Err(err) => return Err(err).context("send a frame"),
            }
        }
    }

    /// The frames that came in since the last call; none that went out.
    pub fn received(&self) -> anyhow::Result<Vec<Vec<u8>>> {
        let mut frames = Vec::new();
        let mut bytes = vec![0; FRAME];
        loop {
            match recvfrom::<LinkAddr>(self.fd.as_raw_fd(), &mut bytes) {
                Ok((n, from)) => {
                    let outgoing = from.is_some_and(|from| from.pkttype() == libc::PACKET_OUTGOING);
                    if !outgoing {
                        frames.push(bytes.get(..n).unwrap_or_default().to_vec());
                    }
                }
                Err(Errno::EAGAIN) => return Ok(frames),
                Err(Errno::EINTR | Errno::ENETDOWN) => {}
                Err(err) => return Err(err).context("receive a frame"),
            }
        }
    }
}

/// The link-layer address of `device` in `netns`.
pub fn mac(netns: &Netns, device: &str) -> anyhow::Result<Mac> {
    let link = netns.enter(|| link(device))?;
    link?.addr().with_context(|| format!("{device} in {netns} has no link-layer address"))
}

fn open(device: &str) -> anyhow::Result<Port> {
    let link = link(device)?;
    let mac = link.addr().context("no link-layer address")?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
    // The limit for whoever has NET_ADMIN is memory, not a sysctl.
    setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
    bind(fd.as_raw_fd(), &link)?;
    Ok(Port { mac, fd })
}

/// The address to bind to: getifaddrs gives it filled in.
fn link(device: &str) -> anyhow::Result<LinkAddr> {
    getifaddrs()?
        .filter(|interface| interface.interface_name == device)
        .find_map(|interface| interface.address?.as_link_addr().copied())
        .with_context(|| format!("no device {device}"))
}
