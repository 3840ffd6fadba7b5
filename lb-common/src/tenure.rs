//! How firmly a masqueraded flow holds its source port: which flow a new one may take the port of, when all the ports
//! that it tried are taken.
//!
//! | rank | who | taken |
//! |---|---|---|
//! | [`OVER`] | both entries have expired | at once |
//! | [`DONE`] | a closed TCP connection, or one that its backend refused; one UDP question with its answer; a packet without an answer for two seconds | when no port tried is free |
//! | [`OPENING`] | a question or a handshake under way | when none of those was met either |
//! | [`QUIET`] | a UDP conversation that paused for 5 s, a stream for 30 s; a TCP connection that one side left, and silent since | in the last place |
//! | [`KEEPS`] | a living TCP connection, a UDP conversation | never |
//!
//! Within a rank the port goes that has been idle for the longest time.

use crate::conntrack::{
    BOTH_WAYS, CtFlags, is_closing, is_established, is_over, stamps, timeout_secs, together,
};
use crate::flow::proto;

/// Never taken.
pub const KEEPS: u32 = 0;
/// Taken in the last place.
pub const QUIET: u32 = 1;
/// Its answer may be on its way.
pub const OPENING: u32 = 2;
/// Nothing is expected any more.
pub const DONE: u32 = 3;
/// Dead.
pub const OVER: u32 = 4;

/// Seconds after which a packet without an answer is assumed to get none.
const UNANSWERED_SECS: u32 = 2;
/// Seconds without a packet after which a UDP conversation may have ended.
const PAUSED_SECS: u32 = 5;
/// The same for a UDP conversation that lasted: keepalives are more frequent.
const QUIET_SECS: u32 = 30;
/// The same for a TCP connection that one side closed, or that has a forged FIN or reset.
const LEFT_SECS: u32 = 70;
/// Bits of the time in a result; its rank is above them.
pub const TIME_BITS: u32 = 13;
const MOST_TICKS: u32 = (1 << TIME_BITS) - 1;

/// What is known of the flow that has a port.
#[derive(Clone, Copy, Debug)]
pub struct Holder {
    /// IP protocol number.
    pub protocol: u8,
    /// Flags of its reply entry.
    pub reply: CtFlags,
    /// Flags of its forward entry; 0 when that is gone.
    pub forward: CtFlags,
    /// Stamps since the last packet of either direction.
    pub idle: u32,
    /// Ticks since it was opened.
    pub age: u32,
    /// Ticks a second.
    pub hz: u32,
}

/// Its rank, and below that for how long nothing happened, in ticks: the greater, the sooner it gives its port. In 16
/// bits; 0 = it keeps it.
pub const fn readiness(holder: &Holder) -> u32 {
    let Holder { protocol, reply, forward, idle, age, hz } = *holder;
    let flags = together(reply, forward);
    let (rank, ticks) = if idle > stamps(timeout_secs(protocol, flags), hz) {
        (OVER, idle_ticks(idle))
    } else if protocol == proto::TCP && is_over(flags) {
        (DONE, idle_ticks(idle))
    } else if is_unanswered(protocol, flags) {
        (if age > UNANSWERED_SECS * hz { DONE } else { OPENING }, age)
    } else if protocol == proto::UDP && is_one_exchange(flags, forward) {
        (DONE, age)
    } else {
        let patience = match protocol {
            proto::TCP if is_closing(flags) => LEFT_SECS,
            proto::UDP if flags.contains(CtFlags::TIMES) => QUIET_SECS,
            proto::UDP => PAUSED_SECS,
            _ => return KEEPS,
        };
        (if idle > stamps(patience, hz) { QUIET } else { KEEPS }, idle_ticks(idle))
    };
    if rank == KEEPS {
        return KEEPS;
    }
    rank << TIME_BITS | if ticks < MOST_TICKS { ticks } else { MOST_TICKS }
}

