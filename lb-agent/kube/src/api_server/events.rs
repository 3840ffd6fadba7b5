//! Kubernetes Events (`events.k8s.io/v1`, KEP-383) on objects that are wrong or have no room on this node, and on Pods
//! whose flows are denied, so that `kubectl describe` shows their authors what the node's operator sees in `lbctl`.
//!
//! The caller decides what this node writes: a field that cannot be read is the same for every node, and a thousand agents
//! must not say it a thousand times.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event as ApiEvent;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ApiResource, DynamicObject, PostParams};
use kube::core::GroupVersionKind;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::{ConnectOptions, connect};
use lb_core::annotation::EventReason;
use lb_core::cluster::Name;
use lb_core::escape::Escaped;
use lb_core::issue::{Issue, ObjectRef};
use lb_core::uid::Uid;

/// Messages that may wait to be written.
const WAITING: usize = 64;
/// Between two Events: a table that is too small for a thousand objects must not flood the API server.
const PAUSE: Duration = Duration::from_millis(500);
/// The API's bound for a note, in bytes.
const NOTE: usize = 1024;
/// The controller that Events name.
const CONTROLLER: &str = "lb-agent";
/// What the agent was doing.
const ACTION: &str = "Program";
/// What the agent did with a Pod's flow.
const JUDGED: &str = "Judge";
/// Longest name of an Event, and what is appended to the Pod's name in it.
const NAME: usize = 253;
const SUFFIX: usize = 17;

/// Queue of what is to be written as Events. No caller waits: if the queue is full, an issue is only in status, log and
/// metrics, and a denial only in `lbctl flows`.
#[derive(Clone, Debug)]
pub struct ApiEvents {
    waiting: Option<mpsc::Sender<EventMessage>>,
}

/// A Warning Event on a Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodEvent {
    /// The Pod.
    pub pod: Name,
    /// Its `metadata.uid`.
    pub uid: Uid,
    /// `reason`.
    pub reason: EventReason,
    /// `note`, one sentence.
    pub note: String,
}

#[derive(Clone, Debug)]
enum EventMessage {
    Issue(Issue),
    Field(Issue),
    Pod(PodEvent),
}

impl ApiEvents {
    /// Writes Events in a task of their own, which ends with the runtime. It connects when there is one to write.
    pub fn spawn(options: ConnectOptions, node: &str) -> Self {
        let (tx, mut rx) = mpsc::channel(WAITING);
        let node = node.to_owned();
        tokio::spawn(async move {
            let mut writer = None;
            while let Some(message) = rx.recv().await {
                if let Err(err) = write(&options, &node, &mut writer, &message).await {
                    warn!(object = message.object(), "cannot write Event: {err:#}");
                    // The server may have moved: the next message looks up its address again.
                    writer = None;
                }
                tokio::time::sleep(PAUSE).await;
            }
        });
        Self { waiting: Some(tx) }
    }

    /// Without an API server there are no Events.
    pub fn none() -> Self {
        Self { waiting: None }
    }

    /// Has an Event written about an issue of this node.
    pub fn tell(&self, issue: &Issue) {
        self.send(|| EventMessage::Issue(issue.clone()));
    }

    /// Has an Event written about a field that no node can read.
    pub fn tell_field(&self, issue: &Issue) {
        self.send(|| EventMessage::Field(issue.clone()));
    }

    /// Has an Event written on a Pod.
    pub fn tell_pod(&self, event: PodEvent) {
        self.send(|| EventMessage::Pod(event));
    }

    fn send(&self, message: impl FnOnce() -> EventMessage) {
        let Some(waiting) = &self.waiting else { return };
        if let Err(err) = waiting.try_send(message()) {
            debug!(object = err.into_inner().object(), "Event not written: too many pending");
        }
    }
}

impl EventMessage {
    fn object(&self) -> String {
        match self {
            Self::Issue(issue) | Self::Field(issue) => issue.object.to_string(),
            Self::Pod(event) => format!("Pod {}", event.pod),
        }
    }
}

async fn write(
    options: &ConnectOptions,
    node: &str,
    writer: &mut Option<Writer>,
    message: &EventMessage,
) -> anyhow::Result<()> {
    let writer = match writer {
        Some(writer) => writer,
        None => writer.insert(Writer::new(connect(options).await?, node)),
    };
    match message {
        EventMessage::Issue(issue) => writer.write(issue, note(issue, Some(node))).await,
        EventMessage::Field(issue) => writer.write(issue, note(issue, None)).await,
        EventMessage::Pod(event) => writer.write_pod(event).await,
    }
}

/// A client that writes Events in the name of this node's agent.
struct Writer {
    client: kube::Client,
    recorder: Recorder,
    node: String,
}

impl Writer {
    fn new(client: kube::Client, node: &str) -> Self {
        let reporter =
            Reporter { controller: CONTROLLER.to_owned(), instance: Some(node.to_owned()) };
        Self { recorder: Recorder::new(client.clone(), reporter), client, node: node.to_owned() }
    }

