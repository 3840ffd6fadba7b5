//! The packet of a program, over bytes of this process: what the parser needs of it, with the same bounds.

/// As in the programs.
const MAX_OFFSET: usize = 511;

/// A value of zeros, as the programs' scratch memory is.
pub fn zeroed<T>() -> T {
    // SAFETY: what the programs keep there is numbers and booleans, for which zeros are valid.
    unsafe { std::mem::MaybeUninit::zeroed().assume_init() }
}

/// As it is: nothing follows what a value may be here.
pub fn reread<T: Copy>(place: &T) -> T {
    *place
}

/// Frame bytes; `ethertype` as the kernel sets it.
#[derive(Clone, Copy)]
pub struct Packet<'a> {
    bytes: &'a [u8],
}

impl<'a> Packet<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    pub fn len(self) -> u32 {
        self.bytes.len() as u32
    }

    pub fn ethertype(self) -> u16 {
        self.load::<u16>(12).unwrap_or_default()
    }

    /// All of it is at hand.
    pub fn pull(self, _want: usize) {}

    /// Reads a value in wire order at `offset`, if there is all of it.
    pub fn load<T: Copy>(self, offset: usize) -> Option<T> {
        if offset > MAX_OFFSET {
            return None;
        }
        let bytes = self.bytes.get(offset..offset.checked_add(size_of::<T>())?)?;
        // SAFETY: as many bytes as T has, read at any alignment; the parser loads integers and structs of such only.
        Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
    }
}
