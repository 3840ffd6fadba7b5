//! What is reported while failed writes wait for their next try.

use lb_testkit::objects::addr;

use crate::departures::{events, pipeline};

#[test]
fn a_service_that_waits_for_its_retry_stalls_the_plan_whatever_others_do() {
    let mut pipeline = pipeline();
    pipeline.maps.fail_every = 1;
    pipeline.tell(events("first", "10.96.0.2", addr("10.244.0.2")));
    pipeline.round();
    assert!(pipeline.planner.is_stalled());
    // Another one is written meanwhile.
    pipeline.maps.fail_every = 0;
    pipeline.tell(events("pods", "10.96.0.1", addr("10.244.0.3")));
    let writes = pipeline.round();
    assert!(!writes.is_empty() && pipeline.planner.is_stalled());
    pipeline.settle();
    assert!(!pipeline.planner.is_stalled());
}
