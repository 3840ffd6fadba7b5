//! The build runner: `cargo xtask TASK`. Each task first makes sure of what it needs (`setup.rs`), then does one
//! thing; CI runs exactly these. It builds with any stable Rust from 1.85 on, so no newer language feature is used
//! here.

mod command;
mod setup;

mod check;
mod tidy;

mod abi;
mod monitoring;
mod soak;
mod test;
mod ui;
mod verifier;

mod bench;
mod binaries;
mod demo;
mod docs;

mod chaos;
mod chart;
mod conformance;
mod endurance;
mod image;
mod kubectl;
mod laptop;
mod lifecycle;
mod release;
mod statics;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::setup::Need;

/// Every task of this repository. A task first installs what it needs and this machine does not have, and prints each step.
#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    disable_help_subcommand = true,
    max_term_width = 100
)]
struct Xtask {
    #[command(subcommand)]
    task: Task,
}

/// The tasks, in the order in which a newcomer meets them.
#[derive(Subcommand)]
enum Task {
    /// Install the tools and packages that the tasks below need
    Setup,
    /// Show Services on two nodes built from network namespaces. Needs root, and no Kubernetes
    Demo(demo::Options),
    /// Check formatting, lints and the rules of this repository
    Check(check::Options),
    /// Run the tests: first those without privileges, then those that need root
    Test(test::Options),
    /// Send a million damaged packets through every program
    Soak(soak::Options),
    /// Load every program into the kernel and compare the number of verified instructions with the golden file
    Verifier(verifier::Options),
    /// Compare map layouts with the golden file, and their versions with the last commit
    Abi(abi::Options),
    /// Measure what a Service costs compared to its Pod, and the nanoseconds per packet of each program
    Bench(bench::Options),
    /// Build the container image: static binaries in an OCI archive, target/lb-agent.tar
    Image(image::Options),
    /// Build `kubectl lb` for laptops: archives with man pages, and krew's manifest, in target/laptop
    Laptop(laptop::Options),
    /// Make and check all files of a release: image, chart, install.yaml, `kubectl lb`, bills of materials, checksums
    Release(release::Options),
    /// Test the page of `lbctl ui` in Chromium
    Ui(ui::Options),
    /// Test the alerts and dashboards of deploy/monitoring with promtool, and with Prometheus and an agent
    Monitoring,
    /// Check the Helm chart: equal to the kustomize base, strict about values; and on a cluster, with --cluster
    Chart(chart::Options),
    /// Check the links of all documents and build the book in target/book
    Docs(docs::Options),
    /// Deploy to the cluster of $KUBECONFIG and check Services and policies there with real Pods
    Conformance(conformance::Options),
    /// Disturb the cluster of $KUBECONFIG for half an hour, and check all the while that Services and policies hold
    Chaos(chaos::Options),
    /// Open thousands of connections a second in the cluster of $KUBECONFIG for two hours, and check that nothing grows
    Endurance(endurance::Options),
    /// Upgrade, roll back, drain and boot nodes of the cluster of $KUBECONFIG, take its API server away, and check that agents cope
    Lifecycle(lifecycle::Options),
}

impl Task {
    fn name(&self) -> &'static str {
        match self {
            Self::Setup => "setup",
            Self::Demo(_) => "demo",
            Self::Check(_) => "check",
            Self::Test(_) => "test",
            Self::Soak(_) => "soak",
            Self::Verifier(_) => "verifier",
            Self::Abi(_) => "abi",
            Self::Bench(_) => "bench",
            Self::Image(_) => "image",
            Self::Laptop(_) => "laptop",
            Self::Release(_) => "release",
            Self::Ui(_) => "ui",
            Self::Monitoring => "monitoring",
            Self::Chart(_) => "chart",
            Self::Docs(_) => "docs",
            Self::Conformance(_) => "conformance",
            Self::Chaos(_) => "chaos",
            Self::Endurance(_) => "endurance",
            Self::Lifecycle(_) => "lifecycle",
        }
    }

    /// What the machine must have before the task starts.
    fn needs(&self) -> &'static [Need] {
        match self {
            Self::Setup => setup::ALL,
            Self::Demo(_) => &[Need::Rust, Need::BpfLinker, Need::Ip, Need::Nsenter, Need::Iperf3],
            Self::Bench(options) => options.needs(),
            Self::Check(_) => &[Need::Rust, Need::BpfLinker],
            Self::Image(options) => options.needs(),
            Self::Laptop(_) => laptop::NEEDS,
            Self::Test(_) => &[
                Need::Rust,
                Need::BpfLinker,
                Need::Ip,
                Need::Nsenter,
                Need::Iptables,
                Need::Bpftool,
            ],
            Self::Soak(_) => &[Need::Rust, Need::BpfLinker, Need::Ip, Need::Nsenter],
            Self::Verifier(_) => &[Need::Rust, Need::BpfLinker, Need::Ip],
            Self::Abi(_) => &[Need::Rust],
            Self::Ui(_) => &[Need::Rust, Need::Chromium],
            Self::Monitoring => &[Need::Rust, Need::BpfLinker, Need::Ip, Need::Prometheus],
            Self::Chart(_) => chart::NEEDS,
            Self::Docs(_) => &[Need::Rust, Need::Mdbook],
            // What making one needs: a check of one needs nothing.
            Self::Release(_) => &[],
            Self::Conformance(_) | Self::Chaos(_) | Self::Endurance(_) | Self::Lifecycle(_) => &[],
        }
    }

    fn run(&self) -> Result<()> {
        setup::ensure(self.needs())?;
        match self {
            Self::Setup => {
                setup::report();
                Ok(())
            }
            Self::Demo(options) => demo::run(options),
            Self::Check(options) => check::run(options),
            Self::Test(options) => test::run(options),
            Self::Soak(options) => soak::run(options),
            Self::Verifier(options) => verifier::run(options),
            Self::Abi(options) => abi::run(options),
            Self::Bench(options) => bench::run(options),
            Self::Image(options) => image::run(options),
            Self::Laptop(options) => laptop::run(options),
            Self::Release(options) => release::run(options),
            Self::Ui(options) => ui::run(options),
            Self::Monitoring => monitoring::run(),
            Self::Chart(options) => chart::run(options),
            Self::Docs(options) => docs::run(options),
            Self::Conformance(options) => conformance::run(options),
            Self::Chaos(options) => chaos::run(options),
            Self::Endurance(options) => endurance::run(options),
            Self::Lifecycle(options) => lifecycle::run(options),
        }
    }
}

