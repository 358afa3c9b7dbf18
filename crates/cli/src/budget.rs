//! Whether the run fits in memory, decided before anything is loaded, and how large the KV cache becomes.

use kanana_kernels::{Format, KvFormat};
use kanana_model::{Config, KvCache, cost};

use crate::args::{KvDTypeChoice, MemoryArgs};
use crate::hints::failure;
use crate::{memory, output};

/// Tokens in a block of the KV cache.
pub const BLOCK_SIZE: usize = 16;

/// What the sequences of a run need, in tokens.
#[derive(Clone, Copy, Debug)]
pub struct Demand {
    /// The longest a single sequence may become.
    pub context: usize,
    /// The length of a single sequence without which the run makes no sense.
    pub least: usize,
    /// Sequences that would ideally run at once.
    pub sequences: usize,
    /// Positions of the rotary table: the context that is served, whatever the requests at hand need of it, because
    /// the angles of dynamic scaling depend on it and an answer must not depend on its neighbours.
    pub positions: usize,
}

/// How a model will be loaded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget {
    pub format: Format,
    pub kv_format: KvFormat,
    /// The longest a sequence may become.
    pub max_context: usize,
    /// Blocks of the KV cache.
    pub num_blocks: usize,
    /// Positions of the rotary table.
    pub positions: usize,
}

/// Sizes the KV cache to the demand, or as near to it as memory allows.
///
/// Errors: the weights and the least demand do not fit; the hint says what would.
pub fn plan(config: &Config, format: Format, demand: Demand, args: &MemoryArgs) -> anyhow::Result<Budget> {
    plan_beside(None, config, format, demand, args)
}

/// [`plan`] where a draft model runs beside the model: its weights, and a cache of as many blocks.
pub fn plan_beside(
    draft: Option<&Config>,
    config: &Config,
    format: Format,
    demand: Demand,
    args: &MemoryArgs,
) -> anyhow::Result<Budget> {
    let available = args.memory_limit.or_else(memory::available).unwrap_or(u64::MAX);
    let models = || std::iter::once(config).chain(draft);
    let kv_format = args.kv_dtype.resolve(format);
    let block_of = |config| KvCache::bytes_per_block(config, BLOCK_SIZE, kv_format) as u64;
    let block: u64 = models().map(block_of).sum();
    let least = demand.least.div_ceil(BLOCK_SIZE) as u64;
    let wanted = (demand.context.div_ceil(BLOCK_SIZE) * demand.sequences) as u64;

    let fixed: u64 = models().map(|config| fixed_bytes(config, format, demand.positions)).sum();
    let room = available.saturating_sub(fixed) / block;
    if fixed > available || room < least {
        let message = format!(
            "not enough memory: {} for the weights in {format} and {} for the keys and values of {} tokens, but {} {}",
            output::bytes(models().map(|config| cost::weight_bytes(config, kept(config, format))).sum()),
            output::bytes(least * block),
            demand.least,
            output::bytes(available),
            if args.memory_limit.is_some() { "is the limit" } else { "is available" },
        );
        return Err(failure(message, what_fits(config, format, demand, available, args.kv_dtype)));
    }
    let allowed = args.kv_memory.map_or(wanted, |bytes| bytes / block);
    if allowed < least {
        let message = format!(
            "--kv-memory holds {} tokens, but {} are needed",
            allowed * BLOCK_SIZE as u64,
            demand.least
        );
        return Err(failure(message, format!("give it at least {}", output::bytes(least * block))));
    }
    let num_blocks = allowed.min(wanted).min(room) as usize;
    let max_context = demand.context.min(num_blocks * BLOCK_SIZE);
    if max_context < demand.context {
        output::note(format_args!("memory allows {max_context} tokens of context, not {}", demand.context));
    }
    Ok(Budget { format, kv_format, max_context, num_blocks, positions: demand.positions })
}

/// Everything but keys and values: weights, rotary tables and 5 % for activations.
fn fixed_bytes(config: &Config, format: Format, context: usize) -> u64 {
    let needed = cost::memory_needed(config, kept(config, format), context);
    (needed.weights + needed.rope_table) / 20 * 21
}

/// The format of a model beside one of `format`: what is quantised stays what it is.
fn kept(config: &Config, format: Format) -> Format {
    config.quantization.unwrap_or(format)
}

/// The smallest changes that would make the run fit.
fn what_fits(
    config: &Config,
    format: Format,
    demand: Demand,
    available: u64,
    kv_dtype: KvDTypeChoice,
) -> String {
    let tokens = demand.least;
    let mut ways = Vec::new();
    let smaller = Format::ALL.into_iter().skip_while(|&candidate| candidate != format);
    let smaller = smaller.filter(|&candidate| kept(config, candidate) == candidate);
    for candidate in smaller {
        let fixed = fixed_bytes(config, candidate, tokens);
        let per_token = cost::kv_bytes_per_token(config, kv_dtype.resolve(candidate)).max(1);
        let fitting = (available.saturating_sub(fixed) / per_token) as usize / BLOCK_SIZE * BLOCK_SIZE;
        let flag = if candidate == format { String::new() } else { format!("--dtype {candidate}") };
        match fitting {
            0 => {}
            _ if fitting >= tokens => ways.push(flag),
            _ => ways.push(format!("{flag} --max-context {fitting}").trim().to_string()),
        }
    }
    match ways.is_empty() {
        true => format!(
            "take a smaller model: even in q4 the weights alone take {}",
            output::bytes(cost::weight_bytes(config, Format::Q4))
        ),
        false => format!("what would fit: {}; or a smaller model", ways.join(", or ")),
    }
}

#[cfg(test)]
mod tests {
    use kanana_model::preset;

    use super::*;
    use crate::args::DTypeChoice;

    fn check(limit: &str, demand: Demand, expected: Result<Budget, &[&str]>) {
        let args = MemoryArgs {
            dtype: DTypeChoice::F32,
            kv_dtype: KvDTypeChoice::Auto,
            kv_memory: None,
            memory_limit: crate::args::parse_bytes(limit).ok(),
        };
        let config = preset("nano-2.1b").unwrap().config;
        match (plan(&config, Format::F32, demand, &args), expected) {
            (Ok(got), Ok(expected)) => assert_eq!(got, expected),
            (Err(error), Err(words)) => {
                let text = format!("{error} {}", crate::hints::hint(&error).unwrap());
                words.iter().for_each(|word| assert!(text.contains(word), "{word:?} is not in {text}"));
            }
            (got, expected) => panic!("{limit}: {got:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn the_cache_is_what_is_asked_for_or_what_fits() {
        // 7.77 GiB of weights in f32, 4 MiB for a block of 16 tokens.
        let demand = Demand { context: 8192, least: 100, sequences: 2, positions: 8192 };
        let budget = |max_context, num_blocks| {
            Ok(Budget {
                format: Format::F32,
                kv_format: KvFormat::F32,
                max_context,
                num_blocks,
                positions: 8192,
            })
        };
        check("64GiB", demand, budget(8192, 1024));
        check("10GiB", demand, budget(7504, 469));
    }

    #[test]
    fn what_would_fit_is_said() {
        let demand = Demand { context: 8192, least: 8192, sequences: 1, positions: 8192 };
        check(
            "9GiB",
            demand,
            Err(&["7.77 GiB", "2.00 GiB", "8192 tokens", "9.00 GiB", "--dtype bf16", "--max-context"]),
        );
        check("5GiB", demand, Err(&["--dtype bf16 --max-context", "--dtype q8,", "--dtype q4;"]));
        check("1GiB", demand, Err(&["smaller model", "1.15 GiB"]));
    }
}
