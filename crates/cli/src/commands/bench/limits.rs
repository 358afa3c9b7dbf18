//! `kanana bench limits`: what the machine can do at most, and how fast the 2.1B could be on it.

use anyhow::Result;
use clap::Args;
use kanana_kernels::Format;
use kanana_kernels::runtime::Isa;
use kanana_kernels::runtime::limits::{Peak, Unit, peak};
use kanana_model::{Config, cost, preset};
use serde_json::{Value, json};

use super::machine::bandwidth;
use super::measure::Case;
use super::report::{prefill_flops, step_bytes};
use crate::args::{OutputArgs, available_threads, thread_count};
use crate::output::{self, Align, Style, Table, bytes};

/// The model that the limits are told for.
const MODEL: &str = "nano-2.1b";

/// A prompt and some tokens after it, as `kanana bench` takes them by default.
const CASE: Case = Case { depth: 0, prefill: 512, decode: 32, batch: 1 };

/// Measure what the machine can do at most
#[derive(Args)]
#[command(after_help = "\
Examples:
  kanana bench limits
  kanana bench limits --threads 1,8 --json
  KANANA_ISA=avx2 kanana bench limits

Reading streams a gigabyte, from huge pages where the system gives them. Products are measured on
numbers that stay in registers, and with one operand of every product loaded from the first-level
cache. The best of several short runs counts.")]
pub struct LimitsArgs {
    /// Threads to measure [default: 1, 2, 4 and so on up to all available cores]
    #[arg(long, value_name = "N,..", value_delimiter = ',', value_parser = thread_count)]
    threads: Vec<usize>,

    #[command(flatten)]
    output: OutputArgs,
}

/// What so many threads do at most.
struct Limits {
    threads: usize,
    read_bandwidth: f64, // bytes per second
    peaks: Vec<Peak>,
}

impl Limits {
    fn measure(threads: usize, isa: Isa) -> Self {
        output::note(format_args!("measuring {}", counted(threads)));
        let peaks = Unit::available(isa).into_iter().map(|unit| peak(threads, isa, unit));
        Limits { threads, read_bandwidth: bandwidth(threads, isa), peaks: peaks.collect() }
    }

    fn of(&self, unit: Unit) -> f64 {
        self.peaks.iter().find(|peak| peak.unit == unit).map_or(f64::NAN, |peak| peak.reachable())
    }
}

/// What the limits allow a model in a format.
struct Bound {
    format: Format,
    unit: Unit,
    prefill: f64, // tokens per second
    decode: f64,  // tokens per second
}

impl Bound {
    fn of(config: &Config, format: Format, isa: Isa, limits: &Limits) -> Self {
        let unit = Unit::of(isa, format);
        Bound {
            format,
            unit,
            prefill: CASE.prefill as f64 * limits.of(unit) / prefill_flops(config, &CASE),
            decode: limits.read_bandwidth / step_bytes(config, format, format.kv_format(), &CASE).total(),
        }
    }
}

/// Measures and prints.
pub fn run(args: &LimitsArgs) -> Result<()> {
    let isa = Isa::chosen()?;
    let threads = if args.threads.is_empty() { doubling(available_threads()) } else { args.threads.clone() };
    let limits: Vec<Limits> = threads.into_iter().map(|threads| Limits::measure(threads, isa)).collect();
    match args.output.json {
        true => output::print_json(&to_json(isa, &limits)?),
        false => output::print(&to_text(isa, &limits)?),
    }
}

fn counted(threads: usize) -> String {
    format!("{threads} thread{}", if threads == 1 { "" } else { "s" })
}

/// 1, 2, 4 and so on, and `most`.
fn doubling(most: usize) -> Vec<usize> {
    let powers = std::iter::successors(Some(1), |n| Some(2 * n));
    powers.take_while(|&n| n < most).chain([most]).collect()
}

fn bounds(isa: Isa, limits: &Limits) -> Result<Vec<Bound>> {
    let config = preset(MODEL)?.config;
    Ok(Format::ALL.map(|format| Bound::of(&config, format, isa, limits)).into())
}

