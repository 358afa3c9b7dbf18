//! Words as the Penn Treebank has them: the chain of substitutions of `NLTKWordTokenizer` (NLTK 3.9.1,
//! `nltk/tokenize/destructive.py`), on sentences of [`Punkt`].

use std::sync::LazyLock;

use super::punkt::Punkt;
use super::text::is_space;
use crate::extract::PythonRegex;

/// Patterns and what stands in their place, in this order.
struct Chain {
    bare: Vec<(PythonRegex, &'static str)>,
    /// After a space is put at both ends.
    padded: Vec<(PythonRegex, &'static str)>,
}

static CHAIN: LazyLock<Chain> = LazyLock::new(|| {
    let compiled = |rules: &[(&str, &'static str)]| -> Vec<(PythonRegex, &'static str)> {
        rules.iter().map(|(pattern, with)| (PythonRegex::fixed(pattern), *with)).collect()
    };
    Chain {
        bare: compiled(&[
            ("([«“‘„]|[`]+)", " $1 "),
            (r#"\A""#, "``"),
            ("(``)", " $1 "),
            (r#"([ (\[{<])("|'{2})"#, "$1 `` "),
            (r"(?i)(')(?!re|ve|ll|m|t|s|d|n)(\w)\b", "$1 $2"),
            (r#"([^.])(\.)([\])}>"'»”’ ]*)\s*$"#, "$1 $2 $3 "),
            (r"([:,])([^\d])", " $1 $2"),
            (r"([:,])$", " $1 "),
            (r"\.{2,}", " $0 "),
            ("[;@#$%&]", " $0 "),
            (r#"([^.])(\.)([\])}>"']*)\s*$"#, "$1 $2$3 "),
            ("[?!]", " $0 "),
            ("([^'])' ", "$1 ' "),
            ("[*]", " $0 "),
            (r"[\]\[(){}<>]", " $0 "),
            ("--", " -- "),
        ]),
        padded: compiled(&[
            ("([»”’])", " $1 "),
            ("''", " '' "),
            ("\"", " '' "),
            (r"\s+", " "),
            ("([^' ])('[sS]|'[mM]|'[dD]|') ", "$1 $2 "),
            ("([^' ])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T) ", "$1 $2 "),
            (r"(?i)\b(can)(not)\b", " $1 $2 "),
            (r"(?i)\b(d)('ye)\b", " $1 $2 "),
            (r"(?i)\b(gim)(me)\b", " $1 $2 "),
            (r"(?i)\b(gon)(na)\b", " $1 $2 "),
            (r"(?i)\b(got)(ta)\b", " $1 $2 "),
            (r"(?i)\b(lem)(me)\b", " $1 $2 "),
            (r"(?i)\b(more)('n)\b", " $1 $2 "),
            (r"(?i)\b(wan)(na)(?=\s)", " $1 $2 "),
            (r"(?i) ('t)(is)\b", " $1 $2 "),
            (r"(?i) ('t)(was)\b", " $1 $2 "),
        ]),
    }
});

/// The words and marks of a text.
pub(crate) fn treebank_words(punkt: &Punkt, text: &str) -> Vec<String> {
    let apply = |text: String, rules: &[(PythonRegex, &'static str)]| {
        rules.iter().fold(text, |text, (pattern, with)| pattern.substitute(&text, with))
    };
    let sentence = |sentence: String| {
        let text = apply(sentence, &CHAIN.bare);
        let text = apply(format!(" {text} "), &CHAIN.padded);
        text.split(is_space).filter(|word| !word.is_empty()).map(str::to_owned).collect::<Vec<_>>()
    };
    punkt.sentences(text).into_iter().flat_map(sentence).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        assert_eq!(treebank_words(&Punkt::without_training(), text), expected);
    }

    #[test]
    fn words_and_marks() {
        check(
            "\"Hi\", don't (they'll) say: $3.88!",
            &["``", "Hi", "''", ",", "do", "n't", "(", "they", "'ll", ")", "say", ":", "$", "3.88", "!"],
        );
        check(
            "I CANNOT. WELL-KNOWN A.B.C. here",
            &["I", "CAN", "NOT", ".", "WELL-KNOWN", "A.B.C", ".", "here"],
        );
        check("**BOLD** -- yes...", &["*", "*", "BOLD", "*", "*", "--", "yes", "..."]);
        check("", &[]);
    }
}
