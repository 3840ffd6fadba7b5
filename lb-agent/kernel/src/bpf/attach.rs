//! Puts the programs onto their hooks and keeps them there: the only place that knows TCX from clsact.
//!
//! From Linux 6.6 on, a device gets TCX links, pinned by ifindex: they outlive the agent, and its next run (or another
//! role of the device) exchanges the program inside them in one step. Older kernels (they answer EINVAL) get filters in a clsact qdisc
//! at a fixed priority and handle, which a restart replaces likewise. Socket programs are links at the cgroup root.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::pin::PinError;
use aya::programs::cgroup_sock_addr::CgroupSockAddrLink;
use aya::programs::links::{FdLink, Link, PinnedLink};
use aya::programs::tc::{
    self, NlOptions, SchedClassifierLink, SchedClassifierLinkId, TcAttach, TcHandle,
};
use aya::programs::{
    CgroupAttachMode, CgroupSockAddr, LinkOrder, ProgramError, SchedClassifier, TcAttachType,
    TcError,
};
use lb_common::limits::SOCKET_PROGRAMS;
use libc::{EEXIST, EINVAL, ENODEV, ENOENT, ENOLINK, EOPNOTSUPP};

use crate::bpf::pins::{self, Hook, Pin, Pins, PinsError};
use crate::devices::qdisc;
use crate::devices::uplinks::Layer;

/// Priority of our filters in a clsact qdisc: before everything else.
const PRIORITY: u16 = 1;
/// Handle of our filters, "lb" in ASCII.
const HANDLE: TcHandle = TcHandle::new(0, 0x6c62);

/// What could not be attached, and why.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The kernel object lacks a program.
    #[error("the kernel object has no program {program} of the right type")]
    Program {
        /// Its name.
        program: String,
    },
    /// The device went away meanwhile; nothing is left to do.
    #[error("device {ifindex}: no longer exists")]
    Gone {
        /// Its ifindex.
        ifindex: u32,
    },
    /// The kernel refused an attachment.
    #[error("{target}: cannot attach {program}: {}", root_cause(source.as_ref()))]
    Attach {
        /// The program.
        program: String,
        /// Device or cgroup.
        target: String,
        /// The kernel's answer.
        source: Box<ProgramError>,
    },
    /// A link could not be pinned.
    #[error("{}: cannot pin the link: {}", path.display(), root_cause(source))]
    Pin {
        /// The pin.
        path: PathBuf,
        /// The kernel's answer.
        source: PinError,
    },
    /// A pin could not be listed or removed.
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// The device has an `ingress` qdisc, which excludes clsact.
    #[error(
        "device {ifindex}: has an ingress qdisc of another program (a bandwidth plugin?), which excludes clsact before Linux 6.6"
    )]
    IngressQdisc {
        /// Its ifindex.
        ifindex: u32,
    },
    /// A qdisc could not be read or removed.
    #[error("device {ifindex}: qdisc: {source}")]
    Qdisc {
        /// Its ifindex.
        ifindex: u32,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// What a device is to us, which decides on its programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The host's end of a Pod's veth.
    Pod,
    /// A device by which packets of other machines come and go.
    Uplink {
        /// Where the IP header of its packets begins.
        layer: Layer,
        /// Whether packets that leave are looked at: answers of backends that are processes of this host, and what it
        /// sends from the port of a frontend.
        departures: bool,
    },
}

impl Role {
    /// As logs have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Uplink { .. } => "uplink",
        }
    }

    /// The program that counts packets at a hook, while flows are counted.
    pub const fn account_program(self, hook: Hook) -> Option<&'static str> {
        match (self, hook) {
            (Self::Pod | Self::Uplink { layer: Layer::Ethernet, .. }, Hook::Ingress) => {
                Some("account_in")
            }
            (Self::Uplink { layer: Layer::Ip, .. }, Hook::Ingress) => Some("account_in_l3"),
            (Self::Pod, Hook::Egress) => Some("account_out"),
            (Self::Uplink { .. }, Hook::Egress) => None,
        }
    }

    /// The program that belongs at a hook.
    pub const fn program(self, hook: Hook) -> Option<&'static str> {
        match (self, hook) {
            (Self::Pod, Hook::Ingress) => Some("pod_out"),
            (Self::Pod, Hook::Egress) => Some("pod_in"),
            (Self::Uplink { layer: Layer::Ethernet, .. }, Hook::Ingress) => Some("dev_in"),
            (Self::Uplink { layer: Layer::Ip, .. }, Hook::Ingress) => Some("dev_in_l3"),
            (Self::Uplink { departures: false, .. }, Hook::Egress) => None,
            (Self::Uplink { layer: Layer::Ethernet, .. }, Hook::Egress) => Some("dev_out"),
            (Self::Uplink { layer: Layer::Ip, .. }, Hook::Egress) => Some("dev_out_l3"),
        }
    }
}

