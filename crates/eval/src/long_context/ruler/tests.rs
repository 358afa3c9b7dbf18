use super::*;
use crate::Source;
use crate::lm::Prompt;

/// Counts words, and pieces of eight characters of long ones.
struct Pieces;

impl CountTokens for Pieces {
    fn count(&self, prompt: &Prompt) -> Result<usize> {
        let text = match prompt {
            Prompt::Text(text) => text.clone(),
            Prompt::Chat { messages, prefill, .. } => {
                let texts: String = messages.iter().filter_map(|message| message.text()).collect();
                texts + " [chat] " + prefill.as_deref().unwrap_or_default()
            }
        };
        Ok(1 + text.split_whitespace().map(|word| word.len().div_ceil(8)).sum::<usize>())
    }
}

fn squad(folder: &std::path::Path) -> Qa {
    let paragraph = |n: usize| {
        let questions: Vec<_> = (0..3)
            .map(|q| serde_json::json!({"question": format!("what is {n} {q}?"), "answers": [{"text": format!("fact{n}x{q}")}]}))
            .collect();
        let context: String = (0..3)
            .map(|q| format!("The answer {q} of paragraph {n} is fact{n}x{q} and that is all. "))
            .collect();
        serde_json::json!({ "context": context, "qas": questions })
    };
    let article = |a: usize| serde_json::json!({ "paragraphs": (0..20).map(|n| paragraph(20 * a + n)).collect::<Vec<_>>() });
    let mut value = serde_json::json!({ "data": (0..10).map(article).collect::<Vec<_>>() });
    value["data"][0]["paragraphs"][0]["qas"][1]["is_impossible"] = true.into();
    let path = folder.join("squad.json");
    std::fs::write(&path, value.to_string()).unwrap();
    Qa::squad(&Source::new(folder), &path).unwrap()
}

fn hotpot(folder: &std::path::Path) -> Qa {
    let entry = |n: usize| {
        serde_json::json!({"question": format!("who {n}?"), "answer": format!("person{n}"),
            "context": [[format!("T{n}"), [format!("It was person{n}."), " Truly."]], [format!("U{n}"), ["Nothing."]]]})
    };
    let path = folder.join("hotpot.json");
    std::fs::write(&path, serde_json::Value::from_iter((0..90).map(entry)).to_string()).unwrap();
    Qa::hotpot(&Source::new(folder), &path).unwrap()
}

#[test]
fn samples_fit_and_hold_their_answers() {
    let folder = tempfile::tempdir().unwrap();
    let materials = Materials::new(None, 8192, Some(squad(folder.path())), Some(hotpot(folder.path())));
    assert_eq!(materials.squad.as_ref().unwrap().len(), 599);
    for kind in Kind::ALL {
        for (length, chat) in [(700, false), (4096, true), (8192, false)] {
            let generator = Generator::new((kind, length), chat, &materials, &Pieces).unwrap();
            for index in 0..12 {
                let (question, tokens) = generator.sample(index, &Pieces).unwrap().unwrap();
                let what = format!("{} {length}: {question:?}", kind.name());
                assert_eq!(tokens, Pieces.count(&question.prompt(chat)).unwrap());
                let tokens = tokens + kind.max_tokens();
                assert!(tokens <= length, "{what}");
                let whole = matches!(kind, Kind::Qa1 | Kind::Qa2) && generator.size == generator.bounds().1;
                assert!(tokens * 10 >= length * 8 || whole, "{tokens} {what}");
                // What the reference appends belongs to the answer, and not to what is read.
                let context = &question.input;
                assert!(question.answers.iter().all(|answer| context.contains(answer.as_str())), "{what}");
                assert_eq!(kind.score(&question.answers.join(", ").to_uppercase(), &question.answers), 1.0);
                assert_eq!(kind.score("", &question.answers), 0.0);
                assert_eq!(generator.sample(index, &Pieces).unwrap().unwrap().0, question);
            }
            assert_ne!(generator.sample(0, &Pieces).unwrap(), generator.sample(1, &Pieces).unwrap());
        }
    }
}

