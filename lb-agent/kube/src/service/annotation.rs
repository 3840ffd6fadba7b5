//! Our own annotations of a Service: how a backend is chosen. What is wrong with one is an issue and is ignored.
//!
//! They change how the endpoints of the Service share its traffic, never which endpoints it has.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use lb_common::addr::Addr;

use crate::field::{self, Findings, StringMap};
use lb_core::annotation::Annotation;
use lb_core::cluster::{Algorithm, Weighted};

/// The greatest weight.
const MOST: u8 = 100;

pub(super) fn algorithm(annotations: Option<&StringMap>, findings: &mut Findings) -> Algorithm {
    let Some(given) = field::value(annotations, Annotation::Algorithm.key()).map(str::trim) else {
        return Algorithm::default();
    };
    let all = [Algorithm::Random, Algorithm::Maglev, Algorithm::LeastConnections];
    let found = all.into_iter().find(|algorithm| algorithm.name() == given);
    found.unwrap_or_else(|| {
        let message = format!("`{given}` is not random, maglev or least-connections: using random");
        findings.add(Annotation::Algorithm.field(), message);
        Algorithm::default()
    })
}

/// `web-0=3,10.244.1.7=2`: shares of the traffic, by the name or the address of a Pod.
pub(super) fn weights(
    annotations: Option<&StringMap>,
    findings: &mut Findings,
) -> Box<[(Weighted, u8)]> {
    let given = field::value(annotations, Annotation::Weights.key()).unwrap_or_default();
    let mut weights: Vec<(Weighted, u8)> = Vec::new();
    for entry in given.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
        match weight(entry) {
            Err(fault) => {
                findings.add(Annotation::Weights.field(), format!("`{entry}` {fault}: ignored"))
            }
            Ok((whose, _)) if weights.iter().any(|(other, _)| *other == whose) => {
                findings
                    .add(Annotation::Weights.field(), format!("`{entry}` is a duplicate: ignored"));
            }
            Ok(weight) => weights.push(weight),
        }
    }
    weights.sort_unstable();
    weights.into()
}

fn weight(entry: &str) -> Result<(Weighted, u8), String> {
    let (whose, number) = entry.split_once('=').ok_or("is not POD=N or ADDRESS=N")?;
    let (whose, number) = (whose.trim(), number.trim());
    let number = number.parse().ok().filter(|number| (1..=MOST).contains(number));
    let number = number.ok_or_else(|| format!("has no weight between 1 and {MOST}"))?;
    let whose = match whose.parse::<IpAddr>() {
        Ok(ip) => Weighted::Addr(Addr::from_ip(ip)),
        Err(_) if whose.is_empty() => return Err("does not name a Pod".to_owned()),
        Err(_) => Weighted::Pod(whose.into()),
    };
    Ok((whose, number))
}
