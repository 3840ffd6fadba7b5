//! What no library we use wraps safely: the agent's only file with unsafe code.
//!
//! `BPF_MAP_LOOKUP_BATCH` (Linux 5.6) reads a whole map: two calls an entry (next key, value) would cost a fifth of
//! a second for 131,072 conntrack entries; in batches of 4,096 it is a few milliseconds. `SO_NETNS_COOKIE` (Linux
//! 5.14) tells which network namespace we are in, as the programs see it. `MADV_DONTNEED` gives back the pages of our
//! own code that are not in use. `IPT_SO_GET_ENTRIES` reads a legacy table of iptables. `BPF_PROG_QUERY` counts the programs of a
//! device.

use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::ptr;

use aya::Pod;
use aya::maps::{IterableMap, MapData};
use lb_common::pod::Field;
use lb_core::cluster::Family;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// `BPF_MAP_LOOKUP_BATCH` of `enum bpf_cmd` (include/uapi/linux/bpf.h).
const BPF_MAP_LOOKUP_BATCH: i64 = 24;
/// Entries a call; doubled when one bucket of a hash table does not fit.
const CHUNK: u32 = 4096;

/// Gives back the resident pages of this program's code; those still in use come back from the page cache as they are
/// run. Half of what an idle agent has resident is code that runs once: TLS, first lists, loading of programs.
///
/// # Errors
/// When the kernel does not say what is mapped, or refuses.
pub fn release_code() -> io::Result<()> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let exe = std::fs::read_link("/proc/self/exe")?;
    for (start, end) in maps.lines().filter_map(|line| code_of(line, &exe)) {
        // SAFETY: executable pages of a file are not writable and never were, so what is read again is what was there.
        let ret = unsafe {
            libc::madvise(ptr::without_provenance_mut(start), end - start, libc::MADV_DONTNEED)
        };
        Errno::result(ret)?;
    }
    Ok(())
}

/// The addresses of a line of `/proc/PID/maps`, if it maps code of `exe`. Its read-only data is left alone: a part of
/// it was relocated at the start, which a second read from the file would undo.
fn code_of(line: &str, exe: &Path) -> Option<(usize, usize)> {
    let mut fields = line.split_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let (permissions, path) = (fields.next()?, fields.nth(3)?);
    let address = |text| usize::from_str_radix(text, 16).ok();
    if permissions != "r-xp" || Path::new(path) != exe {
        return None;
    }
    Some((address(start)?, address(end)?))
}

/// `IPT_SO_GET_INFO` and `IPT_SO_GET_ENTRIES`; those of IPv6 have the same numbers.
const IPT_SO_GET: (i32, i32) = (64, 65);
/// Size of `struct ipt_getinfo`, whose last field is the size of the entries.
const IPT_GETINFO: usize = 84;
/// Offset of `size` in `struct ipt_get_entries`, and of the entries.
const IPT_GET_ENTRIES: (usize, usize) = (32, 40);
/// The table may grow between the two questions.
const TRIES: usize = 8;

/// A legacy table of iptables, in the kernel's own layout.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LegacyTable {
    /// The hooks at which it is called, one bit each.
    pub hooks: u32,
    /// Offset of the first rule of each hook.
    pub entry_points: [u32; 5],
    /// All rules.
    pub entries: Vec<u8>,
}

