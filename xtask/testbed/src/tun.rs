//! A wire without a link layer between two namespaces, as tunnels, WireGuard and PPP are: a TUN device at each end,
//! and a thread that carries the packets from one to the other.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::fs::OpenOptionsExt as _,
    },
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use anyhow::{Context as _, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::netns::Netns;

/// How often the thread looks whether it shall stop.
const STOP_CHECK_MS: u8 = 100;
/// Longer than any packet of a device without offloads.
const PACKET: usize = 65_536;

/// `struct ifreq` as TUNSETIFF takes it (include/uapi/linux/if.h).
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: i16,
    rest: [u8; 22],
}

/// The wire; dropping it takes both devices away.
#[derive(Debug)]
pub struct Wire {
    stop: Arc<AtomicBool>,
    pump: Option<JoinHandle<()>>,
}

impl Wire {
    /// Connects two namespaces by devices of these names, which are up.
    pub fn connect(ends: [(&Netns, &str); 2]) -> anyhow::Result<Self> {
        let [a, b] = ends;
        let files = [device(a.0, a.1)?, device(b.0, b.1)?];
        let stop = Arc::new(AtomicBool::new(false));
        let pump = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || carry(files, &stop)
        });
        Ok(Self { stop, pump: Some(pump) })
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(pump) = self.pump.take() {
            drop(pump.join());
        }
    }
}

/// Makes a device, which goes with its file.
fn device(netns: &Netns, name: &str) -> anyhow::Result<File> {
    let file = netns
        .enter(|| {
            let mut options = File::options();
            options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")
        })?
        .context("open /dev/net/tun")?;
    let mut request = Request {
        name: [0; libc::IFNAMSIZ],
        flags: i16::try_from(libc::IFF_TUN | libc::IFF_NO_PI).context("flags")?,
        rest: [0; 22],
    };
    if name.len() >= request.name.len() {
        bail!("{name}: too long for a device");
    }
    request.name.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
    // SAFETY: a live ifreq of its full size, which the kernel reads and writes the name of.
    let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    nix::errno::Errno::result(made).with_context(|| format!("make {name} in {netns}"))?;
    netns.ip(&format!("link set {name} up\n"))?;
    Ok(file)
}

/// Carries packets both ways until it shall stop or a device is gone.
fn carry([mut a, mut b]: [File; 2], stop: &AtomicBool) {
    let mut packet = vec![0; PACKET];
    while !stop.load(Ordering::Relaxed) {
        let mut fds = [a.as_fd(), b.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        if poll(&mut fds, PollTimeout::from(STOP_CHECK_MS)).is_err() {
            continue;
        }
        // What cannot be read is not there; what cannot be written is lost, as on any wire.
        while let Some(read) = a.read(&mut packet).ok().and_then(|n| packet.get(..n)) {
            drop(b.write(read));
        }
        while let Some(read) = b.read(&mut packet).ok().and_then(|n| packet.get(..n)) {
            drop(a.write(read));
        }
    }
}
