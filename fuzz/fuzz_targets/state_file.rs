//! See [`rowship::fuzzing::state_file`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    rowship::fuzzing::state_file(data);
});
