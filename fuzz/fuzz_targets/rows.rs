//! See [`rowship_proto::fuzzing::rows`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    rowship_proto::fuzzing::rows(data);
});
