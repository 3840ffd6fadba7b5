//! Responses that need the loop's state: the records of the cluster and the counts of policies.
#![forbid(unsafe_code)]

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
}

impl HandlerState<'_> {
    /// Returns the response to a request.
    pub(crate) fn respond(&self, request: Request) -> Response {
        match request {
            Request::Who(addrs) => Response::Who(query::who(self.cluster, &addrs)),
            Request::Explain(wanted) => {
                Response::Explain(Box::new(query::context(self.cluster, &wanted)))
            }
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
            Request::KubeProxy => {
                Response::KubeProxy(self.cluster.kube_proxies().map(ToString::to_string).collect())
            }
            Request::Flows(_) => {
                Response::Error("flows are not answered by the main loop".to_owned())
            }
        }
    }
}
