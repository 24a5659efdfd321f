//! See [`rowship::fuzzing::commands`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    rowship::fuzzing::commands(data);
});
