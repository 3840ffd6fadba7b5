//! Rules' protocols and ports → prefixes for the longest-prefix map, each with the exact set of rules.
//!
//! Only the longest match is read, so each prefix has the rules of all shorter ones, too.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use lb_common::policy::{Bits, PortKey, WORDS, guess};

use super::Span;
use crate::cluster::Action;

/// An element of the map `port_bits`, but for the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortEntry {
    /// Length of the prefix, as in [`PortKey`].
    pub len: u32,
    /// IP protocol number; 0 in a key for any.
    pub protocol: u8,
    /// First port.
    pub port: u16,
    /// `guess::*`.
    pub guess: u8,
    /// The rules.
    pub bits: Bits,
}

/// A rule of one element of `groups`: its bit, what it does, and its ports (`None` = every protocol and port).
type PortRule<'a> = (u32, Action, Option<&'a [Span]>);

/// The prefixes for the rules of one element of `groups`, and, where some group of the chain has use for them, those for
/// packets whose port is not known.
pub(super) fn entries<'a>(
    rules: impl Iterator<Item = PortRule<'a>> + Clone,
    guesses: bool,
) -> Vec<PortEntry> {
    let mut entries = exact(rules.clone().map(|(bit, _, spans)| (bit, spans)), guess::NONE);
    if !guesses {
        return entries;
    }
    for guess in [guess::DENIES, guess::PASSES] {
        let guessed: Vec<_> = rules
            .clone()
            .map(|(bit, action, spans)| (bit, spans.map(|spans| guessed(spans, action, guess))))
            .collect();
        entries.extend(exact(guessed.iter().map(|(bit, spans)| (*bit, spans.as_deref())), guess));
    }
    entries
}

/// Whether a rule has another say where the port is not known than one about all ports has.
pub(super) fn is_guessed(action: Action, spans: Option<&[Span]>) -> bool {
    action != Action::Accept && spans.is_some_and(|spans| spans.iter().any(|span| !span.is_all()))
}

/// The protocols of which a rule applies to every packet without a port.
fn guessed(spans: &[Span], action: Action, guess: u8) -> Vec<Span> {
    let applies = match action {
        Action::Accept => false,
        Action::Deny => true,
        Action::Pass => guess == guess::PASSES,
    };
    let certain = spans.iter().filter(|span| applies || span.is_all());
    certain.map(|span| Span::all(span.protocol)).collect()
}

/// The prefixes under one guess.
fn exact<'a>(rules: impl Iterator<Item = (u32, Option<&'a [Span]>)>, guess: u8) -> Vec<PortEntry> {
    let mut any = Bits::ZERO;
    let mut protocols: BTreeMap<u8, Vec<(Span, u32)>> = BTreeMap::new();
    for (bit, spans) in rules {
        match spans {
            None => set(&mut any, bit),
            Some(spans) => {
                for span in spans {
                    protocols.entry(span.protocol).or_default().push((*span, bit));
                }
            }
        }
    }
    let mut entries = Vec::new();
    let entry = |len, protocol, port, bits| PortEntry { len, protocol, port, guess, bits };
    if any != Bits::ZERO {
        entries.push(entry(PortKey::ANY_PROTOCOL, 0, 0, any));
    }
    for (protocol, spans) in protocols {
        let mut all = any;
        for (_, bit) in spans.iter().filter(|(span, _)| span.is_all()) {
            set(&mut all, *bit);
        }
        if all != any {
            entries.push(entry(PortKey::ANY_PORT, protocol, 0, all));
        }
        let pieces = Pieces::cut(all, &spans);
        pieces.prefixes((0, 0), &all, &mut |port, len, bits| {
            entries.push(entry(PortKey::ANY_PORT + len, protocol, port, bits));
        });
    }
    entries
}

/// The ports in pieces within which the same rules apply: first port and rules.
struct Pieces(Vec<(u32, Bits)>);

impl Pieces {
    fn cut(all: Bits, spans: &[(Span, u32)]) -> Self {
        // How many of each rule's spans begin (or end) at a port.
        let mut changes: Vec<(u32, u32, i32)> = Vec::new();
        for (span, bit) in spans.iter().filter(|(span, _)| !span.is_all()) {
            changes.push((span.first.into(), *bit, 1));
            changes.push((u32::from(span.last) + 1, *bit, -1));
        }
        changes.sort_unstable();
        let mut pieces = vec![(0, all)];
        let mut depths: BTreeMap<u32, i32> = BTreeMap::new();
        for here in changes.chunk_by(|a, b| a.0 == b.0) {
            for (_, bit, change) in here {
                let depth = depths.entry(*bit).or_default();
                *depth += change;
                if *depth == 0 {
                    depths.remove(bit);
                }
            }
            let mut bits = all;
            depths.keys().for_each(|bit| set(&mut bits, *bit));
            pieces.extend(here.first().map(|(port, ..)| (*port, bits)));
        }
        Self(pieces)
    }

