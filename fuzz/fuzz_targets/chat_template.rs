//! Any template renders or is an error, without panic, in bounded time and memory.
#![no_main]

use kanana_tokenizer::render_sample;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|source: &str| {
    let _ = render_sample(source);
});