/// Returns a legacy table of iptables. Loads the table's
/// module if it is not there: ask for tables in use only.
///
/// # Errors
/// When there is no such table; needs `CAP_NET_ADMIN`.
pub fn legacy_table(family: Family, table: &str) -> io::Result<LegacyTable> {
    let (family, level) = match family {
        Family::V4 => (AddressFamily::Inet, libc::SOL_IP),
        Family::V6 => (AddressFamily::Inet6, libc::SOL_IPV6),
    };
    let socket = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let named = |length: usize| {
        let mut bytes = vec![0; length];
        bytes.iter_mut().zip(table.bytes().take(31)).for_each(|(to, from)| *to = from);
        bytes
    };
    let (info, entries) = IPT_SO_GET;
    let (size_at, entries_at) = IPT_GET_ENTRIES;
    for _ in 0..TRIES {
        let mut answer = named(IPT_GETINFO);
        option(&socket, (level, info), &mut answer)?;
        let (words, _) = answer.as_chunks();
        let word = |place: usize| words.get(place).map_or(0, |bytes| u32::from_ne_bytes(*bytes));
        let size = word(IPT_GETINFO / 4 - 1);
        let (hooks, entry_points) = (word(8), std::array::from_fn(|hook| word(9 + hook)));
        let mut answer = named(entries_at + size as usize);
        answer.iter_mut().skip(size_at).zip(size.to_ne_bytes()).for_each(|(to, from)| *to = from);
        match option(&socket, (level, entries), &mut answer) {
            Err(err) if err.raw_os_error() == Some(libc::EAGAIN) => {}
            other => {
                let entries = answer.split_off(entries_at.min(answer.len()));
                return other.map(|()| LegacyTable { hooks, entry_points, entries });
            }
        }
    }
    Err(io::Error::from(io::ErrorKind::ResourceBusy))
}

/// A socket's option, which fills the bytes.
fn option(socket: &OwnedFd, (level, name): (i32, i32), bytes: &mut [u8]) -> io::Result<()> {
    let mut length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `length` bytes, which are there.
    let ret = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            bytes.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    Errno::result(ret)?;
    Ok(())
}

/// The part `batch` of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Calls `each` for every element of a hash or array map, in the kernel's order. Elements that are written while the
/// walk goes on may be missed or shown; none is shown twice, since a bucket is copied at once.
///
/// # Errors
/// When the sizes differ or the kernel refuses.
pub fn for_each<K: Pod + Field, V: Pod + Field>(
    map: &impl IterableMap<K, V>,
    mut each: impl FnMut(&K, &V),
) -> io::Result<()> {
    walk(map, |key, value| {
        each(key, value);
        ControlFlow::Continue(())
    })
}

/// The same until `each` has enough. An array's elements come in the order of their indexes.
///
/// # Errors
/// As for [`for_each`].
pub fn walk<K: Pod + Field, V: Pod + Field>(
    map: &impl IterableMap<K, V>,
    mut each: impl FnMut(&K, &V) -> ControlFlow<()>,
) -> io::Result<()> {
    let map = map.map();
    check_sizes::<K, V>(map)?;
    let mut token = [0_u64; 8];
    let mut started = false;
    let mut chunk = CHUNK;
    let mut keys = vec![K::ZERO; chunk as usize];
    let mut values = vec![V::ZERO; chunk as usize];
    loop {
        let (n, end) = match lookup(map, &mut token, started, &mut keys, &mut values) {
            Ok(n) => (n, false),
            Err((Errno::ENOENT, n)) => (n, true),
            Err((Errno::ENOSPC, _)) if chunk < 1 << 20 => {
                chunk *= 2;
                keys.resize(chunk as usize, K::ZERO);
                values.resize(chunk as usize, V::ZERO);
                continue;
            }
            Err((e, _)) => return Err(e.into()),
        };
        for (key, value) in keys.iter().zip(&values).take(n) {
            if each(key, value).is_break() {
                return Ok(());
            }
        }
        if end || n == 0 {
            return Ok(());
        }
        started = true;
    }
}

fn check_sizes<K, V>(map: &MapData) -> io::Result<()> {
    let info = map.info().map_err(io::Error::other)?;
    if info.key_size() as usize == size_of::<K>() && info.value_size() as usize == size_of::<V>() {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "map {}: keys of {} and values of {} bytes, expected {} and {}",
        info.name_as_str().unwrap_or("?"),
        info.key_size(),
        info.value_size(),
        size_of::<K>(),
        size_of::<V>()
    )))
}

