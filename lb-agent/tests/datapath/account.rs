//! Packets of flows are counted: each once, with its bytes from the IP header on, and no longer than its conntrack entry is there.

use lb_common::account::{AccountEntry, AccountKey, place};
use lb_common::be::Be16;
use lb_common::flow::{Flow, proto};
use lb_testkit::bed::{Bed, Verdict};
use lb_testkit::objects::addr;
use lb_testkit::packet::{build, in_two};

/// What was counted from one end to the other.
fn counted(bed: &Bed, [src, dst]: [&str; 2], proto: u8) -> Option<(u64, u64, u32)> {
    let end = |text: &str| {
        let at: std::net::SocketAddr = text.parse().unwrap();
        (addr(&at.ip().to_string()), Be16::new(at.port()))
    };
    let ((src, sport), (dst, dport)) = (end(src), end(dst));
    let key = AccountKey::of(&Flow { src, dst, sport, dport, proto });
    let account: Option<AccountEntry> = bed.get("accounts", key);
    account.map(|account| (account.packets, account.bytes, account.place))
}

fn pass(bed: &Bed, program: &str, bytes: &[u8]) {
    assert_eq!(bed.run(program, bytes), (Verdict::Next, bytes.to_vec()));
}

const ENDS4: [&str; 2] = ["10.1.0.2:4000", "10.1.1.3:53"];
const ENDS6: [&str; 2] = ["[fd00::2]:4000", "[fd00:1::3]:53"];

#[test]
fn packets_and_their_bytes_without_the_link_layer() {
    let bed = Bed::counting_flows();
    for (ends, header) in [(ENDS4, 20), (ENDS6, 40)] {
        let [src, dst] = ends;
        let packet = build(&format!("{src} > {dst} udp len=100"));
        let mut padded = packet.clone();
        padded.extend([0; 7]);
        pass(&bed, "account_in", &packet);
        // A trailer of the frame is not the packet's.
        pass(&bed, "account_in", &padded);
        let of_two = 2 * (header + 8 + 100);
        assert_eq!(counted(&bed, ends, proto::UDP), Some((2, of_two, place::INGRESS)), "{src}");
        // The Pod's own end sees it again.
        pass(&bed, "account_out", &packet);
        assert_eq!(counted(&bed, ends, proto::UDP), Some((2, of_two, place::INGRESS)), "{src}");
        assert_eq!(counted(&bed, [dst, src], proto::UDP), None);
    }
}

#[test]
fn what_only_the_receivers_end_sees_is_counted_there() {
    let bed = Bed::counting_flows();
    for ends in [ENDS4, ENDS6] {
        let [src, dst] = ends;
        let packet = build(&format!("{src} > {dst} tcp A len=10"));
        let bytes = packet.len() as u64 - 14;
        pass(&bed, "account_out", &packet);
        pass(&bed, "account_out", &packet);
        assert_eq!(counted(&bed, ends, proto::TCP), Some((2, 2 * bytes, place::EGRESS)));
        // It comes in with the same ends after all.
        pass(&bed, "account_in", &packet);
        pass(&bed, "account_out", &packet);
        assert_eq!(counted(&bed, ends, proto::TCP), Some((3, 3 * bytes, place::INGRESS)));
    }
}

#[test]
fn pieces_of_a_datagram_count_for_its_ports() {
    let bed = Bed::counting_flows();
    for (ends, header) in [(ENDS4, 20), (ENDS6, 48)] {
        let [src, dst] = ends;
        let [first, second] = in_two(&build(&format!("{src} > {dst} udp len=100")), 48, 7);
        // The ports of the second are not known yet.
        pass(&bed, "account_in", &second);
        assert_eq!(counted(&bed, ends, proto::UDP), None);
        pass(&bed, "account_in", &first);
        pass(&bed, "account_in", &second);
        let bytes = 2 * header + 8 + 100;
        assert_eq!(counted(&bed, ends, proto::UDP), Some((2, bytes, place::INGRESS)), "{src}");
    }
}

#[test]
fn what_has_no_flow_is_not_counted() {
    let bed = Bed::counting_flows();
    for text in ["10.1.0.2:1 > 224.0.0.1:2 udp", "[fd00::2]:1 > [ff02::1]:2 udp"] {
        pass(&bed, "account_in", &build(text));
    }
    pass(&bed, "account_in", &lb_testkit::packet::arp([10, 1, 0, 2], [10, 1, 0, 1]));
    assert_eq!(bed.all::<AccountKey, AccountEntry>("accounts"), []);
}

#[test]
fn counts_go_with_the_conntrack_entry() {
    let bed = Bed::counting_flows();
    let ends = ENDS4;
    let back = [ENDS4[1], ENDS4[0]];
    let leave = |flags: &str| {
        let packet = build(&format!("{} > {} tcp {flags}", ends[0], ends[1]));
        pass(&bed, "account_in", &packet);
        bed.leave_bytes(&packet);
    };
    let enter = |flags: &str| {
        let packet = build(&format!("{} > {} tcp {flags}", back[0], back[1]));
        pass(&bed, "account_out", &packet);
        bed.enter_bytes(&packet);
    };
    leave("S");
    enter("SA ack=2");
    leave("A ack=2");
    assert_eq!(counted(&bed, ends, proto::TCP).unwrap().0, 2);
    assert_eq!(counted(&bed, back, proto::TCP).unwrap().0, 1);
    // The Pod closes first: the far end does not remember the connection once its last packet went.
    leave("FA seq=2 ack=2");
    enter("FA seq=2 ack=3");
    assert_eq!(bed.conntrack().len(), 1);
    assert_eq!(counted(&bed, ends, proto::TCP).unwrap().0, 3);
    leave("A seq=3 ack=3");
    let left = [counted(&bed, ends, proto::TCP), counted(&bed, back, proto::TCP)];
    assert_eq!((bed.conntrack().len(), left), (0, [None, None]), "{:?}", bed.conntrack());
}
