//! From an earlier version to this one, back, and to this one again, while clients ask.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    chaos::{end, unrest, witness::Witnesses},
    command::{self, command, root, say, target_dir},
    conformance::{
        bed::Bed,
        cluster::Cluster,
        deploy,
        load::{Load, now, pause},
        report::{Report, within},
    },
    image,
};

use super::Options;

/// How long clients go on before and after each step, in seconds.
const AROUND: u64 = 5;
/// By then an agent has removed the maps whose place others have taken.
const SETTLED: Duration = Duration::from_secs(90);

/// What is deployed: manifests, and the archive of the image.
struct Version {
    name: &'static str,
    deploy: PathBuf,
    archive: PathBuf,
}

/// Runs all of it. The new version is deployed in the end, and the Pods and objects of the clients are there.
///
/// # Errors
/// When a version does not become ready, or the clients cannot be started.
pub(super) fn check<'a>(
    cluster: &'a Cluster,
    options: &Options,
    from: &Path,
    report: &mut Report,
) -> Result<Bed<'a>> {
    let load = options.target.load.as_deref().context("no --load")?;
    let archive = target_dir().join(image::ARCHIVE);
    let new = Version { name: "new", deploy: root().join("deploy"), archive };
    let archive = from.join("target").join(image::ARCHIVE);
    let old = Version { name: "old", deploy: from.join("deploy"), archive };
    for version in [&old, &new] {
        ensure!(version.archive.exists(), "{} is missing", version.archive.display());
    }
    old.deploy(cluster, load)?;
    let bed = Bed::make(cluster, &options.target.image)?;
    unrest::prepare(&bed)?;
    let witnesses = Witnesses::begin(&bed)?;
    let first = maps(&bed)?;

    report.check("an upgrade under load", || roll(&bed, &new, load, Strict::Yes));
    // Both layouts of a table are pinned for a while.
    let second = within(SETTLED, || without_doubles(maps(&bed)?));
    let second = second.context("the maps of the earlier version stay")?;
    report.check("the maps of the new version only are left", || only(&bed, &second, &first));
    let begun = now();
    // Connections are not copied to an earlier layout of their table (docs/src/releases.md).
    let strict =
        if layout(&first, "ct") == layout(&second, "ct") { Strict::Yes } else { Strict::NewOnly };
    report.check("a rollback under load", || roll(&bed, &old, load, strict));
    let rolled_back = begun..now();
    report.check("the maps of the old version only are left", || only(&bed, &first, &second));
    report.check("the upgrade again", || roll(&bed, &new, load, Strict::Yes));
    report
        .check("the maps of the new version only are left, again", || only(&bed, &second, &first));
    let forgiven = if strict == Strict::Yes { 0..0 } else { rolled_back };
    witnesses.end_but(&bed, report, forgiven);
    end::compare(&bed, report);
    Ok(bed)
}

/// Which connections must survive.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Strict {
    /// All.
    Yes,
    /// Those that are opened: the table of the open ones has a layout that the other version does not read.
    NewOnly,
}

impl Version {
    /// Loads the image, applies the manifests, replaces every agent.
    fn deploy(&self, cluster: &Cluster, load: &str) -> Result<()> {
        say(&format!("the {} version", self.name));
        let load = load.replace("{tar}", &self.archive.to_string_lossy());
        command::run(command("sh").args(["-c", &load])).context("load the image")?;
        deploy::apply_from(cluster, &self.deploy)?;
        // Both have the same tag, so only a restart brings the image.
        deploy::restart(cluster)
    }
}