/// One call. `token` is where the walk stands: a bucket number or the last key, at most 64 bytes for our maps.
fn lookup<K: Pod, V: Pod>(
    map: &MapData,
    token: &mut [u64; 8],
    started: bool,
    keys: &mut [K],
    values: &mut [V],
) -> Result<usize, (Errno, usize)> {
    const { assert!(size_of::<K>() <= 64, "the token of an array is its key") };
    let position = token.as_mut_ptr() as u64;
    let mut attr = BatchAttr {
        in_batch: if started { position } else { 0 },
        out_batch: position,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: u32::try_from(keys.len().min(values.len())).unwrap_or(u32::MAX),
        map_fd: map.fd().as_fd().as_raw_fd() as u32,
        ..BatchAttr::default()
    };
    // SAFETY: `attr` has the layout of the kernel's union for this command. Its pointers go to memory that lives for
    // the call: `token` holds a key of up to 64 bytes, `keys` and `values` have room for `count` elements of the
    // map's sizes (checked by the caller), whose types are valid for every bit pattern (`Pod`). No safe wrapper of
    // this command exists.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_BATCH, &raw mut attr, size_of::<BatchAttr>())
    };
    let n = attr.count as usize;
    if result < 0 { Err((Errno::last(), n)) } else { Ok(n) }
}

/// `BPF_PROG_QUERY` of `enum bpf_cmd`.
const BPF_PROG_QUERY: i64 = 16;

/// The part `query` of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    pad: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// A hook of a device for TCX programs: its number in `enum bpf_attach_type`.
#[derive(Clone, Copy, Debug)]
pub enum TcxHook {
    /// What comes in.
    Ingress = 46,
    /// What leaves.
    Egress = 47,
}

/// Number of TCX programs at a hook. Aya tells more of them, for which it needs their descriptors and hence CAP_SYS_ADMIN.
///
/// # Errors
/// When there is no such device, or the kernel has no TCX or refuses (CAP_NET_ADMIN is missing).
pub fn count_tcx(ifindex: u32, hook: TcxHook) -> io::Result<u32> {
    let mut attr =
        QueryAttr { target_ifindex: ifindex, attach_type: hook as u32, ..QueryAttr::default() };
    // SAFETY: `attr` has the layout of the kernel's union for this command and lives for the call. It has no pointers: without
    // a place for ids the kernel writes their number alone.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut attr, size_of::<QueryAttr>())
    };
    Errno::result(result)?;
    Ok(attr.count)
}

/// Cookie of this thread's network namespace.
///
/// # Errors
/// When no socket can be made or the kernel is older than 5.14.
pub fn netns_cookie() -> io::Result<u64> {
    let socket = UnixDatagram::unbound()?;
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the option writes at most `length` bytes to `cookie`, which has that size; both live for the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    Errno::result(result)?;
    Ok(cookie)
}

/// Something whose descriptor can be waited for until it is readable. Must be called within a tokio runtime.
///
/// # Errors
/// When the kernel cannot watch this kind of descriptor.
pub fn readable<T: AsFd + AsRawFd>(inner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: `inner` owns its descriptor (`AsFd` promises a valid one for its life) and moves into the result, whose
    // registration ends before `inner` is dropped. Tokio's safe constructor is deprecated since `AsRawFd` alone
    // does not promise that.
    let registered = unsafe { AsyncFd::register_with_interest(inner, Interest::READABLE) };
    Ok(registered?)
}

#[cfg(test)]
mod tests {
    use super::{code_of, release_code};
    use std::path::Path;

    #[test]
    fn only_code_is_given_back() {
        let exe = Path::new("/bin/lb-agent");
        let code = "7f0000001000-7f0000003000 r-xp 000ad000 fe:00 247026     /bin/lb-agent";
        assert_eq!(code_of(code, exe), Some((0x7f00_0000_1000, 0x7f00_0000_3000)));
        for (from, to) in [("r-xp", "r--p"), ("r-xp", "rw-p"), ("/bin/lb-agent", "/lib/libc.so.6")]
        {
            assert_eq!(code_of(&code.replace(from, to), exe), None, "{to}");
        }
        assert_eq!(code_of("7f00-7f01 r-xp 00000000 00:00 0", exe), None, "no file");
    }

    #[test]
    fn a_program_goes_on_without_its_code() {
        release_code().unwrap();
        let digits: String = (0..10).map(|digit: u32| digit.to_string()).collect();
        assert_eq!(digits, "0123456789");
    }
}
