//! Bytes as a frame: the programs' parser, and that of quoted packets, against etherparse. The same comparison as ring
//! `parser`, which says what counts as agreement.
#![no_main]

#[path = "../../lb-agent/tests/parser/packet.rs"]
#[allow(dead_code, unreachable_pub, reason = "a part of the programs' interface")]
mod packet;
#[path = "../../lb-ebpf/src/parse.rs"]
#[allow(dead_code, reason = "the programs use the rest")]
mod parse;
#[path = "../../lb-ebpf/src/parsed.rs"]
#[allow(dead_code, reason = "the programs use the rest")]
mod parsed;
#[path = "../../lb-agent/tests/parser/reading.rs"]
mod reading;

libfuzzer_sys::fuzz_target!(|frame: &[u8]| {
    if let Err(why) = reading::compare(frame) {
        panic!("{why}: {frame:02x?}");
    }
});
