//! The pin directory: where maps and links stay in the kernel while no agent runs.
//!
//! ```text
//! <pin-dir>/<map>_v<version>       a map, with the version of its layout
//! <pin-dir>/<map>_v<version>_old   a map that another one with another capacity takes the place of
//! <pin-dir>/<map>_v<version>_next  a larger one that is being filled
//! <pin-dir>/<map>_v<version>_<n>   a further part of a table, 1 and on
//! <pin-dir>/l_<ifindex>_<in|out>   the link of a device (TCX)
//! <pin-dir>/a_<ifindex>_<in|out>   the link of a program there that counts packets (TCX)
//! <pin-dir>/cg_<program>           the link of a socket program
//! <pin-dir>/p_<program>            a program that is attached nowhere
//! <pin-dir>/q_<ifindex>            a directory: the clsact qdisc of this device was added by us
//! ```
//! It knows names and files only; what is behind a pin is the business of `maps` and `attach`.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use lb_common::limits::{MAP_ACCOUNTS, MAPS, MapSpec};
use nix::errno::Errno;
use nix::mount::MsFlags;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

/// Where a bpf file system is mounted when the machine has none.
const BPFFS: &str = "/sys/fs/bpf";

/// Why the pin directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PinsError {
    /// There is no bpf file system and the mount was refused.
    #[error(
        "no bpf file system at {BPFFS} and it cannot be mounted ({source}): run `mount -t bpf bpf {BPFFS}` on the node or grant CAP_SYS_ADMIN"
    )]
    Mount {
        /// The kernel's answer.
        source: Errno,
    },
    /// The directory lies in another file system.
    #[error("pin directory {dir}: not in a bpf file system; choose one below {BPFFS} or run `mount -t bpf bpf DIR` first", dir = dir.display())]
    NotBpffs {
        /// The directory.
        dir: PathBuf,
    },
    /// A file or directory could not be read, created or removed.
    #[error("pin {path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// One of the two tc hooks of a device, as the kernel names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hook {
    /// tc ingress: at a Pod's veth, packets that leave the Pod.
    Ingress,
    /// tc egress: at a Pod's veth, packets that enter the Pod.
    Egress,
}

impl Hook {
    /// Both hooks, in the order in which programs are attached: what translates answers is in place before what opens
    /// flows.
    pub const ALL: [Self; 2] = [Self::Egress, Self::Ingress];

    /// Its word in the name of a pin.
    const fn word(self) -> &'static str {
        match self {
            Self::Ingress => "in",
            Self::Egress => "out",
        }
    }
}

