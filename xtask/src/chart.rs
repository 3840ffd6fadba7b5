//! `cargo xtask chart`: the Helm chart. It must make the objects that the kustomize base and its components make, refuse values
//! that mean nothing, and, with `--cluster`, install, upgrade, roll back and uninstall.

mod cluster;
mod objects;

use std::{fs::read_to_string, path::Path};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;

use crate::{
    command::{self, output, remove_dir, root, say, target_dir},
    kubectl::{self, Kubectl},
    setup::{Need, helm},
};

use self::objects::{Objects, difference};

/// What the machine must have.
pub(crate) const NEEDS: &[Need] = &[Need::Helm];

/// The chart, and the kustomize base that it is compared with.
const CHART: &str = "deploy/helm";
const BASE: &str = "deploy";
/// What distributions need: for each a component and values.
const DISTRIBUTIONS: &str = "deploy/distributions";
const DISTRIBUTIONS_PAGE: &str = "docs/src/distributions.md";
/// The namespace of the base.
const NAMESPACE: &str = "kube-system";
/// Has the overlay for the place of runbooks, after this line.
const OPERATIONS: &str = "docs/src/operations.md";
const OVERLAY: &str = "<!-- overlay: runbooks -->";
/// The name of the release.
const RELEASE: &str = "lb";

/// Options of the task.
#[derive(Args)]
pub(crate) struct Options {
    /// The kubectl command
    #[arg(long, value_name = "COMMAND", default_value = kubectl::KUBECTL)]
    kubectl: String,
    /// Run helm with this command
    #[arg(long, value_name = "COMMAND {helm}", default_value = "{helm}")]
    helm: String,
    /// Also install the chart on the cluster, whose nodes must have the image lb-agent:dev, upgrade it, and uninstall it
    #[arg(long)]
    cluster: bool,
}

/// The chart with values, and the overlay that means the same.
struct Case {
    name: &'static str,
    values: &'static [&'static str],
    overlay: &'static str,
}

/// The values that mean the component deploy/monitoring.
const MONITORING: [&str; 4] = [
    "monitoring.podMonitor.enabled=true",
    "monitoring.rules.enabled=true",
    "monitoring.dashboards.enabled=true",
    "settings.metrics-bind-address=0.0.0.0:10249",
];

const CASES: [Case; 8] = [
    Case { name: "the defaults", values: &[], overlay: "" },
    Case {
        name: "mountBpffs",
        values: &["mountBpffs=true"],
        overlay: "components: [../../deploy/mount-bpffs]\n",
    },
    Case {
        name: "sysAdmin",
        values: &["sysAdmin=true"],
        overlay: "components: [../../deploy/with-sys-admin]\n",
    },
    Case {
        name: "no kubeconfig of the kubelet",
        values: &["kubeletKubeconfig="],
        overlay: "components: [../../deploy/without-kubelet-conf]\n",
    },
    Case {
        name: "settings",
        values: &["settings.takeover=when-gone", "settings.startup-taint=example.com/agent"],
        overlay: "components: [../../deploy/takeover, ../../deploy/startup-taint]\n\
                  configMapGenerator:\n  - name: lb-agent\n    namespace: kube-system\n    behavior: merge\n    \
                  literals: [startup-taint=example.com/agent]\n",
    },
    Case {
        name: "users of kubectl lb",
        values: &["users.create=true"],
        overlay: "resources: [../../deploy, ../../deploy/users]\n",
    },
    Case {
        name: "monitoring",
        values: &MONITORING,
        overlay: "components: [../../deploy/monitoring]\n",
    },
    Case {
        name: "cleanup",
        values: &["cleanup=true"],
        overlay: r#"patches:
  - target: { kind: DaemonSet }
    patch: |
      [
        { "op": "replace", "path": "/spec/template/spec/containers/0/args", "value": ["cleanup", "--wait"] },
        { "op": "replace", "path": "/spec/updateStrategy/rollingUpdate/maxUnavailable", "value": "100%" }
      ]
"#,
    },
];

