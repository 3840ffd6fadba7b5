//! Which devices are attached to, in which role, and when to try again.
//!
//! Pure bookkeeping; the loop does what it says.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::agent::past::Progress;
use lb_kernel::bpf::attach::Role;
use lb_kernel::bpf::pins::Hook;
use lb_kernel::devices::uplinks::Layer;

/// First and longest wait before another try.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(30));

/// Where a device stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The attachment is under way.
    Attaching,
    /// All programs of the role are in place.
    Attached,
    /// It failed, and is tried again then.
    Failed { at: Instant },
}

#[derive(Clone, Debug)]
struct AttachedDevice {
    role: Role,
    since: Instant,
    stage: Stage,
    wait: Duration,
    error: Option<String>,
}

/// An attachment to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attachment {
    /// The device.
    pub ifindex: u32,
    /// What it is to us.
    pub role: Role,
    /// When it was first heard of in this role.
    pub since: Instant,
}

/// All devices with a role.
#[derive(Debug, Default)]
pub(super) struct Attachments {
    devices: BTreeMap<u32, AttachedDevice>,
}

impl Attachments {
    /// A device is to be attached to.
    pub(super) fn begin(&mut self, attachment: Attachment) {
        let Attachment { ifindex, role, since } = attachment;
        let device =
            AttachedDevice { role, since, stage: Stage::Attaching, wait: RETRY.0, error: None };
        self.devices.insert(ifindex, device);
    }

    /// A device is gone, or has no role any more.
    pub(super) fn gone(&mut self, ifindex: u32) {
        self.devices.remove(&ifindex);
    }

    /// Records the result of an attachment. After failures, returns how long the device was without programs. The result of an
    /// earlier role is ignored.
    pub(super) fn attached(
        &mut self,
        (ifindex, role): (u32, Role),
        result: Result<(), String>,
        now: Instant,
    ) -> Option<Duration> {
        let device = self.devices.get_mut(&ifindex).filter(|device| device.role == role)?;
        match result {
            Ok(()) => {
                device.stage = Stage::Attached;
                device.wait = RETRY.0;
                device.error.take().map(|_| now.duration_since(device.since))
            }
            Err(error) => {
                device.stage = Stage::Failed { at: now + device.wait };
                device.wait = (device.wait * 2).min(RETRY.1);
                device.error = Some(error);
                None
            }
        }
    }

