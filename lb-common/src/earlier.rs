//! Layouts of earlier versions of maps whose content outlives the update of an agent.

use crate::addr::Addr;
use crate::be::Be16;
use crate::conntrack::{CtEntry, CtFlags, CtKey};
use crate::pod;

pod! {
    /// Value of the maps `ct` and `kept`, version 1: a [`CtEntry`] whose way past the IP stack was in `aux_addr`.
    pub struct EarlierCtEntry: 56 {
        /// As in [`CtEntry`].
        pub nat_addr: Addr,
        /// Or the way, of a flow of a Pod.
        pub aux_addr: Addr,
        /// As in [`CtEntry`].
        pub nat_port: Be16,
        /// As in [`CtEntry`].
        pub aux_port: Be16,
        /// As in [`CtEntry`].
        pub backend_id: u32,
        /// As in [`CtEntry`].
        pub backend_gen: u32,
        /// As in [`CtEntry`].
        pub last_seen: u32,
        /// As in [`CtEntry`].
        pub epoch: u32,
        /// As in [`CtEntry`].
        pub flags: CtFlags,
    }
}

impl EarlierCtEntry {
    /// The version of the layout.
    pub const VERSION: u32 = 1;

    /// The same entry, which is under `key`, in the layout of today.
    pub fn today(&self, key: &CtKey) -> CtEntry {
        const NO_WAY: CtFlags = CtFlags::HAIRPIN.with(CtFlags::EXTERNAL);
        let has_way = self.flags.contains(CtFlags::PAST) && !self.flags.intersects(NO_WAY);
        let client = if self.flags.contains(CtFlags::REPLY) { key.local } else { Addr::NONE };
        let (aux_addr, way) =
            if has_way { (client, self.aux_addr) } else { (self.aux_addr, Addr::NONE) };
        CtEntry {
            nat_addr: self.nat_addr,
            aux_addr,
            nat_port: self.nat_port,
            aux_port: self.aux_port,
            backend_id: self.backend_id,
            backend_gen: self.backend_gen,
            last_seen: self.last_seen,
            epoch: self.epoch,
            flags: self.flags,
            way,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Addr, Be16, CtEntry, CtFlags, CtKey, EarlierCtEntry};

    fn addr(text: &str) -> Addr {
        Addr::from_ip(text.parse().unwrap())
    }

    #[test]
    fn a_way_was_in_place_of_an_address() {
        let key = CtKey { local: addr("10.1.0.2"), ..CtKey::ZERO };
        let old = EarlierCtEntry {
            nat_addr: addr("10.1.0.9"),
            aux_addr: addr("2001:db8::5"),
            nat_port: Be16::new(80),
            aux_port: Be16::new(4000),
            backend_id: 1,
            backend_gen: 2,
            last_seen: 3,
            epoch: 4,
            flags: CtFlags::NONE,
        };
        let today = CtEntry {
            nat_addr: old.nat_addr,
            aux_addr: old.aux_addr,
            nat_port: old.nat_port,
            aux_port: old.aux_port,
            backend_id: 1,
            backend_gen: 2,
            last_seen: 3,
            epoch: 4,
            ..CtEntry::ZERO
        };
        let past = CtFlags::PAST;
        let way = CtEntry { aux_addr: Addr::NONE, way: old.aux_addr, ..today };
        let cases = [
            (CtFlags::NONE, today),
            (past, way),
            (past | CtFlags::FORWARD, way),
            (past | CtFlags::REPLY, CtEntry { aux_addr: key.local, ..way }),
            (CtFlags::REPLY, today),
            (CtFlags::FORWARD | CtFlags::EXTERNAL | CtFlags::MASQUERADED, today),
            (past | CtFlags::FORWARD | CtFlags::HAIRPIN, today),
        ];
        for (flags, want) in cases {
            let got = EarlierCtEntry { flags, ..old }.today(&key);
            assert_eq!(got, CtEntry { flags, ..want }, "{flags:?}");
        }
    }
}
