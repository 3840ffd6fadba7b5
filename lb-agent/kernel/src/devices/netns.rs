//! The network namespace behind a Pod's veth, to look at what the Pod listens on.
//!
//! The kernel tells its number as the host's namespace has it. Its file is searched in `/run/netns` and
//! among those of processes; a container that does not share the host's PID namespace sees neither.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use libc::RTM_GETNSID;
use netlink_packet_core::parse_u32;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::sched::{CloneFlags, setns};

use crate::devices::netlink::{NetlinkClient, NetlinkRequest, Want, attributes, word32};

/// `NETNSA_NSID` and `NETNSA_FD` (include/uapi/linux/net_namespace.h).
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;
/// Where namespaces are kept by their names.
const NAMED: [&str; 2] = ["/run/netns", "/var/run/netns"];

/// The namespace with this number, if its file is to be found.
///
/// # Errors
/// When the kernel does not answer.
pub fn find(nsid: u32) -> io::Result<Option<File>> {
    let mut client = NetlinkClient::open(NETLINK_ROUTE)?;
    let mut seen = HashSet::new();
    for path in candidates() {
        // Processes come and go.
        let Ok(file) = File::open(path) else { continue };
        let Ok(metadata) = file.metadata() else { continue };
        if seen.insert((metadata.dev(), metadata.ino())) && id(&mut client, &file) == Some(nsid) {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

fn candidates() -> impl Iterator<Item = PathBuf> {
    let named = NAMED.into_iter().flat_map(|dir| fs::read_dir(dir).into_iter().flatten());
    let named = named.flatten().map(|entry| entry.path());
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = processes
        .filter(|entry| entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit))
        .map(|entry| entry.path().join("ns/net"));
    named.chain(processes)
}

/// Returns its number; `None` if it has none, or the file is not a network namespace.
fn id(client: &mut NetlinkClient, file: &File) -> Option<u32> {
    let fd = u32::try_from(file.as_raw_fd()).ok()?;
    let request =
        NetlinkRequest::new(RTM_GETNSID, Want::Object, &[0; 4]).attr(NETNSA_FD, &word32(fd));
    let mut found = None;
    let answered = client.call(&request, |_, payload| {
        let mut attributes = attributes(payload.get(4..).unwrap_or_default());
        found = attributes
            .find(|(kind, _)| *kind == NETNSA_NSID)
            .and_then(|(_, value)| parse_u32(value).ok());
    });
    answered.ok().and(found).filter(|id| *id <= i32::MAX as u32)
}

/// Does something in a namespace, in a thread of its own.
///
/// # Errors
/// When the namespace may not be entered, or what is done there fails.
pub fn within<T: Send>(netns: &File, look: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            setns(netns, CloneFlags::CLONE_NEWNET)?;
            look()
        });
        inside.join().unwrap_or_else(|_| {
            Err(io::Error::other("the thread in the network namespace panicked"))
        })
    })
}
