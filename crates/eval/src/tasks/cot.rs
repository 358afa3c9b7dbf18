//! Multiple choice with reasoning, through the chat template, no shots: MMLU, KMMLU, and general knowledge of HAE-RAE.
//!
//! What is published of the prompt: it asks for a concise summary of the reasoning and then "Therefore, the answer is: X", in
//! Korean for the Korean sets. The words around that are ours. An answer that is not found is wrong, and counted as unparsed.

use std::sync::LazyLock;

use serde_json::json;

use super::gsm8k::{invalid, outcome};
use super::{haerae, kmmlu, mmlu};
use crate::extract::{RegexFilter, Select};
use crate::lm::{GenerateRequest, Generation, Prompt};
use crate::{Bench, Outcome, Protocol, Result, Sample, Source, Task};

static ENGLISH: LazyLock<RegexFilter> =
    LazyLock::new(|| RegexFilter::fixed(r"(?i)answer is:?\s*[*(\[]*([A-E])(?![a-zA-Z])", Select::Last));
static KOREAN: LazyLock<RegexFilter> =
    LazyLock::new(|| RegexFilter::fixed(r"정답은:?\s*[*(\[]*([A-E])(?![a-zA-Z])", Select::Last));

/// One of the sets.
pub struct Cot {
    protocol: Protocol,
    questions: fn(&Source, &str) -> Result<Vec<Question>>,
    instruction: &'static str,
    korean: bool,
}

/// A question with its choices spelled out.
struct Question {
    group: String,
    text: String,
    answer: char,
}

const IN_ENGLISH: &str = "Answer the multiple-choice question below. Summarise your reasoning concisely, then end with \
    \"Therefore, the answer is: X\", where X is the letter of the right choice.";
const IN_KOREAN: &str = "아래 객관식 문제를 푸세요. 풀이를 간결하게 요약한 다음, 마지막에 \"따라서, 정답은: X\"라고 쓰세요. X는 맞는 \
    선택지의 알파벳입니다.";
const SOURCE: &str = "the published ending \"Therefore, the answer is: X\"; own words around it";

impl Cot {
    /// 14,042 questions.
    pub const MMLU: Cot = Cot {
        protocol: Protocol {
            task: "mmlu_cot",
            id: "mmlu_cot/0-shot/therefore/v1",
            column: Some("MMLU"),
            source: SOURCE,
        },
        questions: |source, task| Ok(spelled(mmlu::rows_by_subject(source, task)?)),
        instruction: IN_ENGLISH,
        korean: false,
    };

    /// 35,030 questions.
    pub const KMMLU: Cot = Cot {
        protocol: Protocol {
            task: "kmmlu_cot",
            id: "kmmlu_cot/0-shot/therefore/v1",
            column: Some("KMMLU"),
            source: SOURCE,
        },
        questions: |source, task| Ok(spelled(kmmlu::rows_by_subject(source, task)?)),
        instruction: IN_KOREAN,
        korean: true,
    };

    /// The 176 questions that the instruct column counts.
    pub const HAERAE: Cot = Cot {
        protocol: Protocol {
            task: "haerae_cot",
            id: "haerae_cot/general_knowledge/0-shot/therefore/v1",
            column: Some("HAE-RAE"),
            source: SOURCE,
        },
        questions: |source, task| {
            let docs = haerae::docs(source, task, "general_knowledge")?.into_iter();
            Ok(docs
                .map(|doc| Question {
                    group: "general_knowledge".into(),
                    text: doc.question.trim().to_owned(),
                    answer: (b'A' + doc.answer as u8).into(),
                })
                .collect())
        },
        instruction: IN_KOREAN,
        korean: true,
    };
}

fn spelled(subjects: Vec<(String, Vec<mmlu::Question>, Vec<mmlu::Question>)>) -> Vec<Question> {
    let mut questions = Vec::new();
    for (subject, _, test) in subjects {
        for row in test {
            let mut text = row.question.trim().to_owned();
            for (letter, choice) in mmlu::LETTERS.iter().zip(&row.choices) {
                text += &format!("\n{letter}. {choice}");
            }
            questions.push(Question {
                group: subject.clone(),
                text,
                answer: (b'A' + row.answer as u8).into(),
            });
        }
    }
    questions
}

impl Task for Cot {
    fn protocol(&self) -> Protocol {
        self.protocol.clone()
    }

    fn run(&self, bench: &mut Bench<'_>) -> Result<Outcome> {
        let mut questions = (self.questions)(bench.source, self.protocol.task)?;
        if let Some(limit) = bench.limit {
            // of each subject
            let mut seen: std::collections::HashMap<String, usize> = Default::default();
            questions.retain(|question| {
                let count = seen.entry(question.group.clone()).or_default();
                *count += 1;
                *count <= limit
            });
        }
        let request = |question: &Question| {
            GenerateRequest::greedy(Prompt::user(format!("{}\n\n{}", self.instruction, question.text)), 1024)
        };
        let answers = bench.generate(&questions.iter().map(request).collect::<Vec<_>>())?;
        let sample = |(index, (question, answer)): (usize, (&Question, &Generation))| {
            let chosen = chosen(&answer.text, self.korean);
            Sample {
                id: format!("{}/{index}", question.group),
                group: Some(question.group.clone()),
                scores: vec![("exact_match".into(), f64::from(chosen == Some(question.answer)))],
                invalid: invalid(answer, chosen.is_some()),
                detail: json!({ "question": question.text, "answer": question.answer.to_string(),
                    "response": answer.text, "chosen": chosen.map(String::from) }),
            }
        };
        let samples: Vec<Sample> = questions.iter().zip(&answers).enumerate().map(sample).collect();
        let mut outcome = outcome(samples);
        outcome.groups = super::groups(&outcome.samples);
        Ok(outcome)
    }
}

/// The letter that an answer ends with; the other language counts where its own is not found.
fn chosen(response: &str, korean: bool) -> Option<char> {
    let (first, second) = if korean { (&KOREAN, &ENGLISH) } else { (&ENGLISH, &KOREAN) };
    let letter = first.find(response).or_else(|| second.find(response))?;
    letter.chars().next().map(|letter| letter.to_ascii_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_found_where_an_answer_ends() {
        let check = |response: &str, expected: Option<char>| {
            assert_eq!(chosen(response, false), expected, "{response}");
        };
        check("The answer is: A, no. Therefore, the answer is: B.", Some('B'));
        check("therefore, the answer is **(C)**", Some('C'));
        check("Therefore, the answer is D", Some('D'));
        check("The answer is: Because", None);
        check("따라서, 정답은: A", Some('A'));
        check("정답은 B입니다.", Some('B'));
        check("B", None);
        assert_eq!(chosen("the answer is: A 따라서, 정답은: C", true), Some('C'));
    }
}
