//! See [`rowship_proto::fuzzing::handshake`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    rowship_proto::fuzzing::handshake(data);
});
