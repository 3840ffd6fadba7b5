//! `cargo xtask bench cluster`: what Services cost on a real cluster, with whatever serves them there. Clients and servers
//! are Pods of their own Namespace, which is removed in any case. Straight to the Pod, through the ClusterIP and through the
//! NodePort are measured in turn, so that a machine that gets slower does so for all of them.

mod access;
mod bed;
mod chart;
mod compare;
mod namespace;
mod pods;
mod record;
mod series;
mod table;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};

use self::{bed::Bed, record::Record};
use crate::{
    command::{self, command, say, target_dir},
    image,
    kubectl::{KUBECTL, Kubectl},
    setup,
};

/// The Namespace of everything that the bench creates.
const NAMESPACE: &str = "lb-bench";

/// Options of `bench cluster`.
#[derive(Args)]
pub(crate) struct Options {
    /// The kubectl command. By default it uses $KUBECONFIG
    #[arg(long, value_name = "COMMAND", default_value = KUBECTL)]
    kubectl: String,
    /// Build target/lb-bench.tar and load it onto every node with this command. Without it, the nodes must have the image
    #[arg(long, value_name = "COMMAND {tar}")]
    load: Option<String>,
    /// Load the existing target/lb-bench.tar
    #[arg(long, requires = "load")]
    no_build: bool,
    /// Image of the Pods. The default is never pulled; another name is pulled if a node does not have it
    #[arg(long, default_value = image::BENCH_TAG)]
    image: String,
    /// Number of rounds. Each result is the median
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Time of one measurement, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 500, value_parser = clap::value_parser!(u64).range(50..=10_000))]
    time: u64,
    /// Run clients and servers on the last CPU only. Use it when all nodes share one machine, as in kind
    #[arg(long)]
    pin: bool,
    /// Family of the addresses [default: the first that the cluster gives to a Service]
    #[arg(long)]
    family: Option<Family>,
    /// The client's node, and the other node if given twice [default: the first ready workers]
    #[arg(long, value_name = "NAME")]
    node: Vec<String>,
    /// Name of this run in tables and charts [default: what serves Services in the cluster]
    #[arg(long, value_name = "NAME")]
    label: Option<String>,
    /// Directory for the results
    #[arg(long, value_name = "DIRECTORY")]
    out: Option<PathBuf>,
    /// Measure nothing: put the results of earlier runs beside each other
    #[arg(long, value_name = "JSON", num_args = 2..)]
    compare: Vec<PathBuf>,
}

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    /// Whether an address is of this family.
    fn has(self, address: &str) -> bool {
        (self == Self::Ipv6) == address.contains(':')
    }
}

/// Measures, or compares.
///
/// # Errors
/// When the cluster lacks something, a measurement fails, or a result cannot be written.
pub(crate) fn run(options: &Options) -> Result<()> {
    let out = options.out.clone().unwrap_or_else(|| target_dir().join("bench-cluster"));
    std::fs::create_dir_all(&out).with_context(|| format!("create {}", out.display()))?;
    if !options.compare.is_empty() {
        let records: Vec<Record> =
            options.compare.iter().map(|path| read(path)).collect::<Result<_>>()?;
        print!("{}", compare::table(&records));
        return write(&out.join("compare.svg"), &compare::chart(&records));
    }
    let kubectl = Kubectl::new(&options.kubectl)?;
    let access = access::Access::check(&kubectl, &options.node)?;
    if let Some(load) = &options.load {
        load_image(load, options.no_build)?;
    }
    let label = match &options.label {
        Some(label) => label.clone(),
        None => access::served_by(&kubectl),
    };
    let bed = Bed::make(&kubectl, &access, options)?;
    let measured = series::measure(&bed, options);
    let family = bed.family_name().to_owned();
    let removed = bed.remove();
    let record = Record {
        label,
        kubernetes: access.version.clone(),
        nodes: access.nodes.iter().map(|node| node.facts.clone()).collect(),
        family,
        pinned: options.pin,
        rounds: options.rounds,
        milliseconds: options.time,
        rows: measured?,
    };
    print!("{}", table::of(&record));
    let stem = out.join(file_name(&record.label));
    let json = serde_json::to_string_pretty(&record).context("write the results as JSON")?;
    write(&stem.with_extension("json"), &json)?;
    write(&stem.with_extension("svg"), &chart::of(&record).svg())?;
    removed
}

/// Builds the image of clients and servers, unless it is there, and loads it onto every node with this command.
///
/// # Errors
/// When it cannot be built, is missing, or the command fails.
pub(crate) fn load_image(load: &str, no_build: bool) -> Result<()> {
    if !no_build {
        let image = image::Options::of_bench();
        setup::ensure(image.needs())?;
        image::run(&image)?;
    }
    let tar = target_dir().join(image::BENCH_ARCHIVE);
    ensure!(tar.exists(), "{} does not exist: leave out --no-build", tar.display());
    let load = load.replace("{tar}", &tar.to_string_lossy());
    command::run(command("sh").args(["-c", &load])).context("load the image")
}

fn read(path: &Path) -> Result<Record> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_str(&text)
        .with_context(|| format!("{} is not a result of `bench cluster`", path.display()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    say(&format!("wrote {}", path.display()));
    Ok(())
}

/// A label as the name of a file.
fn file_name(label: &str) -> String {
    let kept = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { ' ' };
    let words: String = label.chars().map(kept).collect();
    let name = words.split_whitespace().collect::<Vec<_>>().join("-");
    if name.is_empty() { "cluster".to_owned() } else { name }
}

impl Options {
    fn duration(&self) -> Duration {
        Duration::from_millis(self.time)
    }
}

#[cfg(test)]
mod tests {
    use super::file_name;

    #[test]
    fn labels_become_names_of_files() {
        assert_eq!(file_name("kube-proxy (nftables)"), "kube-proxy-nftables");
        assert_eq!(file_name("../lb 0.2"), "lb-0-2");
        assert_eq!(file_name("…"), "cluster");
    }
}
