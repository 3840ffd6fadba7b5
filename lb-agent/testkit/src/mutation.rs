//! Damage: bits, bytes, fields, lengths; half of it with the checksums made right again, so that it is believed.

use crate::random::Random;

/// A packet with none to four damages.
pub fn mutate(original: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = original.to_vec();
    for _ in 0..random.below(5) {
        damage(&mut bytes, random);
    }
    if random.below(2) == 0 {
        repair(&mut bytes);
    }
    bytes
}

fn damage(bytes: &mut Vec<u8>, random: &mut Random) {
    // Headers, for the most part.
    let reach = if random.below(4) == 0 { bytes.len() } else { bytes.len().min(80) };
    let at = random.below(reach);
    match random.below(12) {
        0 => bytes[at] ^= 1 << random.below(8),
        1 => bytes[at] = random.below(256) as u8,
        2 => bytes[at] = *random.choose(&[0, 1, 0x7f, 0x80, 0xff]),
        // The kernel runs no test on an empty packet: a byte stays behind the link layer.
        3 => bytes.truncate(15 + random.below(bytes.len() - 14)),
        4 => bytes.extend((0..random.below(64)).map(|i| i as u8)),
        // The next protocol or extension header.
        5 => {
            let field = if is_v4(bytes) { 23 } else { 20 };
            set(bytes, field, *random.choose(&[0, 1, 6, 17, 43, 44, 50, 51, 58, 60, 132]));
        }
        // Version and header length.
        6 => set(bytes, 14, *random.choose(&[0x40, 0x44, 0x45, 0x46, 0x4f, 0x60, 0x65])),
        // Tags, which stay in a test run as an inner one does in a frame of several.
        7 => {
            let tag = *random.choose(&[[0x81, 0, 0, 0], [0x88, 0xa8, 0, 0], [0x81, 0, 0x20, 5]]);
            bytes.splice(12..12, tag);
        }
        // IPv4-mapped, -compatible and loopback addresses in IPv6.
        8 if !is_v4(bytes) && bytes.len() >= 54 => {
            let at = *random.choose(&[22, 38]);
            bytes[at..at + 12].fill(0);
            let mapped = *random.choose(&[0xff, 0]);
            bytes[at + 10..at + 12].fill(mapped);
        }
        // Another extension header in front, longer than it is now and then.
        9 if !is_v4(bytes) && bytes.len() >= 54 => {
            let number = *random.choose(&[0, 43, 60, 60, 60, 51]);
            let length = *random.choose(&[0, 0, 0, 1, 40]);
            let next = std::mem::replace(&mut bytes[20], number);
            bytes.splice(54..54, [next, length, 1, 4, 0, 0, 0, 0]);
        }
        // A fragment header: tiny, overlapping, whole, later.
        10 if !is_v4(bytes) && bytes.len() >= 54 => {
            let next = std::mem::replace(&mut bytes[20], 44);
            let position = *random.choose(&[[0, 0], [0, 1], [0, 8], [0, 9], [0, 16], [1, 0]]);
            bytes.splice(54..54, [next, 0, position[0], position[1], 0, 0, 0, 7]);
        }
        // Fragments.
        _ => {
            let at = if is_v4(bytes) { 20 } else { 56 };
            set(bytes, at, *random.choose(&[0x20, 0x00, 0x40, 0x1f]));
            set(bytes, at + 1, random.below(3) as u8);
        }
    }
}

fn set(bytes: &mut [u8], at: usize, value: u8) {
    if let Some(byte) = bytes.get_mut(at) {
        *byte = value;
    }
}

fn is_v4(bytes: &[u8]) -> bool {
    bytes.get(14).is_some_and(|byte| byte >> 4 == 4)
}

/// Makes lengths and checksums right, where the packet has a plain header.
fn repair(bytes: &mut [u8]) {
    let Some(ip) = bytes.get_mut(14..) else { return };
    let total = ip.len();
    let (l4, protocol) = if ip.first() == Some(&0x45) && total >= 28 {
        ip[2..4].copy_from_slice(&(total as u16).to_be_bytes());
        ip[10..12].fill(0);
        let sum = !sum(&ip[..20], 0);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        (20, ip[9])
    } else if ip.first().is_some_and(|byte| byte >> 4 == 6) && total >= 48 {
        ip[4..6].copy_from_slice(&((total - 40) as u16).to_be_bytes());
        (40, ip[6])
    } else {
        return;
    };
    let (field, least) = match protocol {
        6 => (l4 + 16, 20),
        17 => {
            ip[l4 + 4..l4 + 6].copy_from_slice(&((total - l4) as u16).to_be_bytes());
            (l4 + 6, 8)
        }
        1 | 58 => (l4 + 2, 8),
        _ => return,
    };
    if total < l4 + least {
        return;
    }
    ip[field..field + 2].fill(0);
    let addresses = if l4 == 20 { 12..20 } else { 8..40 };
    let pseudo = if protocol == 1 {
        0
    } else {
        u32::from(sum(&ip[addresses], 0)) + u32::from(protocol) + (total - l4) as u32
    };
    let sum = !sum(&ip[l4..], pseudo);
    ip[field..field + 2].copy_from_slice(&sum.to_be_bytes());
}

fn sum(bytes: &[u8], start: u32) -> u16 {
    let mut total = start;
    for pair in bytes.chunks(2) {
        total += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}
