//! What the kernel says about this process.
#![forbid(unsafe_code)]

use std::fs;

/// Figures of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Process {
    /// Resident memory.
    pub resident_bytes: i64,
    /// Processor time, user and system.
    pub cpu_seconds: f64,
    /// Open descriptors.
    pub open_fds: i64,
}

/// Clock ticks a second in `/proc/PID/stat` (`USER_HZ`): 100 on every architecture we build for.
const USER_HZ: f64 = 100.0;

impl Process {
    /// Asks the kernel; what it does not say is 0.
    pub(crate) fn read() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        Self {
            resident_bytes: resident_bytes(&status).unwrap_or_default(),
            cpu_seconds: cpu_seconds(&stat).unwrap_or_default(),
            open_fds: fs::read_dir("/proc/self/fd")
                .map_or(0, |dir| i64::try_from(dir.count()).unwrap_or_default()),
        }
    }
}

fn resident_bytes(status: &str) -> Option<i64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<i64>().ok()? * 1024)
}

fn cpu_seconds(stat: &str) -> Option<f64> {
    // The second field is the name in parentheses, which may hold anything; utime and stime are 14 and 15.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let ticks = fields.next()?.parse::<f64>().ok()? + fields.next()?.parse::<f64>().ok()?;
    Some(ticks / USER_HZ)
}

#[cfg(test)]
mod tests {
    use super::{Process, cpu_seconds, resident_bytes};

    #[test]
    fn figures_are_read() {
        assert_eq!(resident_bytes("VmHWM:\t  9 kB\nVmRSS:\t    2048 kB\n"), Some(2 << 20));
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194304 100 0 0 0 150 50 0 0 20 0 1";
        assert_eq!(cpu_seconds(stat), Some(2.0));
        assert!(Process::read().resident_bytes > 0);
    }
}