/// Replaces the agents while connections are opened and kept open.
fn roll(bed: &Bed<'_>, to: &Version, load: &str, strict: Strict) -> Result<String> {
    let clients = Load::start(bed)?;
    pause(AROUND);
    let deployed = to.deploy(bed.cluster, load);
    pause(AROUND);
    let counted = clients.end(bed)?;
    deployed?;
    let (open, requests) = counted.open;
    let said = format!(
        "{} new connections, slowest answer {:.1} s; {open} open with {requests} requests, {} broke",
        counted.new.len(),
        counted.slowest,
        counted.broken.len()
    );
    let lost = counted.errors.len();
    // A connection that is opened at the moment of the exchange is an open one.
    let may_lose = if strict == Strict::Yes { 0 } else { counted.new.len() / 100 };
    if lost > may_lose || (strict == Strict::Yes && !counted.broken.is_empty()) {
        bail!("{said}; lost: {:?}; broken: {:?}", counted.errors, counted.broken);
    }
    Ok(if lost == 0 { said } else { format!("{said}; {lost} lost") })
}

/// The names of the pinned maps on the first node.
fn maps(bed: &Bed<'_>) -> Result<BTreeSet<String>> {
    let node = bed.cluster.nodes.first().context("no node")?;
    // Through PID 1, since the Pod that may stand for the node has a file system of its own.
    let text = bed.on_node(node, "ls /proc/1/root/sys/fs/bpf/lb")?;
    let of_maps = |name: &&str| version(name).is_some();
    Ok(text.split_whitespace().filter(of_maps).map(str::to_owned).collect())
}

/// The maps, unless two layouts of one are among them.
fn without_doubles(maps: BTreeSet<String>) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    let mut known = maps.iter().filter_map(|pin| Some(version(pin)?.0));
    match known.find(|name| !names.insert(*name)) {
        Some(name) => bail!("two layouts of {name} are pinned"),
        None => Ok(maps),
    }
}

/// Name and version of a map's pin, such as `ct_v2`; not of one that is set aside or a further part of a table.
fn version(pin: &str) -> Option<(&str, u32)> {
    let (name, version) = pin.rsplit_once("_v")?;
    Some((name, version.parse().ok()?))
}

fn layout(maps: &BTreeSet<String>, of: &str) -> Option<u32> {
    maps.iter()
        .filter_map(|pin| version(pin))
        .find(|(name, _)| *name == of)
        .map(|(_, layout)| layout)
}

/// Waits until exactly these maps are pinned, apart from maps that only the other version knows.
fn only(bed: &Bed<'_>, wanted: &BTreeSet<String>, others: &BTreeSet<String>) -> Result<String> {
    let known: BTreeSet<&str> = wanted.iter().filter_map(|pin| Some(version(pin)?.0)).collect();
    within(SETTLED, || {
        let found = maps(bed)?;
        let gone: Vec<_> = wanted.difference(&found).collect();
        let mut left = found.difference(wanted).filter(|pin| {
            version(pin).is_some_and(|(name, _)| known.contains(name)) || !others.contains(*pin)
        });
        ensure!(gone.is_empty(), "not pinned: {gone:?}");
        match left.next() {
            Some(pin) => bail!("still pinned: {pin}"),
            None => Ok(differing(&found, others)),
        }
    })
}

/// Which layouts differ from the other version's, in words.
fn differing(now: &BTreeSet<String>, before: &BTreeSet<String>) -> String {
    let news: Vec<&str> = now.difference(before).map(String::as_str).collect();
    format!("{} maps; not of the version before: {}", now.len(), news.join(" "))
}

#[cfg(test)]
mod tests {
    use super::{layout, version, without_doubles};

    #[test]
    fn names_of_maps_are_read() {
        assert_eq!(version("former_ports_v1"), Some(("former_ports", 1)));
        for other in ["l_7_in", "cg_connect4", "ct_v2_old", "slots_v1_3", "p_listening"] {
            assert_eq!(version(other), None, "{other}");
        }
        let maps = ["ct_v2", "kept_v1"].map(str::to_owned).into();
        assert_eq!((layout(&maps, "ct"), layout(&maps, "pods")), (Some(2), None));
        without_doubles(maps.clone()).unwrap();
        let both = maps.into_iter().chain(["ct_v1".to_owned()]).collect();
        assert!(without_doubles(both).is_err());
    }
}
