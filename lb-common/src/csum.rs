//! Incremental Internet checksums (RFC 1624), in the form `bpf_l3_csum_replace` and `bpf_l4_csum_replace` take: a
//! 32-bit one's complement sum of the removed words' complements and the added words.

use crate::addr::Addr;

/// The difference that replacing `from` with `to` makes.
pub fn diff(from: &Addr, to: &Addr) -> u32 {
    let [f0, f1, f2, f3] = from.words();
    let [t0, t1, t2, t3] = to.words();
    let mut sum = 0;
    sum = add(sum, !f0.to_wire());
    sum = add(sum, t0.to_wire());
    sum = add(sum, !f1.to_wire());
    sum = add(sum, t1.to_wire());
    sum = add(sum, !f2.to_wire());
    sum = add(sum, t2.to_wire());
    sum = add(sum, !f3.to_wire());
    add(sum, t3.to_wire())
}

/// One's complement sum of two 32-bit words (`csum_add()` in the kernel).
pub const fn add(a: u32, b: u32) -> u32 {
    let (sum, carry) = a.overflowing_add(b);
    sum.wrapping_add(carry as u32)
}

/// Folds a 32-bit sum to 16 bits, without the final complement (`csum_fold()` is its complement).
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::{add, diff, fold};
    use crate::addr::Addr;
    use core::net::IpAddr;

    fn full(bytes: &[u8]) -> u16 {
        let sum = bytes
            .chunks(2)
            .fold(0, |sum, pair| add(sum, u32::from(u16::from_ne_bytes([pair[0], pair[1]]))));
        !fold(sum)
    }

    #[test]
    fn incremental_equals_full() {
        let cases = [
            ("10.0.0.1", "10.96.255.254"),
            ("fd00::1", "fd44:0:0:1::ffff"),
            ("0.0.0.0", "255.255.255.255"),
        ];
        for (from, to) in cases {
            let (from, to): (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
            let packet = |ip: IpAddr| match ip {
                IpAddr::V4(ip) => [&[0x45, 0, 0, 20, 1, 2][..], &ip.octets()].concat(),
                IpAddr::V6(ip) => [&[0x60, 0, 0, 20, 1, 2][..], &ip.octets()].concat(),
            };
            let old = full(&packet(from));
            let delta = diff(&Addr::from_ip(from), &Addr::from_ip(to));
            let new = !fold(add(u32::from(!old), delta));
            assert_eq!(new, full(&packet(to)), "{from} -> {to}");
        }
    }
}
