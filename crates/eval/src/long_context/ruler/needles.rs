//! The eight tasks that hide needles: `niah.py` of the reference.

use std::collections::HashSet;

use super::{Kind, Question, words};
use crate::random::PythonRandom;

const NOISE: &str =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";

/// What a key or a value is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Word,
    Number,
    Uuid,
}

impl What {
    /// In the plural, as the needles say it.
    fn name(self) -> &'static str {
        match self {
            What::Word => "words",
            What::Number => "numbers",
            What::Uuid => "uuids",
        }
    }

    fn draw(self, random: &mut PythonRandom) -> String {
        match self {
            What::Word => {
                let mut draw = |list: &str| {
                    let list: Vec<&str> = list.split_whitespace().collect();
                    list[random.randbelow(list.len() as u64) as usize].to_owned()
                };
                format!("{}-{}", draw(words::ADJECTIVES), draw(words::NOUNS))
            }
            What::Number => random.randint(1_000_000, 9_999_999).to_string(),
            What::Uuid => {
                // version 4, variant 1
                let (high, low) = (random.getrandbits(64), random.getrandbits(64));
                let high = high & !0xf000 | 0x4000;
                let low = low & !(0b11 << 62) | 0b10 << 62;
                let (a, b, c) = (high >> 32, high >> 16 & 0xffff, high & 0xffff);
                format!("{a:08x}-{b:04x}-{c:04x}-{:04x}-{:012x}", low >> 48, low & 0xffff_ffff_ffff)
            }
        }
    }

    /// One that was not drawn before.
    fn fresh(self, random: &mut PythonRandom, taken: &mut HashSet<String>) -> String {
        loop {
            let drawn = self.draw(random);
            if taken.insert(drawn.clone()) {
                return drawn;
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Hay {
    Noise,
    Essay,
    Needles,
}

/// The parts of a task: haystack, keys, values, and how many keys, values of each, and keys asked for.
struct Shape {
    hay: Hay,
    key: What,
    value: What,
    keys: usize,
    values: usize,
    asked: usize,
}

fn shape(kind: Kind) -> Shape {
    let plain = Shape { hay: Hay::Essay, key: What::Word, value: What::Number, keys: 1, values: 1, asked: 1 };
    match kind {
        Kind::NiahSingle1 => Shape { hay: Hay::Noise, ..plain },
        Kind::NiahSingle3 => Shape { value: What::Uuid, ..plain },
        Kind::NiahMultiKey1 => Shape { keys: 4, ..plain },
        Kind::NiahMultiKey2 => Shape { hay: Hay::Needles, ..plain },
        Kind::NiahMultiKey3 => Shape { hay: Hay::Needles, key: What::Uuid, value: What::Uuid, ..plain },
        Kind::NiahMultiValue => Shape { values: 4, ..plain },
        Kind::NiahMultiQuery => Shape { keys: 4, asked: 4, ..plain },
        _ => plain,
    }
}

/// A question over `size` sentences of the haystack.
pub fn question(random: &mut PythonRandom, kind: Kind, essay: &[String], size: usize) -> Question {
    let Shape { hay, key, value, keys, values, asked } = shape(kind);
    let what = value.name();
    let mut taken = HashSet::new();
    let needle = |key: &str, value: &str| format!("One of the special magic {what} for {key} is: {value}.");
    let mut pairs: Vec<(String, Vec<String>)> = Vec::new();
    for _ in 0..keys {
        let key = key.fresh(random, &mut taken);
        pairs.push((key, (0..values).map(|_| value.fresh(random, &mut taken)).collect()));
    }
    let mut needles: Vec<String> =
        pairs.iter().flat_map(|(key, values)| values.iter().map(|value| needle(key, value))).collect();
    random.shuffle(&mut needles);

    let context = if hay == Hay::Essay {
        // Depths in per cent, 40 from 0 to 100, each at most once.
        let depths = random.sample(40, needles.len());
        let mut places: Vec<usize> = depths
            .into_iter()
            .map(|step| (size as f64 * (100.0 * step as f64 / 39.0).round() / 100.0) as usize)
            .collect();
        places.sort_unstable();
        let mut text = String::new();
        let mut from = 0;
        for (place, needle) in places.into_iter().zip(&needles) {
            text.extend(essay[from..place].iter().map(String::as_str));
            text += " ";
            text += needle;
            from = place;
        }
        text.extend(essay[from..size].iter().map(String::as_str));
        text.trim_start().to_owned()
    } else {
        let mut lines: Vec<String> = Vec::new();
        for _ in 0..size {
            lines.push(match hay {
                Hay::Noise => NOISE.to_owned(),
                _ => needle(&key.fresh(random, &mut taken), &value.fresh(random, &mut taken)),
            });
        }
        let mut places = random.sample(size, needles.len());
        places.sort_unstable_by(|a, b| b.cmp(a));
        for (place, needle) in places.into_iter().zip(needles) {
            lines.insert(place, needle);
        }
        lines.join("\n")
    };

    let queried = random.sample(keys, asked);
    let names: Vec<&str> = queried.iter().map(|&n| pairs[n].0.as_str()).collect();
    let query = match names[..] {
        [ref first @ .., last] if !first.is_empty() => format!("{}, and {last}", first.join(", ")),
        _ => names.concat(),
    };
    let answers: Vec<String> = queried.iter().flat_map(|&n| pairs[n].1.clone()).collect();
    let one = &what[..what.len() - 1];
    let (input, prefix) = if answers.len() == 1 {
        (
            format!(
                "A special magic {one} is hidden within the following text. Make sure to memorize it. I will quiz you about the \
                 {one} afterwards.\n{context}\nWhat is the special magic {one} for {query} mentioned in the provided text?"
            ),
            format!(" The special magic {one} for {query} mentioned in the provided text is"),
        )
    } else {
        (
            format!(
                "Some special magic {what} are hidden within the following text. Make sure to memorize it. I will quiz you about \
                 the {what} afterwards.\n{context}\nWhat are all the special magic {what} for {query} mentioned in the provided \
                 text?"
            ),
            format!(" The special magic {what} for {query} mentioned in the provided text are"),
        )
    };
    Question { input, prefix, answers }
}
