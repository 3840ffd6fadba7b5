//! Brings up the kernel's side: pins, maps, programs. On a restart everything is there already and is taken over.
#![forbid(unsafe_code)]

use std::io;

use anyhow::{Context as _, anyhow};
use lb_common::addr::Addr;
use lb_common::config::{self, Config as ProgramConfig, Features};
use lb_common::limits::{MAP_ACCOUNTS, MAP_CT, account_entries};
use tracing::info;

use crate::config::AgentConfig;
use lb_core::names;
use lb_kernel::bpf;
use lb_kernel::bpf::attach::Hooks;
use lb_kernel::bpf::clock::Clock;
use lb_kernel::bpf::conntrack;
use lb_kernel::bpf::listening::ListeningProgram;
use lb_kernel::bpf::load::{self, LoadOptions};
use lb_kernel::bpf::maps::{self, Traces};
use lb_kernel::bpf::pins::Pins;
use lb_kernel::bpf::refusal;
use lb_kernel::bpf::resize::Resize;
use lb_kernel::bpf::store::Maps;
use lb_kernel::host_ports::{self, Ports};
use lb_kernel::preflight::{self, Machine};
use lb_kernel::syscall;

/// From this version on, `bpf_l4_csum_replace` knows `BPF_F_IPV6`; older ones refuse the flag.
const CSUM_IPV6_SINCE: (u32, u32) = (6, 16);

/// The kernel's side, ready but for the Pods' devices.
pub(super) struct Kernel {
    /// Pin directory.
    pub pins: Pins,
    /// Programs.
    pub hooks: Hooks,
    /// Maps the agent writes.
    pub maps: Maps,
    /// Maps the programs write.
    pub traces: Traces,
    /// The programs' clock.
    pub clock: Clock,
    /// Capacity of the conntrack table.
    pub ct_entries: u32,
    /// Whether the conntrack table was made just now: connections may be older.
    pub ct_is_new: bool,
    /// Conntrack tables of another capacity or layout, whose entries are being copied.
    pub resize: Resize,
}

impl Kernel {
    /// Loads the programs on the pinned maps, new ones where there are none, and attaches the socket programs.
    ///
    /// # Errors
    /// One sentence: what is missing and how to get it.
    pub(super) fn bring_up(cfg: &AgentConfig, facts: &Machine) -> anyhow::Result<Self> {
        let pins = Pins::create(&cfg.dirs.pins)?;
        let clock = Clock::detect().context("read the kernel's tick rate")?;
        let ct_entries = cfg.ct_entries;
        let ct_is_new = conntrack::pins_of(&pins, &MAP_CT).next().is_none();
        // Before anything is set aside.
        let answers = answer_ports(cfg, &pins).context("read masqueraded flows")?;
        let mut resize = Resize::set_aside(&pins, clock, ct_entries)
            .context("set aside the conntrack table with another capacity or layout")?;
        remove_accounts(cfg, &pins)?;
        let program_config = program_config(cfg, clock, facts, &answers)?;
        let mut ebpf = load::load(&LoadOptions {
            pin_dir: Some(pins.dir()),
            config: program_config,
            ct_entries,
        })
        .map_err(|error| anyhow!(refusal::explain(&error, facts, pins.dir())))?;
        #[cfg(feature = "trace")]
        bpf::stages::spawn(&mut ebpf).context("read the programs' log")?;
        if !resize.is_empty() {
            let entries = resize.copy().context("copy the conntrack table")?;
            info!(ct_entries, entries, "conntrack table replaced, entries copied");
        }
        let maps = Maps::take(&mut ebpf, Some(&pins))?;
        let traces = Traces::take(&mut ebpf)?;
        for path in pins.remove_other_versions(&resize.needed())? {
            info!(pin = %path.display(), "removed a map of another version");
        }
        ListeningProgram::pin(&mut ebpf, &pins).context("pin the program that asks for sockets")?;
        let hooks = Hooks::new(ebpf, pins.clone(), None);
        let mut hooks = if cfg.flow_accounting { hooks.counting_flows() } else { hooks };
        hooks.attach_sockets(&cfg.cgroup)?;
        info!(
            pins = %pins.dir().display(),
            cgroup = %cfg.cgroup.display(),
            hz = clock.hz,
            ct_entries,
            "programs loaded"
        );
        Ok(Self { pins, hooks, maps, traces, clock, ct_entries, ct_is_new, resize })
    }
}

/// The ports that answers to masqueraded flows come to: those that new flows get, and those that flows of earlier agents
/// have. The last agent's programs give out its own until they are replaced.
fn answer_ports(cfg: &AgentConfig, pins: &Pins) -> io::Result<Ports> {
    let former = names::masquerade_ports(&cfg.dirs.state.join(names::FILE));
    let in_use = bpf::ports::of_masqueraded_flows(pins)?;
    let all = former.into_iter().chain(in_use);
    Ok(all.fold(cfg.masquerade_ports.clone(), |all, more| host_ports::hull(&all, &more)))
}

/// Removes what counts packets if flows are not to be counted, or the table of the counts has another capacity. Counts are not
/// copied: they begin again.
fn remove_accounts(cfg: &AgentConfig, pins: &Pins) -> anyhow::Result<()> {
    let wanted = cfg.flow_accounting.then(|| account_entries(cfg.ct_entries));
    let pinned = maps::pinned_capacity(&pins.map(&MAP_ACCOUNTS));
    if wanted != pinned && pins.remove_accounts().context("remove the counts of flows")? {
        info!(pinned, wanted, "removed the counts of flows");
    }
    Ok(())
}

fn program_config(
    cfg: &AgentConfig,
    clock: Clock,
    facts: &Machine,
    answers: &Ports,
) -> anyhow::Result<ProgramConfig> {
    let netns_cookie = syscall::netns_cookie().context("read the network namespace's cookie")?;
    let csum_ipv6 = preflight::version(&facts.kernel).is_some_and(|v| v >= CSUM_IPV6_SINCE);
    Ok(ProgramConfig {
        netns_cookie,
        hz: clock.hz,
        features: Features::CSUM_IPV6.when(csum_ipv6)
            | Features::ACCOUNTS.when(cfg.flow_accounting),
        hairpin4: Addr::from_ip(config::HAIRPIN4.into()),
        hairpin6: Addr::from_ip(config::HAIRPIN6.into()),
        masquerade_base: u32::from(*cfg.masquerade_ports.start()),
        masquerade_n: u32::try_from(cfg.masquerade_ports.len()).unwrap_or_default(),
        pod_new_flows: cfg.pod_new_flows,
        answer_base: *answers.start(),
        answer_n: u16::try_from(answers.len()).unwrap_or(u16::MAX),
    })
}