/// Values that the schema must refuse, and what the refusal names.
const REFUSED: [(&str, &str); 20] = [
    ("settings.node-port-adresses=primary", "node-port-adresses"),
    ("settings.takeover=always", "takeover"),
    ("settings.ct-entries=many", "ct-entries"),
    ("image.digest=sha256:12", "digest"),
    ("kubeletKubeconfig=kubelet.conf", "kubeletKubeconfig"),
    ("replicas=2", "replicas"),
    ("monitoring.podMonitor.enabled=true", "metrics-bind-address"),
    ("monitoring.serviceMonitor.enabled=true", "serviceMonitor"),
    ("monitoring.rules.runbookUrl=docs.example.com", "runbookUrl"),
    ("settings.api-server=10.0.0.1:6443", "api-server"),
    ("settings.node-port-addresses=10.0.0.0", "node-port-addresses"),
    ("settings.node-port-addresses=10.0.0.0/8\\,all", "node-port-addresses"),
    ("settings.external-ip-cidrs=2001:db8::", "external-ip-cidrs"),
    ("settings.allowed-source-cidrs=none", "allowed-source-cidrs"),
    ("settings.masquerade-ports=10000", "masquerade-ports"),
    ("settings.startup-taint=example.com/a/b", "startup-taint"),
    ("settings.metrics-bind-address=localhost:10249", "metrics-bind-address"),
    ("settings.flow-log=flows.jsonl", "flow-log"),
    ("settings.flow-log-verdicts=denied", "flow-log-verdicts"),
    ("settings.flow-log-fields=time by", "flow-log-fields"),
];

/// Values that an agent takes, so the schema must, too.
const ACCEPTED: [&str; 18] = [
    "settings.api-server=https://[fd00::1]:6443",
    "settings.node-port-addresses=primary",
    "settings.node-port-addresses=10.0.0.0/8\\,2001:db8::/32",
    "settings.node-port-addresses=0.0.0.0/0\\, ::/0",
    "settings.external-ip-cidrs=none",
    "settings.external-ip-cidrs=203.0.113.0/24",
    "settings.allowed-source-cidrs=10.8.0.0/16\\,fd00:8::/32",
    "settings.masquerade-ports=10000-29999",
    "settings.startup-taint=example.com/starting",
    "settings.metrics-bind-address=0.0.0.0:10249",
    "settings.metrics-bind-address=[::]:10249",
    "settings.metrics-bind-address=::",
    "settings.metrics-bind-address=0.0.0.0",
    "settings.flow-log=stdout",
    "settings.flow-log=file:/var/log/lb/flows.jsonl",
    "settings.flow-log-verdicts=dropped\\,would-deny\\,would-allow\\,allowed",
    "settings.flow-log-fields=time\\, verdict\\,src\\,dst\\,by",
    "settings.ct-entries=262144",
];

/// Checks the chart and writes its package into target/chart.
///
/// # Errors
/// When a check fails.
pub(crate) fn run(options: &Options) -> Result<()> {
    let helm = Helm { prefix: options.helm.replace("{helm}", &helm().to_string_lossy()) };
    let chart = root().join(CHART).to_string_lossy().into_owned();
    command::run(&mut helm.command(&["lint", "--strict", "--quiet", &chart]))?;
    for case in &CASES {
        let ours = helm.template(case.values).with_context(|| case.name)?;
        let base = overlay(&options.kubectl, case.overlay).with_context(|| case.name)?;
        if let Some(text) = difference(&ours, &base) {
            bail!("{CHART} with {} differs from {BASE}:\n{text}", case.name);
        }
        say(&format!("{}: as kustomize makes it", case.name));
    }
    distributions(&options.kubectl, &helm)?;
    monitoring(&options.kubectl)?;
    runbooks(&options.kubectl, &helm)?;
    refusals(&helm)?;
    digest_and_checksum(&helm)?;
    package(&helm, &chart)?;
    if options.cluster {
        cluster::check(&Kubectl::new(&options.kubectl)?, &helm, &chart)?;
    }
    Ok(())
}

/// The names of the distributions that have a component and values.
fn distribution_names() -> Result<Vec<String>> {
    let dir = root().join(DISTRIBUTIONS);
    let entries = std::fs::read_dir(&dir).with_context(|| dir.display().to_string())?;
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        Ok(entry?.file_name().to_string_lossy().into_owned())
    };
    let mut names = entries.map(name).collect::<Result<Vec<_>>>().context(DISTRIBUTIONS)?;
    names.sort();
    ensure!(!names.is_empty(), "{DISTRIBUTIONS} is empty");
    Ok(names)
}

