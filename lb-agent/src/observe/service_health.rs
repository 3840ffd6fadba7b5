//! The servers at `spec.healthCheckNodePort`: each tells load balancers whether this node has endpoints of one Service
//! (`externalTrafficPolicy: Local`), in kube-proxy's words (pkg/proxy/healthcheck/service_health.go).
//!
//! None listens before the tables say what they should: a node that has endpoints must not deny it after a restart.
//! The agent's loop owns the ports; the servers read published values.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::StatusCode;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tracing::{debug, info};

use crate::observe::Status;
use crate::observe::health::{self, Moment};
use crate::observe::http::{self, AbortOnDrop, Answer, GetRequest};
use lb_core::cluster::Name;
use lb_core::issue::{Issue, ObjectRef};

/// Connections at a time, of each port.
const CONNECTIONS: usize = 16;
/// Connections that wait for being accepted, of each port.
const BACKLOG: u32 = 128;
/// First and longest wait before another try to get a port.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// What one port answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServiceHealth {
    pub service: Name,
    /// `spec.healthCheckNodePort`.
    pub port: u16,
    /// Ready endpoints on this node. Those that terminate still serve, but no new traffic is asked for (KEP-1669).
    pub endpoints: usize,
}

pub(crate) struct HealthPorts {
    ports: BTreeMap<u16, HealthPort>,
    /// Services whose port another one has.
    clashes: Vec<Issue>,
    status: watch::Receiver<Arc<Status>>,
}

struct HealthPort {
    answer: watch::Sender<ServiceHealth>,
    stage: PortStage,
}

enum PortStage {
    Listening(#[expect(dead_code, reason = "dropping it stops the server")] AbortOnDrop),
    Failed { at: Instant, wait: Duration, error: io::Error },
}

impl HealthPorts {
    /// No ports. `status` says whether this agent is well.
    pub(crate) fn new(status: watch::Receiver<Arc<Status>>) -> Self {
        Self { ports: BTreeMap::new(), clashes: Vec::new(), status }
    }

    /// These are the Services with a port, all of them. Must be called within a tokio runtime.
    pub(crate) fn update(
        &mut self,
        services: impl IntoIterator<Item = ServiceHealth>,
        now: Instant,
    ) {
        let mut wanted = BTreeMap::<u16, ServiceHealth>::new();
        self.clashes.clear();
        for health in services {
            match wanted.get(&health.port) {
                Some(first) => self.clashes.push(issue(
                    &health,
                    format!(
                        "Service {} already has this port: load balancers see its health instead",
                        first.service
                    ),
                )),
                None => drop(wanted.insert(health.port, health)),
            }
        }
        self.ports.retain(|port, _| {
            let stays = wanted.contains_key(port);
            if !stays {
                info!(port, "health check port closed");
            }
            stays
        });
        for (port, health) in wanted {
            match self.ports.get(&port) {
                Some(known) => {
                    known.answer.send_if_modified(|shown| {
                        let news = *shown != health;
                        *shown = health;
                        news
                    });
                }
                None => {
                    let (answer, _) = watch::channel(health);
                    let stage = PortStage::Failed {
                        at: now,
                        wait: RETRY.0,
                        error: io::ErrorKind::NotConnected.into(),
                    };
                    self.ports.insert(port, HealthPort { answer, stage });
                }
            }
        }
        self.open_due(now);
    }

    /// When a port is to be tried again.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.ports
            .values()
            .filter_map(|port| match port.stage {
                PortStage::Failed { at, .. } => Some(at),
                PortStage::Listening(_) => None,
            })
            .min()
    }

    /// Tries the ports whose time has come. Must be called within a tokio runtime.
    pub(crate) fn open_due(&mut self, now: Instant) {
        for (number, port) in &mut self.ports {
            let PortStage::Failed { at, wait, error } = &mut port.stage else { continue };
            if *at > now {
                continue;
            }
            match listen(*number) {
                Ok(listener) => {
                    let service = port.answer.borrow().service.clone();
                    info!(port = number, %service, "health check port open");
                    let answers = answerer(port.answer.subscribe(), self.status.clone());
                    let server = http::serve_on("health check", listener, CONNECTIONS, answers);
                    let task = tokio::spawn(server);
                    port.stage = PortStage::Listening(AbortOnDrop(task.abort_handle()));
                }
                Err(e) => {
                    debug!(port = number, err = %e, "cannot open health check port");
                    (*error, *at) = (e, now + *wait);
                    *wait = (*wait * 2).min(RETRY.1);
                }
            }
        }
    }

    /// Ports that could not be opened, and Services whose port another one has.
    pub(crate) fn issues(&self) -> Vec<Issue> {
        let failed = self.ports.values().filter_map(|port| match &port.stage {
            PortStage::Failed { error, .. } => Some(issue(
                &port.answer.borrow(),
                format!("cannot listen ({error}), retrying: load balancers see this node as down"),
            )),
            PortStage::Listening(_) => None,
        });
        failed.chain(self.clashes.iter().cloned()).collect()
    }
}

fn issue(health: &ServiceHealth, message: String) -> Issue {
    let object = ObjectRef::new("Service", &health.service);
    Issue::new(object, "spec.healthCheckNodePort", format!("port {}: {message}", health.port))
}

/// Listens on all addresses of both families; on those of IPv4 when the kernel has no IPv6.
fn listen(port: u16) -> io::Result<TcpListener> {
    let v6 = TcpSocket::new_v6().and_then(|socket| {
        setsockopt(&socket, sockopt::Ipv6V6Only, &false)?;
        listen_on(socket, (Ipv6Addr::UNSPECIFIED, port).into())
    });
    match v6 {
        Err(e)
            if matches!(
                e.raw_os_error(),
                Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL | libc::EPROTONOSUPPORT)
            ) =>
        {
            listen_on(TcpSocket::new_v4()?, (Ipv4Addr::UNSPECIFIED, port).into())
        }
        other => other,
    }
}

