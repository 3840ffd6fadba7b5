//! Prints what programs with the feature `trace` log of each packet: a thread that reads aya-log's ring buffer.
#![forbid(unsafe_code)]

use std::thread;

use aya::Ebpf;
use aya_log::EbpfLogger;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::{error, info, warn};

/// Puts the programs' lines into the agent's log.
struct PacketLog;

impl log::Log for PacketLog {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        // In the maps, and so in the programs, IPv4 addresses are IPv4-mapped.
        info!("packet: {}", record.args().to_string().replace("::ffff:", ""));
    }

    fn flush(&self) {}
}

/// Starts the thread. It ends with the process.
///
/// # Errors
/// When the object has no such ring buffer, or there is no room for a thread.
pub fn spawn(ebpf: &mut Ebpf) -> anyhow::Result<()> {
    let mut logger = EbpfLogger::init_with_logger(ebpf, PacketLog)?;
    warn!("this build logs every packet; it is for looking into the programs, not for use");
    thread::Builder::new().name("stages".to_owned()).spawn(move || {
        loop {
            let ready = PollFd::new(std::os::fd::AsFd::as_fd(&logger), PollFlags::POLLIN);
            if let Err(err) = poll(&mut [ready], PollTimeout::NONE) {
                if err == nix::errno::Errno::EINTR {
                    continue;
                }
                error!(%err, "cannot wait for the programs' log");
                return;
            }
            logger.flush();
        }
    })?;
    Ok(())
}
