//! The checks of which endpoint a client gets: session affinity, `internalTrafficPolicy`, hints for zones and nodes.
//! The endpoints of the last two are the Pods that are clients as well: one on each node, with the node in its name.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::{
    ask::{self, Names, family},
    bed::{Bed, PORT, service, with},
    cluster::{Cluster, NAMESPACE, items, text},
    report::{Report, SOON, within},
};

const ZONE: &str = "topology.kubernetes.io/zone";

/// Runs them all.
pub(crate) fn check(bed: &Bed<'_>, report: &mut Report) {
    report.check("sessionAffinity over 10 connections, and its timeout", || affinity(bed));
    report.check("internalTrafficPolicy Local uses only endpoints of the node", || {
        internal_local(bed)
    });
    report.check("internalTrafficPolicy Local without an endpoint there", || internal_none(bed));
    report.check("PreferSameZone with the controller's hints", || zones(bed));
    report.check("PreferSameNode with the controller's hints", || {
        let own = |node: &str| Names::from([format!("client-{node}")]);
        preferred(bed, "same-node", "PreferSameNode", &own)
    });
}

/// Ten connections of each client end at one server; without affinity they no longer do.
fn affinity(bed: &Bed<'_>) -> Result<String> {
    let Some(node) = bed.cluster.nodes.first() else { bail!("no node") };
    let clients: [(&str, ask::Shell<'_>); 2] = [
        ("Pod", &|script| bed.in_pod(node, script)),
        ("host", &|script| bed.on_node(node, script)),
    ];
    let select = json!({ "app": "web" });
    let fields = json!({ "sessionAffinity": "ClientIP", "type": "NodePort" });
    bed.cluster.apply(&[with(service("sticky", &select, None), &fields)])?;
    let mut ways: Vec<(String, String, u16, ask::Shell<'_>)> = Vec::new();
    for address in bed.addresses("sticky")? {
        for (client, shell) in clients {
            ways.push((format!("{client} {}", family(&address)), address.clone(), PORT, shell));
        }
    }
    let outside = |script: &str| bed.outside(script);
    if bed.cluster.outside_shell("").is_some() {
        let (port, _) = bed.node_ports("sticky")?;
        for address in bed.cluster.addresses(node)? {
            ways.push((format!("outside {}", family(&address)), address, port, &outside));
        }
    }
    let mut found = Vec::new();
    for (client, address, port, shell) in &ways {
        let names = within(SOON, || ask::servers(address, *port, 10, *shell));
        let names = names.with_context(|| client.clone())?;
        match names.first() {
            Some(name) if names.len() == 1 => found.push(format!("{client} {name}")),
            _ => bail!("{client}: {names:?} answered"),
        }
    }
    let none = json!({ "spec": { "sessionAffinity": "None" } }).to_string();
    bed.cluster.run(&["patch", "--namespace", NAMESPACE, "service/sticky", "--patch", &none])?;
    for (client, address, port, shell) in &ways {
        within(SOON, || match ask::servers(address, *port, 40, *shell)?.len() {
            1 => bail!("{client}: still one server for 40 connections after the timeout"),
            _ => Ok(()),
        })?;
    }
    Ok(found.join(", "))
}

fn internal_local(bed: &Bed<'_>) -> Result<String> {
    let fields = json!({ "internalTrafficPolicy": "Local" });
    bed.cluster.apply(&[with(service("inside", &json!({ "role": "client" }), None), &fields)])?;
    let own = |node: &str| Names::from([format!("client-{node}")]);
    all_get(bed, "inside", &own)
}

/// Dropped, not refused: the endpoints are elsewhere (kube-proxy does the same).
fn internal_none(bed: &Bed<'_>) -> Result<String> {
    let [home, others @ ..] = &bed.cluster.nodes[..] else { bail!("no node") };
    let fields = json!({ "internalTrafficPolicy": "Local" });
    bed.cluster.apply(&[with(service("inside-one", &json!({ "client": home }), None), &fields)])?;
    let addresses = bed.addresses("inside-one")?;
    let want = Names::from([format!("client-{home}")]);
    for address in &addresses {
        within(SOON, || {
            match ask::servers(address, PORT, 4, &|script| bed.in_pod(home, script))? {
                names if names == want => Ok(()),
                names => bail!("{names:?} answered on {home}"),
            }
        })?;
        for node in others {
            within(SOON, || ask::silent(address, (PORT, PORT), &|script| bed.in_pod(node, script)))
                .with_context(|| format!("a Pod on {node}"))?;
        }
    }
    Ok(format!("answers on {home}, silent on {}, {} families", others.join(" "), addresses.len()))
}

/// Every client gets exactly the endpoints of its node's zone.
fn zones(bed: &Bed<'_>) -> Result<String> {
    let labelled = label_zones(bed.cluster)?;
    let outcome = zone_of_node(bed.cluster).and_then(|zones| {
        let same = |node: &str| -> Names {
            let here = |other: &&String| zones.get(*other) == zones.get(node);
            bed.cluster.nodes.iter().filter(here).map(|other| format!("client-{other}")).collect()
        };
        if bed.cluster.nodes.iter().all(|node| same(node).len() == bed.cluster.nodes.len()) {
            bail!("all nodes are in one zone: zones cannot be distinguished");
        }
        preferred(bed, "same-zone", "PreferSameZone", &same)
    });
    for node in labelled {
        bed.cluster.run(&["label", "node", &node, &format!("{ZONE}-")])?;
    }
    outcome
}

/// Gives nodes that are in no zone one each; their names.
fn label_zones(cluster: &Cluster) -> Result<Vec<String>> {
    let zones = zone_of_node(cluster)?;
    let without: Vec<_> =
        cluster.nodes.iter().filter(|node| !zones.contains_key(*node)).cloned().collect();
    for node in &without {
        cluster.run(&["label", "node", node, &format!("{ZONE}=lb-conformance-{node}")])?;
    }
    Ok(without)
}

fn zone_of_node(cluster: &Cluster) -> Result<BTreeMap<String, String>> {
    let mut zones = BTreeMap::new();
    let pointer = format!("/metadata/labels/{}", ZONE.replace('/', "~1"));
    for node in items(&cluster.json(&["get", "nodes"])?) {
        if let (Some(name), Some(zone)) = (text(node, "/metadata/name"), text(node, &pointer)) {
            zones.insert(name.to_owned(), zone.to_owned());
        }
    }
    Ok(zones)
}

/// A Service with a preference: when every endpoint has its hint, each client gets those it should.
fn preferred(
    bed: &Bed<'_>,
    name: &str,
    preference: &str,
    want: &dyn Fn(&str) -> Names,
) -> Result<String> {
    let fields = json!({ "trafficDistribution": preference, "type": "NodePort" });
    let select = json!({ "role": "client" });
    bed.cluster.apply(&[with(service(name, &select, None), &fields)])?;
    let hints = within(SOON, || hints(bed, name))?;
    let inside = all_get(bed, name, want)?;
    if bed.cluster.outside_shell("").is_none() {
        return Ok(format!("{hints} hints; {inside}"));
    }
    let (port, _) = bed.node_ports(name)?;
    for node in &bed.cluster.nodes {
        for address in bed.cluster.addresses(node)? {
            get(&address, port, &want(node), &|script| bed.outside(script))
                .with_context(|| format!("from outside at {node}"))?;
        }
    }
    Ok(format!("{hints} hints; {inside}; from outside the same by the node asked"))
}

/// How many endpoints there are, once each has a hint for zones or nodes.
fn hints(bed: &Bed<'_>, service: &str) -> Result<usize> {
    let selector = format!("kubernetes.io/service-name={service}");
    let get = ["get", "--namespace", NAMESPACE, "endpointslices", "--selector", &selector];
    let list = bed.cluster.json(&get)?;
    let slices = items(&list).flat_map(|slice| slice.get("endpoints").and_then(Value::as_array));
    let endpoints: Vec<_> = slices.flatten().collect();
    let hinted = |endpoint: &&&Value| endpoint.get("hints").is_some();
    let n = endpoints.iter().filter(hinted).count();
    if n != endpoints.len() || n < bed.cluster.nodes.len() {
        bail!("{n} of {} endpoints have hints", endpoints.len());
    }
    Ok(n)
}

/// From the Pod and the host of every node, exactly the servers wanted there.
fn all_get(bed: &Bed<'_>, service: &str, want: &dyn Fn(&str) -> Names) -> Result<String> {
    let addresses = bed.addresses(service)?;
    let mut found = Vec::new();
    for node in &bed.cluster.nodes {
        let want = want(node);
        for address in &addresses {
            get(address, PORT, &want, &|script| bed.in_pod(node, script))
                .with_context(|| format!("a Pod on {node}"))?;
            get(address, PORT, &want, &|script| bed.on_node(node, script))
                .with_context(|| format!("the host {node}"))?;
        }
        let names: Vec<_> = want.into_iter().collect();
        found.push(format!("{node} gets {}", names.join(" ")));
    }
    Ok(format!("{}, {} families", found.join(", "), addresses.len()))
}

/// Twenty connections reach the servers wanted and no other.
fn get(address: &str, port: u16, want: &Names, shell: ask::Shell<'_>) -> Result<()> {
    within(SOON, || match ask::servers(address, port, 20 * want.len(), shell)? {
        names if names == *want => Ok(()),
        names => bail!("{}: {names:?} answered instead of {want:?}", family(address)),
    })
}