fn to_json(isa: Isa, limits: &[Limits]) -> Result<Value> {
    let machine = limits.iter().map(|limits| {
        let units = limits.peaks.iter().map(|peak| {
            json!({"unit": peak.unit.name(), "registers_operations_per_s": peak.registers,
                   "l1_operations_per_s": peak.loads})
        });
        let bounds = bounds(isa, limits)?.into_iter().map(|bound| {
            json!({"dtype": bound.format.name(), "unit": bound.unit.name(),
                   "prefill_tokens_per_s": bound.prefill, "decode_tokens_per_s": bound.decode})
        });
        Ok(json!({"threads": limits.threads, "read_bandwidth_bytes_per_s": limits.read_bandwidth,
                  "units": units.collect::<Vec<_>>(), "at_most": bounds.collect::<Vec<_>>()}))
    });
    Ok(json!({
        "instruction_set": isa.name(),
        "instruction_sets": Isa::available().into_iter().map(Isa::name).collect::<Vec<_>>(),
        "model": MODEL,
        "prefill": CASE.prefill,
        "decode": CASE.decode,
        "machine": machine.collect::<Result<Vec<_>>>()?,
    }))
}

fn to_text(isa: Isa, limits: &[Limits]) -> Result<String> {
    let style = Style::stdout();
    let (bold, dim, reset) = (style.bold(), style.dim(), style.reset());
    let available: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
    let mut text = format!("{bold}{}{reset}  of {}\n\n", isa.name(), available.join(", "));
    text += &measured_table(isa, limits).render();
    for limits in limits {
        text += &format!("\n{MODEL} on {}, at most\n\n", counted(limits.threads));
        text += &bounds_table(&bounds(isa, limits)?)?.render();
    }
    text += &format!(
        "\n{dim}  G/s: operations, two to a multiply-add; prefill by the higher rate, of tiles by that from L1{reset}\n\
         {dim}  a prompt of {} tokens, then {} one by one{reset}\n",
        CASE.prefill, CASE.decode
    );
    Ok(text)
}

/// A column for each number of threads.
fn measured_table(isa: Isa, limits: &[Limits]) -> Table {
    let mut align = vec![Align::Left; 2];
    align.resize(2 + limits.len(), Align::Right);
    let mut table = Table::new(&align);
    let mut row = |what: &str, source: &str, of: &dyn Fn(&Limits) -> String| {
        table.row([what.to_owned(), source.to_owned()].into_iter().chain(limits.iter().map(of)));
    };
    row("", "", &|limits| counted(limits.threads));
    row("reading", "memory", &|limits| format!("{:.1} GB/s", limits.read_bandwidth / 1e9));
    for (i, unit) in Unit::available(isa).into_iter().enumerate() {
        row(unit.name(), "in registers", &|limits| format!("{:.0} G/s", limits.peaks[i].registers / 1e9));
        row(unit.name(), "from L1", &|limits| format!("{:.0} G/s", limits.peaks[i].loads / 1e9));
    }
    table
}

fn bounds_table(bounds: &[Bound]) -> Result<Table> {
    let config = preset(MODEL)?.config;
    let mut table = Table::new(&[Align::Left, Align::Right, Align::Left, Align::Right, Align::Right]);
    table.row(["weights", "size", "multiplied by", "prefill tok/s", "decode tok/s"]);
    for bound in bounds {
        table.row([
            bound.format.to_string(),
            bytes(cost::weight_bytes(&config, bound.format)),
            bound.unit.name().to_owned(),
            format!("{:.0}", bound.prefill),
            format!("{:.1}", bound.decode),
        ]);
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_double() {
        assert_eq!(doubling(1), [1]);
        assert_eq!(doubling(2), [1, 2]);
        assert_eq!(doubling(6), [1, 2, 4, 6]);
    }

    #[test]
    fn bounds_follow_from_the_limits() {
        let config = preset(MODEL).unwrap().config;
        let peak = |unit| Peak { unit, registers: 5e11, loads: 1e12 };
        let limits = Limits {
            threads: 1,
            read_bandwidth: 42.4e9,
            peaks: vec![peak(Unit::F32Vectors), peak(Unit::Int8Vectors)],
        };
        let bound = Bound::of(&config, Format::BF16, Isa::Portable, &limits);
        // 4.17 GB of weights and 0.07 GB of keys and values; 2 × 1.86 G without the head, attention and a head on top.
        assert!((bound.decode - 10.0).abs() < 0.1, "{}", bound.decode);
        assert!((bound.prefill - 262.0).abs() < 3.0, "{}", bound.prefill);
    }
}
