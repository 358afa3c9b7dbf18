//! Documents that hide needles and tell them again at the end, to train a very small model to look back:
//! `cargo run -p kanana-eval --example needle_documents -- en|ko DOCUMENTS LEAST MOST NEEDLES [SEED] > documents.jsonl`.
//! LEAST and MOST are sentences of a haystack, NEEDLES what it has of them at most. recipes/needle trains on them.

use std::io::{BufWriter, Write};

use kanana_eval::long_context::{Language, Needle, Sentences};
use kanana_eval::random::PythonRandom;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let usage = "expected en|ko DOCUMENTS LEAST MOST NEEDLES [SEED]";
    let (language, numbers) = arguments.split_first().ok_or(usage)?;
    let language: Language = language.parse()?;
    let numbers: Vec<u64> = numbers.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
    let ([documents, least, most, needles_at_most], seed) = match numbers[..] {
        [a, b, c, d] => ([a, b, c, d], 1),
        [a, b, c, d, seed] => ([a, b, c, d], seed),
        _ => return Err(usage.into()),
    };
    let mut random = PythonRandom::new(seed);
    let mut sentences = Sentences::new(language, seed);
    let mut out = BufWriter::new(std::io::stdout().lock());
    for _ in 0..documents {
        let count = random.randint(least as i64, most as i64) as usize;
        let mut parts: Vec<String> = sentences.by_ref().take(count).collect();
        let mut needles: Vec<Needle> = Vec::new();
        for _ in 0..random.randint(1, needles_at_most as i64) {
            let needle = Needle::drawn(language, &mut random, &needles);
            let place = random.randbelow(parts.len() as u64 + 1) as usize;
            parts.insert(place, format!("\n{}\n", needle.sentence()));
            needles.push(needle);
        }
        random.shuffle(&mut needles);
        let told: String = needles.iter().map(|needle| format!("\n\n{}", needle.sentence())).collect();
        let text = parts.concat().trim_start().to_owned() + &told;
        writeln!(out, "{}", serde_json::json!({ "text": text }))?;
    }
    Ok(())
}
