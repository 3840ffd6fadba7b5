//! What the screen shows, as data: two samples, the flows that have come, and where the user is. It has no clock and does no
//! input or output.

use std::collections::VecDeque;

use serde::Deserialize;

use super::sample::{DropCount, ServiceLoad, TopSample};
use super::theme::Theme;

/// Flows that are kept.
const KEPT: usize = 500;

/// Everything that the screen shows.
#[derive(Clone, Debug)]
pub struct TopState {
    /// The cluster; empty = this node.
    pub context: String,
    /// Colors, or none.
    pub theme: Theme,
    /// The last sample, and the one before.
    pub now: Option<TopSample>,
    /// The sample before it.
    pub before: Option<TopSample>,
    /// Flows, the newest last.
    pub flows: VecDeque<TopFlow>,
    /// Flows that came while the screen was paused.
    pub waiting: VecDeque<TopFlow>,
    /// Whether new flows wait.
    pub paused: bool,
    /// Which pane the keys are for.
    pub pane: Pane,
    /// The selected row of each pane.
    pub selected: [usize; 3],
    /// Order of Services.
    pub order: ServiceOrder,
    /// Only rows that contain this, in any case.
    pub filter: String,
    /// Whether keys go to the filter.
    pub typing: bool,
    /// What covers the screen.
    pub overlay: Option<Overlay>,
    /// What does not work: lbctl, or the stream of flows.
    pub trouble: Option<String>,
}

/// A part of the screen with rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pane {
    /// Services.
    #[default]
    Services,
    /// Reasons of drops.
    Drops,
    /// Flows.
    Flows,
}

/// Order of Services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServiceOrder {
    /// Most live flows first.
    #[default]
    Flows,
    /// Those that change most first.
    Change,
    /// Those with missing endpoints or issues first.
    Trouble,
    /// By name.
    Name,
}

/// What covers the screen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Overlay {
    /// The keys.
    Help,
    /// Something to read.
    Text {
        /// Its first line.
        title: String,
        /// The rest.
        lines: Vec<String>,
        /// Lines that are scrolled over.
        scrolled: usize,
    },
}

/// A flow as `lbctl flows -o json` prints it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct TopFlow {
    /// When, UTC.
    pub time: String,
    /// `dropped`, `allowed`, `would-deny` or `would-allow`.
    pub verdict: String,
    /// Where it comes from.
    pub src: FlowParty,
    /// Where it goes.
    pub dst: FlowParty,
    /// `namespace/name:port` of the Service, or empty.
    pub via: String,
    /// `TCP`, `UDP`, `SCTP`, or a number.
    pub protocol: String,
    /// Why it was dropped.
    pub reason: String,
    /// Whose policies decided.
    pub by: FlowPolicies,
}

/// One end of a flow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct FlowParty {
    /// `address:port`.
    pub address: String,
    /// `namespace/name`, `node/name`, or empty.
    pub name: String,
}

/// The policies that decided a flow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct FlowPolicies {
    /// Their names.
    pub policies: Vec<String>,
    /// Path of the rule; empty = none allowed it.
    pub rule: String,
}

impl FlowParty {
    /// The name, or else the address, with the port.
    pub fn word(&self) -> String {
        match (self.name.as_str(), self.address.rsplit_once(':')) {
            ("", _) | (_, None) => self.address.clone(),
            (name, Some((_, port))) => format!("{name}:{port}"),
        }
    }

    /// The name, or else the address, without the port.
    pub fn host(&self) -> String {
        let address = || self.address.rsplit_once(':').map_or(&*self.address, |(host, _)| host);
        let host = if self.name.is_empty() { address() } else { &self.name };
        host.trim_matches(['[', ']']).to_owned()
    }
}

impl TopFlow {
    /// The policies and the rule, or else the reason.
    pub fn cause(&self) -> String {
        let FlowPolicies { policies, rule } = &self.by;
        match (policies.as_slice(), rule.as_str()) {
            ([], _) => self.reason.clone(),
            (policies, "") => format!("{} default-deny", policies.join(",")),
            (policies, rule) => format!("{} {rule}", policies.join(",")),
        }
    }

    /// Both ends as `lbctl explain` takes them.
    pub fn ends(&self) -> [String; 2] {
        let port = self.dst.address.rsplit_once(':').map_or("", |(_, port)| port);
        let protocol = self.protocol.to_lowercase();
        let host = self.dst.host();
        let to = match (self.via.split_once('/'), host.contains(':')) {
            (Some(_), _) => format!("svc:{}", self.via),
            (None, true) => format!("[{host}]:{port}/{protocol}"),
            (None, false) => format!("{host}:{port}/{protocol}"),
        };
        [self.src.host(), to]
    }
}

impl TopState {
    /// Returns the state before anything is known.
    pub fn new(context: String, theme: Theme) -> Self {
        Self {
            context,
            theme,
            now: None,
            before: None,
            flows: VecDeque::new(),
            waiting: VecDeque::new(),
            paused: false,
            pane: Pane::default(),
            selected: [0; 3],
            order: ServiceOrder::default(),
            filter: String::new(),
            typing: false,
            overlay: None,
            trouble: None,
        }
    }

    /// Takes a new sample.
    pub fn sampled(&mut self, sample: TopSample) {
        self.before = self.now.replace(sample);
        self.clamp();
    }

