//! Where the answer stands in a response.

use std::sync::LazyLock;

use fancy_regex::Regex;

/// Longer responses are read from here to their end. Units: bytes.
const MAX_LENGTH: usize = 50_000;
/// No answer, and no sentence that announces one, is longer. Units: bytes.
const MAX_ANSWER: usize = 4_000;
/// No answer has more parts.
const MAX_PARTS: usize = 64;

fn pattern(pattern: &str) -> Regex {
    Regex::new(pattern).expect("a pattern of the program compiles: this is a bug")
}

static ANNOUNCED: LazyLock<Regex> = LazyLock::new(|| {
    pattern(r"(?i)(?:final\s+answer(?:\s+is)?|answer\s+is|answer\s*:|정답은|정답\s*:|답은|답\s*:)[\s:*]*")
});
static NUMBER: LazyLock<Regex> = LazyLock::new(|| {
    let fraction = r"-?\\[dtc]?frac\{[^{}]+\}\{[^{}]+\}";
    let number = r"(?<![\w.])-?(?:\d{1,3}(?:[, ]\d{3})+|\d+)?(?:\.\d+|(?<=\d))(?:\s*/\s*\d+)?(?:\s*\\?%)?";
    pattern(&format!("{fraction}|{number}"))
});
/// What stands between the parts of one answer.
static CONNECTED: LazyLock<Regex> = LazyLock::new(|| {
    let space = r"(?:[\s$]|\\[()\[\]!,;: ]|\\q?quad)*";
    let word = r"(?:,|;|\band\b|\bor\b|또는|그리고|와|과|\\text\s*\{\s*,?\s*(?:and|or)\s*\})";
    pattern(&format!("^(?:{space}(?:{word}{space}){{1,2}}|)$"))
});

/// A part of a text, and what is in it.
struct Span<'a> {
    start: usize,
    end: usize,
    inner: &'a str,
}

/// The answer: what is in the last box (or in the last boxes, where only commas and "and" stand between them); else what is
/// announced by "final answer is" and the like; else the last mathematics or the last number, whichever ends later. None
/// without any.
pub fn extract(response: &str) -> Option<String> {
    let mut start = response.len().saturating_sub(MAX_LENGTH);
    while !response.is_char_boundary(start) {
        start += 1;
    }
    let response = &response[start..];
    let found =
        joined(response, &boxes(response)).or_else(|| announced(response)).or_else(|| last(response))?;
    let found = found.trim();
    (!found.is_empty()).then(|| found.to_owned())
}

/// The beginning of a text, so long at most.
fn beginning(text: &str) -> &str {
    let mut end = text.len().min(MAX_ANSWER);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// The last part, and those before it that belong to it.
fn joined(text: &str, spans: &[Span<'_>]) -> Option<String> {
    let mut parts = vec![spans.last()?.inner];
    for pair in spans.windows(2).rev().take(MAX_PARTS) {
        let between = text.get(pair[0].end..pair[1].start).unwrap_or("?");
        if between.len() > 40 || !CONNECTED.is_match(between).unwrap_or(false) {
            break;
        }
        if !parts.contains(&pair[0].inner) {
            parts.push(pair[0].inner);
        }
    }
    parts.reverse();
    Some(parts.join(", "))
}

fn boxes(text: &str) -> Vec<Span<'_>> {
    let starts = text.match_indices("\\boxed").chain(text.match_indices("\\fbox"));
    let mut starts: Vec<_> = starts.map(|(start, name)| (start, start + name.len())).collect();
    starts.sort_unstable();
    starts.drain(..starts.len().saturating_sub(MAX_PARTS));
    let mut boxes: Vec<Span<'_>> = Vec::new();
    for (start, after) in starts {
        // A box in a box belongs to the outer one.
        if boxes.last().is_some_and(|outer| start < outer.end) {
            continue;
        }
        let rest = &text[after..];
        let inner = match rest.trim_start().strip_prefix('{') {
            Some(inner) => braced(inner),
            None => {
                let rest = beginning(rest);
                &rest[..rest.find(['$', '\n']).unwrap_or(rest.len())]
            }
        };
        let is_braced = rest.trim_start().starts_with('{');
        let space = rest.len() - rest.trim_start().len();
        let end = after + inner.len() + if is_braced { space + 2 } else { 0 };
        boxes.push(Span { start, end: end.min(text.len()), inner });
    }
    boxes
}

/// Up to the brace that closes; where none does, to the end of the mathematics or the line.
fn braced(inner: &str) -> &str {
    let inner = beginning(inner);
    let mut open = 1_usize;
    for (at, byte) in inner.bytes().enumerate() {
        match byte {
            b'{' => open += 1,
            b'}' => open -= 1,
            _ => {}
        }
        if open == 0 {
            return &inner[..at];
        }
    }
    &inner[..inner.find(['$', '\n']).unwrap_or(inner.len())]
}

/// `$…$` within a line and not behind a digit (that is money), `$$…$$`, `\(…\)` and `\[…\]`.
fn mathematics(text: &str) -> Vec<Span<'_>> {
    const DISPLAYED: [(&str, &str); 3] = [("$$", "$$"), ("\\[", "\\]"), ("\\(", "\\)")];
    let mut spans = Vec::new();
    // Each is searched to the end of the text once at most.
    let mut unclosed = [false; DISPLAYED.len()];
    let mut at = 0;
    while let Some(found) = text[at..].find(['$', '\\']) {
        let start = at + found;
        let rest = &text[start..];
        let displayed = DISPLAYED.iter().position(|(open, _)| rest.starts_with(open));
        let (width, inner) = match displayed {
            Some(kind) if unclosed[kind] => (2, None),
            Some(kind) => {
                let inner = rest[2..].find(DISPLAYED[kind].1).map(|end| &rest[2..2 + end]);
                unclosed[kind] = inner.is_none();
                (2, inner)
            }
            None if rest.starts_with('$') => {
                let is_money = text[..start].ends_with(|c: char| c.is_ascii_digit());
                (1, if is_money { None } else { inline(&rest[1..]) })
            }
            // A command, or a character that is meant as such.
            None => (1 + rest[1..].chars().next().map_or(0, char::len_utf8), None),
        };
        at = start + width;
        if let Some(inner) = inner.filter(|inner| !inner.is_empty()) {
            at += inner.len() + width;
            spans.push(Span { start, end: at, inner });
        }
    }
    spans
}