    async fn write(&self, issue: &Issue, note: String) -> anyhow::Result<()> {
        let Some(kind) = api_resource(&issue.object) else { return Ok(()) };
        let object = &issue.object;
        let api: Api<DynamicObject> = if object.namespace.is_empty() {
            Api::all_with(self.client.clone(), &kind)
        } else {
            Api::namespaced_with(self.client.clone(), &object.namespace, &kind)
        };
        // `kubectl describe` looks for Events by the object's UID, which is not kept here.
        let found = api.get_metadata_opt(&object.name).await.context("get the object's UID")?;
        // The object was deleted: no user will look at its Events.
        let Some(found) = found else { return Ok(()) };
        let regarding = ObjectReference {
            api_version: Some(kind.api_version),
            kind: Some(kind.kind),
            namespace: found.metadata.namespace,
            name: found.metadata.name,
            uid: found.metadata.uid,
            ..ObjectReference::default()
        };
        let event = Event {
            type_: EventType::Warning,
            reason: EventReason::NotProgrammed.name().to_owned(),
            note: Some(note),
            action: ACTION.to_owned(),
            secondary: None,
        };
        self.recorder.publish(&event, &regarding).await.context("create the Event")
    }

    /// Not by the recorder: it repeats an Event of the same object and reason as a number, without the new note.
    async fn write_pod(&self, event: &PodEvent) -> anyhow::Result<()> {
        let PodEvent { pod, uid, reason, note } = event;
        let Name { namespace, name } = pod;
        let now = Timestamp::now();
        let mut named = name.to_string();
        named.truncate(named.floor_char_boundary(NAME - SUFFIX));
        let mut note = Escaped(note).to_string();
        note.truncate(note.floor_char_boundary(NOTE));
        let api: Api<ApiEvent> = Api::namespaced(self.client.clone(), namespace);
        let written = ApiEvent {
            metadata: ObjectMeta {
                name: Some(format!("{named}.{:x}", now.as_nanosecond())),
                namespace: Some(namespace.to_string()),
                ..ObjectMeta::default()
            },
            action: Some(JUDGED.to_owned()),
            reason: Some(reason.name().to_owned()),
            note: Some(note),
            type_: Some("Warning".to_owned()),
            event_time: Some(MicroTime(now)),
            reporting_controller: Some(CONTROLLER.to_owned()),
            reporting_instance: Some(self.node.clone()),
            regarding: Some(ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                namespace: Some(namespace.to_string()),
                name: Some(name.to_string()),
                uid: Some(uid.to_string()).filter(|uid| !uid.is_empty()),
                ..ObjectReference::default()
            }),
            ..ApiEvent::default()
        };
        match api.create(&PostParams::default(), &written).await {
            Ok(_) => Ok(()),
            // Its namespace is gone, and with it the Pod.
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            Err(err) => Err(err).context("create the Event"),
        }
    }
}

/// The API's resource of an object that its author looks at.
fn api_resource(object: &ObjectRef) -> Option<ApiResource> {
    let (group, version, plural) = match object.kind.as_str() {
        "Service" => ("", "v1", "services"),
        "NetworkPolicy" => ("networking.k8s.io", "v1", "networkpolicies"),
        "ClusterNetworkPolicy" => {
            ("policy.networking.k8s.io", "v1alpha2", "clusternetworkpolicies")
        }
        _ => return None,
    };
    let kind = GroupVersionKind::gvk(group, version, &object.kind);
    Some(ApiResource::from_gvk_with_plural(&kind, plural))
}