/// What the name of a pin says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pin {
    /// A map of ours and its layout version.
    Map(&'static str, u32),
    /// One whose place another one takes.
    Aside(&'static str, u32),
    /// One that takes its place when it is filled.
    Next(&'static str, u32),
    /// A further part of a table.
    Part(&'static str, u32, u32),
    /// The link at a hook of a device.
    DeviceLink(u32, Hook),
    /// The link of a program that counts packets, at a hook of a device.
    AccountLink(u32, Hook),
    /// The link of a socket program.
    SocketLink(String),
    /// A program that is attached nowhere.
    Program(String),
    /// The mark of a clsact qdisc that we added.
    Qdisc(u32),
}

/// An existing pin directory.
#[derive(Clone, Debug)]
pub struct Pins {
    dir: PathBuf,
}

impl Pins {
    /// Makes the directory, and mounts the bpf file system for it if the machine has none.
    ///
    /// # Errors
    /// When it is not in a bpf file system, or the mount or the directory is refused.
    pub fn create(dir: &Path) -> Result<Self, PinsError> {
        if !in_bpffs(dir) {
            if !dir.starts_with(BPFFS) {
                return Err(PinsError::NotBpffs { dir: dir.to_owned() });
            }
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            nix::mount::mount(Some("bpf"), BPFFS, Some("bpf"), flags, None::<&str>)
                .map_err(|source| PinsError::Mount { source })?;
        }
        fs::create_dir_all(dir).map_err(|source| PinsError::Io { path: dir.to_owned(), source })?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// The directory, if it exists.
    pub fn existing(dir: &Path) -> Option<Self> {
        (dir.is_dir() && in_bpffs(dir)).then(|| Self { dir: dir.to_owned() })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Pin of a map, current version.
    pub fn map(&self, map: &MapSpec) -> PathBuf {
        self.dir.join(format!("{}_v{}", map.name, map.version))
    }

    /// Pin of a map that another one with another capacity takes the place of.
    pub fn aside(&self, map: &MapSpec) -> PathBuf {
        self.dir.join(format!("{}_v{}_old", map.name, map.version))
    }

    /// Pin of a larger map that is being filled.
    pub fn next(&self, map: &MapSpec) -> PathBuf {
        self.dir.join(format!("{}_v{}_next", map.name, map.version))
    }

    /// Pin of a part of a table. The first part is the map itself.
    pub fn part(&self, map: &MapSpec, part: u32) -> PathBuf {
        match part {
            0 => self.map(map),
            part => self.dir.join(format!("{}_v{}_{part}", map.name, map.version)),
        }
    }

    /// Pin of the link at a hook of a device.
    pub fn device_link(&self, ifindex: u32, hook: Hook) -> PathBuf {
        self.dir.join(format!("l_{ifindex}_{}", hook.word()))
    }

    /// Pin of the link of a program that counts packets, at a hook of a device.
    pub fn account_link(&self, ifindex: u32, hook: Hook) -> PathBuf {
        self.dir.join(format!("a_{ifindex}_{}", hook.word()))
    }

    /// Pin of the link of a socket program.
    pub fn socket_link(&self, program: &str) -> PathBuf {
        self.dir.join(format!("cg_{program}"))
    }

    /// Pin of a program that is attached nowhere.
    pub fn program(&self, program: &str) -> PathBuf {
        self.dir.join(format!("p_{program}"))
    }

    /// Mark of a clsact qdisc that we added.
    pub fn qdisc(&self, ifindex: u32) -> PathBuf {
        self.dir.join(format!("q_{ifindex}"))
    }

    /// Everything in the directory that is ours.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn list(&self) -> Result<Vec<(PathBuf, Pin)>, PinsError> {
        let io = |source| PinsError::Io { path: self.dir.clone(), source };
        let mut pins = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(io)? {
            let entry = entry.map_err(io)?;
            if let Some(pin) = entry.file_name().to_str().and_then(parse) {
                pins.push((entry.path(), pin));
            }
        }
        Ok(pins)
    }

    /// Removes the maps of other layout versions, once the current ones are in place, except those that are still `needed`. Returns
    /// what was removed.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn remove_other_versions(&self, needed: &[PathBuf]) -> Result<Vec<PathBuf>, PinsError> {
        let mut removed = Vec::new();
        for (path, pin) in self.list()? {
            if let Pin::Map(name, version)
            | Pin::Aside(name, version)
            | Pin::Next(name, version)
            | Pin::Part(name, version, _) = pin
                && MAPS.iter().any(|map| map.name == name && map.version != version)
                && !needed.contains(&path)
            {
                remove(&path)?;
                removed.push(path);
            }
        }
        Ok(removed)
    }

    /// Removes what counts packets of flows: the links, so that the programs leave their devices, and the map.
    /// Returns whether there was anything.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn remove_accounts(&self) -> Result<bool, PinsError> {
        let mut found = false;
        for (path, pin) in self.list()? {
            let is_of_it = match pin {
                Pin::AccountLink(..) => true,
                Pin::Map(name, _) => name == MAP_ACCOUNTS.name,
                Pin::Aside(..)
                | Pin::Next(..)
                | Pin::Part(..)
                | Pin::DeviceLink(..)
                | Pin::SocketLink(_)
                | Pin::Program(_)
                | Pin::Qdisc(_) => false,
            };
            if is_of_it {
                remove(&path)?;
                found = true;
            }
        }
        Ok(found)
    }

    /// Removes every pin of ours and the directory, if nothing else is in it.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn remove_all(self) -> Result<(), PinsError> {
        for (path, _) in self.list()? {
            remove(&path)?;
        }
        match fs::remove_dir(&self.dir) {
            // A mount point (in a container with a read-only root), or the directory has other content.
            Err(e)
                if !matches!(
                    e.kind(),
                    io::ErrorKind::DirectoryNotEmpty
                        | io::ErrorKind::ResourceBusy
                        | io::ErrorKind::ReadOnlyFilesystem
                ) =>
            {
                Err(PinsError::Io { path: self.dir, source: e })
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// Removes a pin (or the mark of a qdisc); one that is already gone is fine.
///
/// # Errors
/// When the kernel refuses.
pub fn remove(path: &Path) -> Result<(), PinsError> {
    let result = if path.is_dir() { fs::remove_dir(path) } else { fs::remove_file(path) };
    match result {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(PinsError::Io { path: path.to_owned(), source: e })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Whether `dir`, or the part of it that exists, lies in a bpf file system.
fn in_bpffs(dir: &Path) -> bool {
    let existing = dir.ancestors().find(|path| path.exists());
    existing
        .is_some_and(|path| statfs(path).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC))
}

/// Reads the name of a pin.
fn parse(name: &str) -> Option<Pin> {
    if let Some(program) = name.strip_prefix("cg_") {
        return Some(Pin::SocketLink(program.to_owned()));
    }
    if let Some(program) = name.strip_prefix("p_") {
        return Some(Pin::Program(program.to_owned()));
    }
    if let Some(ifindex) = name.strip_prefix("q_") {
        return Some(Pin::Qdisc(ifindex.parse().ok()?));
    }
    for (prefix, counts) in [("l_", false), ("a_", true)] {
        let Some(rest) = name.strip_prefix(prefix) else { continue };
        if let Some((ifindex, word)) = rest.split_once('_')
            && let Some(hook) = Hook::ALL.into_iter().find(|hook| hook.word() == word)
            && let Ok(ifindex) = ifindex.parse()
        {
            return Some(if counts {
                Pin::AccountLink(ifindex, hook)
            } else {
                Pin::DeviceLink(ifindex, hook)
            });
        }
    }
    let (map, version) = name.rsplit_once("_v")?;
    let map = MAPS.iter().find(|spec| spec.name == map)?;
    Some(match version.split_once('_') {
        None => Pin::Map(map.name, version.parse().ok()?),
        Some((version, "old")) => Pin::Aside(map.name, version.parse().ok()?),
        Some((version, "next")) => Pin::Next(map.name, version.parse().ok()?),
        Some((version, part)) => Pin::Part(map.name, version.parse().ok()?, part.parse().ok()?),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Hook, Pin, Pins, parse};
    use lb_common::limits::MAP_SK_NAT;

    #[test]
    fn names_of_pins_are_read_as_they_are_written() {
        let pins = Pins { dir: Path::new("/x").to_owned() };
        let cases = [
            (pins.map(&MAP_SK_NAT), Some(Pin::Map("sk_nat", 1))),
            (Path::new("/x/ct_v12").to_owned(), Some(Pin::Map("ct", 12))),
            (pins.aside(&MAP_SK_NAT), Some(Pin::Aside("sk_nat", 1))),
            (pins.next(&MAP_SK_NAT), Some(Pin::Next("sk_nat", 1))),
            (pins.part(&MAP_SK_NAT, 0), Some(Pin::Map("sk_nat", 1))),
            (pins.part(&MAP_SK_NAT, 12), Some(Pin::Part("sk_nat", 1, 12))),
            (pins.device_link(7, Hook::Ingress), Some(Pin::DeviceLink(7, Hook::Ingress))),
            (pins.device_link(41, Hook::Egress), Some(Pin::DeviceLink(41, Hook::Egress))),
            (pins.socket_link("connect4"), Some(Pin::SocketLink("connect4".to_owned()))),
            (pins.account_link(7, Hook::Egress), Some(Pin::AccountLink(7, Hook::Egress))),
            (pins.program("listening"), Some(Pin::Program("listening".to_owned()))),
            (pins.qdisc(9), Some(Pin::Qdisc(9))),
            (Path::new("/x/l_7_sideways").to_owned(), None),
            (Path::new("/x/l_x_in").to_owned(), None),
            (Path::new("/x/a_v1").to_owned(), None),
            (Path::new("/x/theirs_v1").to_owned(), None),
            (Path::new("/x/ct").to_owned(), None),
        ];
        for (path, want) in cases {
            let name = path.file_name().unwrap().to_str().unwrap();
            assert_eq!(parse(name), want, "{name}");
        }
    }

    #[test]
    fn a_directory_elsewhere_is_refused_by_name() {
        let error = Pins::create(Path::new("/tmp/lb-not-bpffs/x")).unwrap_err().to_string();
        assert!(error.starts_with("pin directory /tmp/lb-not-bpffs/x: not in a bpf"), "{error}");
    }
}
