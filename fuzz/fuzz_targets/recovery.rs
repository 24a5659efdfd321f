//! See [`rowship::fuzzing::recovery`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    rowship::fuzzing::recovery(data);
});
