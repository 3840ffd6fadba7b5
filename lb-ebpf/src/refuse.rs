//! Turns a packet into its refusal: a TCP reset (RFC 9293 §3.5.2), or an ICMP error (RFC 792, RFC 4443).
//!
//! The packet is cut or grown to the size of the answer and overwritten as a whole, checksums included, so that the
//! sender's own socket fails at once and its application tries elsewhere or says why.

use lb_common::csum;
use lb_common::flow::{proto, tcp};

use crate::packet::{HelperError, Packet};
use crate::parsed::{L3, Parsed};
use crate::scratch::{ANSWER_WORDS, Scratch};
use crate::verdict::{self, Verdict};

/// TTL or hop limit of what we send.
const TTL: u8 = 64;
/// Offsets and sizes in 16-bit words.
const ETH: usize = 7;
const IP4: usize = 10;
const IP6: usize = 20;
const TCP: usize = 10;
const ICMP: usize = 4;
/// The quoted packet: its IP header without options, and 8 bytes (RFC 792, and as much for ICMPv6).
const QUOTE4: usize = 14;
const QUOTE6: usize = 24;

/// Answers the client in the name of what it dialled. `index` is that of the drop's counter.
#[inline(never)]
pub(crate) fn refused(packet: Packet, scratch: &mut Scratch, index: u32, id: u32) -> Verdict {
    let reported = verdict::report_index(index, id);
    match answer(packet, scratch) {
        Ok(()) => Verdict::Refuse(reported),
        Err(_) => Verdict::Drop(reported),
    }
}

/// Turns the packet into its refusal. An error leaves a packet that can only be dropped; so do packets that must
/// not be answered.
#[inline(never)]
pub(crate) fn answer(packet: Packet, scratch: &mut Scratch) -> Result<(), HelperError> {
    let Scratch { parsed, answer, .. } = scratch;
    let answer = Answer(answer);
    if parsed.later {
        // RFC 1122 §3.2.2: no ICMP error for a fragment but the first.
        return Err(HelperError);
    }
    match (parsed.flow.proto, parsed.v4) {
        (proto::TCP, _) if parsed.tcp_flags & tcp::RST != 0 => Err(HelperError),
        (proto::TCP, true) => reset4(packet, parsed, answer),
        (proto::TCP, false) => reset6(packet, parsed, answer),
        (_, true) => error4(packet, answer, PORT_UNREACHABLE4, 0),
        (_, false) => error6(packet, answer, PORT_UNREACHABLE6, 0),
    }
}

/// Why a packet does not go on although its flow is known.
#[derive(Clone, Copy)]
pub(crate) enum Obstacle {
    /// Bigger than the MTU on the way, in bytes.
    TooBig(u16),
    /// No hop left.
    Expired,
}

/// Turns the packet into the ICMP error about it. As in [`answer`], an error leaves a packet that can only be dropped.
#[inline(never)]
pub(crate) fn tell(
    packet: Packet,
    scratch: &mut Scratch,
    why: Obstacle,
) -> Result<(), HelperError> {
    let Scratch { parsed, answer, .. } = scratch;
    let answer = Answer(answer);
    if parsed.later {
        return Err(HelperError);
    }
    match (why, parsed.v4) {
        (Obstacle::TooBig(mtu), true) => error4(packet, answer, TOO_BIG4, mtu),
        (Obstacle::TooBig(mtu), false) => error6(packet, answer, TOO_BIG6, mtu),
        (Obstacle::Expired, true) => error4(packet, answer, EXPIRED4, 0),
        (Obstacle::Expired, false) => error6(packet, answer, EXPIRED6, 0),
    }
}

/// Type and code of ICMP errors (RFC 792, RFC 1191).
const PORT_UNREACHABLE4: u16 = 0x0303;
const TOO_BIG4: u16 = 0x0304;
const EXPIRED4: u16 = 0x0b00;
/// The same for ICMPv6 (RFC 4443).
const PORT_UNREACHABLE6: u16 = 0x0104;
const TOO_BIG6: u16 = 0x0200;
const EXPIRED6: u16 = 0x0300;

