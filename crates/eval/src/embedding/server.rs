//! `/v1/embeddings` of an OpenAI-compatible server as an embedder.

use serde_json::{Value, json};

use crate::lm::{LanguageModel, Server};
use crate::{EvalError, Result};

/// Texts of one request.
const BATCH: usize = 32;

/// How the server is told what texts are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instructions {
    /// In the field `instruction`, as `kanana serve` takes it: the instruction is not pooled.
    Field,
    /// Before each text, as `Instruct: …\nQuery: text`: it is pooled, unless the server knows better.
    Text,
    /// Not at all.
    Nothing,
}

/// A model behind a server, as an embedder.
pub(crate) struct ServerEmbedder<'a> {
    /// Where, and how often it is tried.
    pub(crate) server: &'a Server,
    /// How the server takes instructions.
    pub(crate) instructions: Instructions,
}

impl ServerEmbedder<'_> {
    fn name(&self) -> &str {
        LanguageModel::name(self.server)
    }

    fn body(&self, texts: &[String], instruction: Option<&str>) -> Value {
        let instruction = instruction.map(str::trim).filter(|text| !text.is_empty());
        let mut body = json!({ "model": self.name(), "input": texts, "encoding_format": "float" });
        match (self.instructions, instruction) {
            (Instructions::Field, Some(instruction)) => body["instruction"] = json!(instruction),
            (Instructions::Text, Some(instruction)) => {
                let joined =
                    texts.iter().map(|text| format!("Instruct: {instruction}\nQuery: {}", text.trim()));
                body["input"] = joined.collect();
            }
            _ => {}
        }
        body
    }

    /// A vector for each text.
    pub(crate) fn embed(&self, texts: &[String], instruction: Option<&str>) -> Result<Vec<Vec<f32>>> {
        let parts: Vec<&[String]> = texts.chunks(BATCH).collect();
        let bodies: Vec<Value> = parts.iter().map(|part| self.body(part, instruction)).collect();
        let mut answers = vec![Vec::new(); parts.len()];
        self.server.ask_all("/embeddings", &bodies, &mut |index, answer| {
            answers[index] = vectors(&answer, parts[index].len()).ok_or_else(|| EvalError::Model {
                model: self.name().into(),
                problem: format!(
                    "expected {} lists of numbers in data[].embedding of /embeddings",
                    parts[index].len()
                ),
            })?;
            Ok(())
        })?;
        Ok(answers.concat())
    }
}

/// The vectors of an answer, in the order of the texts.
fn vectors(answer: &Value, count: usize) -> Option<Vec<Vec<f32>>> {
    let mut vectors = vec![Vec::new(); count];
    for (place, item) in answer.get("data")?.as_array()?.iter().enumerate() {
        let index = item.get("index").and_then(Value::as_u64).map_or(place, |index| index as usize);
        let numbers = item.get("embedding")?.as_array()?.iter();
        *vectors.get_mut(index)? = numbers.map(|x| x.as_f64().map(|x| x as f32)).collect::<Option<_>>()?;
    }
    vectors.iter().all(|vector| !vector.is_empty()).then_some(vectors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lm::ServerOptions;

    #[test]
    fn requests_and_answers() {
        let check = |instructions, instruction, expected: Value| {
            let server = Server::new(ServerOptions::new("http://127.0.0.1:1/v1", "m"), Box::new(|| false));
            let body = ServerEmbedder { server: &server, instructions }.body(&[" a ".into()], instruction);
            assert_eq!(body, expected);
        };
        let plain = json!({ "model": "m", "input": [" a "], "encoding_format": "float" });
        check(Instructions::Field, None, plain.clone());
        check(Instructions::Nothing, Some("x"), plain.clone());
        let mut with = plain.clone();
        with["instruction"] = json!("x");
        check(Instructions::Field, Some("x"), with);
        let mut with = plain;
        with["input"] = json!(["Instruct: x\nQuery: a"]);
        check(Instructions::Text, Some("x"), with);

        let answer = json!({"data": [{"index": 1, "embedding": [1]}, {"index": 0, "embedding": [0.5]}]});
        assert_eq!(vectors(&answer, 2), Some(vec![vec![0.5], vec![1.0]]));
        assert_eq!(vectors(&answer, 1), None);
        assert_eq!(vectors(&answer, 3), None);
        assert_eq!(vectors(&json!({"data": [{"embedding": ["x"]}]}), 1), None);
        assert_eq!(vectors(&json!({}), 0), None);
    }
}
