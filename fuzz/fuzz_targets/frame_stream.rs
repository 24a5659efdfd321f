//! See [`rowship_proto::fuzzing::frame_stream`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    rowship_proto::fuzzing::frame_stream(data);
});