/// The answer as it grows, in the scratch memory. Words are in wire order; indices are constants of this file, within
/// [`ANSWER_WORDS`].
struct Answer<'a>(&'a mut [u16; ANSWER_WORDS]);

impl Answer<'_> {
    #[inline(always)]
    fn put<const N: usize>(&mut self, at: usize, words: [u16; N]) {
        let mut i = 0;
        while i < N {
            if let (Some(place), Some(word)) = (self.0.get_mut(at + i), words.get(i)) {
                *place = *word;
            }
            i += 1;
        }
    }

    /// Copies `WORDS` words of the packet from its byte `offset`, one by one: held together they would fill the stack.
    #[inline(always)]
    fn copy<const WORDS: usize>(
        &mut self,
        at: usize,
        packet: Packet,
        offset: usize,
    ) -> Result<(), HelperError> {
        let mut i = 0;
        while i < WORDS {
            self.put(at + i, [packet.load::<u16>(offset + 2 * i).ok_or(HelperError)?]);
            i += 1;
        }
        Ok(())
    }

    #[inline(always)]
    fn sum(&self, at: usize, end: usize) -> u32 {
        sum(self.0, at, end)
    }

    /// Ethernet header, back to the sender.
    #[inline(always)]
    fn ethernet(&mut self, packet: Packet) -> Result<(), HelperError> {
        self.copy::<3>(0, packet, 6)?;
        self.copy::<3>(3, packet, 0)?;
        self.copy::<1>(6, packet, 12)
    }

    /// IPv4 header, from what the client dialled back to the client.
    #[inline(always)]
    fn ipv4(&mut self, packet: Packet, len: u16, protocol: u8) -> Result<(), HelperError> {
        let ttl_protocol = u16::from_ne_bytes([TTL, protocol]);
        let fixed = [0x4500u16.to_be(), len.to_be(), 0, 0x4000u16.to_be(), ttl_protocol, 0];
        self.put(ETH, fixed);
        self.copy::<2>(ETH + 6, packet, L3 + 16)?;
        self.copy::<2>(ETH + 8, packet, L3 + 12)?;
        self.put(ETH + 5, [finish(self.sum(ETH, ETH + IP4))]);
        Ok(())
    }

    /// IPv6 header, likewise.
    #[inline(always)]
    fn ipv6(&mut self, packet: Packet, payload: u16, protocol: u8) -> Result<(), HelperError> {
        let hop = u16::from_ne_bytes([protocol, TTL]);
        self.put(ETH, [0x6000u16.to_be(), 0, payload.to_be(), hop]);
        self.copy::<8>(ETH + 12, packet, L3 + 8)?;
        self.copy::<8>(ETH + 4, packet, L3 + 24)
    }

    /// Sum of the pseudo-header: the addresses, which end at `end`, protocol and length.
    #[inline(always)]
    fn pseudo(&self, from: usize, end: usize, protocol: u8, len: u16) -> u32 {
        self.sum(from, end) + u32::from(u16::from(protocol).to_be()) + u32::from(len.to_be())
    }

    /// TCP header of the reset for this segment; its checksum is still 0.
    #[inline(always)]
    fn reset(&mut self, packet: Packet, parsed: &Parsed, at: usize) -> Result<(), HelperError> {
        let [ports, seq, ack] = packet.load::<[u32; 3]>(parsed.l4).ok_or(HelperError)?;
        // In reply to an ACK the reset takes its number and acknowledges nothing; in reply to a SYN it
        // acknowledges it.
        let (seq, ack, flags) = if parsed.tcp_flags & tcp::ACK != 0 {
            (ack, 0, tcp::RST)
        } else {
            (0, u32::from_be(seq).wrapping_add(1).to_be(), tcp::RST | tcp::ACK)
        };
        let offset_flags = (0x5000 | u16::from(flags)).to_be();
        self.put(at, [(ports >> 16) as u16, ports as u16]);
        self.put(at + 2, [seq as u16, (seq >> 16) as u16, ack as u16, (ack >> 16) as u16]);
        self.put(at + 6, [offset_flags, 0, 0, 0]);
        Ok(())
    }

    /// Makes this the packet.
    #[inline(always)]
    fn send<const WORDS: usize>(&self, packet: Packet) -> Result<(), HelperError> {
        packet.change_tail(WORDS as u32 * 2)?;
        packet.store_words::<WORDS>(self.0)
    }
}

