//! What was said so far, in memory and on disk.

use std::path::Path;

use anyhow::{Context, Result};
use kanana_tokenizer::Message;
use serde_json::{Value, json};

use crate::hints::{failure, failure_of};

/// What a file of a conversation holds.
const FORM: &str = r#"expected {"messages": [{"role": "user", "content": "…"}, …]} or the list alone"#;

/// The messages of a chat, in the order the template receives them.
#[derive(Default, Clone, PartialEq, Debug)]
pub struct Conversation {
    system: Option<String>,
    turns: Vec<Message>,
}

impl Conversation {
    /// Nothing said yet, under this system prompt.
    pub fn new(system: Option<String>) -> Self {
        Conversation { system, turns: Vec::new() }
    }

    /// The system prompt.
    pub fn system(&self) -> Option<&str> {
        self.system.as_deref()
    }

    /// The messages for the template, the system prompt first.
    pub fn messages(&self) -> Vec<Message> {
        let system = self.system.iter().map(Message::system);
        system.chain(self.turns.iter().cloned()).collect()
    }

    /// How many messages there are, the system prompt not counted.
    pub fn count(&self) -> usize {
        self.turns.len()
    }

    /// Adds a message.
    pub fn push(&mut self, message: Message) {
        self.turns.push(message);
    }

    /// Forgets what was said, keeps the system prompt.
    pub fn reset(&mut self) {
        self.turns.clear();
    }

    /// Takes back everything from the last user message on and returns its text.
    pub fn undo(&mut self) -> Option<String> {
        let last = self.turns.iter().rposition(is_question)?;
        let text = self.turns[last].text().map(String::from);
        self.turns.truncate(last);
        text
    }

    /// Forgets the oldest question with its answer; false when only the newest is left.
    pub fn drop_oldest(&mut self) -> bool {
        let Some(second) = self.turns.iter().skip(1).position(is_question).map(|at| at + 1) else {
            return false;
        };
        self.turns.drain(..second);
        true
    }

    /// Writes `{"messages": [...]}`.
    pub fn save(&self, path: &Path) -> Result<()> {
        let text = format!("{:#}\n", json!({"messages": self.messages()}));
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Reads what [`Conversation::save`] wrote, or a bare list of messages.
    pub fn load(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let value: Value = serde_json::from_str(&text).map_err(|error| not_json(error, path))?;
        Self::from_json(value).with_context(|| format!("cannot use {}", path.display()))
    }

    /// A conversation from `{"messages": [...]}` or `[...]`.
    pub fn from_json(value: Value) -> Result<Self> {
        let hint = FORM;
        let messages = match value {
            Value::Object(mut object) => object.remove("messages").unwrap_or_default(),
            other => other,
        };
        let Value::Array(messages) = messages else { return Err(failure("no list of messages", hint)) };
        let mut conversation = Conversation::default();
        for (index, message) in messages.into_iter().enumerate() {
            let message = Message::from_value(message)
                .map_err(|error| failure_of(error.into(), format_args!("message {}", index + 1), hint))?;
            match message.text() {
                Some(text) if index == 0 && message.role() == "system" => {
                    conversation.system = Some(text.into())
                }
                _ => conversation.turns.push(message),
            }
        }
        Ok(conversation)
    }
}

/// The error of a file that should hold a conversation.
pub fn not_json(error: serde_json::Error, path: &Path) -> anyhow::Error {
    failure_of(error.into(), format_args!("{} is not JSON", path.display()), FORM)
}

fn is_question(message: &Message) -> bool {
    message.role() == "user"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn talk() -> Conversation {
        let mut talk = Conversation::new(Some("짧게.".into()));
        for (role, text) in [("user", "하나"), ("assistant", "1"), ("user", "둘"), ("assistant", "2")] {
            talk.push(Message::new(role, text));
        }
        talk
    }

    #[test]
    fn saved_and_loaded_is_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("대화.json");
        talk().save(&path).unwrap();
        assert_eq!(Conversation::load(&path).unwrap(), talk());
    }

    #[test]
    fn undo_and_drop_oldest_take_whole_exchanges() {
        let mut undone = talk();
        assert_eq!(undone.undo().as_deref(), Some("둘"));
        assert_eq!(undone.count(), 2);
        let mut dropped = talk();
        assert!(dropped.drop_oldest());
        assert_eq!(dropped.messages()[1].text(), Some("둘"));
        assert_eq!(dropped.messages()[0].role(), "system");
        assert!(!dropped.drop_oldest());
    }

    #[test]
    fn what_is_not_a_conversation_is_refused() {
        for bad in ["{}", "3", "[3]", r#"{"messages": "hi"}"#, r#"[{"content": "x"}]"#] {
            assert!(Conversation::from_json(serde_json::from_str(bad).unwrap()).is_err(), "{bad}");
        }
    }
}