/// The line of an overlay that takes what a distribution needs.
fn for_distribution(name: &str) -> String {
    format!("components: [../../{DISTRIBUTIONS}/{name}]\n")
}

/// For each distribution, component and values mean the same, something else than the base, and the documentation names them.
fn distributions(kubectl: &str, helm: &Helm) -> Result<()> {
    let base = overlay(kubectl, "").context("the base")?;
    let document = root().join(DISTRIBUTIONS_PAGE);
    let page = read_to_string(&document).with_context(|| document.display().to_string())?;
    let names = distribution_names()?;
    for name in &names {
        let values = root().join(DISTRIBUTIONS).join(name).join("values.yaml");
        let ours = helm.template_of(&["--values", &values.to_string_lossy()])?;
        let theirs = overlay(kubectl, &for_distribution(name)).with_context(|| name.clone())?;
        if let Some(text) = difference(&ours, &theirs) {
            bail!("{DISTRIBUTIONS}/{name}: values.yaml and the component differ:\n{text}");
        }
        ensure!(
            difference(&theirs, &base).is_some(),
            "{DISTRIBUTIONS}/{name} does not change the base"
        );
        let text = read_to_string(&values).with_context(|| values.display().to_string())?;
        let pairs = text.lines().filter(|line| !line.starts_with('#'));
        let set = pairs.filter_map(|line| line.trim().split_once(": ")).map(|(_, value)| value);
        for needed in set.chain([&*format!("{DISTRIBUTIONS}/{name}")]) {
            ensure!(page.contains(needed), "{DISTRIBUTIONS_PAGE} does not have {needed} of {name}");
        }
    }
    say(&format!("{}: by the component as by the values", names.join(", ")));
    Ok(())
}

/// What the chart is compared with has what it should: `cargo xtask monitoring` tests what is in it.
fn monitoring(kubectl: &str) -> Result<()> {
    let made = overlay(kubectl, "components: [../../deploy/monitoring]\n").context("monitoring")?;
    let setting = "/data/metrics-bind-address";
    let label = "/metadata/labels/grafana_dashboard";
    for (kind, name, pointer, want) in [
        ("ConfigMap", "lb-agent", setting, "0.0.0.0:10249"),
        ("PodMonitor", "lb-agent", "/metadata/namespace", NAMESPACE),
        ("PrometheusRule", "lb-agent", "/metadata/namespace", NAMESPACE),
        ("ConfigMap", "lb-dashboard-overview", "/metadata/namespace", NAMESPACE),
        ("ConfigMap", "lb-dashboard-overview", label, "1"),
        ("ConfigMap", "lb-dashboard-services", label, "1"),
        ("ConfigMap", "lb-dashboard-policies", label, "1"),
        ("ConfigMap", "lb-dashboard-agent", label, "1"),
    ] {
        let found = made.text(kind, name, pointer);
        ensure!(found == Some(want), "deploy/monitoring: {kind} {name}: {pointer} is {found:?}");
    }
    say("deploy/monitoring: a component of the base");
    Ok(())
}

/// The links from alerts to runbooks lead where the chart's value says, and where the overlay of the documentation says.
fn runbooks(kubectl: &str, helm: &Helm) -> Result<()> {
    let document = root().join(OPERATIONS);
    let text = read_to_string(&document).with_context(|| document.display().to_string())?;
    let documented = documented(&text).with_context(|| format!("{OPERATIONS}: no {OVERLAY}"))?;
    let component = format!("components: [../../deploy/monitoring]\n{documented}");
    let base = overlay(kubectl, &component).context("the overlay of the documentation")?;
    let place = "https://docs.example.com/lb";
    let url = format!("monitoring.rules.runbookUrl={place}/");
    let ours = helm.template(&[&MONITORING[..], &[&*url]].concat())?;
    if let Some(text) = difference(&ours, &base) {
        bail!(
            "{CHART} with another place of runbooks differs from {BASE} with that overlay:\n{text}"
        );
    }
    for (maker, objects) in [("the chart", &ours), ("kustomize", &base)] {
        let urls = objects.runbooks();
        let start = format!("{place}/runbooks.html#");
        let wrong = urls.iter().find(|url| !url.starts_with(&start));
        ensure!(!urls.is_empty() && wrong.is_none(), "a runbook by {maker}: {wrong:?}");
    }
    say("runbooks: where a value or an overlay says");
    Ok(())
}

