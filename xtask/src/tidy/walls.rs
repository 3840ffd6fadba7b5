//! What a crate may not depend on: these walls are in the `Cargo.toml`s, where a new dependency is a decision.

use std::path::Path;

use anyhow::{Context as _, Result};

/// A crate, what it may not depend on, and why.
const WALLS: [(&str, &[&str], &str); 7] = [
    (
        "lb-agent/core",
        &[
            "aya",
            "hyper",
            "k8s-openapi",
            "kube",
            "libc",
            "lb-kernel",
            "lb-kube",
            "nix",
            "tokio",
            "tracing",
        ],
        "the core does no I/O and does not wait",
    ),
    (
        "lb-agent/kube",
        &["aya", "lb-kernel", "libc", "nix"],
        "code that watches the cluster must not depend on the kernel",
    ),
    (
        "lb-agent/kernel",
        &["hyper", "k8s-openapi", "kube", "lb-ctl", "lb-kube"],
        "code that writes the maps must not depend on Kubernetes",
    ),
    (
        "lb-agent/ctl",
        &["aya", "hyper", "k8s-openapi", "kube", "tokio"],
        "lbctl reads maps through lb-kernel, manifests through lb-kube, and the cluster through the agents, which lb-remote reaches",
    ),
    (
        "lb-agent/remote",
        &["aya", "lb-common", "lb-core", "lb-ctl", "lb-kernel", "lb-kube", "libc", "nix"],
        "code that runs on a laptop knows the cluster's API, and neither the node nor what the commands mean",
    ),
    (
        "lb-agent/live",
        &[
            "aya",
            "k8s-openapi",
            "kube",
            "lb-common",
            "lb-core",
            "lb-ctl",
            "lb-kernel",
            "lb-kube",
            "nix",
        ],
        "the live views only know what lbctl prints",
    ),
    (
        "lb-agent",
        &["aya", "k8s-openapi", "kube", "netlink-packet-core"],
        "the agent reaches the kernel through lb-kernel and the cluster through lb-kube",
    ),
];

pub(super) fn check(root: &Path) -> Result<Vec<String>> {
    let mut complaints = Vec::new();
    for (name, forbidden, why) in WALLS {
        let path = root.join(name).join("Cargo.toml");
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let found = dependencies(&text);
        for name_of_dependency in found.filter(|found| forbidden.contains(found)) {
            complaints.push(format!("{name}/Cargo.toml: depends on {name_of_dependency}: {why}"));
        }
    }
    Ok(complaints)
}

/// Names of the dependencies of the crate itself, not of its tests and build script.
fn dependencies(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .skip_while(|line| *line != "[dependencies]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split(['.', ' ', '=']).next())
        .filter(|name| !name.is_empty() && !name.starts_with('#'))
}

#[cfg(test)]
mod tests {
    use super::dependencies;

    #[test]
    fn dependencies_of_tests_are_not_those_of_the_crate() {
        let text = "[package]\nname = \"a\"\n\n[dependencies]\naya.workspace = true\n# why\nnix = { x = 1 }\n\n\
                    [dev-dependencies]\nkube.workspace = true\n";
        assert_eq!(dependencies(text).collect::<Vec<_>>(), ["aya", "nix"]);
    }
}
