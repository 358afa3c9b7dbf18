//! Stop strings over a stream of text.

/// Text that may be shown now, and whether it was the last.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Released {
    /// Text that belongs to no stop string, present or possible.
    pub text: String,
    /// Index of the stop string that ended the text, if one did.
    pub stopped_by: Option<usize>,
}

/// Ends a stream of text at the first stop string, wherever the pieces of text were cut.
///
/// Text that could be the beginning of a stop string is held until it is known not to be. The first match is the one
/// that is complete first; of two complete at the same place, the longer. What is released does not depend on how the
/// text was cut into pieces.
#[derive(Debug, Clone)]
pub struct StopStrings {
    stops: Vec<String>,
    include_stop: bool,
    held: String,
    stopped: bool,
}

impl StopStrings {
    /// A matcher that cuts the text before the stop string; empty stop strings are ignored.
    pub fn new<S: Into<String>>(stops: impl IntoIterator<Item = S>) -> Self {
        let stops = stops.into_iter().map(Into::into).collect();
        Self { stops, include_stop: false, held: String::new(), stopped: false }
    }

    /// Leaves the stop string itself in the text.
    pub fn include_stop(mut self) -> Self {
        self.include_stop = true;
        self
    }

    /// Takes new text and gives back what is certain. After a match nothing more is released.
    ///
    /// Cost: O(bytes of `text` + longest stop string) per stop string.
    pub fn push(&mut self, text: &str) -> Released {
        if self.stopped {
            return Released::default();
        }
        self.held.push_str(text);
        if let Some((index, start)) = self.first_match() {
            self.stopped = true;
            let cut = if self.include_stop { start + self.stops[index].len() } else { start };
            self.held.truncate(cut);
            return Released { text: std::mem::take(&mut self.held), stopped_by: Some(index) };
        }
        let certain = self.held.len() - self.possible_beginning();
        Released { text: self.held.drain(..certain).collect(), stopped_by: None }
    }

    /// The text still held, which no stop string completed.
    pub fn finish(&mut self) -> String {
        self.stopped = true;
        std::mem::take(&mut self.held)
    }

    /// Index and start of the stop string that is complete first in the held text.
    fn first_match(&self) -> Option<(usize, usize)> {
        let stops = self.stops.iter().enumerate().filter(|(_, stop)| !stop.is_empty());
        let found = stops.filter_map(|(i, stop)| Some((i, self.held.find(stop.as_str())?)));
        found.min_by_key(|&(i, start)| (start + self.stops[i].len(), start))
    }

    /// Bytes at the end of the held text that could begin a stop string.
    fn possible_beginning(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest);
        let tails = self.held.char_indices().rev().map(|(at, _)| at).take_while(|&at| at + 1 > from);
        let begins = |at: &usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[*at..]));
        tails.filter(begins).last().map_or(0, |at| self.held.len() - at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pushes the text whole, by characters and by all two-piece cuts: every way gives `expected`.
    fn check(stops: &[&str], text: &str, expected: (&str, Option<usize>)) {
        let cuts = text.char_indices().map(|(i, _)| i);
        let mut ways: Vec<Vec<&str>> = cuts.map(|i| vec![&text[..i], &text[i..]]).collect();
        ways.push(text.split_inclusive(|_| true).collect());
        for pieces in ways {
            let mut stop = StopStrings::new(stops.to_vec());
            let (mut out, mut stopped_by) = (String::new(), None);
            for piece in &pieces {
                let released = stop.push(piece);
                out += &released.text;
                stopped_by = stopped_by.or(released.stopped_by);
            }
            out += &stop.finish();
            assert_eq!((out.as_str(), stopped_by), expected, "{stops:?} over {pieces:?}");
        }
    }

    #[test]
    fn cuts_at_the_first_match_however_the_text_is_cut() {
        check(&["END"], "one END two END", ("one ", Some(0)));
        check(&["END"], "ENENEND", ("ENEN", Some(0)));
        check(&["끝", "그만"], "여기서 그만 끝", ("여기서 ", Some(1)));
        check(&["aab"], "aaaab", ("aa", Some(0)));
        check(&["abc", "ab"], "xabc", ("x", Some(1)));
        check(&["bcd", "c"], "abcd", ("ab", Some(1)));
        check(&["c", "bc"], "abcd", ("a", Some(1)));
        check(&["", "x"], "yyx", ("yy", Some(1)));
    }

    #[test]
    fn releases_what_was_no_stop_string() {
        check(&["END"], "one EN", ("one EN", None));
        check(&["그만"], "그", ("그", None));
        check(&[], "text", ("text", None));
    }

    #[test]
    fn holds_no_more_than_it_must() {
        let mut stop = StopStrings::new(["\n\nUser:"]);
        assert_eq!(stop.push("hello\n").text, "hello");
        assert_eq!(stop.push("there").text, "\nthere");
    }

    #[test]
    fn can_keep_the_stop_string() {
        let mut stop = StopStrings::new([". "]).include_stop();
        assert_eq!(stop.push("One. Two"), Released { text: "One. ".into(), stopped_by: Some(0) });
        assert_eq!(stop.push("more"), Released::default());
        assert_eq!(stop.finish(), "");
    }
}
