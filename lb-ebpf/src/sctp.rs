//! SCTP packets change their port: the checksum is a CRC32c of the whole packet (RFC 9260 §6.8), which cannot be
//! mended by adding differences, but is linear: the CRC of the changed bits, moved to their place, is what changes.

use lb_common::be::Be16;
use lb_common::crc;

use crate::packet::{HelperError, Packet};
use crate::parsed::Parsed;

/// Offset of the checksum in the common header.
const CHECKSUM: usize = 8;

/// Mends the checksum of a packet whose port at `field` changes.
#[inline(never)]
pub(crate) fn port_changes(
    packet: Packet,
    parsed: &Parsed,
    field: usize,
    from: Be16,
    to: Be16,
) -> Result<(), HelperError> {
    let at = parsed.l4 + CHECKSUM;
    let Some(stored) = packet.load::<u32>(at) else { return Err(HelperError) };
    // Not computed yet: the device or the receiver's host does it after us. (A sum that is 0 by chance is taken for
    // that one in four billion times, and the packet is sent again.)
    if stored == 0 {
        return Ok(());
    }
    let Some(end) = end(packet, parsed) else { return Err(HelperError) };
    let behind = end.wrapping_sub(field + size_of::<u16>()) & 0xffff;
    let bits = from.to_wire() ^ to.to_wire();
    let change = crc::of_change(bits.to_ne_bytes(), behind as u32);
    // The CRC is stored least significant byte first.
    packet.store(at, &(stored ^ change.to_le()))
}

/// Offset of the packet's end as its IP header tells it: a short one is padded on Ethernet.
#[inline(always)]
fn end(packet: Packet, parsed: &Parsed) -> Option<usize> {
    let l3 = parsed.l3;
    if parsed.v4 {
        let total = packet.load::<u16>(l3 + 2)?;
        return Some(l3 + usize::from(u16::from_be(total)));
    }
    let payload = packet.load::<u16>(l3 + 4)?;
    Some(l3 + 40 + usize::from(u16::from_be(payload)))
}