    /// Takes a flow.
    pub fn saw(&mut self, flow: TopFlow) {
        let list = if self.paused { &mut self.waiting } else { &mut self.flows };
        list.push_back(flow);
        if list.len() > KEPT {
            list.pop_front();
        }
        self.clamp();
    }

    /// Returns the change of a number per second, between the two samples.
    pub fn rate(&self, number: impl Fn(&TopSample) -> Option<u64>) -> Option<f64> {
        let (now, before) = (self.now.as_ref()?, self.before.as_ref()?);
        // Without an answer, zero would be a claim.
        if now.nodes.is_empty() || before.nodes.is_empty() {
            return None;
        }
        let seconds = now.at - before.at;
        let change = number(now)? as f64 - number(before)? as f64;
        (seconds > 0.0).then(|| change / seconds)
    }

    /// Returns the change of a service port's flows per second.
    pub fn service_rate(&self, service: &ServiceLoad) -> Option<f64> {
        let name = service.full_name();
        self.rate(|sample| {
            sample.services.iter().find(|one| one.full_name() == name).map(|one| one.flows)
        })
    }

    /// Returns the packets per second of a drop reason. One that is new began at zero.
    pub fn drop_rate(&self, drop: &DropCount) -> Option<f64> {
        let key = drop.key();
        self.rate(|sample| {
            let found = sample.drops.iter().find(|one| one.key() == key);
            Some(found.map_or(0, |one| one.count))
        })
    }

    /// Service ports that are shown, in order.
    pub fn services(&self) -> Vec<&ServiceLoad> {
        let all = self.now.iter().flat_map(|sample| &sample.services);
        let mut shown: Vec<&ServiceLoad> =
            all.filter(|service| self.takes(&service.full_name())).collect();
        let is_well = |service: &ServiceLoad| {
            service.issues.is_empty() && service.ready == service.endpoints && service.ready > 0
        };
        match self.order {
            ServiceOrder::Flows => shown.sort_by_key(|service| std::cmp::Reverse(service.flows)),
            ServiceOrder::Change => shown.sort_by(|a, b| {
                let change = |service| self.service_rate(service).unwrap_or_default().abs();
                change(b).total_cmp(&change(a))
            }),
            ServiceOrder::Trouble => {
                shown.sort_by_key(|service| (is_well(service), std::cmp::Reverse(service.flows)));
            }
            ServiceOrder::Name => {}
        }
        shown
    }

    /// Reasons of drops that are shown: those that happen now first, then by their number.
    pub fn drops(&self) -> Vec<&DropCount> {
        let all = self.now.iter().flat_map(|sample| &sample.drops);
        let mut shown: Vec<&DropCount> =
            all.filter(|drop| self.takes(&format!("{} {}", drop.reason, drop.example))).collect();
        shown.sort_by(|a, b| {
            let rate = |drop| self.drop_rate(drop).unwrap_or_default();
            rate(b).total_cmp(&rate(a)).then(b.count.cmp(&a.count))
        });
        shown
    }

    /// Flows that are shown, the newest first.
    pub fn flow_lines(&self) -> Vec<&TopFlow> {
        let words = |flow: &TopFlow| {
            [flow.src.word(), flow.dst.word(), flow.via.clone(), flow.verdict.clone(), flow.cause()]
                .join(" ")
        };
        self.flows.iter().rev().filter(|flow| self.takes(&words(flow))).collect()
    }

    /// Number of rows of a pane.
    pub fn rows_of(&self, pane: Pane) -> usize {
        match pane {
            Pane::Services => self.services().len(),
            Pane::Drops => self.drops().len(),
            Pane::Flows => self.flow_lines().len(),
        }
    }

    /// The selected row of a pane.
    pub fn selected_in(&self, pane: Pane) -> usize {
        self.selected.get(pane as usize).copied().unwrap_or_default()
    }

    /// Selects the row that is `step` further.
    pub fn select(&mut self, step: isize) {
        let rows = self.rows_of(self.pane);
        if let Some(selected) = self.selected.get_mut(self.pane as usize) {
            *selected = selected.saturating_add_signed(step).min(rows.saturating_sub(1));
        }
    }

    /// Keeps the selection among the rows that exist.
    pub(super) fn clamp(&mut self) {
        for pane in Pane::ALL {
            let rows = self.rows_of(pane);
            if let Some(selected) = self.selected.get_mut(pane as usize) {
                *selected = (*selected).min(rows.saturating_sub(1));
            }
        }
    }

    fn takes(&self, text: &str) -> bool {
        self.filter.is_empty() || text.to_lowercase().contains(&self.filter.to_lowercase())
    }
}

impl Pane {
    /// All panes, in the order of Tab.
    pub const ALL: [Self; 3] = [Self::Services, Self::Drops, Self::Flows];

    /// The next one.
    pub const fn next(self) -> Self {
        match self {
            Self::Services => Self::Drops,
            Self::Drops => Self::Flows,
            Self::Flows => Self::Services,
        }
    }
}

impl ServiceOrder {
    /// The next one.
    pub const fn next(self) -> Self {
        match self {
            Self::Flows => Self::Change,
            Self::Change => Self::Trouble,
            Self::Trouble => Self::Name,
            Self::Name => Self::Flows,
        }
    }

    /// Its name in the title.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Flows => "by flows",
            Self::Change => "by change",
            Self::Trouble => "by trouble",
            Self::Name => "by name",
        }
    }
}
