//! The taint with which a node may come up, so that no Pod starts on it before its policies hold: taken off once.
#![forbid(unsafe_code)]

use anyhow::Context as _;
use k8s_openapi::api::core::v1::{Node, Taint};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::{Backoff, ConnectOptions, connect};

/// The effect of the taint that is removed. Taints with the same key and another effect stay.
const EFFECT: &str = "NoSchedule";

/// Takes the taint off when it is told that this node is ready.
#[derive(Debug, Default)]
pub struct StartupTaint {
    ready: Option<oneshot::Sender<()>>,
}

impl StartupTaint {
    /// Waits in a task of its own, which tries until the API server has done it.
    pub fn spawn(options: ConnectOptions, node: &str, key: &str) -> Self {
        let (ready, is_ready) = oneshot::channel();
        let (node, key) = (node.to_owned(), key.to_owned());
        tokio::spawn(async move {
            // The agent ends without being ready: the taint stays.
            if is_ready.await.is_err() {
                return;
            }
            let mut backoff = Backoff::default();
            loop {
                let tried = async { remove(connect(&options).await?, &node, &key).await };
                match tried.await {
                    Ok(true) => return info!(node, taint = key, "startup taint removed"),
                    Ok(false) => return,
                    Err(err) => warn!(
                        node,
                        taint = key,
                        "cannot remove the startup taint, retrying: {err:#}"
                    ),
                }
                backoff.pause().await;
            }
        });
        Self { ready: Some(ready) }
    }

    /// This node is ready.
    pub fn ready(&mut self) {
        if let Some(ready) = self.ready.take()
            && ready.send(()).is_err()
        {
            warn!("the task that removes the startup taint has ended");
        }
    }
}

/// Takes the taint off the node. Returns whether it was there.
async fn remove(client: kube::Client, node: &str, key: &str) -> anyhow::Result<bool> {
    let nodes: Api<Node> = Api::all(client);
    let found = nodes.get(node).await.context("get the node")?;
    let taints = found.spec.and_then(|spec| spec.taints).unwrap_or_default();
    let is_ours = |taint: &Taint| taint.key == key && taint.effect == EFFECT;
    let others: Vec<&Taint> = taints.iter().filter(|taint| !is_ours(taint)).collect();
    if others.len() == taints.len() {
        return Ok(false);
    }
    // The whole list is replaced. If another client has changed the node meanwhile, the server refuses.
    let patch = json!({
        "metadata": {"resourceVersion": found.metadata.resource_version},
        "spec": {"taints": others},
    });
    let patched = nodes.patch(node, &PatchParams::default(), &Patch::Merge(patch)).await;
    patched.context("remove the taint (requires the verb patch on nodes)")?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use http_body_util::{BodyExt as _, Full};
    use hyper::body::{Bytes, Incoming};
    use hyper::service::service_fn;
    use hyper::{Method, Request, Response, StatusCode};
    use hyper_util::rt::TokioIo;
    use serde_json::{Value, json};
    use tokio::net::TcpListener;

    use super::remove;

    /// A node, and how often it changes under the client's hands.
    struct Server {
        node: Value,
        changes: u32,
    }

    async fn answer(
        request: Request<Incoming>,
        server: Arc<Mutex<Server>>,
    ) -> Result<Response<Full<Bytes>>, hyper::Error> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let body = request.into_body().collect().await?.to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let mut server = server.lock().unwrap();
        assert_eq!(path, "/api/v1/nodes/n1");
        let mut code = StatusCode::OK;
        if method == Method::PATCH {
            if server.changes > 0 {
                server.changes -= 1;
                server.node["metadata"]["resourceVersion"] = json!("8");
            }
            if body["metadata"]["resourceVersion"] == server.node["metadata"]["resourceVersion"] {
                server.node["spec"]["taints"] = body["spec"]["taints"].clone();
            } else {
                code = StatusCode::CONFLICT;
            }
        }
        let conflict = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "changed", "reason": "Conflict", "code": 409});
        let answer = if code == StatusCode::OK { server.node.clone() } else { conflict };
        Ok(Response::builder()
            .status(code)
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(answer.to_string())))
            .unwrap())
    }

    async fn serve(server: Arc<Mutex<Server>>) -> kube::Client {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let server = Arc::clone(&server);
                let service = service_fn(move |request| answer(request, Arc::clone(&server)));
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        kube::Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap()
    }

    #[tokio::test]
    async fn one_taint_goes_and_the_others_stay() {
        let others = [
            json!({"key": "example.com/gpu", "value": "yes", "effect": "NoSchedule"}),
            json!({"key": "lb/starting", "effect": "NoExecute"}),
        ];
        let ours = json!({"key": "lb/starting", "effect": "NoSchedule"});
        let node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": "n1", "resourceVersion": "7"},
            "spec": {"taints": [others[0], ours, others[1]]},
        });
        let server = Arc::new(Mutex::new(Server { node, changes: 1 }));
        let client = serve(Arc::clone(&server)).await;
        let refused = remove(client.clone(), "n1", "lb/starting").await.unwrap_err();
        assert!(format!("{refused:#}").contains("changed"), "{refused:#}");
        assert!(remove(client.clone(), "n1", "lb/starting").await.unwrap());
        assert_eq!(server.lock().unwrap().node["spec"]["taints"], json!(others));
        assert!(!remove(client, "n1", "lb/starting").await.unwrap(), "it is gone");
    }
}