/// One's complement sum of the words of `at..end`. Not inlined: LLVM would carry all words from where they are stored
/// to here, over the stack.
#[inline(never)]
fn sum(words: &[u16; ANSWER_WORDS], at: usize, end: usize) -> u32 {
    let mut total = 0;
    let mut i = at;
    while i < end {
        if let Some(word) = words.get(i) {
            total += u32::from(*word);
        }
        i += 1;
    }
    total
}

#[inline(always)]
fn finish(sum: u32) -> u16 {
    !csum::fold(sum)
}

#[inline(never)]
fn reset4(packet: Packet, parsed: &Parsed, mut answer: Answer<'_>) -> Result<(), HelperError> {
    const AT: usize = ETH + IP4;
    answer.ethernet(packet)?;
    answer.ipv4(packet, 40, proto::TCP)?;
    answer.reset(packet, parsed, AT)?;
    let pseudo = answer.pseudo(AT - 4, AT, proto::TCP, 20);
    answer.put(AT + 8, [finish(pseudo + answer.sum(AT, AT + TCP))]);
    answer.send::<{ AT + TCP }>(packet)
}

#[inline(never)]
fn reset6(packet: Packet, parsed: &Parsed, mut answer: Answer<'_>) -> Result<(), HelperError> {
    const AT: usize = ETH + IP6;
    answer.ethernet(packet)?;
    answer.ipv6(packet, 20, proto::TCP)?;
    answer.reset(packet, parsed, AT)?;
    let pseudo = answer.pseudo(AT - 16, AT, proto::TCP, 20);
    answer.put(AT + 8, [finish(pseudo + answer.sum(AT, AT + TCP))]);
    answer.send::<{ AT + TCP }>(packet)
}

#[inline(never)]
fn error4(
    packet: Packet,
    mut answer: Answer<'_>,
    type_code: u16,
    mtu: u16,
) -> Result<(), HelperError> {
    const HEADER_WITHOUT_OPTIONS: u8 = 0x45;
    const AT: usize = ETH + IP4;
    const END: usize = AT + ICMP + QUOTE4;
    if packet.load::<u8>(L3) != Some(HEADER_WITHOUT_OPTIONS) {
        return Err(HelperError);
    }
    answer.copy::<QUOTE4>(AT + ICMP, packet, L3)?;
    answer.ethernet(packet)?;
    answer.ipv4(packet, (2 * (IP4 + ICMP + QUOTE4)) as u16, proto::ICMP)?;
    answer.put(AT, [type_code.to_be(), 0, 0, mtu.to_be()]);
    answer.put(AT + 1, [finish(answer.sum(AT, END))]);
    answer.send::<END>(packet)
}

#[inline(never)]
fn error6(
    packet: Packet,
    mut answer: Answer<'_>,
    type_code: u16,
    mtu: u16,
) -> Result<(), HelperError> {
    const AT: usize = ETH + IP6;
    const END: usize = AT + ICMP + QUOTE6;
    const PAYLOAD: u16 = (2 * (ICMP + QUOTE6)) as u16;
    answer.copy::<QUOTE6>(AT + ICMP, packet, L3)?;
    answer.ethernet(packet)?;
    answer.ipv6(packet, PAYLOAD, proto::ICMP6)?;
    answer.put(AT, [type_code.to_be(), 0, 0, mtu.to_be()]);
    let pseudo = answer.pseudo(AT - 16, AT, proto::ICMP6, PAYLOAD);
    answer.put(AT + 1, [finish(pseudo + answer.sum(AT, END))]);
    answer.send::<END>(packet)
}