/// How programs get onto a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// TCX links (Linux 6.6).
    Tcx,
    /// Filters in a clsact qdisc.
    Clsact,
}

impl Mechanism {
    /// The word in logs and `lbctl status`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// A program at a hook of a device.
#[derive(Clone, Copy)]
struct HookPoint {
    ifindex: u32,
    hook: Hook,
    program: &'static str,
}

/// The loaded programs and the means to attach them.
pub struct Hooks {
    ebpf: Ebpf,
    pins: Pins,
    mechanism: Option<Mechanism>,
    counts_flows: bool,
}

impl Hooks {
    /// Takes over the loaded programs. `mechanism` forces one; `None` tries TCX first and believes the kernel's
    /// answer, not its version.
    pub fn new(ebpf: Ebpf, pins: Pins, mechanism: Option<Mechanism>) -> Self {
        Self { ebpf, pins, mechanism, counts_flows: false }
    }

    /// Attaches the programs that count packets, too, which are loaded. Only TCX has a place for them before the others.
    #[must_use]
    pub fn counting_flows(self) -> Self {
        Self { counts_flows: true, ..self }
    }

    /// How devices are attached to, once the first one was.
    pub fn mechanism(&self) -> Option<Mechanism> {
        self.mechanism
    }

    /// Attaches the socket programs to the root of the cgroup v2 hierarchy, or updates the links that an earlier
    /// run left. Idempotent.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach_sockets(&mut self, cgroup: &Path) -> Result<(), AttachError> {
        let root = File::open(cgroup)
            .map_err(|source| PinsError::Io { path: cgroup.to_owned(), source })?;
        for name in SOCKET_PROGRAMS {
            let path = self.pins.socket_link(name);
            let program = sock_addr(&mut self.ebpf, name)?;
            let failed = |source| AttachError::Attach {
                program: name.to_owned(),
                target: format!("cgroup {}", cgroup.display()),
                source: Box::new(source),
            };
            if update_socket(program, &path).map_err(failed)? {
                continue;
            }
            pins::remove(&path)?;
            let id = program.attach(&root, CgroupAttachMode::Single).map_err(failed)?;
            let link = program.take_link(id).map_err(failed)?;
            pin(link.try_into().map_err(|e| failed(ProgramError::LinkError(e)))?, &path)?;
        }
        Ok(())
    }

    /// Attaches the programs of its role to a device, or updates what an earlier run or another role left there, and
    /// removes what the role has no use for. Idempotent.
    ///
    /// # Errors
    /// [`AttachError::Gone`] when the device has left meanwhile, else when the kernel refuses.
    pub fn attach(&mut self, ifindex: u32, role: Role) -> Result<(), AttachError> {
        self.attach_role(ifindex, role)?;
        for hook in Hook::ALL {
            let path = self.pins.account_link(ifindex, hook);
            match role.account_program(hook).filter(|_| self.counts_flows) {
                // Later than the others, and before them at the hook.
                Some(program) if self.mechanism == Some(Mechanism::Tcx) => {
                    self.attach_tcx(HookPoint { ifindex, hook, program }, &path)?;
                }
                Some(_) | None => pins::remove(&path)?,
            }
        }
        Ok(())
    }

    fn attach_role(&mut self, ifindex: u32, role: Role) -> Result<(), AttachError> {
        for hook in Hook::ALL {
            let Some(program) = role.program(hook) else {
                self.detach(ifindex, hook)?;
                continue;
            };
            let place = HookPoint { ifindex, hook, program };
            let path = self.pins.device_link(ifindex, hook);
            match self.mechanism {
                Some(Mechanism::Tcx) => self.attach_tcx(place, &path)?,
                Some(Mechanism::Clsact) => self.attach_clsact(place)?,
                None => match self.attach_tcx(place, &path) {
                    Err(AttachError::Attach { source, .. })
                        if matches!(os_error(&source), Some(EINVAL | EOPNOTSUPP)) =>
                    {
                        self.attach_clsact(place)?;
                        self.mechanism = Some(Mechanism::Clsact);
                    }
                    Err(e) => return Err(e),
                    Ok(()) => self.mechanism = Some(Mechanism::Tcx),
                },
            }
        }
        Ok(())
    }

