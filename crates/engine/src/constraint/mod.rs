//! Constrained decoding: which tokens may come next, so that what is generated belongs to a [`Grammar`].
//!
//! A [`Vocabulary`] is made once for a model, from the bytes of its tokens. It compiles a grammar to a [`Constraint`],
//! which a sequence carries along: its state is a function of the tokens generated so far, and of nothing else. Before
//! the sampler chooses, everything but the allowed tokens is removed. End-of-sequence tokens are allowed exactly where
//! the text so far is complete; and where nothing but the end may follow, the sequence has ended.
//!
//! Any tokenisation of an allowed text is allowed: a constraint removes what must not come and forces no token, so that
//! the model keeps its own way to write. The masks of a step are computed while the forward pass runs (`runner`).
//!
//! With speculation a constraint looks ahead over the proposals and comes back. It knows no tokenizer and no model.
//! The parser is the library `llguidance`. Tests: `cargo test -p kanana-engine constrain`.

mod grammar;
#[cfg(test)]
mod tests;
mod vocabulary;

use std::ops::Range;
use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::SimpleVob;
use llguidance::{Matcher, ParserFactory};

use crate::SequenceError;

pub use grammar::Grammar;
pub use vocabulary::Vocabulary;

/// Where a sequence stands in its grammar. A clone is independent, and cheaper than compiling again.
pub struct Constraint {
    compiled: Arc<Compiled>,
    matcher: Matcher,
    /// The tokens that led here.
    accepted: Vec<u32>,
    /// Whether the end is kept for where nothing else may follow.
    ignore_eos: bool,
}

/// Of address space: what is not used takes no memory. 256 KiB of the shortest rules, one referring to the next, need
/// less. Units: bytes.
const COMPILER_STACK: usize = 1 << 30;

/// What a constraint is made from, and made again after a failure.
struct Compiled {
    factory: Arc<ParserFactory>,
    grammar: TopLevelGrammar,
}

/// The tokens that may come next.
pub(crate) struct Allowed {
    mask: SimpleVob,
    /// Whether they are end-of-sequence tokens, all of them.
    pub only_end: bool,
}

impl Allowed {
    /// Whether a token may come next.
    pub(crate) fn contains(&self, token: usize) -> bool {
        token < self.mask.len() && self.mask.get(token)
    }
}

impl Constraint {
    /// Errors: the library's reason.
    fn new(factory: Arc<ParserFactory>, grammar: TopLevelGrammar) -> Result<Self, String> {
        let compiled = Arc::new(Compiled { factory, grammar });
        let matcher = compiled.matcher()?;
        let mut constraint = Constraint { compiled, matcher, accepted: Vec::new(), ignore_eos: false };
        constraint.allowed()?; // a grammar that nothing can begin is refused here
        Ok(constraint)
    }

    /// The same constraint, which keeps the end for where nothing else may follow, or does not.
    pub(crate) fn ignoring_eos(self, ignore_eos: bool) -> Self {
        Constraint { ignore_eos, ..self }
    }

    /// The tokens that end a text which is complete.
    pub(crate) fn eos_token_ids(&self) -> &[u32] {
        self.compiled.factory.tok_env().tok_trie().eos_tokens()
    }

    /// Whether the text is complete and nothing but the end may follow.
    pub(crate) fn is_finished(&self) -> bool {
        self.matcher.is_stopped() && !self.matcher.is_error()
    }

    /// Goes on by one token, which is an allowed one and not the end.
    ///
    /// Errors: [`SequenceError::Grammar`], after which only [`Self::rollback`] helps.
    pub(crate) fn accept(&mut self, token: u32) -> Result<(), SequenceError> {
        self.matcher.consume_token(token).map_err(|error| failed(reason(&error)))?;
        self.accepted.push(token);
        Ok(())
    }

    /// Goes back by so many tokens. Cost: little; after a failure, compiling and all tokens again.
    fn rollback(&mut self, tokens: usize) -> Result<(), SequenceError> {
        self.accepted.truncate(self.accepted.len().saturating_sub(tokens));
        if self.matcher.is_error() || self.matcher.rollback(tokens).is_err() {
            self.matcher = self.compiled.matcher().map_err(failed)?;
            self.matcher.consume_tokens(&self.accepted).map_err(|error| failed(reason(&error)))?;
        }
        Ok(())
    }