fn listen_on(socket: TcpSocket, address: SocketAddr) -> io::Result<TcpListener> {
    // Connections of an earlier server on this port may still be closing.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// The answer to every path, as published at the moment of the question.
fn answerer(
    health: watch::Receiver<ServiceHealth>,
    status: watch::Receiver<Arc<Status>>,
) -> impl Fn(&GetRequest<'_>) -> Answer + Send + Sync + 'static {
    move |_request| {
        let well = !health::is_stale(&status.borrow(), Moment::now());
        answer(&health.borrow(), well)
    }
}

/// Status code, headers and body as kube-proxy's; `well`: this agent does its work.
fn answer(health: &ServiceHealth, well: bool) -> Answer {
    let ServiceHealth { service, endpoints, .. } = health;
    let Name { namespace, name, .. } = service;
    let ok = *endpoints != 0 && well;
    Answer {
        status: if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE },
        content_type: "application/json",
        // Names of objects need no escape in JSON.
        body: format!(
            "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{namespace}\",\n\t\t\"name\": \"{name}\"\n\t}},\n\t\"localEndpoints\": {endpoints},\n\t\"serviceProxyHealthy\": {well}\n}}"
        ),
        weight: Some(*endpoints),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant, SystemTime};

    use hyper::StatusCode;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::watch;

    use super::{HealthPorts, ServiceHealth, answer};
    use crate::observe::Status;
    use lb_core::cluster::Name;

    fn health(name: &str, port: u16, endpoints: usize) -> ServiceHealth {
        ServiceHealth { service: Name::new("default", name), port, endpoints }
    }

    #[test]
    fn answers_are_kube_proxys() {
        let yes = answer(&health("web", 30_100, 2), true);
        let body = "{\n\t\"service\": {\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}";
        assert_eq!((yes.status, yes.weight, yes.body.as_str()), (StatusCode::OK, Some(2), body));
        assert!(serde_json::from_str::<serde_json::Value>(&yes.body).is_ok());
        for (endpoints, well) in [(0, true), (2, false), (0, false)] {
            let no = answer(&health("web", 30_100, endpoints), well);
            assert_eq!(no.status, StatusCode::SERVICE_UNAVAILABLE, "{endpoints} {well}");
            assert_eq!(no.weight, Some(endpoints));
        }
    }

    /// Returns the status line, and whether the answer contains this name; `None` if the port has no listener.
    async fn ask(port: u16, name: &str) -> Option<(String, bool)> {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        stream.write_all(b"GET /any HTTP/1.0\r\n\r\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        Some((text.split(' ').nth(1)?.to_owned(), text.contains(&format!("\"{name}\""))))
    }

    async fn free_port() -> (TcpListener, u16) {
        let listener = TcpListener::bind("[::]:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, port)
    }

    #[tokio::test]
    async fn ports_come_change_their_service_and_go() {
        let (status, reader) = watch::channel(Arc::new(Status::starting()));
        let mut ports = HealthPorts::new(reader);
        let (taken, port) = free_port().await;
        drop(taken);
        let now = Instant::now();
        let answer = |code: &str| Some((code.to_owned(), true));
        ports.update([health("web", port, 1)], now);
        assert_eq!(ask(port, "web").await, answer("200"));
        ports.update([health("web", port, 0)], now);
        assert_eq!(ask(port, "web").await, answer("503"), "only terminating endpoints");
        ports.update([health("api", port, 3)], now);
        assert_eq!(ask(port, "api").await, answer("200"), "another Service got the port");
        assert_eq!(TcpStream::connect(("::1", port)).await.map(drop).ok(), Some(()), "IPv6");

        // This agent no longer does its work.
        let stuck = Instant::now().checked_sub(Duration::from_secs(500)).unwrap();
        let late =
            Status { pending_since: Some(stuck), updated: SystemTime::now(), ..**status.borrow() };
        status.send_replace(Arc::new(late));
        assert_eq!(ask(port, "api").await, answer("503"));

        ports.update([], now);
        tokio::task::yield_now().await;
        assert_eq!(ask(port, "api").await, None);
        assert_eq!(ports.next_due(), None);
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_an_issue_until_it_is_free() {
        let (_status, reader) = watch::channel(Arc::new(Status::starting()));
        let mut ports = HealthPorts::new(reader);
        let (taken, port) = free_port().await;
        let mut now = Instant::now();
        ports.update([health("web", port, 1), health("late", port, 1)], now);
        let issues = ports.issues();
        let shown: Vec<_> = issues.iter().map(ToString::to_string).collect();
        assert_eq!(shown.len(), 2, "{shown:?}");
        assert!(shown[0].starts_with("Service default/web: spec.healthCheckNodePort: port "));
        assert!(shown[0].contains("cannot listen (Address already in use"), "{shown:?}");
        assert!(
            shown[1].contains("default/late")
                && shown[1].contains("default/web already has this port")
        );
        for wait in [50, 100, 200] {
            let due = ports.next_due().unwrap();
            assert_eq!(due - now, Duration::from_millis(wait));
            now = due;
            ports.open_due(now);
        }
        drop(taken);
        now = ports.next_due().unwrap();
        ports.update([health("web", port, 1)], now);
        assert_eq!((ports.issues(), ports.next_due()), (vec![], None));
        assert_eq!(ask(port, "web").await, Some(("200".to_owned(), true)));
    }
}