/// What is wrong, and on which node if it is not wrong on all.
fn note(issue: &Issue, node: Option<&str>) -> String {
    let node = node.map(|node| format!("node {node}: ")).unwrap_or_default();
    let field = if issue.field.is_empty() { String::new() } else { format!("{}: ", issue.field) };
    let mut note = Escaped(format_args!("{node}{field}{}", issue.message)).to_string();
    note.truncate(note.floor_char_boundary(NOTE));
    note
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

    use super::{EventReason, Issue, NOTE, Name, ObjectRef, PodEvent, Uid, Writer, note};

    type Requests = Arc<Mutex<Vec<(Method, String, Value)>>>;

    /// An API server that has one policy, and keeps what it is asked.
    async fn server(requests: Requests) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let requests = Arc::clone(&requests);
                let answer = service_fn(move |request| answer(request, Arc::clone(&requests)));
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), answer),
                );
            }
        });
        format!("http://{address}")
    }

    async fn answer(
        request: Request<Incoming>,
        requests: Requests,
    ) -> Result<Response<Full<Bytes>>, hyper::Error> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let body = request.into_body().collect().await?.to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let (code, answer) = match (&method, path.as_str()) {
            (&Method::GET, "/apis/networking.k8s.io/v1/namespaces/shop/networkpolicies/deny") => (
                StatusCode::OK,
                json!({
                    "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
                    "metadata": {"namespace": "shop", "name": "deny", "uid": "u-1"},
                }),
            ),
            (&Method::POST, _) => (StatusCode::CREATED, body.clone()),
            (&Method::PATCH, _) => (StatusCode::OK, body.clone()),
            _ => (
                StatusCode::NOT_FOUND,
                json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no", "reason": "NotFound", "code": 404}),
            ),
        };
        requests.lock().unwrap().push((method, path, body));
        let answer = Full::new(Bytes::from(answer.to_string()));
        Ok(Response::builder()
            .status(code)
            .header("content-type", "application/json")
            .body(answer)
            .unwrap())
    }

    fn issue(kind: &str, name: &str) -> Issue {
        let object = ObjectRef::new(kind, &Name::new("shop", name));
        Issue::new(object, "spec.ingress[3]", "no room")
    }

    #[tokio::test]
    async fn the_author_of_an_object_is_told_and_again_when_it_comes_back() {
        let requests = Requests::default();
        let server = server(Arc::clone(&requests)).await.parse().unwrap();
        let client = kube::Client::try_from(kube::Config::new(server)).unwrap();
        let writer = Writer::new(client, "n1");
        // A file has no Events; neither has what is gone.
        let file = Issue::new(ObjectRef::file("a.yaml", 7), "", "odd");
        let [gone, deny] = ["gone", "deny"].map(|name| issue("NetworkPolicy", name));
        for issue in [&file, &gone, &deny, &deny] {
            writer.write(issue, note(issue, Some("n1"))).await.unwrap();
        }
        let requests = requests.lock().unwrap();
        let written: Vec<_> =
            requests.iter().filter(|(method, ..)| method != Method::GET).collect();
        let [(post, path, event), (patch, _, again)] = &written[..] else { panic!("{requests:?}") };
        assert_eq!((post, patch), (&Method::POST, &Method::PATCH));
        assert_eq!(path, "/apis/events.k8s.io/v1/namespaces/shop/events");
        assert_eq!(event["type"], "Warning");
        assert_eq!(event["reason"], "NotProgrammed");
        assert_eq!(event["note"], "node n1: spec.ingress[3]: no room");
        assert_eq!(event["reportingInstance"], "n1");
        let regarding = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "namespace": "shop", "name": "deny", "uid": "u-1",
        });
        assert_eq!(event["regarding"], regarding);
        assert_eq!(again["series"]["count"], 2);
    }

    #[tokio::test]
    async fn a_pod_whose_flows_are_denied_gets_an_event_of_its_own_each_time() {
        let requests = Requests::default();
        let server = server(Arc::clone(&requests)).await.parse().unwrap();
        let client = kube::Client::try_from(kube::Config::new(server)).unwrap();
        let writer = Writer::new(client, "n1");
        let note = "denied 12 times in 5m: to db/orders:5432/TCP by db/default-deny";
        let mut event = PodEvent {
            pod: Name::new("shop", "cart-".repeat(50)),
            uid: Uid::parse("0f0e1d2c-3b4a-4958-8677-a0b1c2d3e4f5"),
            reason: EventReason::PolicyDenied,
            note: note.to_owned(),
        };
        writer.write_pod(&event).await.unwrap();
        event.note = "x".repeat(2 * NOTE);
        writer.write_pod(&event).await.unwrap();
        let requests = requests.lock().unwrap();
        let [(post, path, event), (again, _, long)] = &requests[..] else { panic!("{requests:?}") };
        assert_eq!((post, again), (&Method::POST, &Method::POST), "not a number in a series");
        assert_eq!(path, "/apis/events.k8s.io/v1/namespaces/shop/events");
        assert_eq!((&event["type"], &event["reason"]), (&json!("Warning"), &json!("PolicyDenied")));
        assert_eq!(event["note"], note);
        assert_eq!(event["regarding"]["uid"], "0f0e1d2c-3b4a-4958-8677-a0b1c2d3e4f5");
        assert_eq!(
            (&event["action"], &event["reportingInstance"]),
            (&json!("Judge"), &json!("n1"))
        );
        let name = event["metadata"]["name"].as_str().unwrap();
        assert!(name.starts_with("cart-cart-") && name.len() <= 253, "{name}");
        assert_ne!(long["metadata"]["name"], name);
        assert_eq!(long["note"].as_str().unwrap().len(), NOTE);
    }

    #[test]
    fn a_note_is_no_longer_than_the_api_takes() {
        let object = ObjectRef::new("Service", &Name::new("ns", "web"));
        let issue = Issue::new(object, "", "ä".repeat(NOTE));
        let of_all = note(&issue, None);
        assert!(of_all.len() <= NOTE && of_all.starts_with("ää"), "{of_all}");
        let note = note(&issue, Some("n1"));
        assert!(note.len() <= NOTE && note.starts_with("node n1: ää"), "{note}");
    }
}
