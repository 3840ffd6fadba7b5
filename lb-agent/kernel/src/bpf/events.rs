//! The ring buffer of dropped packets and of flows that clients follow: the programs send a sample, the agent keeps
//! the last drop of each kind and gets all flows in batches.
#![forbid(unsafe_code)]

use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aya::maps::{MapData, RingBuf};
use lb_common::addr::Addr;
use lb_common::be::{Be16, Be32};
use lb_common::event::FlowEvent;
use lb_common::verdict::DropReason;
use nix::time::{ClockId, clock_gettime};
use tokio::sync::{mpsc, watch};

use crate::syscall;

/// Flows of a batch, at most.
const BATCH: usize = 256;

/// A flow that was denied, or an allowed one while a client follows allowed flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObservedFlow {
    /// What the program sent.
    pub event: FlowEvent,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
}

/// A dropped packet and when it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Example {
    /// What the program sent.
    pub event: FlowEvent,
    /// Seconds since 1970.
    pub at: u64,
}

/// The last example by reason and direction (`[leaving the Pod, entering it]`), in the order of
/// [`DropReason::ALL`], and how many were read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Examples {
    /// The examples.
    pub last: [[Option<Example>; 2]; DropReason::ALL.len()],
    /// Events read since the start.
    pub read: u64,
    /// Records that were not valid events.
    pub malformed: u64,
}

impl Examples {
    /// The examples, in the order of their reasons.
    pub fn iter(&self) -> impl Iterator<Item = &Example> {
        self.last.iter().flatten().flatten()
    }

    /// What the record says, if it is one of ours.
    fn add(&mut self, record: &[u8], at: u64) -> Option<FlowEvent> {
        let event = parse(record).filter(|event| {
            // An allowed flow is not a drop.
            event.reason == 0 || DropReason::from_number(event.reason).is_some()
        });
        let Some(event) = event else {
            self.malformed += 1;
            return None;
        };
        self.read += 1;
        let reason = DropReason::ALL.into_iter().position(|r| r as u8 == event.reason);
        if let Some([out, into]) = reason.and_then(|index| self.last.get_mut(index)) {
            *(if event.ingress == 0 { out } else { into }) = Some(Example { event, at });
        }
        Some(event)
    }
}

/// Who is told.
pub struct Sinks {
    /// Of drops, the last of each kind.
    pub examples: watch::Sender<Examples>,
    /// Of everything, in batches, in the order of the events.
    pub flows: mpsc::Sender<Vec<ObservedFlow>>,
}

/// Reads and publishes after each burst. While a batch waits for its receiver nothing is read: what then finds no room in
/// the ring buffer, the programs count as lost. Ends when a receiver is gone.
///
/// # Errors
/// When the ring buffer cannot be waited for.
pub async fn run(events: RingBuf<MapData>, sinks: Sinks) -> io::Result<()> {
    let mut events = syscall::readable(events)?;
    let Sinks { examples, flows } = sinks;
    loop {
        let mut ready = tokio::select! {
            ready = events.readable_mut() => ready?,
            () = examples.closed() => return Ok(()),
        };
        let clock = ClockPair::read();
        let mut batch = Vec::new();
        examples.send_modify(|examples| {
            while batch.len() < BATCH {
                let Some(record) = ready.get_inner_mut().next() else {
                    ready.clear_ready();
                    break;
                };
                if let Some(event) = examples.add(&record, clock.unix_ms / 1000) {
                    batch.push(ObservedFlow { event, at_ms: clock.unix_ms_of(event.time_ns) });
                }
            }
        });
        drop(ready);
        if !batch.is_empty() && flows.send(batch).await.is_err() {
            return Ok(());
        }
    }
}

/// The time, by both clocks.
struct ClockPair {
    unix_ms: u64,
    /// `CLOCK_MONOTONIC`, by which the programs go; 0 when it cannot be read.
    monotonic_ns: u64,
}

impl ClockPair {
    fn read() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let monotonic = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from);
        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or_default();
        Self {
            unix_ms: u64::try_from(since.as_millis()).unwrap_or_default(),
            monotonic_ns: monotonic.map(nanoseconds).unwrap_or_default(),
        }
    }

    fn unix_ms_of(&self, time_ns: u64) -> u64 {
        self.unix_ms.saturating_sub(self.monotonic_ns.saturating_sub(time_ns) / 1_000_000)
    }
}

