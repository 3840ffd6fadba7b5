//! UDP questions with one answer each, every one from a client port of its own, through a node port to a backend on
//! another node: what name servers behind a node port get. Each needs a source port of the node for as long as it is
//! remembered. Beside the agent, the same by netfilter: the rules that kube-proxy's nftables mode comes to for one
//! endpoint, on the nodes without agents.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use serde_json::json;
use testbed::{
    client::{Transport, ask},
    exchanges::Answers,
    manifest::{service, slice},
    wait,
};

use super::{
    field::Field,
    side::{Side, first},
};
use crate::command::say;

const NODE_PORT: u16 = 30053;
/// Where the Pods' servers answer.
const TARGET_PORT: u16 = 8080;
/// Number of addresses that the client asks from, from each of their ports in turn, so that no flow repeats.
const SOURCES: u8 = 4;

/// The result of the questions.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Answered {
    /// Who translates.
    pub(super) way: &'static str,
    /// Answers a second.
    pub(super) per_second: f64,
    /// Questions, and those without an answer.
    pub(super) asked: u64,
    pub(super) lost: u64,
    /// Seconds until the first of these was asked.
    pub(super) first_lost_s: Option<f64>,
}

/// Measures both for some seconds.
pub(super) fn measure(field: &Field, quick: bool) -> Result<Vec<Answered>> {
    let duration = Duration::from_secs(if quick { 5 } else { 20 });
    let mut measured = Vec::new();
    for (way, side) in [
        ("the agent", &field.with),
        (
            "netfilter: DNAT and masquerade as kube-proxy configures them in nftables",
            &field.without,
        ),
    ] {
        say(&format!("questions and answers by {way}"));
        let ours = way == "the agent";
        if ours {
            announce(field)?;
        } else {
            side.node.netns.nft(&netfilter(side))?;
        }
        measured.push(once(field, side, way, duration).with_context(|| way)?);
        if ours {
            field.manifests.remove("answers")?;
        } else {
            side.node.netns.nft("delete table ip stand_in\n")?;
        }
    }
    Ok(measured)
}

fn announce(field: &Field) -> Result<()> {
    let port = json!({
        "name": "udp-53", "protocol": "UDP", "port": 53, "targetPort": TARGET_PORT,
        "nodePort": NODE_PORT,
    });
    let service = service("answers")
        .ip("10.96.0.53")
        .set(&["spec", "type"], "NodePort".into())
        .push(&["spec", "ports"], port);
    let endpoints = [field.with.far.v4.into()];
    let slice = slice("answers", "answers", &endpoints).slice_port("UDP", 53, TARGET_PORT);
    field.manifests.write("answers", &[service, slice])
}

/// What kube-proxy's chains come to: an address of the node and the node port lead to the endpoint, and what was so
/// translated is masqueraded from random ports.
fn netfilter(side: &Side) -> String {
    let (node, pod) = (side.node.v4, side.far.v4);
    format!(
        "table ip stand_in {{
           chain nat-prerouting {{
             type nat hook prerouting priority dstnat;
             ip daddr {node} udp dport {NODE_PORT} meta mark set meta mark or 0x4000 dnat to {pod}:{TARGET_PORT}
           }}
           chain nat-postrouting {{
             type nat hook postrouting priority srcnat;
             meta mark and 0x4000 != 0 masquerade fully-random
           }}
         }}\n"
    )
}

fn once(field: &Field, side: &Side, way: &'static str, duration: Duration) -> Result<Answered> {
    let addr = SocketAddr::new(side.node.v4.into(), NODE_PORT);
    let sources: Vec<Ipv4Addr> = (0..SOURCES).map(|n| Ipv4Addr::new(172, 31, 0, 200 + n)).collect();
    for source in sources.iter().skip(1) {
        side.outside.ip(&format!("addr add {source}/24 dev eth0\n"))?;
    }
    wait::until("answers", Duration::from_secs(20), || {
        let patience = Duration::from_millis(200);
        let name = side.outside.enter(|| ask(Transport::Udp, addr, patience))??;
        ensure!(name == side.far.name, "answered by {name}");
        Ok(())
    })?;
    let mut command = first(&field.traffic);
    command.args(["exchanges", &addr.to_string(), &duration.as_millis().to_string()]);
    command.args(sources.iter().map(|source| IpAddr::from(*source).to_string()));
    let answers: Answers = serde_json::from_str(&side.outside.output(&mut command)?)
        .context("result of the client")?;
    for source in sources.iter().skip(1) {
        side.outside.ip(&format!("addr del {source}/24 dev eth0\n"))?;
    }
    ensure!(answers.mixed_up == 0, "{} received an answer for another client", answers.mixed_up);
    Ok(Answered {
        way,
        per_second: answers.answered as f64 / answers.seconds,
        asked: answers.asked,
        lost: answers.lost(),
        first_lost_s: answers.first_lost_s,
    })
}
