//! Bytes as a frame: the programs' parser, and that of quoted packets, against etherparse. The same comparison as
//! `control::parser`, which says what counts as agreement.
#![no_main]

libfuzzer_sys::fuzz_target!(|frame: &[u8]| {
    if let Err(why) = lb_parser::compare(frame) {
        panic!("{why}: {frame:02x?}");
    }
});
