//! Conntrack expiry: removes entries of flows that have been silent for too long, so that a busy table has room
//! without evicting live flows.
//!
//! A translated flow has two entries, and packets of one direction refresh only one of them. They live and die
//! together, judged by what both have seen: an expired entry stays while its partner lives. Entries of dead backends need no purge (the programs
//! compare generations at every packet); they are counted. A pass runs on a thread of its own.
#![forbid(unsafe_code)]

use std::collections::HashMap as StdHashMap;
use std::io;
use std::time::{Duration, Instant};

use aya::maps::{Array, HashMap, MapData};
use lb_common::conntrack::{CtEntry, CtKey, is_expired, partner};
use lb_common::flow::proto;
use lb_common::service::Backend;

use crate::bpf::clock::Clock;
use crate::bpf::maps::{self, MapsError};
use crate::bpf::pins::Pins;
use crate::syscall;

/// Time between two passes.
pub const INTERVAL: Duration = Duration::from_secs(30);

/// What a pass found and did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// Entries seen, the removed ones included.
    pub entries: u64,
    /// Those of TCP.
    pub tcp: u64,
    /// Those of UDP.
    pub udp: u64,
    /// Those that were removed.
    pub expired: u64,
    /// Expired entries that stayed since their partner lives.
    pub kept: u64,
    /// Entries whose backend is dead or has another meaning now.
    pub stale: u64,
    /// How long it took.
    pub duration: Duration,
}

impl Pass {
    /// Entries left after the pass.
    pub const fn left(&self) -> u64 {
        self.entries.saturating_sub(self.expired)
    }
}

/// The maps a pass works on, through descriptors of its own.
pub struct Gc {
    ct: HashMap<MapData, CtKey, CtEntry>,
    backends: Array<MapData, Backend>,
    clock: Clock,
}

impl Gc {
    /// Opens the pinned maps.
    ///
    /// # Errors
    /// When a pin is missing or has other sizes.
    pub fn open(pins: &Pins, clock: Clock) -> Result<Self, MapsError> {
        Ok(Self { ct: maps::open_ct(pins)?, backends: maps::open_backends(pins)?, clock })
    }

    /// Walks the table once.
    ///
    /// # Errors
    /// When a map cannot be read or an entry not removed.
    pub fn pass(&mut self) -> io::Result<Pass> {
        let start = Instant::now();
        let generations = self.generations()?;
        let now = Now { stamp: self.clock.stamp()?, hz: self.clock.hz };
        let mut pass = Pass::default();
        let mut expired = Vec::new();
        syscall::for_each(&self.ct, |key: &CtKey, entry: &CtEntry| {
            pass.entries += 1;
            pass.tcp += u64::from(key.proto == proto::TCP);
            pass.udp += u64::from(key.proto == proto::UDP);
            let current = generations.get(&entry.backend_id).copied().unwrap_or_default();
            pass.stale += u64::from(entry.backend_id != 0 && current != entry.backend_gen);
            if now.is_dead(key, entry, None) {
                expired.push(*key);
            }
        })?;
        for key in expired {
            self.expire(&key, now, &mut pass)?;
        }
        pass.duration = start.elapsed();
        Ok(pass)
    }

    /// Removes an entry and its partner, if they are dead together.
    fn expire(&mut self, key: &CtKey, now: Now, pass: &mut Pass) -> io::Result<()> {
        // Read again: a packet may have come since the walk, or the partner's turn was before.
        let Some(entry) = self.entry(key)? else { return Ok(()) };
        let partner_key = partner(key, &entry);
        let partner = match &partner_key {
            Some(partner_key) => self.entry(partner_key)?,
            None => None,
        };
        if !now.is_dead(key, &entry, partner.as_ref()) {
            pass.kept += 1;
            return Ok(());
        }
        for key in std::iter::once(key).chain(partner.and(partner_key.as_ref())) {
            match self.ct.remove(key) {
                Ok(()) => pass.expired += 1,
                // Evicted meanwhile.
                Err(e) if maps::is_missing(&e) => {}
                Err(e) => return Err(io::Error::other(e)),
            }
        }
        Ok(())
    }

    fn entry(&self, key: &CtKey) -> io::Result<Option<CtEntry>> {
        match self.ct.get(key, 0) {
            Ok(entry) => Ok(Some(entry)),
            Err(e) if maps::is_missing(&e) => Ok(None),
            Err(e) => Err(io::Error::other(e)),
        }
    }

    fn generations(&self) -> io::Result<StdHashMap<u32, u32>> {
        let mut generations = StdHashMap::new();
        syscall::for_each(&self.backends, |id: &u32, backend: &Backend| {
            if backend.generation != 0 {
                generations.insert(*id, backend.generation);
            }
        })?;
        Ok(generations)
    }
}

/// The time of a pass.
#[derive(Clone, Copy, Debug)]
struct Now {
    stamp: u32,
    hz: u32,
}

impl Now {
    /// Whether a flow is dead: silent in both directions for as long as both its entries together allow. Each entry
    /// has seen one direction only, so a reset by the client, for one, is noted on its forward entry alone.
    fn is_dead(self, key: &CtKey, entry: &CtEntry, partner: Option<&CtEntry>) -> bool {
        let flags = entry.flags | partner.map_or(0, |partner| partner.flags);
        let dead =
            |entry: &CtEntry| is_expired(key.proto, flags, entry.last_seen, self.stamp, self.hz);
        dead(entry) && partner.is_none_or(dead)
    }
}

#[cfg(test)]
mod tests {
    use lb_common::addr::Addr;
    use lb_common::be::Be16;
    use lb_common::conntrack::{CtEntry, CtKey};
    use lb_common::flow::{proto, tcp};

    use super::Now;

    fn addr(text: &str) -> Addr {
        Addr::from_ip(text.parse().unwrap())
    }

    fn key(local: (&str, u16), remote: (&str, u16)) -> CtKey {
        CtKey {
            local: addr(local.0),
            local_port: Be16::new(local.1),
            remote: addr(remote.0),
            remote_port: Be16::new(remote.1),
            proto: proto::TCP,
            veth: 7,
            ..CtKey::ZERO
        }
    }

    #[test]
    fn a_pair_is_judged_as_one() {
        let hz = 256;
        let now = Now { stamp: 1_000_000, hz };
        let seen =
            |ago: u32, flags: u32| CtEntry { last_seen: now.stamp - ago, flags, ..CtEntry::ZERO };
        let ack = u32::from(tcp::ACK);
        let rst = u32::from(tcp::RST);
        let cases = [
            ("alone, fresh", seen(10, ack), None, false),
            ("alone, closed for long", seen(80, ack | rst), None, true),
            ("closed, the other too", seen(80, ack | rst), Some(seen(75, ack)), true),
            ("closed, but the other still speaks", seen(80, ack | rst), Some(seen(5, ack)), false),
            ("idle for seven hours", seen(25_200, ack), Some(seen(25_200, ack << 8)), true),
            ("one way idle, the other not", seen(25_200, ack), Some(seen(60, ack << 8)), false),
        ];
        let key = key(("10.1.0.2", 1), ("10.96.0.1", 2));
        for (name, entry, partner, want) in cases {
            assert_eq!(now.is_dead(&key, &entry, partner.as_ref()), want, "{name}");
        }
    }
}
