//! What follows, if the sequence repeats itself. It knows tokens and no model.
//!
//! Source: Saxena (2023), "Prompt lookup decoding", with two differences: of several earlier places with the same
//! tokens the latest counts, and a continuation that reaches the end goes on with what it has copied, as in Lempel and
//! Ziv (1977), so that a loop is foreseen as far ahead as it is asked for. Tests: `cargo test -p kanana-engine
//! prompt_lookup`.

/// The `n` tokens that followed where the last tokens occurred before: of at most `ngram` last ones as many as
/// occurred, at the latest place. Empty where not even the last one did. Cost: O(tokens), less when the place is near.
pub(crate) fn continuation(tokens: &[u32], ngram: usize, n: usize) -> Vec<u32> {
    let (mut longest, mut place) = (0, 0);
    for end in (1..tokens.len()).rev() {
        let backwards = tokens[..end].iter().rev().zip(tokens.iter().rev());
        let same = backwards.take(ngram).take_while(|(a, b)| a == b).count();
        if same > longest {
            (longest, place) = (same, end);
        }
        if longest == ngram {
            break;
        }
    }
    if longest == 0 {
        return Vec::new();
    }
    let mut copied: Vec<u32> = tokens[place..].iter().copied().take(n).collect();
    let period = tokens.len() - place;
    (copied.len()..n).for_each(|i| copied.push(copied[i - period]));
    copied
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(tokens: &[u32], ngram: usize, n: usize, expected: &[u32]) {
        assert_eq!(continuation(tokens, ngram, n), expected, "after {tokens:?}");
    }

    #[test]
    fn the_longest_match_counts_and_then_the_latest() {
        check(&[1, 2, 3, 4, 9, 2, 3], 3, 2, &[4, 9]);
        check(&[7, 5, 6, 3, 5, 6, 4, 5, 6], 2, 1, &[4]);
        check(&[1, 2, 5, 6, 2, 8, 1, 2], 3, 2, &[5, 6]);
        check(&[1, 2, 5, 6, 2, 8, 1, 2], 1, 2, &[8, 1]);
        check(&[5, 1, 5, 2, 5], 3, 2, &[2, 5]);
    }

    #[test]
    fn a_loop_is_foreseen_as_far_as_asked() {
        check(&[4, 4], 3, 5, &[4, 4, 4, 4, 4]);
        check(&[9, 1, 2, 3, 1, 2, 3], 3, 7, &[1, 2, 3, 1, 2, 3, 1]);
        check(&[5, 1, 2, 5], 2, 4, &[1, 2, 5, 1]);
    }

    #[test]
    fn nothing_is_made_up() {
        check(&[], 3, 4, &[]);
        check(&[1], 3, 4, &[]);
        check(&[1, 2, 3], 3, 4, &[]);
        check(&[1, 1], 3, 0, &[]);
    }
}
