//! The same weights in llama.cpp: the files it reads, and what it makes of them, in turns with us.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kanana_checkpoint::gguf::{Export, GgufFormat};
use kanana_checkpoint::{Checkpoint, SaveOptions, TensorSpec, save};
use kanana_kernels::Format;
use kanana_model::{Config, cost, expected_tensors, random_tensor};
use kanana_tensor::DType;
use tempfile::TempDir;

use super::interruption::Interruption;
use super::llama_bench::{LlamaBench, Test};
use super::measure::{Case, median};
use super::subject::Subject;
use crate::disk;
use crate::hints::failure;
use crate::load::is_gguf;
use crate::output::{self, bytes};
use crate::progress::Progress;

/// A model file that llama-bench is run on.
pub struct Peer {
    /// The type of its weights, or the name of the file that was given.
    pub name: String,
    pub path: PathBuf,
    pub bytes: u64,
    pub peak_memory: Option<u64>, // bytes
}

/// Tokens per second.
#[derive(Clone, Copy, Debug)]
pub struct PeerRates {
    pub prefill: f64,
    pub decode: f64,
}

impl PeerRates {
    pub fn median(rounds: &[PeerRates]) -> Self {
        let of = |field: fn(&PeerRates) -> f64| median(rounds.iter().map(field).collect());
        PeerRates { prefill: of(|rates| rates.prefill), decode: of(|rates| rates.decode) }
    }
}

/// llama-bench and its files, which are removed with this.
pub struct Peers {
    pub bench: LlamaBench,
    pub build: String,
    pub peers: Vec<Peer>,
    _folder: Option<TempDir>,
}

impl Peers {
    /// Finds the program and writes what it will read, unless that is a GGUF file already.
    pub fn prepare(
        program: &str,
        subject: &Subject,
        format: Format,
        seed: u64,
        interruption: &Interruption,
    ) -> Result<Self> {
        if subject.config().quantization.is_some() {
            return Err(failure(
                format_args!("{} is stored in {format}, which llama.cpp does not read", subject.name()),
                format_args!("give the model that it was made from, with --dtype {format}"),
            ));
        }
        let bench = LlamaBench::find(program)?;
        let (peers, folder) = match subject {
            Subject::Checkpoint(source) if is_gguf(&source.dir) => (vec![Peer::of(None, &source.dir)?], None),
            _ => {
                let folder = TempDir::new().context("cannot make a temporary folder")?;
                (write(folder.path(), subject, format, seed, interruption)?, Some(folder))
            }
        };
        Ok(Peers { bench, build: "unknown".to_owned(), peers, _folder: folder })
    }

    /// Runs a case once on every file: the prompt, then tokens behind it.
    pub fn round(
        &mut self,
        threads: usize,
        case: &Case,
        interruption: &Interruption,
    ) -> Result<Vec<PeerRates>> {
        let prefill = Test { threads, prompt: case.prefill, generate: 0, depth: case.depth };
        let decode = Test { threads, prompt: 0, generate: case.decode, depth: case.depth + case.prefill };
        let mut rates = Vec::new();
        for peer in &mut self.peers {
            let [prefill, decode] = [prefill, decode].map(|test| -> Result<f64> {
                let sample = self.bench.measure(&peer.path, test, interruption)?;
                peer.peak_memory = peer.peak_memory.max(sample.peak_memory);
                self.build = sample.build;
                Ok(sample.tokens_per_s)
            });
            rates.push(PeerRates { prefill: prefill?, decode: decode? });
        }
        Ok(rates)
    }
}

impl Peer {
    fn of(format: Option<GgufFormat>, path: &Path) -> Result<Self> {
        let metadata = std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
        let file_name = || path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let name = format.map_or_else(file_name, |format| format.name().to_owned());
        Ok(Peer { name, path: path.to_path_buf(), bytes: metadata.len(), peak_memory: None })
    }
}

/// What llama.cpp has that is nearest.
fn nearest(format: Format) -> &'static [GgufFormat] {
    match format {
        Format::F32 => &[GgufFormat::F32],
        Format::BF16 => &[GgufFormat::BF16],
        Format::Q8 => &[GgufFormat::Q8_0],
        Format::Q4 => &[GgufFormat::Q4_0, GgufFormat::Q4_K_M],
    }
}

