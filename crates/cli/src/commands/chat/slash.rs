//! The commands typed during a chat.

use std::path::PathBuf;

/// One command as `/help` shows it.
pub struct Help {
    pub name: &'static str,
    pub argument: &'static str,
    pub what: &'static str,
}

/// Every command, in the order of `/help`.
pub const COMMANDS: &[Help] = &[
    Help { name: "/help", argument: "", what: "show this" },
    Help {
        name: "/system",
        argument: "[TEXT]",
        what: "set the system prompt and start over; without text, show it",
    },
    Help { name: "/reset", argument: "", what: "forget the conversation, keep the system prompt" },
    Help { name: "/undo", argument: "", what: "forget the last question and its answer" },
    Help { name: "/retry", argument: "", what: "answer the last question again" },
    Help { name: "/save", argument: "FILE", what: "write the conversation to a JSON file" },
    Help { name: "/load", argument: "FILE", what: "go on with a saved conversation" },
    Help { name: "/stats", argument: "", what: "tokens, speed and memory" },
    Help { name: "/exit", argument: "", what: "leave (Ctrl-D too)" },
];

/// A parsed command.
#[derive(Debug, PartialEq)]
pub enum Slash {
    Help,
    System(Option<String>),
    Reset,
    Undo,
    Retry,
    Save(PathBuf),
    Load(PathBuf),
    Stats,
    Exit,
}

/// Parses a message that begins with a slash; `None` when it is for the model.
///
/// A message such as `/usr/bin 이 뭐야?` is not a command: a command is one lower-case word.
pub fn parse(message: &str) -> Option<Result<Slash, String>> {
    let (name, argument) = message.split_once(char::is_whitespace).unwrap_or((message, ""));
    let word = name.strip_prefix('/')?;
    if word.is_empty() || !word.chars().all(|c| c.is_ascii_lowercase()) {
        return None;
    }
    let argument = argument.trim();
    let file = |make: fn(PathBuf) -> Slash| match argument.is_empty() {
        true => Err(format!("{name} needs a file name")),
        false => Ok(make(PathBuf::from(argument))),
    };
    Some(match word {
        "help" => Ok(Slash::Help),
        "system" => Ok(Slash::System((!argument.is_empty()).then(|| argument.to_string()))),
        "reset" => Ok(Slash::Reset),
        "undo" => Ok(Slash::Undo),
        "retry" => Ok(Slash::Retry),
        "save" => file(Slash::Save),
        "load" => file(Slash::Load),
        "stats" => Ok(Slash::Stats),
        "exit" | "quit" => Ok(Slash::Exit),
        _ => Err(format!("there is no command {name}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(message: &str, expected: Option<Result<Slash, &str>>) {
        let got = parse(message);
        assert_eq!(got, expected.map(|parsed| parsed.map_err(String::from)), "{message}");
    }

    #[test]
    fn commands() {
        check("안녕", None);
        check("/usr/bin 이 뭐야?", None);
        check("/", None);
        check("/reset", Some(Ok(Slash::Reset)));
        check("/system 너는 시인이다.\n짧게.", Some(Ok(Slash::System(Some("너는 시인이다.\n짧게.".into())))));
        check("/system", Some(Ok(Slash::System(None))));
        check("/save 대화.json", Some(Ok(Slash::Save("대화.json".into()))));
        check("/save", Some(Err("/save needs a file name")));
        check("/nope", Some(Err("there is no command /nope")));
    }

    #[test]
    fn every_listed_command_is_parsed() {
        for help in COMMANDS {
            let message = format!("{} x", help.name);
            assert!(matches!(parse(&message), Some(Ok(_))), "{message}");
        }
    }
}