    /// Forgets a device that is gone or has no role any more: removes its pins, and filters where there are some.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn forget(&mut self, ifindex: u32) -> Result<(), AttachError> {
        for hook in Hook::ALL {
            pins::remove(&self.pins.device_link(ifindex, hook))?;
            pins::remove(&self.pins.account_link(ifindex, hook))?;
        }
        if self.mechanism == Some(Mechanism::Clsact) {
            detach_filters(&self.pins, ifindex)?;
        }
        Ok(())
    }

    /// Removes the pins of devices that have no role (any more). Returns how many devices that were.
    ///
    /// # Errors
    /// When pins cannot be listed or removed.
    pub fn remove_stale(&mut self, has_role: impl Fn(u32) -> bool) -> Result<usize, AttachError> {
        let mut stale = std::collections::BTreeSet::new();
        for (path, pin) in self.pins.list()? {
            if let Pin::DeviceLink(ifindex, _) | Pin::AccountLink(ifindex, _) | Pin::Qdisc(ifindex) =
                pin
                && !has_role(ifindex)
            {
                match pin {
                    Pin::Qdisc(_) => detach_filters(&self.pins, ifindex)?,
                    _ => pins::remove(&path)?,
                }
                stale.insert(ifindex);
            }
        }
        Ok(stale.len())
    }

    /// Leaves one hook of a device to others.
    fn detach(&self, ifindex: u32, hook: Hook) -> Result<(), AttachError> {
        pins::remove(&self.pins.device_link(ifindex, hook))?;
        if self.mechanism == Some(Mechanism::Clsact) {
            detach_filter(ifindex, hook)?;
        }
        Ok(())
    }

    fn attach_tcx(&mut self, place: HookPoint, path: &Path) -> Result<(), AttachError> {
        let HookPoint { ifindex, hook, .. } = place;
        let program = classifier(&mut self.ebpf, place)?;
        let failed = |source| attach_error(place, source);
        if update_tcx(program, path).map_err(failed)? {
            return Ok(());
        }
        // The pin of an earlier device with this ifindex: its link is dead.
        pins::remove(path)?;
        let attach = TcAttach::Tcx { attach_type: attach_type(hook), order: LinkOrder::first() };
        let id = program.attach(ifindex, attach).map_err(failed)?;
        let link = program.take_link(id).map_err(failed)?;
        pin(link.try_into().map_err(|e| failed(ProgramError::LinkError(e)))?, path)
    }

    fn attach_clsact(&mut self, place: HookPoint) -> Result<(), AttachError> {
        let HookPoint { ifindex, hook, .. } = place;
        match tc::qdisc_add_clsact(ifindex) {
            Ok(()) => {
                let mark = self.pins.qdisc(ifindex);
                if !mark.is_dir() {
                    std::fs::create_dir(&mark)
                        .map_err(|source| PinsError::Io { path: mark, source })?;
                }
            }
            Err(e) if tc_os_error(&e) == Some(EEXIST) => {
                // An `ingress` qdisc sits at the same handle; at it, even a filter for egress would run on ingress.
                let qdiscs = qdisc::of_device(ifindex)
                    .map_err(|source| AttachError::Qdisc { ifindex, source })?;
                if qdiscs.ingress.as_deref() == Some("ingress") {
                    return Err(AttachError::IngressQdisc { ifindex });
                }
            }
            Err(e) => return Err(attach_error(place, ProgramError::TcError(e))),
        }
        let parent = TcHandle::from(attach_type(hook));
        let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
        let program = classifier(&mut self.ebpf, place)?;
        let failed = |source| attach_error(place, source);
        let id = match program.attach(ifindex, TcAttach::Netlink { parent, options }) {
            Err(e) if os_error(&e) == Some(EEXIST) => {
                replace_filter(program, ifindex, parent).map_err(failed)?
            }
            other => other.map_err(failed)?,
        };
        // Dropping the link would remove the filter: it is to stay when the agent ends.
        std::mem::forget(program.take_link(id).map_err(failed)?);
        Ok(())
    }
}

/// Removes our filters from a device, and its clsact qdisc if we added it and no other filter uses it.
///
/// # Errors
/// When the kernel refuses.
pub fn detach_filters(pins: &Pins, ifindex: u32) -> Result<(), AttachError> {
    for hook in Hook::ALL {
        detach_filter(ifindex, hook)?;
    }
    let failed = |source| AttachError::Qdisc { ifindex, source };
    if pins.qdisc(ifindex).is_dir() && !qdisc::has_filters(ifindex).map_err(failed)? {
        qdisc::delete_clsact(ifindex).map_err(failed)?;
    }
    Ok(pins::remove(&pins.qdisc(ifindex))?)
}