/// The weights of a subject as files in a folder.
fn write(
    folder: &Path,
    subject: &Subject,
    format: Format,
    seed: u64,
    interruption: &Interruption,
) -> Result<Vec<Peer>> {
    let config = subject.config();
    let formats = nearest(format);
    let is_random = matches!(subject, Subject::Random(_));
    let weights = if is_random { cost::weight_bytes(config, full(format)) } else { 0 };
    check_space(folder, weights + formats.iter().map(|&format| file_bytes(config, format)).sum::<u64>())?;

    let random = folder.join("random");
    let checkpoint = match subject {
        Subject::Checkpoint(source) => &Checkpoint::open(&source.dir)?,
        Subject::Random(_) => {
            output::note(format_args!("writing the weights for llama-bench to {}", folder.display()));
            write_random(&random, config, full(format).kv_format().dtype(), seed, interruption)?;
            &Checkpoint::open(&random)?
        }
    };
    let config_json = config.to_json();
    let mut peers = Vec::new();
    for &format in formats {
        interruption.check()?;
        let path = folder.join(format!("{}.gguf", format.name()));
        let name = subject.name();
        let export = Export { checkpoint, config: &config_json, tokenizing: None, name, format };
        output::note(format_args!("converting to {}", format.name()));
        let progress = Progress::of_converting(cost::parameters(config).total);
        export.write(&path, &mut |done| progress.set(done))?;
        peers.push(Peer::of(Some(format), &path)?);
    }
    if is_random {
        std::fs::remove_dir_all(&random).with_context(|| format!("cannot remove {}", random.display()))?;
    }
    Ok(peers)
}

/// What random weights are drawn in before they are quantised.
fn full(format: Format) -> Format {
    if format == Format::F32 { Format::F32 } else { Format::BF16 }
}

/// A checkpoint with the weights of [`kanana_model::Transformer::random`].
fn write_random(
    folder: &Path,
    config: &Config,
    dtype: DType,
    seed: u64,
    interruption: &Interruption,
) -> Result<()> {
    let tensors = expected_tensors(config);
    let dtype_of = |shape: &[usize]| if shape.len() == 2 { dtype } else { DType::F32 };
    let specs: Vec<TensorSpec> = tensors
        .iter()
        .map(|(name, shape)| TensorSpec { name: name.clone(), dtype: dtype_of(shape), shape: shape.clone() })
        .collect();
    let fetch = |name: &str| {
        interruption.check()?;
        let (_, shape) = tensors
            .iter()
            .find(|(other, _)| other == name)
            .expect("only announced tensors are fetched: this is a bug");
        Ok::<_, anyhow::Error>(random_tensor(name, shape, dtype, seed)?)
    };
    save(folder, &specs, fetch, &SaveOptions::default())?;
    Ok(())
}

/// About what a file takes, and no less where rows are whole blocks.
fn file_bytes(config: &Config, format: GgufFormat) -> u64 {
    let counts = cost::parameters(config);
    match format {
        GgufFormat::F32 => 4 * counts.total,
        GgufFormat::BF16 | GgufFormat::F16 => 2 * counts.total,
        GgufFormat::Q8_0 => counts.total / 32 * 34,
        // The embedding in 6.6 bits, and of a mixture some of the rest.
        _ => counts.embedding / 32 * 27 + counts.non_embedding() / 32 * 21,
    }
}

fn check_space(folder: &Path, needed: u64) -> Result<()> {
    match disk::free_space(folder) {
        Some(free) if free < needed => Err(failure(
            format_args!(
                "the files for llama-bench take {}, but {} has {} free",
                bytes(needed),
                folder.display(),
                bytes(free)
            ),
            "free some space, name another folder with TMPDIR, or give a GGUF file with --model",
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use kanana_model::preset;

    use super::*;

    #[test]
    fn too_little_space_is_told_before_anything_is_written() {
        let folder = TempDir::new().unwrap();
        check_space(folder.path(), 1).unwrap();
        let error = check_space(folder.path(), u64::MAX).unwrap_err();
        assert!(error.to_string().contains("free"), "{error}");
    }

    #[test]
    fn files_are_about_as_large_as_announced() {
        let config = preset("tiny").unwrap().config;
        let folder = TempDir::new().unwrap();
        let subject = Subject::Random(Box::new(preset("tiny").unwrap()));
        let peers = write(folder.path(), &subject, Format::BF16, 1, &Interruption::none()).unwrap();
        let announced = file_bytes(&config, GgufFormat::BF16);
        // Norms are f32, and there is a header.
        assert!((announced..announced + 10_000).contains(&peers[0].bytes), "{}", peers[0].bytes);
        assert!(!folder.path().join("random").exists());
        // `kanana convert` of the 2.1B: 1,385,674,912 bytes.
        let large = file_bytes(&preset("nano-2.1b").unwrap().config, GgufFormat::Q4_K_M);
        assert!((1_385_674_912..1_450_000_000).contains(&large), "{large}");
    }
}
