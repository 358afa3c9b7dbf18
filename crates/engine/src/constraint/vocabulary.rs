//! The bytes of a model's tokens, as a trie that grammars are matched against.

use std::sync::Arc;

use llguidance::ParserFactory;
use llguidance::api::ParserLimits;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};

use crate::{Constraint, EngineError, Grammar, Result};

/// The longest token that can be allowed, in bytes: the trie is not deeper than about this.
const LONGEST_TOKEN: usize = 1000;
/// Ids and bytes that the trie can hold.
const MOST_TOKENS: usize = 1 << 20;
const MOST_BYTES: usize = 1 << 22;

/// Bounds that let a grammar which explodes fail. Those of the library, which everyday schemas are far below, but for
/// memory: fewer lexer states, at 1 to 2 kB each, and a smaller grammar.
const LIMITS: ParserLimits = ParserLimits {
    max_items_in_row: 2_000,
    initial_lexer_fuel: 1_000_000,
    step_lexer_fuel: 200_000,
    step_max_items: 50_000,
    max_lexer_states: 50_000,
    max_grammar_size: 200_000,
    precompute_large_lexemes: true,
    verbose_errors: false,
};

/// The tokens of a model, as [`Grammar`]s see them. Made once for a model; a clone is the same one.
#[derive(Clone)]
pub struct Vocabulary {
    factory: Arc<ParserFactory>,
}

impl Vocabulary {
    /// A vocabulary of the tokens with the ids 0, 1, 2 and so on.
    ///
    /// `tokens` are the bytes that each stands for in a text; those without bytes are never allowed, nor are ids behind
    /// the last, which the rows that pad a model's vocabulary are. `specials` are control tokens with their names: no text
    /// contains them, only a Lark grammar can ask for them, as `<|name|>`. `eos_token_ids` end a complete text, and are
    /// no text themselves.
    ///
    /// Errors: [`EngineError::TokenOutOfRange`], [`EngineError::Parameter`].
    /// Cost: sorts the tokens and builds a few tries of them.
    pub fn new(
        tokens: &[Option<Vec<u8>>],
        specials: &[(u32, String)],
        eos_token_ids: &[u32],
    ) -> Result<Self> {
        let refuse = |field, got: usize, expected: String| {
            Err(EngineError::Parameter { field, got: got.to_string(), expected })
        };
        if tokens.len() > MOST_TOKENS {
            return refuse("tokens", tokens.len(), format!("no more than {MOST_TOKENS}"));
        }
        let [eos, ..] = *eos_token_ids else {
            return refuse("eos_token_ids", 0, "at least one token: something must end a text".to_owned());
        };
        let text = |bytes: &Option<Vec<u8>>| match bytes {
            // The library marks control tokens with the byte 0xff, which no text contains.
            Some(bytes) if bytes.len() <= LONGEST_TOKEN && bytes.first() != Some(&MARKER) => bytes.clone(),
            _ => Vec::new(),
        };
        let mut words: Vec<Vec<u8>> = tokens.iter().map(text).collect();
        let mut name = |field, token: u32, name: &str| match words.get_mut(token as usize) {
            Some(word) => {
                *word = [&[MARKER], &name.as_bytes()[..name.len().min(LONGEST_TOKEN)]].concat();
                Ok(())
            }
            None => Err(EngineError::TokenOutOfRange { field, token, vocab_size: tokens.len() }),
        };
        eos_token_ids.iter().try_for_each(|&id| name("eos_token_ids", id, &format!("<|end_{id}|>")))?;
        specials.iter().try_for_each(|(id, text)| name("specials", *id, text))?;
        let bytes: usize = words.iter().map(Vec::len).sum();
        if bytes > MOST_BYTES {
            return refuse("tokens", bytes, format!("no more than {MOST_BYTES} bytes, all together"));
        }

        let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, eos), &words);
        // The environment tokenises greedily, which is not how the model does, and says so: then nothing is forced.
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie.with_eos_tokens(eos_token_ids)));
        let mut factory = ParserFactory::new_simple(&env).map_err(|error| EngineError::Parameter {
            field: "tokens",
            got: super::reason(&error),
            expected: "bytes that make a trie".to_owned(),
        })?;
        *factory.quiet().limits_mut() = LIMITS;
        Ok(Vocabulary { factory: Arc::new(factory) })
    }

    /// A constraint that stands at the beginning of a grammar.
    ///
    /// Errors: [`EngineError::Grammar`] with the reason: it is malformed, says something that cannot be enforced, is too
    /// large, or nothing belongs to it.
    /// Cost: bounded, below two seconds in the tests; far less for an everyday schema.
    pub fn compile(&self, grammar: &Grammar) -> Result<Constraint> {
        let refuse = |reason| EngineError::Grammar { field: grammar.field(), reason };
        let translated = grammar.translate().map_err(refuse)?;
        Constraint::new(self.factory.clone(), translated).map_err(refuse)
    }
}

const MARKER: u8 = TokTrie::SPECIAL_TOKEN_MARKER;

/// A trie is too long to print.
impl std::fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tokens = self.factory.tok_env().tok_trie().vocab_size();
        f.debug_struct("Vocabulary").field("tokens", &tokens).finish()
    }
}
