//! A haystack: sentences in their order, and how many tokens they have.

use super::CountTokens;
use crate::Result;
use crate::lm::Prompt;

/// A sentence without an end is cut after so many bytes, at the next space.
const LONG: usize = 1000;

/// Sentences, each with the space before it.
pub struct Haystack {
    sentences: Vec<String>,
    /// Tokens up to the end of each sentence, as the sum of what each has alone.
    ends: Vec<usize>,
}

impl Haystack {
    /// The first sentences that have `tokens` tokens together, and one more.
    pub fn new(
        sentences: impl Iterator<Item = String>,
        tokens: usize,
        model: &(impl CountTokens + ?Sized),
    ) -> Result<Self> {
        let opening = model.count(&Prompt::Text(String::new()))?;
        let mut haystack = Haystack { sentences: Vec::new(), ends: Vec::new() };
        let mut end = 0;
        for sentence in sentences {
            end += model.count(&Prompt::Text(sentence.clone()))?.saturating_sub(opening).max(1);
            haystack.sentences.push(sentence);
            haystack.ends.push(end);
            if end > tokens {
                break;
            }
        }
        Ok(haystack)
    }

    /// Sentences.
    pub fn len(&self) -> usize {
        self.sentences.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.sentences.is_empty()
    }

    /// The first `count` sentences, with insertions: what stands before the sentence of a number, in ascending order.
    pub fn text(&self, count: usize, insertions: &[(usize, String)]) -> String {
        let mut text = String::new();
        let mut from = 0;
        for (place, insertion) in insertions {
            let place = (*place).clamp(from, count);
            text.extend(self.sentences[from..place].iter().map(String::as_str));
            text += insertion;
            from = place;
        }
        text.extend(self.sentences[from..count].iter().map(String::as_str));
        text.trim_start().to_owned()
    }

    /// Sentences before a depth in the first `count` of them: back from the token at `percent` of all to the end of a sentence;
    /// 100 is behind the last. Source: `insert_needle` of LLMTest_NeedleInAHaystack 7b90d285.
    pub fn place(&self, count: usize, percent: f64) -> usize {
        if percent >= 100.0 {
            return count;
        }
        let all = count.checked_sub(1).map_or(0, |last| self.ends[last]);
        let token = (all as f64 * percent / 100.0) as usize;
        self.ends[..count].partition_point(|&end| end <= token)
    }
}

/// The sentences of a text, each with the space before it: a sentence ends with `.`, `!`, `?` or `。` before a space, or before an
/// empty line. Together they are the text.
pub fn split(text: &str) -> Vec<String> {
    let mut sentences = Vec::new();
    let mut start = 0;
    let mut chars = text.char_indices().peekable();
    let mut ended = false;
    while let Some((index, c)) = chars.next() {
        let end = index + c.len_utf8();
        let before_space = chars.peek().is_none_or(|(_, next)| next.is_whitespace());
        ended = matches!(c, '.' | '!' | '?' | '。' | '…')
            || ended && matches!(c, '"' | '\'' | ')' | '”' | '’' | '」');
        let is_empty_line = text[end..].starts_with("\n\n") || text[end..].starts_with("\r\n\r\n");
        if before_space && !c.is_whitespace() && (ended || is_empty_line || end - start >= LONG) {
            sentences.push(text[start..end].to_owned());
            start = end;
            ended = false;
        }
    }
    if !text[start..].trim().is_empty() {
        sentences.push(text[start..].to_owned());
    }
    sentences
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Counts words.
    pub struct Words;

    impl CountTokens for Words {
        fn count(&self, prompt: &Prompt) -> Result<usize> {
            let Prompt::Text(text) = prompt else { unreachable!() };
            Ok(1 + text.split_whitespace().count())
        }
    }

    #[test]
    fn sentences_of_a_text() {
        let check = |text: &str, expected: &[&str]| {
            let got = split(text);
            assert_eq!(got, expected);
            assert_eq!(got.concat(), text.trim_end());
        };
        check("A b. C 3.5 d! \"E.\" f", &["A b.", " C 3.5 d!", " \"E.\"", " f"]);
        check("제목\n\n첫째다.\n둘째다.  ", &["제목", "\n\n첫째다.", "\n둘째다."]);
        check("", &[]);
        assert!(split(&"long words ".repeat(1000)).len() > 5);
    }

    #[test]
    fn depths_are_ends_of_sentences() {
        let sentences = ["A b c d.", " E f.", " G h i j.", " K l."].map(str::to_owned);
        let haystack = Haystack::new(sentences.into_iter(), 100, &Words).unwrap();
        let check = |count, percent, expected| {
            assert_eq!(haystack.place(count, percent), expected, "{count} {percent}")
        };
        check(4, 0.0, 0);
        check(4, 33.0, 0);
        check(4, 34.0, 1);
        check(4, 50.0, 2);
        check(4, 99.0, 3);
        check(4, 100.0, 4);
        check(2, 100.0, 2);
        check(0, 50.0, 0);
        assert_eq!(
            haystack.text(3, &[(1, "\nX.\n".into()), (3, "\nY.\n".into())]),
            "A b c d.\nX.\n E f. G h i j.\nY.\n"
        );
        assert_eq!(
            Haystack::new(["A b.", " C."].map(str::to_owned).into_iter().cycle(), 7, &Words).unwrap().len(),
            5
        );
    }
}
