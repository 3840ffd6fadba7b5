//! The programs' parser, built for the host, against an independent one (etherparse): both read the same 5-tuple, or the
//! programs refuse. Frames are honest ones, then damaged; `fuzz/` looks for others by coverage.
//!
//! `LB_PARSED=10000000 LB_SEED=7 cargo test … --test control parser` runs more of them, or others.

mod frames;

use std::collections::BTreeMap;

use lb_parser::{ReadingOutcome, compare};
use lb_testkit::mutation;
use lb_testkit::random::Random;

#[test]
fn both_read_the_same_or_the_programs_refuse() {
    let setting = |name, default| std::env::var(name).map_or(default, |n| n.parse().unwrap());
    let (n, seed) = (setting("LB_PARSED", 200_000_u64), setting("LB_SEED", 1));
    let mut random = Random::new(seed);
    let honest = frames::honest();
    let mut outcomes = BTreeMap::<ReadingOutcome, u64>::new();
    for (what, frame) in &honest {
        let outcome = compare(frame);
        assert_ne!(outcome, Ok(ReadingOutcome::Refused), "{what} is honest: {frame:02x?}");
    }
    for i in 0..n {
        let (what, frame) = random.choose(&honest);
        let frame = mutation::mutate(frame, &mut random);
        match compare(&frame) {
            Ok(outcome) => *outcomes.entry(outcome).or_default() += 1,
            Err(why) => panic!("frame {i} of seed {seed}, once {what}: {why}\n{frame:02x?}"),
        }
    }
    println!("{n} frames of seed {seed}: {outcomes:?}");
    assert!(outcomes.values().all(|count| *count > n / 200), "one-sided: {outcomes:?}");
    assert_eq!(outcomes.len(), 4, "{outcomes:?}");
}

/// What would be hard to hit by chance.
#[test]
fn what_hides_a_port_is_refused() {
    for (what, frame) in frames::hiding() {
        assert_eq!(compare(&frame), Ok(ReadingOutcome::Refused), "{what}: {frame:02x?}");
    }
}
