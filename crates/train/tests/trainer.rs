//! The laws of a run: resumed is straight, accumulated is whole, the trainer's log-probability is the engine's.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kanana_checkpoint::{Checkpoint, CheckpointError, SaveOptions, TensorSpec, save};
use kanana_data::{ShardWriter, Tokens};
use kanana_engine::{Engine, EngineOptions, Request, SamplingParams};
use kanana_kernels::{Cpu, CpuOptions, CrossEntropy, Format, Kernels};
use kanana_model::{Batch, Config, LoadOptions, Transformer};
use kanana_tensor::Tensor;
use kanana_train::{NextToken, Objective, Recipe, Trainer, checkpoints};

const CONFIG: &str = r#"{"model_type": "llama", "vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 40,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 64, "hidden_act": "silu",
    "tie_word_embeddings": true}"#;

const MIXTURE: &str = r#"{"model_type": "mixtral", "vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 20,
    "num_local_experts": 6, "num_experts_per_tok": 2, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "max_position_embeddings": 64, "hidden_act": "silu", "tie_word_embeddings": true}"#;

/// A folder with a configuration, a tokenizer's name, and shards of documents that follow a rule.
struct World(tempfile::TempDir);

impl World {
    fn new() -> Self {
        World::of(CONFIG)
    }

    fn of(config: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("tokenizer")).unwrap();
        std::fs::write(root.path().join("tokenizer/tokenizer.json"), "{}").unwrap();
        std::fs::write(root.path().join("config.json"), config).unwrap();
        let world = World(root);
        world.shards("train", 0..60);
        world.shards("held-out", 60..66);
        world
    }

    /// Document i counts up by i mod 5 + 1, in a vocabulary of 60.
    fn shards(&self, name: &str, documents: std::ops::Range<u32>) {
        let (dir, tokenizer) = (self.0.path().join(name), self.0.path().join("tokenizer"));
        let mut writer = ShardWriter::create(&dir, &tokenizer, 61).unwrap();
        for i in documents {
            let ids: Vec<u32> = (0..20 + i % 7).map(|j| (i + j * (i % 5 + 1)) % 60).collect();
            let learnt = (0..ids.len()).map(|j| j > 0).collect();
            writer.push(&Tokens { ids, learnt }, u64::from(i), 40).unwrap();
        }
        writer.finish().unwrap();
    }

    /// A recipe with these fields of `[step]` and `[optimizer]`.
    fn recipe(&self, output: &str, precision: &str, step: &str, optimizer: &str) -> Recipe {
        let text = format!(
            "seed = 5\noutput = \"{output}\"\n[model]\nconfig = \"config.json\"\ntokenizer = \"tokenizer\"\n\
             precision = \"{precision}\"\n[step]\nsequence_length = 16\n{step}\n[optimizer]\n{optimizer}\n\
             [schedule]\nshape = \"cosine\"\nwarmup_steps = 2\n\
             [[stage]]\nname = \"first\"\nsteps = 5\n[[stage.source]]\nshards = \"train\"\nmax_epochs = 9\n\
             [[stage]]\nname = \"second\"\nsteps = 4\n[[stage.source]]\nshards = \"train\"\nmax_epochs = 9\n\
             [[evaluation]]\nname = \"ko\"\nshards = \"held-out\"\n[checkpoints]\nkeep = 2\n"
        );
        let path = self.0.path().join("recipe.toml");
        std::fs::write(&path, text).unwrap();
        Recipe::from_file(&path).unwrap()
    }
}

const WHOLE: &str = "batch_tokens = 128\nmicro_batch_tokens = 128";

/// In four batches, of which the loads are counted together.
const BIASED: &str = "batch_tokens = 128\nmicro_batch_tokens = 32\nrouter_bias_rate = 0.02";

fn cpu(threads: usize) -> Cpu {
    Cpu::new(CpuOptions { threads: Some(threads), isa: None })
}