/// The YAML of the documentation by which an overlay changes the place of runbooks.
fn documented(text: &str) -> Option<String> {
    let (_, rest) = text.split_once(OVERLAY)?;
    let (_, rest) = rest.split_once("```yaml\n")?;
    let (block, _) = rest.split_once("  ```\n")?;
    // In an item of a list.
    Some(
        block
            .lines()
            .map(|line| line.strip_prefix("  ").unwrap_or(line).to_owned() + "\n")
            .collect(),
    )
}

/// How to run helm.
struct Helm {
    /// Shell text, so that it may quote and set variables.
    prefix: String,
}

impl Helm {
    fn command(&self, args: &[&str]) -> std::process::Command {
        kubectl::shell(&self.prefix, args)
    }

    fn output(&self, args: &[&str]) -> Result<String> {
        output(&mut self.command(args)).with_context(|| format!("helm {}", args.join(" ")))
    }

    /// The objects of the chart with these values.
    fn template(&self, values: &[&str]) -> Result<Objects> {
        let mut args = Vec::new();
        for value in values {
            // Strings, as most values are; `true` and `false` are not.
            let flag = if value.ends_with("=true") { "--set" } else { "--set-string" };
            args.extend([flag, value]);
        }
        self.template_of(&args)
    }

    /// The objects of the chart with these arguments.
    fn template_of(&self, args: &[&str]) -> Result<Objects> {
        let chart = root().join(CHART).to_string_lossy().into_owned();
        let template = ["template", RELEASE, &chart, "--namespace", NAMESPACE];
        Objects::read(&self.output(&[&template[..], args].concat())?)
    }
}

/// The objects of an overlay of the base.
fn overlay(kubectl: &str, text: &str) -> Result<Objects> {
    let dir = overlay_dir(text)?;
    Objects::read(&output(&mut kubectl::shell(kubectl, &["kustomize", &dir]))?)
}

/// Writes an overlay of the base, and returns its directory.
fn overlay_dir(text: &str) -> Result<String> {
    let dir = target_dir().join("chart-overlay");
    std::fs::create_dir_all(&dir).context("create the directory of the overlay")?;
    let resources = if text.starts_with("resources:") { "" } else { "resources: [../../deploy]\n" };
    let head = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n";
    let path = dir.join("kustomization.yaml");
    // Beside the repository if the build directory is elsewhere.
    let text = format!("{head}{resources}{text}").replace("../..", &relative(&dir)?);
    std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    Ok(dir.to_string_lossy().into_owned())
}

/// The way from a directory to the root of the repository, since kustomize takes no absolute paths.
fn relative(dir: &Path) -> Result<String> {
    let (from, to) = (dir.canonicalize()?, root().canonicalize()?);
    let common = from.ancestors().find(|ancestor| to.starts_with(ancestor));
    let common = common.context("no common directory")?;
    let up = from.strip_prefix(common)?.components().map(|_| "..");
    let down = to.strip_prefix(common)?.components().map(|part| part.as_os_str().to_string_lossy());
    let parts: Vec<String> =
        up.map(str::to_owned).chain(down.map(|part| part.into_owned())).collect();
    Ok(parts.join("/"))
}

fn refusals(helm: &Helm) -> Result<()> {
    for (value, named) in REFUSED {
        match helm.template(&[value]) {
            Ok(_) => bail!("{CHART} accepts {value}"),
            Err(err) => {
                let text = format!("{err:#}");
                ensure!(text.contains(named), "the refusal of {value} does not name it: {text}");
            }
        }
    }
    for value in ACCEPTED {
        helm.template(&[value]).with_context(|| format!("{CHART} with {value}"))?;
    }
    say("values that mean nothing are refused, and no others");
    Ok(())
}

/// A digest takes the place of the tag, and the agents restart for a change of a setting and for nothing else.
fn digest_and_checksum(helm: &Helm) -> Result<()> {
    let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
    let pinned = helm.template(&[&format!("image.digest={digest}")])?;
    ensure!(pinned.image()? == format!("lb-agent@{digest}"), "the image is {}", pinned.image()?);
    let plain = helm.template(&[])?.checksum()?;
    let other = helm.template(&["settings.log-format=json"])?.checksum()?;
    let same = helm.template(&["users.create=true"])?.checksum()?;
    ensure!(plain != other, "a setting changes, and the annotation of the Pods does not");
    ensure!(plain == same, "the annotation of the Pods changes, and no setting does");
    Ok(())
}

