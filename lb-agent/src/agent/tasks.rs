//! The loop's timed tasks. Each task has an arm in `due`, which says when it runs, and one in `run`; the compiler rejects a
//! task that lacks either, and the loop wakes up for the earliest of them.
#![forbid(unsafe_code)]

use std::time::Instant;

use tracing::debug;

use crate::agent::Agent;

/// Work that becomes due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// Write the Services' maps: something changed, a failed write is retried, or what was replaced is removed.
    Services,
    /// Attach again to devices where it failed.
    Attachments,
    /// Write again what failed of the maps about addresses and devices.
    Addresses,
    /// Compile policies that changed, and write their maps.
    Policies,
    /// Answer requests of `lbctl` that have waited for Pods.
    Requests,
    /// Open health check ports again that were in use.
    HealthPorts,
    /// List all devices, in case a message of the kernel was missed.
    Devices,
    /// Compare the maps with what was written there.
    Audit,
    /// Write the table that `lbctl` reads, and the gauges.
    Housekeeping,
}

impl Task {
    /// All of it, in the order in which it runs.
    pub(super) const ALL: [Self; 9] = [
        Self::Services,
        Self::Attachments,
        Self::Addresses,
        Self::Policies,
        Self::Requests,
        Self::HealthPorts,
        Self::Devices,
        Self::Audit,
        Self::Housekeeping,
    ];
}

impl Agent {
    /// When the loop has to wake up next.
    pub(super) fn next_wakeup(&self) -> Option<Instant> {
        Task::ALL.into_iter().filter_map(|task| self.due(task)).min()
    }

    /// Runs what is due.
    ///
    /// # Errors
    /// When the devices cannot be listed.
    pub(super) fn run_due(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        for task in Task::ALL {
            if self.due(task).is_some_and(|due| due <= now) {
                self.run(task, now)?;
            }
            if task == Task::Services {
                // Also of what changed nothing in the maps.
                self.settle_queue();
            }
        }
        Ok(())
    }

    /// When this is to be run; `None` while there is nothing to do. In the past once it is due, until it has run.
    fn due(&self, task: Task) -> Option<Instant> {
        match task {
            Task::Services if !self.cluster.synced() => None,
            Task::Services if !self.planned || !self.dirty.is_empty() => Some(self.start),
            Task::Services => self.planner.next_wakeup().map(|at| self.start + at),
            Task::Attachments => self.attachments.next_due(),
            Task::Addresses => self.planner.next_devices().map(|at| self.start + at),
            Task::Policies => {
                let written = self.planner.policies().next_wakeup().map(|at| self.start + at);
                let next = self.policies.next_compilation(self.scope.holds_policies_until());
                written.into_iter().chain(next).min()
            }
            Task::Requests => self.scope.holds_requests_until(),
            Task::HealthPorts => self.health_ports.next_due(),
            Task::Devices => Some(self.next_resync),
            Task::Audit => Some(self.housekeeping.next_audit),
            Task::Housekeeping => Some(self.housekeeping.next_due()),
        }
    }

    fn run(&mut self, task: Task, now: Instant) -> anyhow::Result<()> {
        match task {
            Task::Services => self.sync(),
            Task::Attachments => {
                for attachment in self.attachments.take_due(now) {
                    self.attacher.attach(attachment);
                }
            }
            Task::Addresses => self.write_addresses(),
            Task::Policies => {
                self.compile_policies();
                self.write_policies();
            }
            Task::Requests => self.answer_overdue(now),
            Task::HealthPorts => {
                self.health_ports.open_due(now);
                self.housekeeping.touch();
            }
            Task::Devices => {
                self.resync_devices()?;
                self.release_code();
            }
            Task::Audit => self.audit_due(),
            Task::Housekeeping => {
                self.write_names();
                self.release_code();
            }
        }
        Ok(())
    }

    /// Gives back the memory of code: most of what ran since the last time will not run again soon.
    fn release_code(&self) {
        if self.planned
            && let Err(err) = lb_kernel::syscall::release_code()
        {
            debug!(%err, "cannot release unused code pages");
        }
    }
}
