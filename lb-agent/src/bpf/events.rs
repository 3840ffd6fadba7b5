//! The ring buffer of dropped packets: the programs send a sample, the agent keeps the last of each kind.
#![forbid(unsafe_code)]

use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use aya::maps::{MapData, RingBuf};
use lb_common::addr::Addr;
use lb_common::be::{Be16, Be32};
use lb_common::event::FlowEvent;
use lb_common::verdict::DropReason;
use tokio::sync::watch;

use crate::syscall;

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
    /// Records that were no events of ours.
    pub malformed: u64,
}

impl Examples {
    /// The examples, in the order of their reasons.
    pub fn iter(&self) -> impl Iterator<Item = &Example> {
        self.last.iter().flatten().flatten()
    }

    fn add(&mut self, record: &[u8], at: u64) {
        let Some(event) = parse(record) else {
            self.malformed += 1;
            return;
        };
        let Some(by_direction) = DropReason::from_number(event.reason)
            .and_then(|reason| DropReason::ALL.into_iter().position(|r| r == reason))
            .and_then(|index| self.last.get_mut(index))
        else {
            self.malformed += 1;
            return;
        };
        self.read += 1;
        let [out, into] = by_direction;
        *(if event.ingress == 0 { out } else { into }) = Some(Example { event, at });
    }
}

/// Reads for ever and publishes after each burst. Ends when the receivers are gone.
///
/// # Errors
/// When the ring buffer cannot be waited for.
pub async fn run(events: RingBuf<MapData>, publish: watch::Sender<Examples>) -> io::Result<()> {
    let mut events = syscall::readable(events)?;
    loop {
        let mut ready = tokio::select! {
            ready = events.readable_mut() => ready?,
            () = publish.closed() => return Ok(()),
        };
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        publish.send_modify(|examples| {
            while let Some(record) = ready.get_inner_mut().next() {
                examples.add(&record, at);
            }
        });
        ready.clear_ready();
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

    use super::{Examples, parse};

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
            (vec![0; 63], 15),
        ] {
            examples.add(&record, at);
        }
        let seen: Vec<_> =
            examples.iter().map(|e| (e.event.reason, e.event.ingress, e.at)).collect();
        assert_eq!(seen, [(1, 0, 11), (1, 1, 12), (DropReason::FragmentUnknown as u8, 0, 13)]);
        assert_eq!((examples.read, examples.malformed), (4, 2));
    }
}
