//! The kernel object in a binary: what the kernel is given to load, the same for every build of a commit.

/// `e_machine` of BPF (linux/elf-em.h).
const EM_BPF: u16 = 247;
/// The first bytes of a 64-bit little-endian ELF file.
const MAGIC: &[u8] = b"\x7fELF\x02\x01\x01";

/// The object, from its header to the end of its table of sections, which comes last.
pub(super) fn of(binary: &[u8]) -> Option<&[u8]> {
    let mut from = 0;
    while let Some(found) = binary.get(from..)?.windows(MAGIC.len()).position(|at| at == MAGIC) {
        let elf = binary.get(from + found..)?;
        if u16_at(elf, 18) == Some(EM_BPF) {
            let table = u64::from_le_bytes(*elf.get(40..)?.first_chunk()?);
            let (size, n) = (u16_at(elf, 58)?, u16_at(elf, 60)?);
            let table = usize::try_from(table).ok()?;
            return elf.get(..table.checked_add(usize::from(size) * usize::from(n))?);
        }
        from += found + MAGIC.len();
    }
    None
}

fn u16_at(elf: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*elf.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::{EM_BPF, MAGIC, of};

    /// A file with a table of two sections of 64 bytes behind ten other bytes.
    fn elf(machine: u16) -> Vec<u8> {
        let mut elf = MAGIC.to_vec();
        elf.resize(64 + 10 + 2 * 64, 7);
        elf[18..20].copy_from_slice(&machine.to_le_bytes());
        elf[40..48].copy_from_slice(&74u64.to_le_bytes());
        elf[58..62].copy_from_slice(&[64, 0, 2, 0]);
        elf
    }

    #[test]
    fn the_object_is_found_in_a_binary_for_another_machine() {
        let object = elf(EM_BPF);
        let binary = [&elf(62)[..], b"text", &object, b"more"].concat();
        assert_eq!(of(&binary), Some(&object[..]));
        assert_eq!(of(&elf(62)), None);
        assert_eq!(of(&object[..100]), None, "cut off");
    }
}