    /// The longest prefixes that are wholly in pieces with the same rules, but for those that the next shorter one
    /// that is there says already.
    fn prefixes(
        &self,
        (first, len): (u32, u32),
        around: &Bits,
        emit: &mut impl FnMut(u16, u32, Bits),
    ) {
        let end = first + (1 << (16 - len));
        let from = self.0.partition_point(|(port, _)| *port <= first).saturating_sub(1);
        let inside = self.0.iter().skip(from).take_while(|(port, _)| *port < end);
        let mut inside = inside.map(|(_, bits)| bits);
        let Some(bits) = inside.next() else { return };
        if inside.all(|other| other == bits) {
            if bits != around {
                emit(u16::try_from(first).unwrap_or(0), len, *bits);
            }
            return;
        }
        let half = (end - first) / 2;
        self.prefixes((first, len + 1), around, emit);
        self.prefixes((first + half, len + 1), around, emit);
    }
}

/// Sets a bit.
pub(super) fn set(bits: &mut Bits, bit: u32) {
    if let Some(word) = bits.words.get_mut(bit as usize / 64 % WORDS) {
        *word |= 1 << (bit % 64);
    }
}

#[cfg(test)]
mod tests {
    use lb_common::policy::Bits;
    use proptest::prelude::*;

    use lb_common::policy::guess;

    use super::{PortEntry, Span, entries, is_guessed, set};
    use crate::cluster::Action;

    fn found(entries: &[PortEntry], guess: u8, protocol: u8, port: u16) -> Bits {
        let fits = |entry: &&PortEntry| match entry.len {
            _ if entry.guess != guess => false,
            40 => true,
            48 => entry.protocol == protocol,
            len => {
                let shift = 64 - len;
                entry.protocol == protocol
                    && u32::from(entry.port) >> shift == u32::from(port) >> shift
            }
        };
        let best = entries.iter().filter(fits).max_by_key(|entry| entry.len);
        best.map_or(Bits::ZERO, |entry| entry.bits)
    }

    fn action(bit: u32) -> Action {
        [Action::Accept, Action::Deny, Action::Pass][bit as usize % 3]
    }

    proptest! {
        #[test]
        fn every_port_has_the_rules_that_say_so(
            rules in prop::collection::vec(
                prop::option::of(prop::collection::vec(
                    (prop::sample::select(vec![6u8, 17]), any::<u16>(), any::<u16>(), 0u8..4), 1..4)),
                1..20),
            probes in prop::collection::vec(any::<u16>(), 20),
        ) {
            let rules: Vec<Option<Vec<Span>>> = rules
                .into_iter()
                .map(|spans| {
                    spans.map(|spans| {
                        let span = |(protocol, a, b, kind): (u8, u16, u16, u8)| match kind {
                            0 => Span::all(protocol),
                            1 => Span { protocol, first: a.max(1), last: a.max(1) },
                            _ => Span { protocol, first: a.min(b).max(1), last: a.max(b).max(1) },
                        };
                        spans.into_iter().map(span).collect()
                    })
                })
                .collect();
            let list = (0u32..).zip(&rules).map(|(bit, spans)| (bit * 13, action(bit), spans.as_deref()));
            let guesses = list.clone().any(|(_, action, spans)| is_guessed(action, spans));
            let entries = entries(list, guesses);
            let edges = rules.iter().flatten().flatten().flat_map(|span| {
                [span.first.wrapping_sub(1), span.first, span.last, span.last.wrapping_add(1)]
            });
            let ports: Vec<u16> = probes.into_iter().chain(edges).chain([0, 1, 65535]).collect();
            for protocol in [1, 6, 17] {
                for port in &ports {
                    let mut want = Bits::ZERO;
                    for (bit, spans) in (0u32..).zip(&rules) {
                        let applies = spans.as_ref().is_none_or(|spans| spans.iter().any(|span| {
                            span.protocol == protocol && (span.first..=span.last).contains(port)
                        }));
                        if applies {
                            set(&mut want, bit * 13);
                        }
                    }
                    prop_assert_eq!(found(&entries, guess::NONE, protocol, *port), want, "{} {}", protocol, port);
                }
                for guess in [guess::DENIES, guess::PASSES] {
                    let mut want = Bits::ZERO;
                    for (bit, spans) in (0u32..).zip(&rules) {
                        let applies = match action(bit) {
                            Action::Accept => false,
                            Action::Deny => true,
                            Action::Pass => guess == guess::PASSES,
                        };
                        if spans.as_ref().is_none_or(|spans| spans.iter().any(|span| {
                            span.protocol == protocol && (applies || span.is_all())
                        })) {
                            set(&mut want, bit * 13);
                        }
                    }
                    let guess = if guesses { guess } else { guess::NONE };
                    prop_assert_eq!(found(&entries, guess, protocol, 0), want, "{}", protocol);
                }
            }
        }
    }

    #[test]
    fn few_prefixes_suffice() {
        let span = |first, last| [Span { protocol: 6, first, last }];
        let n =
            |spans: &[Span]| entries([(0, Action::Accept, Some(spans))].into_iter(), false).len();
        assert_eq!(n(&span(80, 80)), 1);
        assert_eq!(n(&span(32768, 65535)), 1);
        assert_eq!(n(&span(30000, 32767)), 5);
        assert_eq!(n(&[Span::all(6)]), 1);
        assert_eq!(n(&span(1, 65535)), 16);
    }
}
