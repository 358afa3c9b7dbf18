//! GSM8K: how lm-evaluation-harness reads the number in an answer, and when it is right.
//!
//! Source: `lm_eval/tasks/gsm8k/{gsm8k,gsm8k-cot-zeroshot,gsm8k-cot-llama}.yaml` (0.4.13).

use std::sync::LazyLock;

use crate::extract::{ExactMatch, RegexFilter, Select};

static STRICT: LazyLock<RegexFilter> =
    LazyLock::new(|| RegexFilter::fixed(r"#### (\-?[0-9\.\,]+)", Select::First));
static FLEXIBLE: LazyLock<RegexFilter> =
    LazyLock::new(|| RegexFilter::fixed(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", Select::Last));
static COT_STRICT: LazyLock<RegexFilter> =
    LazyLock::new(|| RegexFilter::fixed(r"The answer is (\-?[0-9\.\,]+).", Select::First));
static COT_LLAMA: LazyLock<RegexFilter> =
    LazyLock::new(|| RegexFilter::fixed(r"The final answer is ((-?[$0-9.,]{2,})|(-?[0-9]+))", Select::Last));
static EXACT_MATCH: LazyLock<ExactMatch> = LazyLock::new(|| {
    let ignored = [",", r"\$", "(?s).*#### ", r"\.$"];
    ExactMatch::new(&ignored, true).expect("patterns of the program compile: this is a bug")
});

/// `strict-match` of `gsm8k`: what stands behind the first `####`. None is `[invalid]`.
pub fn strict(response: &str) -> Option<String> {
    STRICT.find(response)
}

/// `flexible-extract` of all of them: the last number.
pub fn flexible(response: &str) -> Option<String> {
    FLEXIBLE.find(response)
}

/// `strict-match` of `gsm8k_cot` and `gsm8k_cot_zeroshot`: "The answer is …".
pub fn cot_strict(response: &str) -> Option<String> {
    COT_STRICT.find(response)
}

/// `strict-match` of `gsm8k_cot_llama`: the last "The final answer is …".
pub fn cot_llama(response: &str) -> Option<String> {
    COT_LLAMA.find(response)
}

/// Whether an extracted number is the one behind `####` of the row's `answer` (or `answer` itself): as strings, without commas
/// and dollar signs.
pub fn exact_match(extracted: &str, answer: &str) -> bool {
    EXACT_MATCH.matches(extracted, answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extract::INVALID;
    use crate::test_data::golden_rows;

    #[test]
    fn numbers_are_read_as_by_the_reference() {
        let (Some(rows), Some(questions)) =
            (golden_rows("gsm8k/golden/lm_eval_filters.jsonl"), golden_rows("gsm8k/test.jsonl"))
        else {
            return;
        };
        type Filter = fn(&str) -> Option<String>;
        let filters: [(&str, Filter); 3] =
            [("strict", strict), ("flexible", flexible), ("cot_strict", cot_strict)];
        for row in &rows {
            let answer = questions[row["doc_id"].as_u64().unwrap() as usize]["answer"].as_str().unwrap();
            for (name, filter) in filters {
                let extracted = filter(row["response"].as_str().unwrap());
                let extracted = extracted.as_deref().unwrap_or(INVALID);
                let id = (&row["doc_id"], &row["source"], name);
                assert_eq!(extracted, row[&format!("{name}_extracted")], "{id:?}");
                let right = if exact_match(extracted, answer) { 1.0 } else { 0.0 };
                assert_eq!(right, row[&format!("{name}_em")], "{id:?}");
            }
        }
        println!("{} responses", rows.len());
    }

    #[test]
    fn the_last_final_answer_counts() {
        let answer = "The final answer is 3. So the final answer is 4. The final answer is $1,200.";
        assert_eq!(cot_llama(answer).as_deref(), Some("$1,200."));
        assert!(exact_match("$1,200.", "She has 1,200.\n#### 1,200"));
        assert!(!exact_match(INVALID, "#### 5"));
    }
}
