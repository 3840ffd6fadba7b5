//! Programs are verified once and used by one test after the other (`lb_testkit::bed`): what a test leaves in their maps
//! must not reach the next.

use lb_common::flow::proto;
use lb_testkit::bed::Bed;
use lb_testkit::sample::{self, EGRESS, INGRESS, OTHER, PEER, POD, SamplePolicy, at};

/// A kind that no other test asks for, so that the second bed is the first one again.
const BUDGET: u32 = 4321;

#[test]
fn a_bed_that_is_used_again_is_as_a_new_one() {
    let mut bed = Bed::with_budget(BUDGET);
    assert_eq!(bed.used_maps(), [""; 0]);
    for direction in [INGRESS, EGRESS] {
        SamplePolicy::new(direction).allow(PEER, proto::UDP, 53).put(&mut bed);
    }
    sample::pod(&mut bed, true);
    sample::epoch(&mut bed, 1);
    let service = "10.96.0.1:53";
    bed.service(service, proto::UDP, &[&at(true, PEER, 53)]);
    let pod = at(true, POD, 4000);
    assert_eq!(
        bed.leave(&format!("{pod} > {service} udp")),
        format!("{pod} > {} udp", at(true, PEER, 53))
    );
    assert_eq!(bed.leave(&format!("{pod} > {} udp", at(true, OTHER, 53))), "drop");
    assert_eq!(
        bed.used_maps(),
        [
            "backends",
            "counters",
            "ct",
            "frontends",
            "groups",
            "hits",
            "ident",
            "peer_bits",
            "pods",
            "policy",
            "port_bits",
            "samples",
            "slots",
        ]
    );
    drop(bed);
    let mut again = Bed::with_budget(BUDGET);
    assert_eq!(again.used_maps(), [""; 0]);
    assert!(again.events().is_empty());
    assert_eq!(again.counted(), "");
}
