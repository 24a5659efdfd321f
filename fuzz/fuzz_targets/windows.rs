//! See [`rowship::fuzzing::windows`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    rowship::fuzzing::windows(data);
});