/// Loss and gradient norm of every step left, and the parameters at the end, as bits.
fn finish(trainer: &mut Trainer<'_>) -> (Vec<[u64; 2]>, BTreeMap<String, Vec<u32>>) {
    let mut steps = Vec::new();
    while !trainer.is_done() {
        let report = trainer.step().unwrap();
        steps.push([report.loss.to_bits(), report.grad_norm.to_bits()]);
    }
    let bits = |tensor: &Tensor| tensor.as_slice::<f32>().unwrap().iter().map(|x| x.to_bits()).collect();
    let parameters = &trainer.parameters().learnt;
    (steps, parameters.iter().map(|(name, tensor)| (name.clone(), bits(tensor))).collect())
}

#[test]
fn a_resumed_run_is_the_straight_run_on_any_number_of_threads() {
    for (config, precision, step, optimizer) in [
        (CONFIG, "f32", WHOLE, "algorithm = \"muon\""),
        (CONFIG, "bf16", WHOLE, "learning_rate = 1e-2"),
        (MIXTURE, "bf16", BIASED, "learning_rate = 1e-2"),
        (CONFIG, "f32", WHOLE, "algorithm = \"muon\"\nstate = \"bf16\""),
    ] {
        let world = World::of(config);
        let kernels = cpu(1);
        let straight = finish(
            &mut Trainer::new(world.recipe("straight", precision, step, optimizer), &kernels, None).unwrap(),
        );
        let kernels = cpu(3);
        // Stopped within the first stage, and at the end of it.
        for stop in [3, 5] {
            let recipe = world.recipe(&format!("stopped-{stop}"), precision, step, optimizer);
            let mut trainer = Trainer::new(recipe.clone(), &kernels, None).unwrap();
            for _ in 0..stop {
                trainer.step().unwrap();
            }
            let needed = trainer.space_needed().unwrap();
            let place = trainer.save().unwrap();
            drop(trainer);
            let written = size(&place);
            assert!(
                written > needed && written < needed + 30_000,
                "{precision}: {needed} bytes announced, {written} with headers and texts"
            );
            let mut resumed = Trainer::new(recipe, &kernels, Some(&place)).unwrap();
            assert_eq!(resumed.steps(), stop);
            let (steps, parameters) = finish(&mut resumed);
            assert_eq!(steps, straight.0[stop as usize..], "{precision}: stopped after {stop}");
            assert!(parameters == straight.1, "{precision}: stopped after {stop}: the parameters");
        }
    }
}

/// Bytes of all files of a folder.
fn size(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let of = |entry: std::fs::DirEntry| match entry.path().is_dir() {
        true => size(&entry.path()),
        false => entry.metadata().unwrap().len(),
    };
    entries.map(of).sum()
}

/// Forty steps with running means in f32 and in bf16: the losses of the last ten are the same within one in a hundred.
#[test]
fn a_state_in_half_the_bytes_learns_as_well() {
    let world = World::new();
    let kernels = cpu(2);
    let run = |state: &str| {
        let optimizer = format!("learning_rate = 1e-2\nbetas = [0.9, 0.999]\nstate = \"{state}\"");
        let mut recipe = world.recipe(state, "f32", WHOLE, &optimizer);
        recipe.stages[0].steps = 36;
        let mut trainer = Trainer::new(recipe, &kernels, None).unwrap();
        let losses: Vec<f64> = (0..40).map(|_| trainer.step().unwrap().loss).collect();
        let saved = size(&trainer.save().unwrap().join("training/optimizer"));
        (losses[0], losses[30..].iter().sum::<f64>() / 10.0, saved)
    };
    let (whole, half) = (run("f32"), run("bf16"));
    println!("loss {:.4}, then {:.4} with f32 and {:.4} with bf16", whole.0, whole.1, half.1);
    assert!(whole.1 < whole.0 - 1.0, "it learns: {whole:?}");
    assert!((half.1 / whole.1 - 1.0).abs() < 0.01, "{whole:?}, {half:?}");
    assert!(half.2 < whole.2 * 6 / 10, "{} bytes saved, {} of f32", half.2, whole.2);
}

