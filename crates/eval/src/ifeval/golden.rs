//! Verdicts on real answers, against those of lm-evaluation-harness 0.4.13 (langdetect seeded with 0).

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;

use super::*;

const SMALL: &str = "Qwen__Qwen2.5-0.5B-Instruct-GPTQ-Int4";
const MIDDLE: &str = "Qwen__Qwen2.5-7B-Instruct-GPTQ-Int4";
const LARGE: &str = "gpt-4o-2024-08-06";

/// Verdicts that differ: the model, the row's key, the instruction and the level, what is found here, and why.
#[rustfmt::skip]
const DIFFERENT: &[(&str, &str, &str, bool, &str)] = &[
    (SMALL, "1122 keywords:letter_frequency", "loose", true, RANDOM),
    (SMALL, "1122 keywords:letter_frequency", "strict", true, RANDOM),
    (SMALL, "1129 keywords:letter_frequency", "loose", false, RANDOM),
    (SMALL, "2517 change_case:english_lowercase", "both", false, "three short lines, taken for Dutch"),
    (SMALL, "2596 language:response_language", "both", true, "Bulgarian, which langdetect takes for Macedonian"),
    (SMALL, "3305 language:response_language", "both", true, "Hindi, which langdetect takes for Nepali"),
    (SMALL, "3669 language:response_language", "both", false, "Hindi, taken for Marathi"),
    (MIDDLE, "1122 keywords:letter_frequency", "loose", true, RANDOM),
    (MIDDLE, "1129 keywords:letter_frequency", "strict", true, RANDOM),
    (MIDDLE, "1843 change_case:english_lowercase", "both", true, "a name, which langdetect takes for Romanian"),
    (MIDDLE, "3456 change_case:english_capital", "both", false, "a list of names, taken for Dutch"),
    (MIDDLE, "3572 change_case:english_capital", "both", true, "two words, which langdetect takes for German"),
    (MIDDLE, "3617 change_case:english_capital", "strict", true, "capitals, which langdetect takes for Vietnamese"),
    (LARGE, "1122 keywords:letter_frequency", "both", true, RANDOM),
    (LARGE, "1813 change_case:english_capital", "both", true, "capitals, which langdetect takes for German"),
    (LARGE, "1843 change_case:english_lowercase", "both", false, "a name, taken for another language"),
];

/// `#` and `!`, for which the reference draws a letter.
const RANDOM: &str = "a letter drawn at random in the reference";

#[test]
fn verdicts_are_those_of_the_reference() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/eval/data");
    if !data.exists() {
        println!("skipped: no shared data");
        return;
    }
    let source = Source::new(&data);
    let (checker, note) = Checker::load(&source).unwrap();
    assert_eq!(note, None);
    let path = data.join("ifeval/mifeval_en_input_data.jsonl");
    let rows = source.rows(&path).unwrap();
    let rows: Vec<Prompt> =
        rows.iter().enumerate().map(|(index, row)| Prompt::read(&path, index, row).unwrap()).collect();
    assert_eq!(rows.iter().map(|row| row.instructions.len()).sum::<usize>(), 834);
    let by_prompt: HashMap<&str, &Prompt> = rows.iter().map(|row| (row.prompt.as_str(), row)).collect();
    let mut different = Vec::new();
    let mut compared = 0;
    for model in source.folder(&data.join("ifeval/golden_mifeval"), "").unwrap() {
        let name = model.file_name().unwrap().to_string_lossy().into_owned();
        let expected = source.rows(&model.join("lm_eval_0.4.13_recomputed.jsonl")).unwrap();
        let expected: HashMap<String, &Row> =
            expected.iter().map(|row| (row["key"].to_string(), row)).collect();
        for answer in source.rows(&model.join("eval_results_strict.jsonl.gz")).unwrap() {
            let Some(row) = by_prompt.get(answer["prompt"].as_str().unwrap()) else { continue };
            let Some(expected) = expected.get(&row.key) else { continue };
            let got = checker.check(row, answer["response"].as_str().unwrap());
            for (kind, got) in [("strict", got.strict), ("loose", got.loose)] {
                let expected = expected[&format!("inst_level_{kind}_acc")].as_array().unwrap();
                assert_eq!(got.len(), expected.len());
                for ((instruction, got), expected) in row.instructions.iter().zip(got).zip(expected) {
                    compared += 1;
                    if expected != &Value::Bool(got) {
                        different.push((name.clone(), format!("{} {} {kind}", row.key, instruction.id), got));
                    }
                }
            }
        }
    }
    let listed = DIFFERENT.iter().flat_map(|&(model, what, level, here, _)| {
        let levels = if level == "both" { vec!["loose", "strict"] } else { vec![level] };
        levels.into_iter().map(move |level| (model.to_owned(), format!("{what} {level}"), here))
    });
    different.sort();
    assert_eq!(different, listed.collect::<Vec<_>>(), "of {compared}");
    assert_eq!(compared, 3 * 2 * 832);
}
