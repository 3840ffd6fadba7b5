//! How often the loaded programs ran, and for how long, as the kernel counts it.
#![forbid(unsafe_code)]

use std::fs;
use std::time::Duration;

use aya::maps::MapInfo;
use aya::programs::loaded_programs;
use lb_common::limits::{
    ACCOUNT_PROGRAMS, DEV_PROGRAMS, MAP_ACCOUNTS, MAP_SETTINGS, POD_PROGRAMS, SOCKET_PROGRAMS,
};

use crate::bpf::pins::Pins;

/// Where the kernel says whether it counts.
const COUNTS: &str = "/proc/sys/kernel/bpf_stats_enabled";
/// Longest name of a program that the kernel keeps, without the end of the text (`BPF_OBJ_NAME_LEN`).
const NAME_LEN: usize = 15;

/// Runs of a program, on all devices that it is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Runs {
    /// Name in the kernel object.
    pub program: &'static str,
    /// Runs while the kernel counted.
    pub count: u64,
    /// Time that they took in sum, with the programs and functions that they called.
    pub time: Duration,
    /// Instructions that the verifier looked at to load it (Linux 5.16).
    pub verified: Option<u32>,
}

/// The programs that use the maps in this directory. A program that is loaded twice, by an agent and by the one before it, is
/// one of them.
///
/// # Errors
/// When the settings are not pinned, or the kernel does not list its programs.
pub fn runs(pins: &Pins) -> anyhow::Result<Vec<Runs>> {
    let settings = MapInfo::from_pin(pins.map(&MAP_SETTINGS))?.id();
    // They do not use the settings.
    let accounts = pins.map(&MAP_ACCOUNTS);
    let accounts = accounts.exists().then(|| MapInfo::from_pin(&accounts)).transpose()?;
    let accounts = accounts.map(|map| map.id());
    let names = POD_PROGRAMS.map(|(name, _)| name).into_iter();
    let names = names.chain(DEV_PROGRAMS.map(|(name, _)| name)).chain(SOCKET_PROGRAMS);
    let counting = ACCOUNT_PROGRAMS.into_iter().filter(|_| accounts.is_some());
    let names = names.chain(counting);
    let none = |program| Runs { program, count: 0, time: Duration::ZERO, verified: None };
    let mut all: Vec<Runs> = names.map(none).collect();
    for program in loaded_programs() {
        let program = program?;
        let Some(name) = program.name_as_str() else { continue };
        let named = |runs: &&mut Runs| runs.program.get(..NAME_LEN).unwrap_or(runs.program) == name;
        let Some(runs) = all.iter_mut().find(named) else { continue };
        let is_ours = |map: &u32| *map == settings || Some(*map) == accounts;
        if program.map_ids()?.is_some_and(|ids| ids.iter().any(is_ours)) {
            runs.count += program.run_count();
            runs.time += program.run_time();
            runs.verified = runs.verified.max(program.verified_instruction_count());
        }
    }
    Ok(all)
}

/// Whether the kernel counts runs now (`kernel.bpf_stats_enabled`); another process can make it count without that setting.
pub fn are_counted() -> bool {
    fs::read_to_string(COUNTS).is_ok_and(|text| text.trim() == "1")
}