/// The rank in a result of [`readiness`].
pub const fn rank(readiness: u32) -> u32 {
    readiness >> TIME_BITS
}

const fn idle_ticks(stamps: u32) -> u32 {
    stamps.saturating_mul(256)
}

const fn is_unanswered(protocol: u8, flags: CtFlags) -> bool {
    match protocol {
        proto::TCP => !is_established(flags),
        _ => !flags.contains(BOTH_WAYS),
    }
}

/// Whether the client has not spoken again since it was answered, and no stream of packets came since.
const fn is_one_exchange(flags: CtFlags, forward: CtFlags) -> bool {
    !forward.intersects(CtFlags::TIMES) && !flags.contains(CtFlags::TIMES)
}

#[cfg(test)]
mod tests {
    use super::{DONE, Holder, KEEPS, OPENING, OVER, QUIET, rank, readiness};
    use crate::conntrack::{BOTH_WAYS, CtFlags, Direction, again, carried, seen};
    use crate::flow::{proto, tcp};

    use Direction::{Egress, Ingress};

    const HZ: u32 = 256;
    const FORWARD: CtFlags = CtFlags::FORWARD.with(CtFlags::EXTERNAL).with(CtFlags::MASQUERADED);
    const REPLY: CtFlags = CtFlags::REPLY.with(CtFlags::EXTERNAL).with(CtFlags::MASQUERADED);
    const SYN_ACK: u8 = tcp::SYN | tcp::ACK;
    const FIN_ACK: u8 = tcp::FIN | tcp::ACK;
    const OPEN: [(Direction, u8); 3] =
        [(Ingress, tcp::SYN), (Egress, SYN_ACK), (Ingress, tcp::ACK)];

    /// Flags of both entries after packets, each of which one entry sees and the other hears of.
    fn after(steps: &[(Direction, u8)]) -> (CtFlags, CtFlags) {
        let (mut reply, mut forward) = (REPLY, FORWARD);
        for (direction, flags) in steps {
            let (own, other) = match direction {
                Ingress => (&mut forward, &mut reply),
                Egress => (&mut reply, &mut forward),
            };
            let before = *own;
            *own = seen(before, *direction, *flags);
            *other = carried(before, *own, *other);
        }
        (reply, forward)
    }

    /// One second is one stamp here.
    fn of(protocol: u8, (reply, forward): (CtFlags, CtFlags), idle: u32, age: u32) -> u32 {
        readiness(&Holder { protocol, reply, forward, idle, age: age * HZ, hz: HZ })
    }