/// Packages the chart of a release in `dir`, with the image pinned by its digest; returns the objects that it installs by default.
///
/// # Errors
/// When helm refuses it.
pub(crate) fn release(version: &str, image: &Pinned<'_>, dir: &Path) -> Result<String> {
    let helm = Helm { prefix: helm().to_string_lossy().into_owned() };
    let copy = target_dir().join("chart-release");
    remove_dir(&copy)?;
    // The links in it become files.
    command::run(command::command("cp").args(["-rL", CHART]).arg(&copy))?;
    let change = |file: &str, change: &dyn Fn(&str) -> Result<String>| -> Result<()> {
        let path = copy.join(file);
        let text = read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        std::fs::write(&path, change(&text)?).with_context(|| format!("write {}", path.display()))
    };
    change("values.yaml", &|text| image.values(text))?;
    change("Chart.yaml", &|text| Ok(image.chart(text)))?;
    let chart = copy.to_string_lossy();
    let to = dir.to_string_lossy();
    let args = ["package", &*chart, "--version", version, "--app-version", version];
    helm.output(&[&args[..], &["--destination", &*to]].concat())?;
    let package = dir.join(format!("lb-agent-{version}.tgz"));
    let archive = package.to_string_lossy();
    let template = ["template", RELEASE, &*archive, "--namespace", NAMESPACE];
    let tagged = helm.output(&[&template[..], &["--set", "image.tag=other"]].concat())?;
    let want = format!("image: \"{}:other\"", image.repository);
    ensure!(tagged.contains(&want), "with a tag, the chart does not install {want}");
    helm.output(&template)
}

/// The annotation of a release's chart that has the digest of its image.
pub(crate) const DIGEST: &str = "lb-agent.io/digest";

/// An image by its digest.
pub(crate) struct Pinned<'a> {
    pub(crate) repository: &'a str,
    pub(crate) digest: &'a str,
}

impl Pinned<'_> {
    /// The chart's values with this image.
    fn values(&self, text: &str) -> Result<String> {
        let mut values = text.to_owned();
        for (plain, pinned) in [
            ("  repository: lb-agent\n", format!("  repository: {}\n", self.repository)),
            ("  tag: dev\n", "  tag: \"\"\n".to_owned()),
        ] {
            ensure!(values.matches(plain).count() == 1, "{CHART}/values.yaml: not once: {plain}");
            values = values.replace(plain, &pinned);
        }
        Ok(values)
    }

    /// The chart's description with its digest.
    fn chart(&self, text: &str) -> String {
        format!("{text}annotations:\n  {DIGEST}: {}\n", self.digest)
    }
}

fn package(helm: &Helm, chart: &str) -> Result<()> {
    let dir = target_dir().join("chart").to_string_lossy().into_owned();
    let text = helm.output(&["package", chart, "--destination", &dir])?;
    say(text.trim());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{CASES, CHART, Pinned, relative};
    use crate::command::root;

    #[test]
    fn the_image_of_a_release_is_pinned() {
        let image = Pinned { repository: "registry.test/lb-agent", digest: "sha256:0123" };
        let text = std::fs::read_to_string(root().join(CHART).join("values.yaml")).unwrap();
        let values = image.values(&text).unwrap();
        let want = "repository: registry.test/lb-agent\n";
        assert!(values.contains(want) && values.contains("  tag: \"\"\n"), "{values}");
        assert!(image.values(&values).is_err());
        let chart = image.chart("name: lb-agent\n");
        assert_eq!(chart, "name: lb-agent\nannotations:\n  lb-agent.io/digest: sha256:0123\n");
    }

    #[test]
    fn the_chart_cleans_up_by_the_patch_that_is_there_for_others() {
        let patch = std::fs::read_to_string(root().join("deploy/cleanup.json")).unwrap();
        let case = CASES.iter().find(|case| case.name == "cleanup").unwrap();
        for line in patch.lines() {
            assert!(case.overlay.contains(line.trim()), "{line}");
        }
    }

    #[test]
    fn the_way_to_the_root_is_relative() {
        assert_eq!(relative(&root().join("xtask/src")).unwrap(), "../..");
    }
}
