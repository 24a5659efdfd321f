//! See [`rowship::fuzzing::csv`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    rowship::fuzzing::csv(data);
});
