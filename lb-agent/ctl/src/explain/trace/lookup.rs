//! The lookup of a Service's name.

use serde::{Deserialize, Serialize};

use super::{Trace, TraceOutcome};
use crate::explain::code::Code;
use lb_core::cluster::Name;

/// The lookup of the destination's name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lookup {
    /// The Service of the cluster's DNS.
    pub service: Name,
    /// The path of the question.
    pub trace: Box<Trace>,
}

impl Lookup {
    /// Whether no answer comes.
    pub fn fails(&self) -> bool {
        self.trace.outcome() == TraceOutcome::Stopped
    }

    /// The code of a lookup that fails.
    pub fn code(&self) -> Code {
        match self.trace.code() {
            Some(Code::DenyEgressDns) => Code::DenyEgressDns,
            _ => Code::DnsUnreachable,
        }
    }
}
