//! The only code that knows aya: loads the kernel object, pins and attaches it, writes and reads its maps.

pub mod load;
