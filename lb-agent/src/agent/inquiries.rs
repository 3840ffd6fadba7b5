//! Questions from the agent's socket that only the loop can answer: it owns what we were told.
#![forbid(unsafe_code)]

use tracing::{debug, warn};

use crate::agent::Agent;
use crate::observe::socket::Asked;
use lb_core::api::{Answer, Question};
use lb_core::inquiry;

impl Agent {
    pub(super) fn asked(&self, asked: Asked) {
        let Asked { question, answer } = asked;
        let found = match question {
            Question::Who(addrs) => Answer::Who(inquiry::who(&self.cluster, &addrs)),
            Question::Explain(wanted) => {
                Answer::Explain(Box::new(inquiry::context(&self.cluster, &wanted)))
            }
            Question::Differences => {
                Answer::Differences(inquiry::differences(&self.cluster, self.desired.rules()))
            }
            Question::Policy(name) => {
                let view = inquiry::policy(&self.cluster, &name);
                Answer::Policy(view.map(|mut view| {
                    self.policies.hits().count_in(&mut view);
                    Box::new(view)
                }))
            }
            Question::KubeProxy => {
                Answer::KubeProxy(self.cluster.kube_proxies().map(ToString::to_string).collect())
            }
            Question::Flows(_) => {
                Answer::Error("flows are not answered by the main loop".to_owned())
            }
        };
        if answer.send(found).is_err() {
            debug!("the client disconnected before the answer");
        }
    }

    /// Somebody follows allowed flows, or nobody does any more.
    pub(super) fn report_allowed(&mut self, wanted: bool) {
        match self.policies.report_allowed(wanted) {
            Ok(()) => debug!(wanted, "changed reporting of allowed flows"),
            Err(err) => warn!(%err, wanted, "cannot change reporting of allowed flows"),
        }
    }
}