/// Up to the dollar sign that closes within the line.
fn inline(rest: &str) -> Option<&str> {
    let line = &rest[..rest.find('\n').unwrap_or(rest.len())];
    let closes = |&(at, _): &(usize, &str)| !line[..at].ends_with('\\');
    let (end, _) = line.match_indices('$').find(closes)?;
    Some(&line[..end])
}

fn last_number(text: &str) -> Option<(usize, &str)> {
    let found = NUMBER.find_iter(text).filter_map(Result::ok).last()?;
    Some((found.end(), &text[found.range()]))
}

fn last(text: &str) -> Option<String> {
    let spans = mathematics(text);
    let number = last_number(text);
    match (spans.last(), number) {
        (Some(span), Some((end, number))) if end > span.end => Some(number.to_owned()),
        (Some(_), _) => joined(text, &spans),
        (None, number) => number.map(|(_, number)| number.to_owned()),
    }
}

/// The rest of the sentence behind the last announcement, or of its last "is": mathematics where there is some, else its words,
/// else, of many words, their last number.
fn announced(text: &str) -> Option<String> {
    let rest = beginning(&text[ANNOUNCED.find_iter(text).filter_map(Result::ok).last()?.end()..]);
    let spans = mathematics(rest);
    let in_mathematics = |at: usize| spans.iter().any(|span| (span.start..span.end).contains(&at));
    let ends = rest.match_indices(['\n', '.']).map(|(at, _)| at);
    let is_end = |at: &usize| {
        let next = rest[at + 1..].chars().next();
        !in_mathematics(*at) && (rest[*at..].starts_with('\n') || next.is_none_or(char::is_whitespace))
    };
    let end = ends.into_iter().find(is_end).unwrap_or(rest.len());
    let sentence = &rest[..end];
    let verb =
        [" is ", " are ", " is: "].iter().filter_map(|verb| Some(sentence.rfind(verb)? + verb.len())).max();
    let sentence = &sentence[verb.filter(|at| !in_mathematics(*at)).unwrap_or(0)..];

    let spans = mathematics(sentence);
    if let Some(span) = spans.last() {
        let behind = sentence[span.end..].trim_start();
        let percent = ["%", "\\%", "percent", "pct"].iter().any(|sign| behind.starts_with(sign));
        return Some(joined(sentence, &spans)? + if percent { "\\%" } else { "" });
    }
    let words = sentence.trim().trim_end_matches(['*', '!']).trim_end_matches("입니다").trim();
    if words.split_whitespace().count() > 2
        && let Some((_, number)) = last_number(words)
    {
        return Some(number.to_owned());
    }
    (!words.is_empty()).then(|| words.to_owned())
}