    #[test]
    fn who_gives_a_port_and_who_keeps_it() {
        let tcp_of = |more: &[(Direction, u8)]| after(&[&OPEN, more].concat());
        let (fin, rst, said) = ((Egress, FIN_ACK), (Egress, tcp::RST), (Egress, tcp::ACK));
        let asked = after(&[(Ingress, 0)]);
        let answered = after(&[(Ingress, 0), (Egress, 0)]);
        let talks = (answered.0, again(answered.1));
        let times = CtFlags::TIMES;
        let cases = [
            ("a SYN just now", proto::TCP, after(&OPEN[..1]), 0, 0, OPENING),
            ("answered, not completed", proto::TCP, after(&OPEN[..2]), 1, 1, OPENING),
            ("for three seconds", proto::TCP, after(&OPEN[..2]), 1, 3, DONE),
            ("refused", proto::TCP, after(&[OPEN[0], (Egress, tcp::RST | tcp::ACK)]), 0, 0, DONE),
            ("completed blindly, refused", proto::TCP, tcp_of(&[rst]), 0, 0, DONE),
            ("which was not the backend", proto::TCP, tcp_of(&[rst, said]), 0, 0, KEEPS),
            ("for a minute", proto::TCP, after(&OPEN[..2]), 62, 62, OVER),
            ("a connection", proto::TCP, tcp_of(&[]), 0, 0, KEEPS),
            ("idle for hours", proto::TCP, tcp_of(&[]), 80_000, 80_000, KEEPS),
            ("one side has left", proto::TCP, tcp_of(&[fin]), 60, 60, KEEPS),
            ("a reset that may be forged", proto::TCP, tcp_of(&[said, rst]), 60, 60, KEEPS),
            ("the same, and silent since", proto::TCP, tcp_of(&[said, rst]), 72, 72, QUIET),
            ("both sides have", proto::TCP, tcp_of(&[fin, (Ingress, FIN_ACK)]), 0, 9, DONE),
            (
                "for longer than TIME_WAIT",
                proto::TCP,
                tcp_of(&[fin, (Ingress, FIN_ACK)]),
                72,
                80,
                OVER,
            ),
            ("a question just now", proto::UDP, asked, 0, 0, OPENING),
            ("one without an answer", proto::UDP, asked, 3, 3, DONE),
            ("and asks again and again", proto::UDP, (asked.0, asked.1 | times), 0, 9, DONE),
            ("one answered just now", proto::UDP, answered, 0, 0, DONE),
            ("30 s ago", proto::UDP, answered, 32, 32, OVER),
            ("a second question", proto::UDP, talks, 0, 0, KEEPS),
            ("then silence", proto::UDP, talks, 5, 60, KEEPS),
            ("for more than five seconds", proto::UDP, talks, 7, 60, QUIET),
            ("a stream", proto::UDP, (answered.0 | times, answered.1 | times), 29, 99, KEEPS),
            (
                "a stream of answers alone",
                proto::UDP,
                (answered.0 | times, answered.1),
                0,
                99,
                KEEPS,
            ),
            ("a silent one", proto::UDP, (answered.0 | times, answered.1 | times), 40, 99, QUIET),
            (
                "for two minutes",
                proto::UDP,
                (answered.0 | times, answered.1 | times),
                122,
                200,
                OVER,
            ),
            ("its client's entry is gone", proto::UDP, (answered.0, CtFlags::NONE), 3, 3, DONE),
            ("a connection without one", proto::TCP, (tcp_of(&[]).0, CtFlags::NONE), 99, 99, KEEPS),
            ("SCTP", proto::SCTP, answered, 300, 300, KEEPS),
            ("SCTP, unanswered", proto::SCTP, asked, 3, 3, DONE),
        ];
        for (name, protocol, flags, idle, age, want) in cases {
            assert_eq!(rank(of(protocol, flags, idle, age)), want, "{name}");
        }
    }

    #[test]
    fn the_idlest_of_a_rank_goes_first() {
        let answered = after(&[(Ingress, 0), (Egress, 0)]);
        let asked = after(&[(Ingress, 0)]);
        let closed = after(&[&OPEN[..], &[(Egress, FIN_ACK), (Ingress, FIN_ACK)]].concat());
        let order = [
            of(proto::UDP, asked, 0, 0),
            of(proto::UDP, asked, 0, 1),
            of(proto::UDP, answered, 0, 0),
            of(proto::UDP, answered, 0, 1),
            of(proto::UDP, asked, 0, 5),
            of(proto::UDP, answered, 0, 9),
            of(proto::UDP, answered, 32, 33),
        ];
        assert!(order.is_sorted_by(|a, b| a < b), "{order:?}");
        assert!(of(proto::TCP, closed, 2, 9) < of(proto::TCP, closed, 3, 9));
        let ticks = |age| {
            readiness(&Holder {
                protocol: proto::UDP,
                reply: asked.0,
                forward: asked.1,
                idle: 0,
                age,
                hz: HZ,
            })
        };
        assert!(ticks(4) < ticks(5), "flows of a flood are distinguished by ticks");
        assert_eq!(of(proto::UDP, asked, 0, u32::MAX / HZ) >> 16, 0, "16 bits");
        assert_eq!(asked.1.only(BOTH_WAYS), CtFlags::SEEN_IN);
    }
}
