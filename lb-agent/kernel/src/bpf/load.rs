//! Kernel object → loaded programs on pinned or private maps.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use aya::programs::{CgroupSockAddr, SchedClassifier};
use aya::{Ebpf, EbpfError, EbpfLoader};
use lb_common::config::{Config, Features};
use lb_common::limits;

use crate::bpf::growing;
use crate::bpf::maps::{self, MapsError};

/// The kernel object, as built from `lb-ebpf`; empty when the build skipped it.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-ebpf"));

/// How to load the object.
#[derive(Clone, Debug)]
pub struct LoadOptions<'a> {
    /// Directory in a bpf file system: maps pinned there are used, others are made and pinned. `None` keeps the maps
    /// private to the process.
    pub pin_dir: Option<&'a Path>,
    /// The read-only configuration of the programs.
    pub config: Config,
    /// Capacity of the conntrack table, in entries.
    pub ct_entries: u32,
}

/// Why loading failed.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The binary was built with `AYA_BUILD_SKIP`.
    #[error("this binary was built without its kernel object (AYA_BUILD_SKIP)")]
    NoObject,
    /// Maps could not be made, or pinned ones have another layout.
    #[error("create or open the maps of the kernel object")]
    Maps(#[source] EbpfError),
    /// Tables that grow cannot be linked.
    #[error(transparent)]
    Tables(#[from] MapsError),
    /// The object lacks a program.
    #[error("the kernel object has no program {0}")]
    NoProgram(&'static str),
    /// The kernel refused a program; the source holds the verifier's log.
    #[error("load program {program}")]
    Program {
        /// Its name.
        program: &'static str,
        /// The kernel's answer.
        #[source]
        source: aya::programs::ProgramError,
    },
}

/// Path of a pinned map under `pin_dir`.
pub fn map_path(pin_dir: &Path, map: limits::MapSpec) -> PathBuf {
    pin_dir.join(format!("{}_v{}", map.name, map.version))
}

/// Makes or opens the maps and loads every program. Nothing is attached.
///
/// # Errors
/// When a map or a program is refused.
pub fn load(options: &LoadOptions<'_>) -> Result<Ebpf, LoadError> {
    let mut ebpf = open(options)?;
    for (program, _) in limits::POD_PROGRAMS.into_iter().chain(limits::DEV_PROGRAMS) {
        load_tc(&mut ebpf, program)?;
    }
    if counts_flows(&options.config) {
        for program in limits::ACCOUNT_PROGRAMS {
            load_tc(&mut ebpf, program)?;
        }
    }
    load_tc(&mut ebpf, limits::LISTENING_PROGRAM)?;
    for program in limits::SOCKET_PROGRAMS {
        let loaded = ebpf.program_mut(program).ok_or(LoadError::NoProgram(program))?;
        <&mut CgroupSockAddr>::try_from(loaded)
            .and_then(CgroupSockAddr::load)
            .map_err(|source| LoadError::Program { program, source })?;
    }
    Ok(ebpf)
}

/// Makes or opens the maps; no program is loaded.
///
/// # Errors
/// When a map is refused.
pub fn open(options: &LoadOptions<'_>) -> Result<Ebpf, LoadError> {
    if OBJECT.is_empty() {
        return Err(LoadError::NoObject);
    }
    let mut loader = EbpfLoader::new();
    loader.override_global("CFG", &options.config, true);
    loader.map_max_entries(limits::MAP_CT.name, options.ct_entries);
    loader.map_max_entries(limits::MAP_KEPT.name, limits::kept_entries(options.ct_entries));
    let counts_flows = counts_flows(&options.config);
    if counts_flows {
        let entries = limits::account_entries(options.ct_entries);
        loader.map_max_entries(limits::MAP_ACCOUNTS.name, entries);
    }
    if let Some(pin_dir) = options.pin_dir {
        let pinned = |map: &limits::MapSpec| *map != limits::MAP_ACCOUNTS || counts_flows;
        for map in limits::MAPS.into_iter().filter(pinned) {
            loader.map_pin_path(map.name, Cow::<Path>::Owned(map_path(pin_dir, map)));
        }
    }
    if let Some(pin_dir) = options.pin_dir {
        // Larger than at first, if they have grown.
        for table in growing::REPLACED {
            if let Some(pinned) = maps::pinned_capacity(&map_path(pin_dir, table.map)) {
                loader.map_max_entries(table.map.name, pinned);
            }
        }
    }
    let mut ebpf = loader.load(OBJECT).map_err(LoadError::Maps)?;
    growing::link(&mut ebpf)?;
    Ok(ebpf)
}

/// Whether packets of flows are counted.
fn counts_flows(config: &Config) -> bool {
    config.features.contains(Features::ACCOUNTS)
}

/// Loads one of the programs for network devices.
///
/// # Errors
/// When the object lacks it, or the kernel refuses it.
pub fn load_tc(ebpf: &mut Ebpf, program: &'static str) -> Result<(), LoadError> {
    let loaded = ebpf.program_mut(program).ok_or(LoadError::NoProgram(program))?;
    <&mut SchedClassifier>::try_from(loaded)
        .and_then(SchedClassifier::load)
        .map_err(|source| LoadError::Program { program, source })
}

#[cfg(test)]
mod tests {
    /// aya-log's ring buffer, which the programs of `xtask image --trace` write to.
    const RING: &[u8] = b"AYA_LOGS";

    #[test]
    fn only_a_trace_build_logs() {
        let logs = super::OBJECT.windows(RING.len()).any(|window| window == RING);
        assert_eq!(logs, cfg!(feature = "trace"));
    }
}
