//! Variables that are tracked, and words that are counted: `variable_tracking.py`, `common_words_extraction.py` and
//! `freq_words_extraction.py` of the reference.

use std::collections::HashSet;

use super::{Question, words};
use crate::random::PythonRandom;

const NOISE: &str =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n";

/// Assignments behind the first.
const HOPS: usize = 4;

fn letters(random: &mut PythonRandom, from: u8, count: usize) -> String {
    (0..count).map(|_| char::from(from + random.randbelow(26) as u8)).collect()
}

/// A chain of variables in `lines` lines of noise, behind an example with its answer.
pub fn variables(random: &mut PythonRandom, lines: usize, short: bool) -> Question {
    let example = chain(random, if short { 6 } else { 15 }, 3);
    let asked = chain(random, lines, 5);
    let shown = format!("{}{}{}\n\n", example.input, example.prefix, example.answers.join(" "));
    Question { input: shown + &asked.input, ..asked }
}

fn chain(random: &mut PythonRandom, lines: usize, letters_of_name: usize) -> Question {
    let mut names: Vec<String> = Vec::new();
    while names.len() <= HOPS {
        let name = letters(random, b'A', letters_of_name);
        if name != "VAR" && !names.contains(&name) {
            names.push(name);
        }
    }
    let value = random.randint(10_000, 99_998).to_string();
    let mut assignments = vec![format!("VAR {} = {value}", names[0])];
    assignments.extend(names.windows(2).map(|pair| format!("VAR {} = VAR {} ", pair[1], pair[0])));
    let mut sentences = vec![NOISE.to_owned(); lines];
    let mut places = random.sample(lines, assignments.len());
    places.sort_unstable();
    for (n, (place, assignment)) in places.into_iter().zip(assignments).enumerate() {
        sentences.insert(place + n, assignment);
    }
    let context = sentences.join(" ").replace(". \n", ".\n");
    // "assgined" is the reference's.
    Question {
        input: format!(
            "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\nQuestion: Find all \
             variables that are assigned the value {value} in the text above."
        ),
        prefix: format!(
            " Answer: According to the chain(s) of variable assignment in the text above, {} variables are assgined the value \
             {value}, they are: ",
            names.len()
        ),
        answers: names,
    }
}

/// The ten words of a list of `count` different ones that come more often, behind an example with its answer.
pub fn common_words(random: &mut PythonRandom, count: usize, short: bool) -> Question {
    // different words, and how often the common ones and the others come
    let ((example, often, seldom), (common, others)) =
        if short { ((20, 3, 1), (6, 1)) } else { ((40, 10, 3), (30, 3)) };
    let example = word_list(random, example, often, seldom);
    let asked = word_list(random, count, common, others);
    let shown: Vec<String> =
        example.answers.iter().enumerate().map(|(n, word)| format!("{}. {word}", n + 1)).collect();
    Question {
        input: format!("{}{} {}\n{}", example.input, example.prefix, shown.join(" "), asked.input),
        ..asked
    }
}

fn word_list(random: &mut PythonRandom, count: usize, common: usize, others: usize) -> Question {
    let words = distinct_words(random, count);
    let (answers, rest) = words.split_at(10.min(words.len()));
    let mut list: Vec<&str> = Vec::new();
    for (words, times) in [(answers, common), (rest, others)] {
        list.extend((0..times).flat_map(|_| words.iter().map(String::as_str)));
    }
    random.shuffle(&mut list);
    let numbered: Vec<String> =
        list.iter().enumerate().map(|(n, word)| format!("{}. {word}", n + 1)).collect();
    Question {
        input: format!(
            "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that appear \
             most often.\n{}\nQuestion: What are the 10 most common words in the above list?",
            numbered.join(" ")
        ),
        prefix: " Answer: The top 10 words that appear most often in the list are:".into(),
        answers: answers.to_vec(),
    }
}

/// So many words; more than the lists have are made of two.
fn distinct_words(random: &mut PythonRandom, count: usize) -> Vec<String> {
    let lists = [words::ADJECTIVES, words::NOUNS, words::VERBS];
    let mut all: Vec<&str> = lists.iter().flat_map(|list| list.split_whitespace()).collect();
    all.sort_unstable();
    all.dedup();
    let drawn = random.sample(all.len(), count);
    let mut drawn: Vec<String> = drawn.into_iter().map(|n| all[n].to_owned()).collect();
    let mut known = HashSet::new();
    while drawn.len() < count {
        let pair = format!(
            "{}{}",
            all[random.randbelow(all.len() as u64) as usize],
            all[random.randbelow(all.len() as u64) as usize]
        );
        if known.insert(pair.clone()) {
            drawn.push(pair);
        }
    }
    drawn
}

/// Coded words whose numbers fall with the square of their rank; the first of all is dots, the next three are asked for.
pub fn frequent_words(random: &mut PythonRandom, count: usize, vocabulary: usize) -> Question {
    /// ζ(2): the sum of the inverse squares.
    const ZETA: f64 = std::f64::consts::PI * std::f64::consts::PI / 6.0;
    let mut vocabulary_words: Vec<String> = vec!["...".into()];
    while vocabulary_words.len() < vocabulary.max(10) {
        let word = letters(random, b'a', 6);
        if !vocabulary_words.contains(&word) {
            vocabulary_words.push(word);
        }
    }
    let mut text: Vec<&str> = Vec::new();
    for (n, word) in vocabulary_words.iter().enumerate() {
        let times = count as f64 / ((n + 1) * (n + 1)) as f64 / ZETA;
        text.extend(std::iter::repeat_n(word.as_str(), times as usize));
    }
    random.shuffle(&mut text);
    Question {
        input: format!(
            "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared coded \
             words. {}\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently \
             appeared words in the above coded text?",
            text.join(" ")
        ),
        prefix: " Answer: According to the coded text above, the three most frequently appeared words are:"
            .into(),
        answers: vocabulary_words[1..4].to_vec(),
    }
}
