//! A thread that attaches programs to devices: the kernel waits for an RCU grace period after each attachment (about
//! 10 ms), during which the loop must go on.
#![forbid(unsafe_code)]

use std::sync::mpsc as std_mpsc;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::mpsc;

use crate::agent::attachments::Attachment;
use lb_kernel::bpf::attach::{AttachError, Hooks, Mechanism, Role};

/// What is to be done.
#[derive(Debug)]
enum AttachCommand {
    Attach(Attachment),
    Forget {
        ifindex: u32,
    },
    /// All that came before is done.
    Tell(std_mpsc::SyncSender<()>),
}

/// The result of an attachment.
#[derive(Debug)]
pub(super) struct Attached {
    /// The device.
    pub ifindex: u32,
    /// What it is to us.
    pub role: Role,
    /// From the kernel's message about the device to now.
    pub took: Duration,
    /// How devices are attached to.
    pub mechanism: Option<Mechanism>,
    /// Whether all programs of the role are in place.
    pub result: Result<(), AttachError>,
}

/// The thread's mailbox. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Attacher {
    commands: std_mpsc::Sender<AttachCommand>,
}

impl Attacher {
    /// How long the loop waits for attachments at most; each takes 10 to 40 ms.
    const SOON: Duration = Duration::from_millis(500);

    /// Starts the thread.
    ///
    /// # Errors
    /// When the system has no room for a thread.
    pub(super) fn spawn(
        mut hooks: Hooks,
        done: mpsc::UnboundedSender<Attached>,
    ) -> anyhow::Result<Self> {
        let (commands, inbox) = std_mpsc::channel();
        thread::Builder::new()
            .name("attach".to_owned())
            .spawn(move || {
                for command in inbox {
                    match command {
                        AttachCommand::Attach(Attachment { ifindex, role, since }) => {
                            let result = hooks.attach(ifindex, role);
                            let (took, mechanism) = (since.elapsed(), hooks.mechanism());
                            let attached = Attached { ifindex, role, took, mechanism, result };
                            if done.send(attached).is_err() {
                                return;
                            }
                        }
                        // Who waited too long has gone.
                        AttachCommand::Tell(waiting) => drop(waiting.send(())),
                        AttachCommand::Forget { ifindex } => {
                            if let Err(e) = hooks.forget(ifindex) {
                                tracing::warn!(ifindex, err = %e, "cannot remove the pins of a removed device");
                            }
                        }
                    }
                }
            })
            .context("start the attach thread")?;
        Ok(Self { commands })
    }

    /// Attaches to a device.
    pub(super) fn attach(&self, attachment: Attachment) {
        self.send(AttachCommand::Attach(attachment));
    }

    /// Waits until what was asked for is done; whether it was within [`Self::SOON`].
    pub(super) fn wait(&self) -> bool {
        let (waiting, done) = std_mpsc::sync_channel(1);
        self.send(AttachCommand::Tell(waiting));
        done.recv_timeout(Self::SOON).is_ok()
    }

    /// Removes the pins of a device that is gone or has no role any more.
    pub(super) fn forget(&self, ifindex: u32) {
        self.send(AttachCommand::Forget { ifindex });
    }

    fn send(&self, command: AttachCommand) {
        if self.commands.send(command).is_err() {
            tracing::error!("the attach thread has ended");
        }
    }
}