#[test]
fn accumulated_batches_are_one_batch() {
    let world = World::new();
    let kernels = cpu(2);
    let losses = |output: &str, step: &str| -> Vec<[f64; 2]> {
        let recipe = world.recipe(output, "f32", step, "learning_rate = 1e-2");
        let mut trainer = Trainer::new(recipe, &kernels, None).unwrap();
        let mut losses = Vec::new();
        while !trainer.is_done() {
            let report = trainer.step().unwrap();
            losses.push([report.loss, report.grad_norm]);
        }
        losses
    };
    let whole = losses("whole", WHOLE);
    let checkpointed = losses("checkpointed", &format!("{WHOLE}\ncheckpointing = true"));
    assert_eq!(whole, checkpointed, "blocks computed again give the same bits");
    for (whole, eighth) in whole.iter().zip(losses("eighths", "batch_tokens = 128\nmicro_batch_tokens = 16"))
    {
        for (a, b) in whole.iter().zip(eighth) {
            assert!((a - b).abs() < 2e-4 * a.abs(), "{whole:?}, in eighths {eighth:?}");
        }
    }
    assert!(whole[8][0] < whole[0][0] - 0.2, "it learns: {whole:?}");
}

#[test]
fn the_log_probability_of_the_trainer_is_that_of_the_engine() {
    for (config, step, precision, format) in [
        (CONFIG, WHOLE, "f32", Format::F32),
        (CONFIG, WHOLE, "bf16", Format::BF16),
        (MIXTURE, BIASED, "bf16", Format::BF16),
    ] {
        let world = World::of(config);
        let kernels: Arc<dyn Kernels> = Arc::new(cpu(2));
        let mut trainer =
            Trainer::new(world.recipe("run", precision, step, "learning_rate = 1e-2"), &*kernels, None)
                .unwrap();
        while !trainer.is_done() {
            trainer.step().unwrap();
        }
        let place = trainer.save().unwrap();
        let tokens: Vec<u32> = (0..14).map(|j| (7 + 3 * j) % 60).collect();

        // The trainer's: the loss of every token, one after the other.
        let model = trainer.model().unwrap();
        let hidden = model.forward(&*kernels, &Batch::packed(&[&tokens], true), None).unwrap();
        let logits = model.logits(&*kernels, &hidden).unwrap();
        let trained: Vec<f32> = (0..13)
            .map(|i| {
                let mut targets = vec![CrossEntropy::IGNORED; 14];
                targets[i] = tokens[i + 1];
                let options = CrossEntropy { scale: 1.0, label_smoothing: 0.0, z_loss: 0.0 };
                let mut objective = NextToken::new(&targets, options);
                objective.chunk(&*kernels, logits.slice_rows(i..i + 1).unwrap(), 0..1).unwrap();
                -objective.loss as f32
            })
            .collect();

        // The engine's, from the checkpoint, in steps of three tokens over a paged cache.
        let checkpoint = Checkpoint::open(&place).unwrap();
        let config = Config::from_dir(&place).unwrap();
        let options = LoadOptions { format, max_positions: 16 };
        let model = Arc::new(Transformer::load(&checkpoint, &config, &*kernels, &options).unwrap());
        let options =
            EngineOptions { max_batched_tokens: 3, ..EngineOptions::for_context(16, format.kv_format()) };
        let mut engine = Engine::new(model, Arc::clone(&kernels), options).unwrap();
        let params =
            SamplingParams { max_tokens: Some(0), prompt_logprobs: Some(0), ..SamplingParams::default() };
        engine.add(Request { prompt: tokens.clone(), params }).unwrap();
        let mut scored = Vec::new();
        while !engine.is_idle() {
            for output in engine.step().unwrap() {
                scored.extend(output.prompt_logprobs.into_iter().flatten().flatten());
            }
        }
        assert_eq!(scored.len(), 13);
        for (i, (a, b)) in trained.iter().zip(scored.iter().map(|scored| scored.chosen.logprob)).enumerate() {
            // The same logits, bit by bit; their normaliser is summed by another op.
            assert!((a - b).abs() <= 1e-6 * a.abs().max(1.0), "{precision} token {i}: {a}, engine {b}");
        }
    }
}