fn main() -> ExitCode {
    let task = Xtask::parse().task;
    match task.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("xtask {}: {err:#}", task.name());
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    use super::Xtask;
    use crate::command::root;

    fn parse(line: &str) -> Result<Xtask, clap::Error> {
        Xtask::try_parse_from(["xtask"].into_iter().chain(line.split_whitespace()))
    }

    #[test]
    fn the_definition_is_consistent_and_names_match() {
        Xtask::command().debug_assert();
        for command in Xtask::command().get_subcommands() {
            let task = parse(command.get_name()).unwrap().task;
            assert_eq!(task.name(), command.get_name());
        }
    }

    #[test]
    fn options_have_both_forms_and_a_mistyped_one_is_an_error() {
        let words = |line: &str, name: &str| -> Vec<String> {
            let words = ["xtask"].into_iter().chain(line.split_whitespace());
            let matches = Xtask::command().get_matches_from(words);
            let (_, task) = matches.subcommand().unwrap();
            let raw = task.get_raw(name).unwrap_or_default();
            raw.map(|word| word.to_string_lossy().into_owned()).collect()
        };
        let soak = "soak --packets=5 --judged 7";
        assert_eq!([words(soak, "packets"), words(soak, "judged")], [["5"], ["7"]]);
        let test = "test datapath -- --nocapture outside::";
        assert_eq!(words(test, "ring"), ["datapath"]);
        assert_eq!(words(test, "theirs"), ["--nocapture", "outside::"]);
        for line in ["", "tset", "abi --bles", "verifier --wrap", "bench --rounds x", "demo word"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn every_task_and_option_has_a_help_text() {
        for command in Xtask::command().get_subcommands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
                assert!(arg.get_help().is_some(), "{} {}", command.get_name(), arg.get_id());
            }
        }
    }

    /// Files that mention tasks.
    const DOCUMENTS: [&str; 14] = [
        "README.md",
        "CONTRIBUTING.md",
        "ARCHITECTURE.md",
        "THREATMODEL.md",
        "SECURITY.md",
        "deploy/README.md",
        "docs/src/install.md",
        "docs/src/kind.md",
        "docs/src/performance.md",
        "docs/src/releases.md",
        "docs/src/takeover.md",
        ".ci/run",
        ".github/workflows/ci.yml",
        ".github/workflows/release.yml",
    ];

    #[test]
    fn documents_name_only_tasks_and_options_that_exist() {
        let commands = Xtask::command();
        let mut found = 0;
        for path in DOCUMENTS {
            let text = std::fs::read_to_string(root().join(path)).unwrap();
            // A command goes on after a backslash at the end of a line.
            let text = text.replace("\\\n", " ");
            for line in text.lines() {
                for rest in line.split("cargo xtask ").skip(1) {
                    let end = |c: char| "`'\"#&|;\n".contains(c);
                    found += known(&commands, rest.split(end).next().unwrap_or_default(), path);
                }
            }
        }
        assert!(found > 40, "{found}");
    }

    #[test]
    fn the_table_of_tasks_is_complete() {
        let text = std::fs::read_to_string(root().join("CONTRIBUTING.md")).unwrap();
        let (_, table) = text.split_once("| `cargo xtask` |").unwrap();
        let (table, _) = table.split_once("\n\n").unwrap();
        let commands = Xtask::command();
        let mut rows = Vec::new();
        for row in table.lines().filter_map(|line| line.strip_prefix("| `")) {
            let (usage, _) = row.split_once('`').unwrap();
            known(&commands, &usage.replace(['[', ']'], " "), "CONTRIBUTING.md");
            rows.push(usage.split(' ').next().unwrap().to_owned());
        }
        for command in commands.get_subcommands() {
            assert!(rows.iter().any(|row| row == command.get_name()), "{}", command.get_name());
        }
    }

    /// Checks the words of one command; returns how many options and tasks it names.
    fn known(commands: &clap::Command, line: &str, path: &str) -> usize {
        let mut words = line.split_whitespace();
        let name = words.next().unwrap_or_default();
        if name.is_empty() || name.chars().all(char::is_uppercase) {
            return 0;
        }
        let task = commands.find_subcommand(name);
        let mut task = task.unwrap_or_else(|| panic!("{path}: no task {name:?} in {line:?}"));
        let mut found = 1;
        for word in words.take_while(|word| *word != "--") {
            let Some(option) = word.strip_prefix("--") else {
                task = task.find_subcommand(word).unwrap_or(task);
                continue;
            };
            let option = option.split('=').next().unwrap_or_default();
            let known = task.get_arguments().any(|arg| arg.get_long() == Some(option));
            assert!(known || option == "help", "{path}: {name} has no --{option}: {line:?}");
            found += 1;
        }
        found
    }
}
