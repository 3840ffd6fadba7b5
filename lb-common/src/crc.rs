//! CRC32c (Castagnoli, RFC 9260 appendix A) of a change: how a packet's CRC changes when a few of its bits flip.
//!
//! A CRC is linear over GF(2): `crc(a ^ b) = crc(a) ^ raw(b)` for messages of one length, `raw` being the CRC without
//! initial value and final complement. Of `b` only the changed bytes are not zero; the zeroes behind them multiply
//! by a power of x, and that takes a multiplication for each bit of their number.

/// The polynomial, reflected.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// Of a CRC followed by 2^k bytes of zeroes, k = 0..16: what its i-th nibble, from the lowest, contributes. Looked up
/// rather than computed bit by bit: the verifier follows both values of a bit that masks another number, and there would
/// be 600 of them.
static ZEROES: [[[u32; 16]; 8]; 16] = zeroes();

/// What the CRC of a packet changes by (exclusive or) when two neighbouring bytes change by these bits and `behind`
/// bytes (less than 65,536) follow them.
pub fn of_change(bits: [u8; 2], behind: u32) -> u32 {
    let [first, second] = bits;
    let mut crc = zero_bytes(first as u32, 0);
    crc = zero_bytes(crc ^ second as u32, 0);
    let mut k = 0;
    while k < ZEROES.len() {
        if behind >> k & 1 == 1 {
            crc = zero_bytes(crc, k);
        }
        k += 1;
    }
    crc
}

/// 2^k bytes of zeroes more.
fn zero_bytes(crc: u32, k: usize) -> u32 {
    let Some(nibbles) = ZEROES.get(k) else { return crc };
    let mut sum = 0;
    let mut i = 0;
    while i < nibbles.len() {
        let nibble = (crc >> (4 * i)) as usize & 0xf;
        if let Some(part) = nibbles.get(i).and_then(|parts| parts.get(nibble)) {
            sum ^= *part;
        }
        i += 1;
    }
    sum
}

/// Product of two polynomials modulo ours, all reflected: the highest bit is the lowest power.
const fn times(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut i = 0;
    while i < 32 {
        product ^= b & (a >> (31 - i) & 1).wrapping_neg();
        b = (b >> 1) ^ (POLYNOMIAL & (b & 1).wrapping_neg());
        i += 1;
    }
    product
}

#[allow(clippy::indexing_slicing, reason = "evaluated by the compiler, which checks the bounds")]
const fn zeroes() -> [[[u32; 16]; 8]; 16] {
    let mut table = [[[0; 16]; 8]; 16];
    // x^8, the power of one byte, reflected.
    let mut power = 1 << (31 - 8);
    let mut k = 0;
    while k < 16 {
        let mut i = 0;
        while i < 8 {
            let mut nibble = 0;
            while nibble < 16 {
                table[k][i][nibble] = times((nibble as u32) << (4 * i), power);
                nibble += 1;
            }
            i += 1;
        }
        power = times(power, power);
        k += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::{POLYNOMIAL, of_change};
    use std::vec::Vec;

    fn crc(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 }
            })
        })
    }

    #[test]
    fn reference_value() {
        // RFC 3720 appendix B.4: 32 bytes of zeroes.
        assert_eq!(crc(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn a_change_equals_a_full_computation() {
        for len in [2, 12, 13, 64, 1500, 9001, 65_535] {
            for at in [0, 1, 2, len / 2, len - 2].into_iter().filter(|at| at + 2 <= len) {
                let before: Vec<u8> = (0..len).map(|i| (i * 7 + 3) as u8).collect();
                let mut after = before.clone();
                after[at] ^= 0x1f;
                after[at + 1] ^= 0x90;
                let behind = (len - at - 2) as u32;
                assert_eq!(
                    crc(&after),
                    crc(&before) ^ of_change([0x1f, 0x90], behind),
                    "{len} {at}"
                );
            }
        }
        assert_eq!(of_change([0, 0], 100), 0);
    }
}