/// Routers that prefer one expert for every token: the same run with and without a bias, fifty steps.
#[test]
fn the_loads_of_skewed_routers_become_even() {
    const BIAS: &str = "model.layers.1.block_sparse_moe.gate.e_score_correction_bias";
    let world = World::of(MIXTURE);
    let kernels = cpu(2);
    let run = |output: &str, rate: f32, steps: usize, checkpointing: bool| {
        let step = format!(
            "batch_tokens = 128\nmicro_batch_tokens = 64\nrouter_load_balance = 0.0\n\
             router_bias_rate = {rate}\ncheckpointing = {checkpointing}"
        );
        let mut recipe = world.recipe(output, "f32", &step, "learning_rate = 1e-4");
        recipe.stages[0].steps = 50;
        let trainer = Trainer::new(recipe.clone(), &kernels, None).unwrap();
        let start = world.0.path().join("skewed");
        if !start.exists() {
            // Every embedding and the router's first row share a direction.
            let learnt = trainer.parameters().learnt.iter().filter(|(name, _)| !name.ends_with("bias"));
            let tensors: BTreeMap<String, Tensor> = learnt.map(skewed).collect();
            let specs: Vec<TensorSpec> = tensors.iter().map(|(name, x)| TensorSpec::of(name, x)).collect();
            let fetch = |name: &str| Ok::<_, CheckpointError>(tensors[name].clone());
            save(&start, &specs, fetch, &SaveOptions::default()).unwrap();
            std::fs::write(start.join("config.json"), MIXTURE).unwrap();
        }
        recipe.model.config = None;
        recipe.model.checkpoint = Some(start);
        let mut trainer = Trainer::new(recipe, &kernels, None).unwrap();
        let violations: Vec<_> = (0..steps).map(|_| trainer.step().unwrap().max_violation).collect();
        (violations, trainer.save().unwrap())
    };
    let has_bias = |place: &Path| Checkpoint::open(place).unwrap().get(BIAS).is_some();

    let (violations, place) = run("even", 0.005, 50, false);
    let mean = |of: &[Option<f64>]| of.iter().map(|x| x.unwrap()).sum::<f64>() / of.len() as f64;
    let (first, last) = (mean(&violations[..5]), mean(&violations[40..]));
    // Without a bias that does anything, learning alone leaves it as it is.
    let alone = mean(&run("alone", 1e-9, 20, false).0[10..]);
    println!("MaxVio: {first:.2} at first, {last:.2} at the end, {alone:.2} without");
    assert!(
        first > 1.5 && last < 0.4 * first && last < 0.4 * alone,
        "{first}, {last}, {alone}: {violations:?}"
    );
    assert!(has_bias(&place), "it is in the checkpoint");
    assert_eq!(
        violations[..12],
        run("again", 0.005, 12, true).0,
        "a block that is computed again is counted once"
    );
    let (violations, place) = run("without", 0.0, 1, false);
    assert!(violations.iter().all(Option::is_none) && !has_bias(&place), "no rate, no bias");
}

fn skewed((name, tensor): (&String, &Tensor)) -> (String, Tensor) {
    let mut values = tensor.as_slice::<f32>().unwrap().to_vec();
    let width = tensor.row_len();
    match name {
        name if name.contains("embed_tokens") => values.iter_mut().for_each(|x| *x += 0.02),
        name if name.ends_with(".gate.weight") => values[..width].iter_mut().for_each(|x| *x += 0.05),
        _ => {}
    }
    (name.clone(), Tensor::from_slice(tensor.shape(), &values).unwrap())
}

#[test]
fn whatever_is_killed_leaves_whole_checkpoints() {
    let world = World::new();
    let kernels = cpu(1);
    let recipe = world.recipe("run", "f32", WHOLE, "learning_rate = 1e-2");
    let mut trainer = Trainer::new(recipe.clone(), &kernels, None).unwrap();
    for _ in 0..3 {
        trainer.step().unwrap();
        trainer.save().unwrap();
    }
    let output = world.0.path().join("run");
    // What a kill in the middle of a save leaves.
    std::fs::create_dir_all(output.join("step-00000004.partial/training")).unwrap();
    let names = |output: &Path| -> Vec<String> {
        let paths = checkpoints(output).unwrap();
        paths.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
    };
    assert_eq!(names(&output), ["step-00000002", "step-00000003"], "two are kept, halves do not count");
    trainer.step().unwrap();
    trainer.save().unwrap();
    assert_eq!(names(&output), ["step-00000003", "step-00000004"]);
    assert!(!output.join("step-00000004.partial").exists());

    let mut other = recipe.clone();
    other.optimizer.learning_rate = 0.5;
    let newest = output.join("step-00000004");
    let error = Trainer::new(other, &kernels, Some(&newest)).err().unwrap().to_string();
    assert!(error.contains("optimizer changed"), "{error}");
    std::fs::write(newest.join("training/state.json"), "{").unwrap();
    let error = Trainer::new(recipe, &kernels, Some(&newest)).err().unwrap().to_string();
    assert!(error.contains("state.json"), "{error}");
}