/// Reads the fields in their order: the record is in the layout of `FlowEvent::LAYOUT`.
fn parse(record: &[u8]) -> Option<FlowEvent> {
    if record.len() != size_of::<FlowEvent>() {
        return None;
    }
    let mut rest = record;
    let event = FlowEvent {
        src: Addr::v6(addr(&mut rest)?),
        dst: Addr::v6(addr(&mut rest)?),
        sport: Be16::new(u16::from_be_bytes(bytes(&mut rest)?)),
        dport: Be16::new(u16::from_be_bytes(bytes(&mut rest)?)),
        proto: u8::from_le_bytes(bytes(&mut rest)?),
        reason: u8::from_le_bytes(bytes(&mut rest)?),
        ingress: u8::from_le_bytes(bytes(&mut rest)?),
        outcome: u8::from_le_bytes(bytes(&mut rest)?),
        ifindex: word(&mut rest)?,
        service_id: word(&mut rest)?,
        suppressed: word(&mut rest)?,
        group: word(&mut rest)?,
        judgement: word(&mut rest)?,
        ident: word(&mut rest)?,
        time_ns: u64::from(word(&mut rest)?) | u64::from(word(&mut rest)?) << 32,
    };
    Some(event)
}

fn bytes<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(*head)
}

/// A host-order word; the object is built for little-endian machines (`bpfel`), so this is their order.
fn word(rest: &mut &[u8]) -> Option<u32> {
    bytes(rest).map(u32::from_le_bytes)
}

fn addr(rest: &mut &[u8]) -> Option<[Be32; 4]> {
    let mut words = [Be32::default(); 4];
    for word in &mut words {
        *word = Be32::new(u32::from_be_bytes(bytes(rest)?));
    }
    Some(words)
}

#[cfg(test)]
mod tests {
    use lb_common::addr::Addr;
    use lb_common::event::FlowEvent;
    use lb_common::verdict::DropReason;

    use super::{ClockPair, Examples, parse};

    fn record(reason: u8, ingress: u8) -> Vec<u8> {
        let mut record = vec![0; 10];
        record.extend([0xff, 0xff, 10, 1, 0, 2]);
        record.extend([0xfd; 16]);
        record.extend([0x1f, 0x90, 0, 80, 6, reason, ingress, 0]);
        for word in [7_u32, 8, 9, 10, 11, 12] {
            record.extend(word.to_le_bytes());
        }
        record.extend(0x1_0000_0002_u64.to_le_bytes());
        record
    }

    #[test]
    fn a_record_is_read_in_the_layout_of_the_type() {
        let event = parse(&record(2, 1)).unwrap();
        let want = FlowEvent {
            src: Addr::from_ip("10.1.0.2".parse().unwrap()),
            sport: lb_common::be::Be16::new(8080),
            dport: lb_common::be::Be16::new(80),
            dst: Addr::from_ip("fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd".parse().unwrap()),
            proto: 6,
            reason: 2,
            ingress: 1,
            ifindex: 7,
            service_id: 8,
            suppressed: 9,
            group: 10,
            judgement: 11,
            ident: 12,
            time_ns: 0x1_0000_0002,
            ..FlowEvent::ZERO
        };
        assert_eq!(event, want);
        let offsets: Vec<usize> = FlowEvent::LAYOUT.iter().map(|field| field.offset).collect();
        assert_eq!(offsets, [0, 16, 32, 34, 36, 37, 38, 39, 40, 44, 48, 52, 56, 60, 64]);
    }

    #[test]
    fn the_last_example_of_each_kind_stays() {
        let mut examples = Examples::default();
        for (record, at) in [
            (record(1, 0), 10),
            (record(1, 0), 11),
            (record(1, 1), 12),
            (record(8, 0), 13),
            (record(0, 0), 14),
            (record(99, 0), 14),
            (vec![0; 63], 15),
        ] {
            let is_ours = record.len() == 72 && record[37] != 99;
            assert_eq!(examples.add(&record, at).is_some(), is_ours);
        }
        let seen: Vec<_> =
            examples.iter().map(|e| (e.event.reason, e.event.ingress, e.at)).collect();
        assert_eq!(seen, [(1, 0, 11), (1, 1, 12), (DropReason::FragmentUnknown as u8, 0, 13)]);
        assert_eq!(
            (examples.read, examples.malformed),
            (5, 2),
            "what was let through is read, too"
        );
    }

    #[test]
    fn times_are_those_of_the_packets() {
        let clock = ClockPair { unix_ms: 10_000, monotonic_ns: 7_000_000_000 };
        assert_eq!(clock.unix_ms_of(6_500_000_000), 9_500);
        assert_eq!(clock.unix_ms_of(8_000_000_000), 10_000, "none is in the future");
    }
}