    /// How many of the tokens may come next, one after the other, the end among them.
    pub(crate) fn count_allowed(&mut self, tokens: &[u32]) -> usize {
        self.matcher.validate_tokens(tokens).unwrap_or(0)
    }

    /// What may come after the first n of the proposed tokens, for each n of `rows`; the state stays. Where the
    /// proposals lead out of the grammar or to its end, nothing is to come: an error, as at a dead end.
    ///
    /// Cost: a mask for each: a walk over those tokens of the vocabulary that the grammar lets begin.
    pub(crate) fn ahead(
        &mut self,
        proposed: &[u32],
        rows: Range<usize>,
    ) -> Vec<Result<Allowed, SequenceError>> {
        let ends = |token: &u32| self.eos_token_ids().contains(token);
        let before_end = proposed.iter().position(ends).unwrap_or(proposed.len());
        let allowed = self.count_allowed(&proposed[..before_end]);
        let mut masks = Vec::new();
        let mut taken = 0;
        for n in 0..rows.end {
            if n > 0 {
                if n > allowed || self.accept(proposed[n - 1]).is_err() {
                    break;
                }
                taken += 1;
                if self.is_finished() {
                    break;
                }
            }
            if n >= rows.start {
                masks.push(self.allowed().map_err(failed));
            }
        }
        if let Err(error) = self.rollback(taken) {
            masks = vec![Err(error)];
        }
        masks.resize_with(rows.len(), || Err(failed(DEAD_END.to_owned())));
        masks
    }

    /// The tokens that may come next. Errors: the reason why there are none.
    fn allowed(&mut self) -> Result<Allowed, String> {
        let mut mask = self.matcher.compute_mask_or_eos().map_err(|error| reason(&error))?;
        let end = self.compiled.factory.tok_env().tok_trie().eos_token_set();
        let mut going_on = mask.clone();
        going_on.sub(&end);
        let only_end = going_on.is_zero();
        if self.ignore_eos && !only_end {
            mask = going_on;
        }
        match mask.is_zero() {
            true => Err(DEAD_END.to_owned()),
            false => Ok(Allowed { mask, only_end }),
        }
    }
}

impl Clone for Constraint {
    fn clone(&self) -> Self {
        // A shallow clone would share the lexer's states, and the limit on their number with them.
        let (compiled, matcher) = (self.compiled.clone(), self.matcher.deep_clone());
        Constraint { compiled, matcher, accepted: self.accepted.clone(), ignore_eos: self.ignore_eos }
    }
}

/// A parser is too long to print.
impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Constraint").field("accepted", &self.accepted).finish_non_exhaustive()
    }
}

impl Compiled {
    /// The beginning of the grammar.
    fn matcher(&self) -> Result<Matcher, String> {
        let make = || self.factory.create_parser(self.grammar.clone()).map_err(|error| reason(&error));
        // The library recurses along chains of references and rules, which may be as long as the grammar.
        let parser = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(COMPILER_STACK).spawn_scoped(scope, make);
            match thread.map(|thread| thread.join()) {
                Ok(Ok(parser)) => parser,
                Ok(Err(_)) => Err("the grammar library panicked on it".to_owned()),
                Err(error) => Err(format!("no thread to compile it on: {error}")),
            }
        });
        Ok(Matcher::new(Ok(parser?)))
    }
}

const DEAD_END: &str = "no token of the vocabulary can come next";

fn failed(reason: String) -> SequenceError {
    SequenceError::Grammar { reason }
}

/// What is said where the library panics, which it catches itself: it cuts long values that it quotes inside a character.
const PANICKED: &str = "the grammar library failed on it; is every keyword's value of the right type?";

/// What the library says, in a line or a few: without its state and backtraces.
fn reason(error: &impl std::fmt::Display) -> String {
    const LONGEST: usize = 400; // it quotes whole schemas
    let text = error.to_string();
    let text = text.split("\n<").next().unwrap_or_default().trim();
    match text.char_indices().nth(LONGEST) {
        _ if text == "NoExtensionBias" => DEAD_END.to_owned(),
        _ if text.starts_with("panic") => PANICKED.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
