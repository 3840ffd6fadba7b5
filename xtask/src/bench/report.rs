//! The results as Markdown for docs/src/performance.md, and as JSON.

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::{
    answers::Answered,
    floods::Flooded,
    nanos::Nanos,
    paths::Measured,
    policies::Policed,
    profile::{self, Profile},
    programming::Programming,
};

/// Everything measured.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Results {
    pub(super) machine: Machine,
    pub(super) paths: Vec<Measured>,
    pub(super) profiles: Vec<Profile>,
    pub(super) policies: Vec<Policed>,
    pub(super) floods: Vec<Flooded>,
    pub(super) answers: Vec<Answered>,
    pub(super) programming: Programming,
    pub(super) nanos: Vec<Nanos>,
}

/// What it was measured on.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Machine {
    /// Kernel release.
    pub(super) kernel: String,
    /// Model of the processor.
    pub(super) cpu: String,
}

impl Machine {
    /// This machine.
    pub(super) fn this() -> Result<Self> {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").context("kernel")?;
        let cpus = std::fs::read_to_string("/proc/cpuinfo").context("read /proc/cpuinfo")?;
        let cpu = cpus
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
            .map_or("unknown processor", |(_, model)| model.trim());
        Ok(Self { kernel: kernel.trim().to_owned(), cpu: cpu.to_owned() })
    }
}

/// Prints one JSON document.
pub(super) fn print_json(results: &Results) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(results).context("print the results")?);
    Ok(())
}

/// Prints tables for docs/src/performance.md.
pub(super) fn print_markdown(results: &Results) -> Result<()> {
    let Results { machine, paths, profiles, policies, floods, answers, programming, nanos } =
        results;
    println!(
        "Measured on Linux {}, {}, client and server on one CPU.\n",
        machine.kernel, machine.cpu
    );
    print_paths(paths);
    profile::print(profiles);
    print_policies(policies);
    print_floods(floods);
    print_answers(answers);
    let Programming { services, all_ms, start_to_last_answer_ms, restart_ms, .. } = programming;
    let Programming { change_to_answer_ms, resident_mib, .. } = programming;
    if *services > 0 {
        println!("\n| with {services} Services × 2 endpoints | |\n|---|--:|");
        println!("| complete lists until programmed | {all_ms:.0} ms |");
        println!(
            "| agent start until the first answer of the last Service | {start_to_last_answer_ms:.0} ms |"
        );
        println!("| restart on full maps until synced | {restart_ms:.0} ms |");
        println!("| endpoint change until its first answer | {change_to_answer_ms:.1} ms |");
        println!("| resident memory of the agent | {resident_mib:.1} MiB |");
    }
    println!("\n| program | packet | ns over an empty program |\n|---|---|--:|");
    for Nanos { program, case, ns } in nanos {
        println!("| {program} | {case} | {ns:.0} |");
    }
    Ok(())
}

/// Latency ratios first, rate ratios behind them: the latter scatter more.
fn print_paths(paths: &[Measured]) {
    if paths.is_empty() {
        return;
    }
    println!(
        "Each ratio is that of median latencies / that of rates, to no program on nodes of the same kind;"
    );
    println!("more than 1 is better than no program. netfilter: nodes with the kubelet's rule.\n");
    println!(
        "| from, to | family | what | Services | no program | netfilter ÷ without | direct | Service | direct, netfilter | Service, netfilter |"
    );
    println!("|---|---|---|--:|--:|--:|--:|--:|--:|--:|");
    for row in paths {
        let Measured { path, family, what, services, plain, netfilter, netfilter_ratio } = row;
        let cells = [
            netfilter_ratio,
            &plain.straight_ratio,
            &plain.service_ratio,
            &netfilter.straight_ratio,
            &netfilter.service_ratio,
        ];
        let cells = cells.map(|ratio| ratio.to_string()).join(" | ");
        println!(
            "| {path} | {} | {} | {services} | {} | {cells} |",
            family.name(),
            what.name(),
            plain.none
        );
    }
}

fn print_policies(policies: &[Policed]) {
    if policies.is_empty() {
        return;
    }
    println!(
        "\n| from, to | what | straight, policies ÷ none | through the Service, policies ÷ none |"
    );
    println!("|---|---|--:|--:|");
    for row in policies {
        let [straight, service] = [row.straight, row.service]
            .map(|[low, middle, high]| format!("{middle:.3} ({low:.3}–{high:.3})"));
        println!("| {} | {} | {straight} | {service} |", row.path, row.what);
    }
}

fn print_floods(floods: &[Flooded]) {
    if floods.is_empty() {
        return;
    }
    println!(
        "\n| flood | packets/s | open connections broken | new ones unanswered | p50 ms | p99 ms |"
    );
    println!("|---|--:|--:|--:|--:|--:|");
    for row in floods {
        let Flooded { flood, per_second, broken, of, opened, failed, p50_ms, p99_ms } = row;
        let tried = opened + failed;
        println!(
            "| {flood} | {per_second} | {broken} of {of} | {failed} of {tried} | {p50_ms:.1} | {p99_ms:.1} |"
        );
    }
}

fn print_answers(answers: &[Answered]) {
    if answers.is_empty() {
        return;
    }
    println!(
        "\n| UDP questions, outside, node port, remote backend, by | answers/s | lost | first lost after |"
    );
    println!("|---|--:|--:|--:|");
    for row in answers {
        let Answered { way, per_second, asked, lost, first_lost_s } = row;
        let first = first_lost_s.map_or("—".to_owned(), |first| format!("{first:.1} s"));
        println!("| {way} | {per_second:.0} | {lost} of {asked} | {first} |");
    }
}
