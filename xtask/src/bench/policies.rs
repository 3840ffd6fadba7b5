//! What policies cost: the same paths under the agent with and without policies that isolate client and server, in
//! turn, so that a machine that gets slower does so for both.

use anyhow::Result;
use serde::Serialize;
use testbed::measure::What;

use super::{
    field::{Field, TARGET},
    paths::{Family, Path, Scale, WHATS, once},
    statistics::quartiles,
};
use crate::command::say;

/// For each round of a path: the difference is small, and the noise is not.
const ROUNDS: usize = 3;
const PATHS: [Path; 2] = [Path::SameNode, Path::OtherNode];

/// Ratios of what is reached with policies to what is reached without.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Policed {
    /// From where to where.
    pub(super) path: &'static str,
    /// What, with its unit.
    pub(super) what: &'static str,
    /// Straight to the Pod: lower quartile, median and upper quartile of the rounds.
    pub(super) straight: [f64; 3],
    /// The same through the Service's address.
    pub(super) service: [f64; 3],
}

/// Measures with `n` policies and without.
pub(super) fn measure(field: &Field, n: usize, scale: Scale) -> Result<Vec<Policed>> {
    let mut measured = Vec::new();
    for path in PATHS {
        say(&format!("{n} policies and none, in turn: {}", path.name()));
        field.announce_policies(0)?;
        field.announce_target(path.server(&field.with))?;
        let mut rounds = Vec::new();
        for round in 0..ROUNDS * scale.rounds {
            let first = if round % 2 == 0 { n } else { 0 };
            let one = under(field, path, first, scale)?;
            let other = under(field, path, n - first, scale)?;
            rounds.push(if first == n { (one, other) } else { (other, one) });
        }
        for (nth, what) in WHATS.into_iter().enumerate() {
            let ratios = |to: usize| {
                let ratio = |(with, without): &(Vec<[f64; 2]>, Vec<[f64; 2]>)| {
                    Some(with.get(nth)?.get(to)? / without.get(nth)?.get(to)?)
                };
                quartiles(&rounds.iter().filter_map(ratio).collect::<Vec<_>>())
            };
            measured.push(Policed {
                path: path.name(),
                what: what.name(),
                straight: ratios(0),
                service: ratios(1),
            });
        }
    }
    field.announce_policies(0)?;
    Ok(measured)
}

/// Results straight and through the Service, of everything that is measured, with this number of policies.
fn under(field: &Field, path: Path, policies: usize, scale: Scale) -> Result<Vec<[f64; 2]>> {
    field.announce_policies(policies)?;
    let (client, server) = (path.client(&field.with), path.server(&field.with));
    let each = |what: What| {
        let straight = once(field, client, Family::V4.of(server), what, scale)?.per_second;
        Ok([straight, once(field, client, TARGET.into(), what, scale)?.per_second])
    };
    WHATS.into_iter().map(each).collect()
}
