//! The build runner: `cargo xtask TASK`. Each task first makes sure of what it needs (`setup.rs`), then does one
//! thing; CI runs exactly these. It builds with any stable Rust from 1.85 on, so no newer language feature is used
//! here.

mod args;
mod command;
mod setup;

mod check;
mod tidy;

mod abi;
mod soak;
mod test;
mod verifier;

mod bench;
mod binaries;
mod demo;
mod docs;

mod conformance;
mod image;

use std::process::ExitCode;

use anyhow::Result;

use crate::setup::Need;

/// One task: its name, what it does, what it needs, and how it is called.
struct Task {
    name: &'static str,
    about: &'static str,
    usage: &'static str,
    needs: &'static [Need],
    run: fn(&[String]) -> Result<()>,
}

/// Every task, in the order in which a newcomer meets them.
const TASKS: [Task; 11] = [
    Task {
        name: "setup",
        about: "install missing tools and packages for the tasks below",
        usage: setup::USAGE,
        needs: setup::ALL,
        run: setup::run,
    },
    Task {
        name: "demo",
        about: "show Services on two nodes built from network namespaces; needs no Kubernetes",
        usage: demo::USAGE,
        needs: &[Need::Rust, Need::BpfLinker, Need::Ip, Need::Nsenter, Need::Iperf3],
        run: demo::run,
    },
    Task {
        name: "check",
        about: "check formatting, clippy for the host and the kernel object, and tidy",
        usage: check::USAGE,
        needs: &[Need::Rust, Need::BpfLinker],
        run: check::run,
    },
    Task {
        name: "test",
        about: "run the tests: first the pure ones, then those that need root",
        usage: test::USAGE,
        needs: &[
            Need::Rust,
            Need::BpfLinker,
            Need::Ip,
            Need::Nsenter,
            Need::Iptables,
            Need::Bpftool,
        ],
        run: test::run,
    },
    Task {
        name: "soak",
        about: "send a million damaged packets through every program",
        usage: soak::USAGE,
        needs: &[Need::Rust, Need::BpfLinker, Need::Ip, Need::Nsenter],
        run: soak::run,
    },
    Task {
        name: "verifier",
        about: "load every program and compare its verified instructions with the golden file",
        usage: verifier::USAGE,
        needs: &[Need::Rust, Need::BpfLinker, Need::Ip],
        run: verifier::run,
    },
    Task {
        name: "abi",
        about: "compare map layouts with the golden file and their versions with the last commit",
        usage: abi::USAGE,
        needs: &[Need::Rust],
        run: abi::run,
    },
    Task {
        name: "bench",
        about: "measure the cost of a Service over its Pod, and each program's nanoseconds per packet",
        usage: bench::USAGE,
        needs: &[Need::Rust, Need::BpfLinker, Need::Ip, Need::Nsenter, Need::Iperf3],
        run: bench::run,
    },
    Task {
        name: "image",
        about: "build static binaries into an OCI archive, target/lb-agent.tar",
        usage: image::USAGE,
        needs: &[Need::Rust, Need::BpfLinker],
        run: image::run,
    },
    Task {
        name: "docs",
        about: "check the links of all documents and build the book in target/book",
        usage: docs::USAGE,
        needs: &[Need::Rust, Need::Mdbook],
        run: docs::run,
    },
    Task {
        name: "conformance",
        about: "deploy to the cluster of $KUBECONFIG and check Services with real Pods",
        usage: conformance::USAGE,
        needs: &[],
        run: conformance::run,
    },
];

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let name = words.next();
    let rest: Vec<String> = words.collect();
    let Some(task) = TASKS.iter().find(|task| Some(task.name) == name.as_deref()) else {
        return unknown(name.as_deref());
    };
    if rest.iter().take_while(|word| *word != "--").any(|word| word == "--help" || word == "-h") {
        println!("{}\n\nusage: cargo xtask {}", task.about, task.usage);
        return ExitCode::SUCCESS;
    }
    match setup::ensure(task.needs).and_then(|()| (task.run)(&rest)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("xtask {}: {err:#}", task.name);
            ExitCode::FAILURE
        }
    }
}

/// Lists the tasks; a failure unless help was asked for.
fn unknown(name: Option<&str>) -> ExitCode {
    let mut list = String::from("usage: cargo xtask TASK [--help]\n");
    for task in &TASKS {
        list += &format!("\n  {:11} {}", task.name, task.about);
    }
    match name {
        Some("help" | "--help" | "-h") => {
            println!("{list}");
            return ExitCode::SUCCESS;
        }
        Some(other) => eprintln!("xtask: no task named {other:?}\n{list}"),
        None => eprintln!("{list}"),
    }
    ExitCode::from(2)
}
