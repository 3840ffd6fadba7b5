//! Rules' protocols and ports → prefixes for the longest-prefix map, each with the exact set of rules.
//!
//! Only the longest match is read, so each prefix has the rules of all shorter ones, too.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use lb_common::policy::{Bits, PortKey, WORDS};

use super::Span;

/// An element of the map `port_bits`, but for the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortEntry {
    /// Length of the prefix, as in [`PortKey`].
    pub len: u32,
    /// IP protocol number; 0 in a key for any.
    pub protocol: u8,
    /// First port.
    pub port: u16,
    /// The rules.
    pub bits: Bits,
}

/// The prefixes for the rules of one element of `groups`: bit and spans (`None` = every protocol and port).
pub(super) fn entries<'a>(
    rules: impl Iterator<Item = (u32, Option<&'a [Span]>)>,
) -> Vec<PortEntry> {
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
    if any != Bits::ZERO {
        entries.push(PortEntry { len: PortKey::ANY_PROTOCOL, protocol: 0, port: 0, bits: any });
    }
    for (protocol, spans) in protocols {
        let mut all = any;
        for (_, bit) in spans.iter().filter(|(span, _)| span.is_all()) {
            set(&mut all, *bit);
        }
        if all != any {
            entries.push(PortEntry { len: PortKey::ANY_PORT, protocol, port: 0, bits: all });
        }
        let pieces = Pieces::cut(all, &spans);
        pieces.prefixes((0, 0), &all, &mut |port, len, bits| {
            entries.push(PortEntry { len: PortKey::ANY_PORT + len, protocol, port, bits });
        });
    }
    entries
}

/// The ports in pieces within which the same rules apply: first port and rules.
struct Pieces(Vec<(u32, Bits)>);

impl Pieces {
    fn cut(all: Bits, spans: &[(Span, u32)]) -> Self {
        let spans: Vec<_> = spans.iter().filter(|(span, _)| !span.is_all()).collect();
        let mut cuts: Vec<u32> = vec![0];
        for (span, _) in &spans {
            cuts.extend([u32::from(span.first), u32::from(span.last) + 1]);
        }
        cuts.retain(|cut| *cut <= u32::from(u16::MAX));
        cuts.sort_unstable();
        cuts.dedup();
        let piece = |first: u32| {
            let mut bits = all;
            let has = |span: &Span| (u32::from(span.first)..=u32::from(span.last)).contains(&first);
            for (_, bit) in spans.iter().filter(|(span, _)| has(span)) {
                set(&mut bits, *bit);
            }
            (first, bits)
        };
        Self(cuts.into_iter().map(piece).collect())
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

    use super::{PortEntry, Span, entries, set};

    fn found(entries: &[PortEntry], protocol: u8, port: u16) -> Bits {
        let fits = |entry: &&PortEntry| match entry.len {
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
            let list = (0u32..).zip(&rules).map(|(bit, spans)| (bit * 13, spans.as_deref()));
            let entries = entries(list);
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
                    prop_assert_eq!(found(&entries, protocol, *port), want, "{} {}", protocol, port);
                }
            }
        }
    }

    #[test]
    fn few_prefixes_suffice() {
        let span = |first, last| [Span { protocol: 6, first, last }];
        let n = |spans: &[Span]| entries([(0, Some(spans))].into_iter()).len();
        assert_eq!(n(&span(80, 80)), 1);
        assert_eq!(n(&span(32768, 65535)), 1);
        assert_eq!(n(&span(30000, 32767)), 5);
        assert_eq!(n(&[Span::all(6)]), 1);
        assert_eq!(n(&span(1, 65535)), 16);
    }
}
