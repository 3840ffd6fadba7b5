//! A thread that computes what the policy tables should say, so that Services, devices and policies that are compiled
//! already need not wait for one that takes long.
#![forbid(unsafe_code)]

use std::sync::mpsc as std_mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::sync::mpsc;

use lb_core::cluster::Snapshot;
use lb_core::model::policy::{Compiler, DesiredPolicies};

/// What is to be compiled, and what with: it comes back with the result.
#[derive(Debug)]
pub(super) struct Job {
    pub compiler: Compiler,
    pub cluster: Snapshot,
}

/// The result.
#[derive(Debug)]
pub(super) struct CompiledTables {
    pub compiler: Compiler,
    pub desired: DesiredPolicies,
    pub took: Duration,
}

impl Job {
    pub(super) fn run(mut self) -> CompiledTables {
        let begun = Instant::now();
        let desired = self.compiler.compile(&self.cluster);
        CompiledTables { compiler: self.compiler, desired, took: begun.elapsed() }
    }
}

/// The thread's mailbox. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Worker {
    jobs: std_mpsc::Sender<Job>,
}

impl Worker {
    /// Starts the thread; when it ends for another reason, `done` is closed.
    ///
    /// # Errors
    /// When the system has no room for a thread.
    pub(super) fn spawn(done: mpsc::UnboundedSender<CompiledTables>) -> anyhow::Result<Self> {
        let (jobs, inbox) = std_mpsc::channel::<Job>();
        thread::Builder::new()
            .name("compile".to_owned())
            .spawn(move || {
                for job in inbox {
                    if done.send(job.run()).is_err() {
                        return;
                    }
                }
            })
            .context("start the policy compiler thread")?;
        Ok(Self { jobs })
    }

    /// Compiles. The receiver of `done` learns if the thread has ended.
    pub(super) fn start(&self, job: Job) {
        if self.jobs.send(job).is_err() {
            tracing::error!("the policy compiler thread has ended");
        }
    }
}
