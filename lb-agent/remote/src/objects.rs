//! Pods and their owners, as callers need them.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client};

use crate::connect::explained;
use crate::unready::{Unreadiness, unreadiness};

/// A Pod of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RemotePod {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `spec.nodeName`; empty = not scheduled.
    pub node: String,
    /// `spec.hostNetwork`: its addresses are the node's.
    pub host_network: bool,
    /// `status.podIPs`.
    pub ips: Vec<IpAddr>,
    /// `metadata.labels`.
    pub labels: Vec<(String, String)>,
    /// The controller among `metadata.ownerReferences`.
    pub owner: Option<PodController>,
    /// Why it is not ready; `None` if it is.
    pub unready: Option<Unreadiness>,
}

/// What controls a Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodController {
    /// `ReplicaSet`, `StatefulSet`, …
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// Returns the Pod, if there is one.
///
/// # Errors
/// One sentence, when the API server refuses.
pub(crate) async fn pod(
    client: &Client,
    namespace: &str,
    name: &str,
) -> anyhow::Result<Option<RemotePod>> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    Ok(pods.get_opt(name).await.map_err(explained)?.map(of))
}

/// Returns the Pods of a namespace, or of all, by name.
///
/// # Errors
/// As for [`pod`].
pub(crate) async fn pods(
    client: &Client,
    namespace: Option<&str>,
) -> anyhow::Result<Vec<RemotePod>> {
    list(client, namespace, &ListParams::default().match_any()).await
}

/// Returns the Pods that have the address in their status, those of the host network included.
///
/// # Errors
/// As for [`pod`].
pub(crate) async fn pods_at(client: &Client, ip: IpAddr) -> anyhow::Result<Vec<RemotePod>> {
    let wanted = ListParams::default().fields(&format!("status.podIP={ip}"));
    list(client, None, &wanted).await
}

async fn list(
    client: &Client,
    namespace: Option<&str>,
    wanted: &ListParams,
) -> anyhow::Result<Vec<RemotePod>> {
    let pods: Api<Pod> = match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let found = pods.list(wanted).await.map_err(explained)?;
    let mut pods: Vec<RemotePod> = found.items.into_iter().map(of).collect();
    pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    Ok(pods)
}

fn of(pod: Pod) -> RemotePod {
    let unready = unreadiness(&pod);
    let Pod { metadata, spec, status } = pod;
    let spec = spec.unwrap_or_default();
    let ips = status.and_then(|status| status.pod_ips).unwrap_or_default();
    let owners = metadata.owner_references.unwrap_or_default();
    let owner = owners.into_iter().find(|owner| owner.controller == Some(true));
    RemotePod {
        namespace: metadata.namespace.unwrap_or_default(),
        name: metadata.name.unwrap_or_default(),
        uid: metadata.uid.unwrap_or_default(),
        node: spec.node_name.unwrap_or_default(),
        host_network: spec.host_network.unwrap_or_default(),
        ips: ips.iter().filter_map(|one| one.ip.parse().ok()).collect(),
        labels: metadata.labels.unwrap_or_default().into_iter().collect(),
        owner: owner.map(|owner| PodController { kind: owner.kind, name: owner.name }),
        unready,
    }
}
