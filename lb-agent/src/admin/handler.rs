//! Responses that need the loop's state: the records of the cluster and the counts of policies.
#![forbid(unsafe_code)]

use tokio::sync::oneshot;
use tracing::debug;

use crate::admin::PendingRequest;
use crate::agent::hits::Hits;
use lb_core::admin::{Request, Response, query};
use lb_core::cluster::Cluster;
use lb_core::model::rules::Rules;

/// What responses are made from.
pub(crate) struct HandlerState<'a> {
    /// The cluster as last observed.
    pub(crate) cluster: &'a Cluster,
    /// The agent's settings for Services.
    pub(crate) rules: &'a Rules,
    /// What policies decided.
    pub(crate) hits: &'a Hits,
    /// What is left to do.
    pub(crate) progress: &'a dyn Fn() -> query::LoopProgress,
}

impl HandlerState<'_> {
    /// Responds to a request; to one about a flow when its policies have been compiled, beside the loop.
    pub(crate) fn respond(&self, pending: PendingRequest) {
        let PendingRequest { request, response } = pending;
        if let Request::Explain(wanted) = request {
            let (mut context, questions) = query::asked(self.cluster, &wanted);
            tokio::task::spawn_blocking(move || {
                questions.answer(&mut context);
                reply(response, Response::Explain(Box::new(context)));
            });
        } else if let Request::WhatIf(asked) = request {
            let trial = query::TrialQuestion::of(self.cluster, asked);
            tokio::task::spawn_blocking(move || {
                reply(response, Response::WhatIf(trial.answer()));
            });
        } else {
            reply(response, self.response(request));
        }
    }

    fn response(&self, request: Request) -> Response {
        match request {
            Request::Who(addrs) => Response::Who(query::who(self.cluster, &addrs)),
            Request::Differences => {
                Response::Differences(query::differences(self.cluster, self.rules))
            }
            Request::Policy(name) => {
                let view = query::policy(self.cluster, &name);
                Response::Policy(view.map(|mut view| {
                    self.hits.count_in(&mut view);
                    Box::new(view)
                }))
            }
            Request::Peers(wanted) => Response::Peers(query::peers(self.cluster, &wanted)),
            Request::KubeProxy => {
                Response::KubeProxy(self.cluster.kube_proxies().map(ToString::to_string).collect())
            }
            Request::Progress(wanted) => {
                Response::Progress(query::progress(self.cluster, &(self.progress)(), &wanted))
            }
            Request::Explain(_)
            | Request::WhatIf(_)
            | Request::Flows(_)
            | Request::Audit { .. } => {
                Response::Error("this is not answered by the main loop".to_owned())
            }
        }
    }
}

/// Sends a response to the client, which may have gone.
pub(crate) fn reply(to: oneshot::Sender<Response>, response: Response) {
    if to.send(response).is_err() {
        debug!("the client disconnected before the answer");
    }
}