fn detach_filter(ifindex: u32, hook: Hook) -> Result<(), AttachError> {
    let parent = TcHandle::from(attach_type(hook));
    let detached = SchedClassifierLink::attached(ifindex, parent, PRIORITY, HANDLE, None)
        .map_err(ProgramError::IOError)
        .and_then(Link::detach);
    match detached {
        // No filter, no qdisc, no device: nothing of ours.
        Err(e) if matches!(os_error(&e), Some(EINVAL | ENODEV | ENOENT)) => Ok(()),
        other => other.map_err(|e| attach_error(HookPoint { ifindex, hook, program: "filter" }, e)),
    }
}

/// Exchanges the program of the pinned TCX link. `false`: there is no live link at the pin.
fn update_tcx(program: &mut SchedClassifier, path: &Path) -> Result<bool, ProgramError> {
    let Some(link) = open_link(path)? else { return Ok(false) };
    match program.attach_to_link(SchedClassifierLink::try_from(link)?) {
        Ok(id) => {
            program.take_link(id)?;
            Ok(true)
        }
        Err(e) if os_error(&e) == Some(ENOLINK) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Exchanges the program of the pinned cgroup link. `false`: there is no live link at the pin.
fn update_socket(program: &mut CgroupSockAddr, path: &Path) -> Result<bool, ProgramError> {
    let Some(link) = open_link(path)? else { return Ok(false) };
    match program.attach_to_link(CgroupSockAddrLink::try_from(link)?) {
        Ok(id) => {
            program.take_link(id)?;
            Ok(true)
        }
        Err(e) if os_error(&e) == Some(ENOLINK) => Ok(false),
        Err(e) => Err(e),
    }
}

fn open_link(path: &Path) -> Result<Option<FdLink>, ProgramError> {
    match PinnedLink::from_pin(path) {
        Ok(link) => Ok(Some(link.into())),
        Err(e) => {
            let e = ProgramError::LinkError(e);
            if os_error(&e) == Some(ENOENT) { Ok(None) } else { Err(e) }
        }
    }
}

fn replace_filter(
    program: &mut SchedClassifier,
    ifindex: u32,
    parent: TcHandle,
) -> Result<SchedClassifierLinkId, ProgramError> {
    let link = SchedClassifierLink::attached(ifindex, parent, PRIORITY, HANDLE, None)?;
    program.attach_to_link(link)
}

fn pin(link: FdLink, path: &Path) -> Result<(), AttachError> {
    let pinned =
        link.pin(path).map_err(|source| AttachError::Pin { path: path.to_owned(), source })?;
    // Closes our descriptor; the file keeps the link.
    drop(pinned);
    Ok(())
}

fn classifier(ebpf: &mut Ebpf, place: HookPoint) -> Result<&mut SchedClassifier, AttachError> {
    let missing = || AttachError::Program { program: place.program.to_owned() };
    ebpf.program_mut(place.program).and_then(|program| program.try_into().ok()).ok_or_else(missing)
}

fn sock_addr<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut CgroupSockAddr, AttachError> {
    let missing = || AttachError::Program { program: name.to_owned() };
    ebpf.program_mut(name).and_then(|program| program.try_into().ok()).ok_or_else(missing)
}

const fn attach_type(hook: Hook) -> TcAttachType {
    match hook {
        Hook::Ingress => TcAttachType::Ingress,
        Hook::Egress => TcAttachType::Egress,
    }
}

fn attach_error(place: HookPoint, source: ProgramError) -> AttachError {
    let HookPoint { ifindex, program, .. } = place;
    if os_error(&source) == Some(ENODEV) {
        return AttachError::Gone { ifindex };
    }
    AttachError::Attach {
        program: program.to_owned(),
        target: format!("device {ifindex}"),
        source: Box::new(source),
    }
}

/// The kernel's answer inside an error.
fn os_error(error: &ProgramError) -> Option<i32> {
    match error {
        ProgramError::SyscallError(e) => e.io_error.raw_os_error(),
        ProgramError::IOError(e) => e.raw_os_error(),
        ProgramError::NetlinkError(e) => e.raw_os_error(),
        ProgramError::TcError(e) => tc_os_error(e),
        ProgramError::LinkError(aya::programs::links::LinkError::SyscallError(e)) => {
            e.io_error.raw_os_error()
        }
        _ => None,
    }
}

fn tc_os_error(error: &TcError) -> Option<i32> {
    match error {
        TcError::NetlinkError(e) => e.raw_os_error(),
        TcError::IoError(e) => e.raw_os_error(),
        _ => None,
    }
}

fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
