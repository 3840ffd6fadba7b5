//! Hashing and scaling, the same on both sides.

use crate::flow::Flow;

/// `n` choices from a 32-bit hash or random number, without a division: `hash * n / 2^32`
/// (`reciprocal_scale()` in the kernel's `include/linux/math.h`). `n` 0 gives 0.
pub const fn scale(hash: u32, n: u32) -> u32 {
    ((hash as u64 * n as u64) >> 32) as u32
}

/// A 32-bit hash of a flow and a seed. Both directions give different values.
pub fn flow(flow: &Flow, seed: u32) -> u32 {
    let mut state = mix(seed ^ 0x9e37_79b9, flow.proto as u32);
    for word in flow.src.words() {
        state = mix(state, word.get());
    }
    for word in flow.dst.words() {
        state = mix(state, word.get());
    }
    state = mix(state, (flow.sport.get() as u32) << 16 | flow.dport.get() as u32);
    finish(state)
}

/// One round of MurmurHash3_x86_32.
const fn mix(state: u32, word: u32) -> u32 {
    let word = word.wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593);
    (state ^ word).rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64)
}

/// The finaliser of MurmurHash3_x86_32.
const fn finish(mut h: u32) -> u32 {
    h ^= h >> 16;
    h = h.wrapping_mul(0x85eb_ca6b);
    h ^= h >> 13;
    h = h.wrapping_mul(0xc2b2_ae35);
    h ^ (h >> 16)
}

#[cfg(test)]
mod tests {
    use super::{flow, scale};
    use crate::addr::Addr;
    use crate::be::Be16;
    use crate::flow::{Flow, proto};

    #[test]
    fn scale_covers_the_range() {
        assert_eq!(scale(0, 3), 0);
        assert_eq!(scale(u32::MAX, 3), 2);
        assert_eq!(scale(u32::MAX, 1), 0);
        assert_eq!(scale(12345, 0), 0);
    }

    #[test]
    fn flows_spread_evenly() {
        let mut counts = [0u32; 5];
        for port in 0..10_000 {
            let f = Flow {
                src: Addr::from_ip("10.1.0.1".parse().unwrap()),
                dst: Addr::from_ip("10.96.0.1".parse().unwrap()),
                sport: Be16::new(port),
                dport: Be16::new(80),
                proto: proto::TCP,
            };
            assert_ne!(flow(&f, 1), flow(&f.reversed(), 1));
            counts[scale(flow(&f, 1), 5) as usize] += 1;
        }
        for count in counts {
            assert!((1850..2150).contains(&count), "{counts:?}");
        }
    }
}
