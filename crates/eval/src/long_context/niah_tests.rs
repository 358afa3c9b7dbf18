use super::*;
use crate::lm::{Ended, LogLikelihood, LogLikelihoodRequest, Take};

/// Reads the last `sees` words of a prompt, one token each, and finds what it is asked for there.
struct Reader {
    sees: usize,
    longest: usize,
}

fn text_of(prompt: &Prompt) -> String {
    match prompt {
        Prompt::Text(text) => text.clone(),
        Prompt::Chat { messages, .. } => {
            messages.iter().map(|message| format!("{}\n", message.text().unwrap_or_default())).collect()
        }
    }
}

impl LanguageModel for Reader {
    fn name(&self) -> &str {
        "reader"
    }

    fn log_likelihoods(&mut self, _: &[LogLikelihoodRequest], _: Take<'_, LogLikelihood>) -> Result<()> {
        unreachable!()
    }

    fn rolling_log_likelihoods(&mut self, _: &[String], _: Take<'_, LogLikelihood>) -> Result<()> {
        unreachable!()
    }

    fn generate(&mut self, requests: &[GenerateRequest], take: Take<'_, Generation>) -> Result<()> {
        for (index, request) in requests.iter().enumerate() {
            let text = text_of(&request.prompt);
            let words: Vec<&str> = text.split(' ').collect();
            self.longest = self.longest.max(text.split_whitespace().count());
            let seen = words[words.len().saturating_sub(self.sees)..].join(" ");
            let (before, asked) = match text.rsplit_once("\n\n") {
                Some((_, asked)) if request.stop.is_empty() => {
                    let city = asked.split("to do in ").nth(1).unwrap().split('?').next().unwrap();
                    (seen.clone(), format!("The best thing to do in {city} is"))
                }
                Some((_, asked)) => {
                    (seen.rsplit_once("\n\n").map_or("", |(before, _)| before).to_owned(), asked.to_owned())
                }
                None => panic!("{text}"),
            };
            let answer = before.split(&asked).nth(1).and_then(|rest| rest.split('\n').next()).unwrap_or("");
            let answer = Generation {
                text: answer.into(),
                tool_calls: vec![],
                ended: Ended::Stop,
                prompt_tokens: 1 + text.split_whitespace().count(),
                completion_tokens: 1,
            };
            take(index, answer)?;
        }
        Ok(())
    }

    fn render(&self, prompt: &Prompt) -> Result<Option<(String, Vec<u32>)>> {
        let text = text_of(prompt);
        let count = 1 + text.split_whitespace().count() as u32;
        Ok(Some((text, (0..count).collect())))
    }
}

fn niah(form: Form, lengths: &[usize]) -> Niah {
    Niah {
        language: Language::En,
        form,
        lengths: lengths.to_vec(),
        depths: depths(),
        needles: 1,
        drawn: false,
        seed: 42,
        haystack: Vec::new(),
    }
}

fn run(niah: &Niah, sees: usize) -> (Vec<Row>, Outcome, usize) {
    let mut reader = Reader { sees, longest: 0 };
    let source = Source::new("/");
    let mut bench = Bench { model: &mut reader, judge: None, sandbox: None, source: &source, limit: None };
    let outcome = niah.run(&mut bench).unwrap();
    let rows =
        outcome.samples.iter().map(|sample| serde_json::from_value(sample.detail.clone()).unwrap()).collect();
    (rows, outcome, reader.longest)
}

#[test]
fn grids_are_the_published_ones() {
    assert_eq!(depths(), [0, 7, 14, 21, 29, 36, 43, 50, 57, 64, 71, 79, 86, 93, 100]);
    let labels: Vec<String> = grid("128k").unwrap().into_iter().map(label).collect();
    assert_eq!(labels[..4], ["1000", "10K", "19K", "28K"]);
    assert_eq!((labels.len(), labels[13].as_str(), labels[14].as_str()), (15, "118K", "128K"));
    assert_eq!(grid("32k").unwrap().len(), 32);
    assert_eq!(grid("64k"), None);
}

#[test]
fn who_sees_everything_finds_everything() {
    for form in [Form::Retrieval, Form::Question] {
        for (drawn, needles) in [(false, 1), (true, 1), (true, 5)] {
            let niah = Niah { drawn, needles, ..niah(form, &[300, 1000, 4000]) };
            let (rows, outcome, longest) = run(&niah, usize::MAX);
            assert_eq!(rows.len(), 45);
            assert!(rows.iter().all(|row| row.score == 10.0 && row.contained), "{form} {rows:?}");
            assert_eq!((outcome.metrics[0].value, outcome.metrics[1].value), (10.0, 100.0));
            assert_eq!(outcome.groups.len(), 3);
            assert!((3750..3900).contains(&longest), "{longest}");
        }
    }
}

#[test]
fn who_sees_the_end_finds_what_is_there() {
    let (rows, ..) = run(&niah(Form::Retrieval, &[1000, 2000]), 700);
    let found = |length, from: u32| {
        let of_length = rows.iter().filter(|row| row.length == length);
        of_length.for_each(|row| assert_eq!(row.score == 10.0, row.depth >= from, "{row:?}"));
    };
    found(1000, 14);
    found(2000, 64);
}

#[test]
fn haystacks_of_files() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.txt");
    std::fs::write(&file, "One sentence. And another one!\n\nA new paragraph.").unwrap();
    let (rows, ..) = run(&Niah { haystack: vec![file.clone()], ..niah(Form::Retrieval, &[200]) }, usize::MAX);
    assert!(rows.iter().all(|row| row.contained));
    std::fs::write(&file, "").unwrap();
    let mut reader = Reader { sees: 1, longest: 0 };
    let source = Source::new(folder.path());
    let mut bench = Bench { model: &mut reader, judge: None, sandbox: None, source: &source, limit: None };
    let error = Niah { haystack: vec![file], ..niah(Form::Retrieval, &[200]) }.run(&mut bench).unwrap_err();
    assert!(error.to_string().contains("empty file"), "{error}");
    let error = niah(Form::Retrieval, &[30]).run(&mut bench).unwrap_err().to_string();
    assert_eq!(error, "niah: a length of 30 tokens is too short: at least 52 are needed");
}

#[test]
fn ratings_are_read() {
    let check = |text, expected| assert_eq!(rating(text), expected, "{text}");
    check("Right. [[10]]", Some(10.0));
    check("[[5]] or rather [[7]].", Some(7.0));
    check("[[11]]", None);
    check("5", None);
    let request = verdict_request(&Needle::classic(Language::Ko), "김밥");
    assert!(matches!(request.prompt, Prompt::Chat { .. }));
}
