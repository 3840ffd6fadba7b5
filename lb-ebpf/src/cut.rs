//! IPv4 packets that are too big for their way past the IP stack, and that their senders allow to be cut (RFC 791 §3.2).
//!
//! ```text
//! packet -> first piece          goes on at once
//!        -> the rest of it       comes in again, as a later piece: cut again, if it must be
//! ```
//! So each piece takes the way that it would take had its sender cut the datagram, and no piece sees the stack: what goes
//! past it in one direction goes past it in both. IPv6 packets are never cut on their way (RFC 8200 §4.5).

use aya_ebpf::bindings::__sk_buff;
use lb_common::csum;
use lb_common::flow::{Flow, proto};
use lb_common::fragment::{Cut, Extent, IPV4_HEADER};
use lb_common::verdict::Counter;

use crate::packet::{self, HelperError, Packet};
use crate::parsed::L3;
use crate::scratch::{self, PIECE, Scratch};
use crate::{fragment, maps};

/// Offset of the payload.
const PAYLOAD: usize = L3 + IPV4_HEADER as usize;

/// Whether the packet at hand, which is bigger than the MTU on its way, is only its first piece now. Where it may not be
/// cut it is as it was.
///
/// `hook` is where the ports of a datagram are noted for its pieces.
#[inline(always)]
pub(crate) fn shorten(packet: Packet, mtu: u16, hook: u8) -> Result<bool, HelperError> {
    match cut_shorten(packet.as_ptr(), u32::from(mtu), u32::from(hook)) {
        DONE => Ok(true),
        FORBIDDEN => Ok(false),
        _ => Err(HelperError),
    }
}

const DONE: u32 = 0;
const FORBIDDEN: u32 = 1;
const FAILED: u32 = 2;

/// The same as a function that the verifier checks once on its own. Therefore it looks up the scratch memory itself.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn cut_shorten(skb: *mut __sk_buff, mtu: u32, hook: u32) -> u32 {
    let packet = Packet::from_ptr(skb);
    let Some(scratch) = scratch::get() else { return FORBIDDEN };
    let parsed = &scratch.parsed;
    // What a device splits later (segmentation offload) holds several datagrams: as one it would be another.
    if !parsed.v4 || parsed.l4 != PAYLOAD || packet.segment() != 0 {
        return FORBIDDEN;
    }
    let Some([_, total, id, fragment, _, checksum]) = packet.load::<[u16; 6]>(L3) else {
        return FORBIDDEN;
    };
    let extent = Extent { total, fragment, checksum };
    let len = u16::from_be(total);
    let Some(cut) = extent.cut(mtu as u16) else { return FORBIDDEN };
    if packet.len() < L3 as u32 + u32::from(len) {
        return FORBIDDEN;
    }
    if extent.is_whole() {
        if complete(packet, scratch, len - IPV4_HEADER).is_err() {
            return FORBIDDEN;
        }
        scratch.parsed.fragment_id = u32::from(id);
        fragment::remember(packet, scratch, hook as u8);
    }
    if divide(packet, scratch, id, cut).is_err() {
        return FAILED;
    }
    maps::count(Counter::PacketCut);
    DONE
}

/// Makes the packet its first piece, and lets the rest come in again.
#[inline(always)]
fn divide(packet: Packet, scratch: &mut Scratch, id: u16, cut: Cut) -> Result<(), HelperError> {
    let piece = &mut scratch.piece;
    let len = bounded::<{ PIECE as u32 }>(u32::from(cut.first_len));
    packet.copy_to(PAYLOAD, piece, len)?;
    packet.cut_front(cut.first_len)?;
    // The kernel may still expect a checksum to be put where there is none any more. It looks for that whenever a tag may
    // have been taken off.
    packet.forget_tag();
    extend(packet, id, cut.rest)?;
    packet.come_in_again()?;
    packet.change_tail(PAYLOAD as u32 + len)?;
    packet.copy_from(PAYLOAD, piece, len)?;
    extend(packet, id, cut.first)
}

/// Writes what differs from piece to piece into the header.
#[inline(always)]
fn extend(packet: Packet, id: u16, extent: Extent) -> Result<(), HelperError> {
    packet.store(L3 + 2, &[extent.total, id, extent.fragment])?;
    packet.store(L3 + 10, &extent.checksum)
}

/// Makes the checksum of a datagram with `len` bytes of payload cover all of it, where that was left to the device that
/// sends it: no device does that for pieces.
///
/// Its field has the sum of the pseudo-header then, and nothing else tells a program so. A datagram that has this sum by
/// itself is given what it has.
#[inline(never)]
fn complete(packet: Packet, scratch: &mut Scratch, len: u16) -> Result<(), HelperError> {
    let Flow { src, dst, proto, .. } = scratch.parsed.flow;
    let field = match proto {
        proto::TCP => PAYLOAD + 16,
        proto::UDP => PAYLOAD + 6,
        proto::SCTP => {
            packet.pull(PAYLOAD + 12);
            // Left to the device, too; but a CRC of all bytes.
            return match packet.load::<u32>(PAYLOAD + 8) {
                Some(0) | None => Err(HelperError),
                Some(_) => Ok(()),
            };
        }
        _ => return Ok(()),
    };
    let ends = csum::add(src.word3().to_wire(), dst.word3().to_wire());
    let pseudo = csum::add(ends, u32::from(u16::from(proto).to_be()) + u32::from(len.to_be()));
    if packet.load::<u16>(field) != Some(csum::fold(pseudo)) {
        return Ok(());
    }
    let sum = !csum::fold(sum(packet, scratch, u32::from(len))?);
    // RFC 768: 0 says that there is none.
    let none = sum == 0 && proto == proto::UDP;
    packet.store(field, &if none { !0 } else { sum })
}

/// One's complement sum of the packet's payload.
#[inline(always)]
fn sum(packet: Packet, scratch: &mut Scratch, len: u32) -> Result<u32, HelperError> {
    const CHUNK: u32 = 512;
    let piece = &mut scratch.piece;
    let (mut sum, mut at) = (0, 0);
    while at < 0x10000 && at + CHUNK <= len {
        packet.copy_to(PAYLOAD + at as usize, piece, CHUNK)?;
        sum = packet::add_words(sum, piece, CHUNK);
        at += CHUNK;
    }
    let rest = len % CHUNK;
    if rest != 0 {
        // The word that the rest does not fill.
        if let Some(last) = piece.get_mut((rest / 4) as usize) {
            *last = 0;
        }
        packet.copy_to(PAYLOAD + at as usize, piece, bounded::<CHUNK>(rest))?;
        sum = packet::add_words(sum, piece, (rest + 3) & !3);
    }
    Ok(sum)
}

/// A number from 1 to `MOST`, a power of two, as it is, and so that the verifier knows these bounds: the compiler knows them
/// as well, and would leave out what says so.
#[inline(always)]
fn bounded<const MOST: u32>(n: u32) -> u32 {
    (packet::reread(&n).wrapping_sub(1) & (MOST - 1)) + 1
}