    /// Attachments that are to be tried again now.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<Attachment> {
        let mut due = Vec::new();
        for (ifindex, device) in &mut self.devices {
            if matches!(device.stage, Stage::Failed { at } if at <= now) {
                device.stage = Stage::Attaching;
                due.push(Attachment { ifindex: *ifindex, role: device.role, since: device.since });
            }
        }
        due
    }

    /// When something is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.devices
            .values()
            .filter_map(|device| match device.stage {
                Stage::Failed { at } => Some(at),
                Stage::Attaching | Stage::Attached => None,
            })
            .min()
    }

    /// The devices by which packets of other machines come and go.
    pub(super) fn uplinks(&self) -> impl Iterator<Item = (u32, Layer)> {
        self.devices.iter().filter_map(|(ifindex, device)| match device.role {
            Role::Pod => None,
            Role::Uplink { layer, .. } => Some((*ifindex, layer)),
        })
    }

    /// Devices that want this program, and those that have it.
    pub(super) fn count(&self, program: &str) -> (usize, usize) {
        let wants = |device: &&AttachedDevice| {
            Hook::ALL.into_iter().any(|hook| device.role.program(hook) == Some(program))
        };
        let wanting = || self.devices.values().filter(wants);
        (wanting().count(), wanting().filter(|device| device.stage == Stage::Attached).count())
    }

    /// How far the programs of Pods' devices are.
    pub(super) fn progress(&self) -> Progress {
        self.progress_of(|role| role == Role::Pod)
    }

    /// The same of the other devices whose frames they can read.
    pub(super) fn uplink_progress(&self) -> Progress {
        self.progress_of(|role| matches!(role, Role::Uplink { layer: Layer::Ethernet, .. }))
    }

    fn progress_of(&self, is_meant: impl Fn(Role) -> bool) -> Progress {
        let mut progress = Progress::default();
        for (ifindex, device) in self.devices.iter().filter(|(_, device)| is_meant(device.role)) {
            match device.stage {
                Stage::Attached => drop(progress.attached.insert(*ifindex)),
                Stage::Attaching => drop(progress.attaching.insert(*ifindex)),
                Stage::Failed { .. } => {}
            }
        }
        progress
    }

    /// Pods' devices, and those with all programs.
    pub(super) fn pods(&self) -> (usize, usize) {
        let pods = || self.devices.values().filter(|device| device.role == Role::Pod);
        (pods().count(), pods().filter(|device| device.stage == Stage::Attached).count())
    }

    /// All other devices, and those with all programs.
    pub(super) fn n_uplinks(&self) -> (usize, usize) {
        let uplinks = || self.devices.values().filter(|device| device.role != Role::Pod);
        (uplinks().count(), uplinks().filter(|device| device.stage == Stage::Attached).count())
    }

    /// Devices that could not be attached to, their role, and why.
    pub(super) fn errors(&self) -> impl Iterator<Item = (u32, Role, &str)> {
        self.devices
            .iter()
            .filter_map(|(ifindex, device)| Some((*ifindex, device.role, device.error.as_deref()?)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Attachment, Attachments, Layer, Role};

    const UPLINK: Role = Role::Uplink { layer: Layer::Ethernet, departures: false };
    const ANSWERING: Role = Role::Uplink { layer: Layer::Ethernet, departures: true };

    #[test]
    fn failures_are_tried_again_ever_more_rarely() {
        let start = Instant::now();
        let mut all = Attachments::default();
        let attachment = Attachment { ifindex: 5, role: Role::Pod, since: start };
        all.begin(attachment);
        let mut now = start;
        let mut waits = Vec::new();
        for _ in 0..12 {
            assert!(all.take_due(now).is_empty(), "under way");
            assert_eq!(all.attached((5, Role::Pod), Err("no".to_owned()), now), None);
            let due = all.next_due().unwrap();
            waits.push((due - now).as_millis());
            now = due;
            assert_eq!(all.take_due(now), [attachment]);
        }
        assert_eq!(waits[..3], [50, 100, 200]);
        assert_eq!(waits[11], 30_000);
        assert_eq!(all.errors().collect::<Vec<_>>(), [(5, Role::Pod, "no")]);
        assert_eq!(all.pods(), (1, 0));
        assert_eq!(all.attached((5, Role::Pod), Ok(()), now), Some(now - start));
        assert_eq!((all.pods(), all.errors().count()), ((1, 1), 0));
        let later = now + Duration::from_secs(1);
        assert_eq!(all.attached((5, Role::Pod), Ok(()), later), None, "no gap");
        assert_eq!(all.attached((6, Role::Pod), Ok(()), now), None, "gone meanwhile");
    }

    #[test]
    fn programs_are_counted_by_role() {
        let since = Instant::now();
        let mut all = Attachments::default();
        for (ifindex, role) in [(2, UPLINK), (5, Role::Pod), (6, Role::Pod)] {
            all.begin(Attachment { ifindex, role, since });
            all.attached((ifindex, role), Ok(()), since);
        }
        assert_eq!((all.count("dev_in"), all.count("dev_out")), ((1, 1), (0, 0)));
        all.begin(Attachment { ifindex: 2, role: ANSWERING, since });
        all.attached((2, UPLINK), Ok(()), since);
        assert_eq!(all.count("dev_out"), (1, 0), "the earlier role's result does not count");
        all.attached((2, ANSWERING), Ok(()), since);
        assert_eq!((all.count("dev_in"), all.count("dev_out")), ((1, 1), (1, 1)));
        assert_eq!((all.pods(), all.n_uplinks()), ((2, 2), (1, 1)));
        assert_eq!(all.uplinks().collect::<Vec<_>>(), [(2, Layer::Ethernet)]);
        let ip = Role::Uplink { layer: Layer::Ip, departures: false };
        all.begin(Attachment { ifindex: 3, role: ip, since });
        all.begin(Attachment { ifindex: 4, role: UPLINK, since });
        all.attached((3, ip), Ok(()), since);
        let progress = all.uplink_progress();
        assert_eq!((progress.attached, progress.attaching), ([2].into(), [4].into()));
        all.gone(3);
        all.gone(4);
        all.gone(2);
        assert_eq!(all.n_uplinks(), (0, 0));
    }
}