const FULL_DISK_FOLDER: &str = "KANANA_TEST_FULL_DISK_FOLDER";

#[test]
#[ignore = "needs a disk of its own: the next test runs it so"]
fn full_disk_child() {
    let disk = PathBuf::from(std::env::var_os(FULL_DISK_FOLDER).unwrap());
    let world = World::new();
    let kernels = cpu(1);
    let mut recipe = world.recipe("run", "f32", WHOLE, "learning_rate = 1e-2");
    recipe.output = disk.join("run");
    let mut trainer = Trainer::new(recipe.clone(), &kernels, None).unwrap();
    trainer.step().unwrap();
    let first = trainer.save().unwrap();
    // Room for a part of the next one.
    let room = trainer.space_needed().unwrap() / 4;
    let filler = disk.join("filler");
    std::fs::write(&filler, vec![1; (DISK_BYTES - size(&disk) - room) as usize]).unwrap();

    trainer.step().unwrap();
    let error = trainer.save().unwrap_err().to_string();
    assert!(error.contains("no room on the disk"), "{error}");
    assert_eq!(
        checkpoints(&recipe.output).unwrap(),
        std::slice::from_ref(&first),
        "the last one is left, and no half"
    );
    assert_eq!(std::fs::read_dir(&recipe.output).unwrap().count(), 1, "the room is given back");
    let resumed = Trainer::new(recipe.clone(), &kernels, Some(&first)).unwrap();
    assert_eq!(resumed.steps(), 1);
    // With room again, the same trainer saves.
    std::fs::remove_file(filler).unwrap();
    let second = trainer.save().unwrap();
    assert_eq!(Trainer::new(recipe, &kernels, Some(&second)).unwrap().steps(), 2);
    println!("the save was refused");
}

/// Of the disk of the test below; blocks and folders take some of it.
const DISK_BYTES: u64 = 2 << 20;

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_the_last_checkpoint() {
    use std::ffi::OsStr;
    use std::process::Command;
    let dir = tempfile::tempdir().unwrap();
    let mounted = |then: &str, arguments: &[&OsStr]| {
        let script = format!("mount -t tmpfs -o size={DISK_BYTES} tmpfs \"${FULL_DISK_FOLDER}\" && {then}");
        Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script, "sh"])
            .args(arguments)
            .env(FULL_DISK_FOLDER, dir.path())
            .output()
    };
    if !mounted("true", &[]).is_ok_and(|output| output.status.success()) {
        println!("skipped: a tmpfs cannot be mounted here");
        return;
    }
    let program = std::env::current_exe().unwrap();
    let test = ["--exact", "full_disk_child", "--ignored", "--nocapture"].map(OsStr::new);
    let output = mounted("exec \"$@\"", &[&[program.as_os_str()], &test[..]].concat()).unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && told.contains("the save was refused"),
        "{told}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn what_does_not_fit_is_found_before_the_first_step() {
    let world = World::new();
    let kernels = cpu(1);
    let recipe = world.recipe("run", "f32", WHOLE, "");
    let check = |change: &dyn Fn(&mut Recipe), expected: &str| {
        let mut recipe = recipe.clone();
        change(&mut recipe);
        let error = Trainer::new(recipe, &kernels, None).err().expect("an error").to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(&|recipe| recipe.evaluations[0].shards = world.0.path().join("train"), "60 documents of");
    check(&|recipe| recipe.step.router_bias_rate = 1e-3, "llama is no mixture of experts");
    check(&|recipe| recipe.stages[1].sources[0].max_epochs = 0.1, "second");
    check(&|recipe| recipe.stages[0].sources[0].shards = world.0.path().join("nothing"), "nothing");
    std::fs::write(world.0.path().join("tokenizer/tokenizer.json"), "{ }").unwrap();
    check(&|_| (), "another tokenizer");
}