/// Answers are what the text says, not only somewhere in it.
#[test]
fn answers_are_right() {
    let materials = Materials::new(None, 4096, None, None);
    let question = |kind| {
        Generator::new((kind, 4096), false, &materials, &Pieces)
            .unwrap()
            .sample(3, &Pieces)
            .unwrap()
            .unwrap()
            .0
    };

    let asked = question(Kind::VariableTracking);
    let value = asked.prefix.split("the value ").nth(1).unwrap().split(',').next().unwrap().to_owned();
    let words: Vec<&str> =
        asked.input.rsplit("Memorize and track").next().unwrap().split_whitespace().collect();
    let mut names: Vec<&str> = Vec::new();
    for (n, _) in
        words.iter().enumerate().filter(|(n, word)| **word == "VAR" && words.get(n + 2) == Some(&"="))
    {
        let from = if words[n + 3] == "VAR" { words[n + 4] } else { words[n + 3] };
        if from == value || names.contains(&from) {
            names.push(words[n + 1]);
        }
    }
    assert_eq!(
        (names.len(), asked.answers.as_slice()),
        (5, &names.iter().map(|name| name.to_string()).collect::<Vec<_>>()[..])
    );

    let count = |text: &str| {
        let mut counts = std::collections::HashMap::new();
        text.split_whitespace().for_each(|word| *counts.entry(word.to_owned()).or_insert(0) += 1);
        let mut counts: Vec<(String, usize)> = counts.into_iter().collect();
        counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        counts
    };
    let asked = question(Kind::FrequentWords);
    let text =
        asked.input.split("coded words. ").nth(1).or_else(|| asked.input.split("words. ").nth(1)).unwrap();
    let counts = count(text.split("\nQuestion").next().unwrap());
    assert_eq!(counts[0].0, "...");
    assert_eq!(counts[1..4].iter().map(|(word, _)| word.clone()).collect::<Vec<_>>(), asked.answers);
    assert!(counts[3].1 > counts[4].1);

    let asked = question(Kind::CommonWords);
    let list = asked.input.rsplit("most often.\n").next().unwrap().split("\nQuestion").next().unwrap();
    let words: String =
        list.split_whitespace().filter(|word| !word.ends_with('.')).map(|word| format!("{word} ")).collect();
    let counts = count(&words);
    let mut common: Vec<String> = counts[..10].iter().map(|(word, _)| word.clone()).collect();
    let mut answers = asked.answers.clone();
    common.sort();
    answers.sort();
    assert_eq!((common, counts[9].1, counts[10].1), (answers, 30, 3));

    let asked = question(Kind::NiahMultiQuery);
    for answer in &asked.answers {
        let key =
            asked.input.split(&format!(" is: {answer}.")).next().unwrap().rsplit(" for ").next().unwrap();
        assert!(asked.prefix.contains(key), "{key} {}", asked.prefix);
    }
    assert!(asked.prefix.contains(", and "));
    let asked = question(Kind::NiahMultiKey3);
    assert_eq!(asked.answers[0].len(), 36);
    assert_eq!(&asked.answers[0][14..15], "4");
}

#[test]
fn too_short_a_length_is_named() {
    let materials = Materials::new(None, 100, None, None);
    let error =
        Generator::new((Kind::CommonWords, 100), false, &materials, &Pieces).err().unwrap().to_string();
    assert!(error.starts_with("ruler cwe: a length of 100 tokens is too short: at least "), "{error}");
}

#[test]
fn words_are_ample() {
    for list in [words::ADJECTIVES, words::NOUNS, words::VERBS] {
        let mut words: Vec<&str> = list.split_whitespace().collect();
        let count = words.len();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), count);
        assert!(count > 180, "{count}");
    }
}

#[test]
fn korquad_has_the_form_of_squad() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/eval/data");
    let path = root.join("korquad/KorQuAD_v1.0_dev.json");
    if !path.exists() {
        println!("skipped: no shared data");
        return;
    }
    let qa = Qa::squad(&Source::new(root), &path).unwrap();
    assert_eq!((qa.len(), qa.documents()), (5774, 961));
    let materials = Materials::new(None, 4096, Some(qa), None);
    let generator = Generator::new((Kind::Qa1, 4096), false, &materials, &Pieces).unwrap();
    for index in (0..generator.available()).step_by(500) {
        let (question, _) = generator.sample(index, &Pieces).unwrap().unwrap();
        assert!(question.answers.iter().any(|answer| question.input.contains(answer)));
    }
}
