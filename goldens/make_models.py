"""Makes the golden files of the model crate: tiny random models, and what transformers computes with them.

    python -m venv .venv && .venv/bin/pip install -r goldens/requirements.txt
    .venv/bin/python goldens/make_models.py crates/model/tests/goldens          # all of them, some seconds
    .venv/bin/python goldens/make_models.py crates/model/tests/goldens mixtral  # one of them

Every model becomes a folder in the layout of the Hub (`config.json`, `model.safetensors`) with two files beside:

- `expected.json`: the token ids and positions of two sequences, the 16 tokens that greedy decoding adds to the first,
  the versions that made the files, and how sure the choices were (`greedy_margin`).
- `expected.safetensors`: `{s}.embed_tokens`, `{s}.layers.{i}.self_attn`, `{s}.layers.{i}.mlp`, `{s}.layers.{i}`,
  `{s}.norm` and `{s}.logits` of sequence `s`, f32; `{s}.logits_bf16` of the same model loaded as bf16.
  Sequences run one by one, without padding, with eager attention, on one thread, with deterministic algorithms.

The weights are random numbers from fixed seeds and belong to nobody. Sizes are awkward on purpose. What the script
refuses to write: a greedy choice that rounding could flip, a continuation that says nothing, a folder over 150 KB.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import shutil

import torch
import transformers
from safetensors.torch import save_file
from transformers import (
    LlamaConfig,
    MixtralConfig,
    PreTrainedConfig,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

PROMPT_LENGTHS = (17, 5)
GREEDY_TOKENS = 16
FOLDER_LIMIT = 150_000  # bytes


@dataclasses.dataclass
class Golden:
    """One folder: a model and how it is run."""

    name: str
    config: PreTrainedConfig
    seed: int
    dtype: torch.dtype = torch.bfloat16  # of the stored weights
    rope_key: str = "rope_parameters"  # of transformers 5, or "rope_scaling" with "type" or "rope_type" of before
    rope_type_key: str = "rope_type"
    positions: tuple[range | list[int], ...] | None = None  # of each sequence; from 0 when not given
    bidirectional: bool = False  # also without a causal mask, as embedding models run
    shards: str | None = None  # a second folder with the same model, in shards of this size


def rope(theta: float, rope_type: str = "default", **options) -> dict:
    return {"rope_theta": theta, "rope_type": rope_type, **options}


# transformers 5.23 refuses a hidden size that is no multiple of the heads, which the published 2.1B has.
LlamaConfig.__class_validators__ = [
    check for check in LlamaConfig.__class_validators__ if check.__name__ != "validate_architecture"]


def goldens() -> list[Golden]:
    def llama(**changes) -> LlamaConfig:
        sizes = dict(vocab_size=101, hidden_size=20, intermediate_size=45, num_hidden_layers=2, num_attention_heads=3,
                     num_key_value_heads=1, head_dim=12, max_position_embeddings=64, rms_norm_eps=1e-5,
                     tie_word_embeddings=True, rope_parameters=rope(10000.0))
        return LlamaConfig(**(sizes | changes))

    mixture = dict(vocab_size=89, hidden_size=18, num_hidden_layers=2, max_position_embeddings=64, rms_norm_eps=1e-6)
    return [
        Golden("llama-tied", seed=801, dtype=torch.float32, rope_key="rope_scaling", bidirectional=True, config=llama(
            vocab_size=131, hidden_size=28, intermediate_size=77, num_attention_heads=6, num_key_value_heads=2,
            head_dim=10, rope_parameters=rope(500000.0))),
        Golden("llama-biased", seed=202, shards="20KB", config=llama(
            vocab_size=97, hidden_size=24, intermediate_size=35, num_attention_heads=4, num_key_value_heads=4,
            head_dim=6, tie_word_embeddings=False, attention_bias=True, mlp_bias=True)),
        Golden("llama-yarn", seed=403, rope_key="rope_scaling", rope_type_key="type", config=llama(
            head_dim=16, max_position_embeddings=64, rope_parameters=rope(
                1000.0, "yarn", factor=4.0, original_max_position_embeddings=16, beta_fast=2.0, beta_slow=0.25))),
        Golden("llama-yarn-options", seed=304, config=llama(
            head_dim=16, max_position_embeddings=64, rope_parameters=rope(
                1000.0, "yarn", factor=4.0, original_max_position_embeddings=16, beta_fast=2.0, beta_slow=0.25,
                attention_factor=1.3, truncate=False))),
        # The published 128K setting of Kanana 1.5, at its own theta and head_dim, beyond the 32,768 it was trained for.
        # The second sequence has gaps, so that its attention spans the whole range. Angles there are as transformers
        # rounds them to f32, in steps of 0.004 radians: other roundings are visible.
        Golden("llama-yarn-128k", seed=1105, rope_key="rope_scaling", config=llama(
            hidden_size=16, intermediate_size=19, num_hidden_layers=1, num_attention_heads=2, head_dim=128,
            max_position_embeddings=131072, rope_parameters=rope(
                8000000.0, "yarn", factor=4.4, original_max_position_embeddings=32768, beta_fast=64, beta_slow=2)),
            positions=(range(40000, 40000 + PROMPT_LENGTHS[0]), [0, 9, 32767, 32768, 43210])),
        Golden("llama-llama3", seed=6, rope_key="rope_scaling", config=llama(
            head_dim=16, rope_parameters=rope(500.0, "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                              original_max_position_embeddings=32))),
        Golden("llama-linear", seed=907, dtype=torch.float16, rope_key="rope_scaling", rope_type_key="type",
               config=llama(rope_parameters=rope(10000.0, "linear", factor=2.5))),
        Golden("llama-dynamic", seed=108, config=llama(
            max_position_embeddings=8, rope_parameters=rope(10000.0, "dynamic", factor=2.0))),
        Golden("mixtral", seed=109, rope_key="rope_scaling", config=MixtralConfig(
            **mixture, intermediate_size=21, num_attention_heads=6, num_key_value_heads=2, head_dim=8,
            num_local_experts=5, num_experts_per_tok=2, tie_word_embeddings=False, rope_parameters=rope(1e6))),
        Golden("qwen3-moe", seed=210, rope_key="rope_scaling", config=Qwen3MoeConfig(
            **mixture, intermediate_size=33, moe_intermediate_size=13, num_attention_heads=4, num_key_value_heads=2,
            head_dim=10, num_experts=7, num_experts_per_tok=3, norm_topk_prob=True, tie_word_embeddings=False,
            rope_parameters=rope(10000.0))),
        Golden("qwen3-moe-some-dense", seed=11, config=Qwen3MoeConfig(
            **(mixture | dict(num_hidden_layers=4)), intermediate_size=23, moe_intermediate_size=9,
            num_attention_heads=3, num_key_value_heads=1, head_dim=8, num_experts=6, num_experts_per_tok=2,
            norm_topk_prob=False, mlp_only_layers=[1], decoder_sparse_step=2, tie_word_embeddings=True,
            rope_parameters=rope(10000.0))),
        Golden("qwen2-moe", seed=112, config=Qwen2MoeConfig(
            **mixture, intermediate_size=33, moe_intermediate_size=11, shared_expert_intermediate_size=29,
            num_attention_heads=3, num_key_value_heads=3, num_experts=5, num_experts_per_tok=2, norm_topk_prob=False,
            tie_word_embeddings=False, rope_parameters=rope(10000.0))),
        Golden("qwen3-tied", seed=13, config=Qwen3Config(
            vocab_size=103, hidden_size=22, intermediate_size=51, num_hidden_layers=2, num_attention_heads=3,
            num_key_value_heads=1, head_dim=14, max_position_embeddings=64, tie_word_embeddings=True,
            rope_parameters=rope(1e6))),
    ]


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int) -> None:
    """Fills every parameter so that each one shows in the output: norms are not one, biases are not zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            parameter.copy_(1.0 + 0.3 * noise)
        elif name.endswith("bias"):
            parameter.copy_(0.3 * noise)
        elif "embed_tokens" in name:
            parameter.copy_(0.7 * noise)
        else:
            parameter.copy_(noise * 1.6 / math.sqrt(parameter.shape[-1]))


def save(golden: Golden, folder: pathlib.Path) -> None:
    model = transformers.AutoModelForCausalLM.from_config(golden.config)
    randomise(model, golden.seed)
    model.to(golden.dtype)
    for target, size in ((folder, "1GB"), (folder.with_name(f"{folder.name}-sharded"), golden.shards)):
        if size is not None:
            model.save_pretrained(target, max_shard_size=size)
            (target / "generation_config.json").unlink(missing_ok=True)
            if golden.rope_key == "rope_scaling":
                spell_as_before(target / "config.json", golden.rope_type_key)


def spell_as_before(path: pathlib.Path, rope_type_key: str) -> None:
    """Rewrites a config.json to the spelling of transformers 4, which the published Kanana checkpoints have."""
    config = json.loads(path.read_text())
    parameters = config.pop("rope_parameters")
    config["rope_theta"] = parameters.pop("rope_theta")
    rope_type = parameters.pop("rope_type")
    config["rope_scaling"] = None if rope_type == "default" else {rope_type_key: rope_type, **parameters}
    config["torch_dtype"] = config.pop("dtype")
    if config["model_type"] == "qwen3_moe":
        config["num_experts"] = config.pop("num_local_experts")
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def load(folder: pathlib.Path, dtype: torch.dtype) -> torch.nn.Module:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", experts_implementation="eager")
    return model.eval()


def run(model, ids, positions, **options):
    # A mask of ones keeps transformers from reading a gap in the positions as the border of a packed document.
    options.setdefault("attention_mask", torch.ones(1, len(ids), dtype=torch.long))
    return model(input_ids=torch.tensor([ids]), position_ids=torch.tensor([positions]), **options)


@torch.no_grad()
def trace(model, ids: list[int], positions: list[int]) -> dict[str, torch.Tensor]:
    """Named intermediates and logits of one sequence."""
    seen = {}

    def note(name):
        def hook(_module, _inputs, output):
            seen[name] = (output[0] if isinstance(output, tuple) else output).reshape(len(ids), -1).clone()

        return hook

    trunk = model.model
    hooks = [trunk.embed_tokens.register_forward_hook(note("embed_tokens")),
             trunk.norm.register_forward_hook(note("norm"))]
    for i, layer in enumerate(trunk.layers):
        hooks += [layer.self_attn.register_forward_hook(note(f"layers.{i}.self_attn")),
                  layer.mlp.register_forward_hook(note(f"layers.{i}.mlp")),
                  layer.register_forward_hook(note(f"layers.{i}"))]
    seen["logits"] = run(model, ids, positions, use_cache=False).logits[0].clone()
    for hook in hooks:
        hook.remove()
    return seen


@torch.no_grad()
def continue_greedily(model, ids: list[int], positions: list[int]) -> tuple[list[int], float]:
    """The ids greedy decoding adds, and the smallest lead of a chosen logit over the next, as a share of the largest.

    With a cache, token by token; a dynamic rotary embedding changes its frequencies as the text grows, and is only
    well defined when everything is computed anew.
    """
    cached = model.config.rope_parameters["rope_type"] != "dynamic"
    cache = transformers.DynamicCache(config=model.config) if cached else None
    ids, positions, chosen, margin = list(ids), list(positions), [], math.inf
    for step in range(GREEDY_TOKENS):
        new = 1 if cached and step > 0 else len(ids)
        logits = model(
            input_ids=torch.tensor([ids[-new:]]), position_ids=torch.tensor([positions[-new:]]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long), past_key_values=cache, use_cache=cached,
        ).logits[0, -1]
        first, second = logits.topk(2).values.tolist()
        margin = min(margin, (first - second) / logits.abs().max().item())
        chosen.append(int(logits.argmax()))
        ids.append(chosen[-1])
        positions.append(positions[-1] + 1)
    return chosen, margin


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got.float() - expected.float()).abs().max() / expected.float().abs().max()).item()


@torch.no_grad()
def make(golden: Golden, root: pathlib.Path) -> None:
    folder = root / golden.name
    for old in (folder, folder.with_name(f"{folder.name}-sharded")):
        shutil.rmtree(old, ignore_errors=True)
    save(golden, folder)

    generator = torch.Generator().manual_seed(1000 + golden.seed)
    sequences = [torch.randint(golden.config.vocab_size, (n,), generator=generator).tolist() for n in PROMPT_LENGTHS]
    positions = [list(p) for p in golden.positions or map(range, PROMPT_LENGTHS)]

    model, model_bf16 = load(folder, torch.float32), load(folder, torch.bfloat16)
    for key, value in golden.config.rope_parameters.items():
        assert model.config.rope_parameters[key] == value, f"{golden.name}: {key} was lost in config.json"
    tensors = {}
    for s, (ids, at) in enumerate(zip(sequences, positions)):
        tensors |= {f"{s}.{name}": value for name, value in trace(model, ids, at).items()}
        tensors[f"{s}.logits_bf16"] = run(model_bf16, ids, at).logits[0].clone()
        if golden.bidirectional:
            everything = torch.zeros(1, 1, len(ids), len(ids))
            tensors[f"{s}.bidirectional.norm"] = model.model(
                input_ids=torch.tensor([ids]), position_ids=torch.tensor([at]), attention_mask=everything,
            ).last_hidden_state[0].clone()
    greedy, margin = continue_greedily(model, sequences[0], positions[0])

    bf16_error = max(error(tensors[f"{s}.logits_bf16"], tensors[f"{s}.logits"]) for s in range(len(sequences)))
    assert margin > 0.01, f"{golden.name}: greedy margin {margin:.4f}: rounding could flip a choice, change the seed"
    assert len(set(greedy)) >= 5, f"{golden.name}: the continuation {greedy} says too little, change the seed"
    assert bf16_error < 0.05, f"{golden.name}: bf16 is {bf16_error:.3f} off, an expert has flipped, change the seed"

    save_file({k: v.contiguous() for k, v in sorted(tensors.items())}, folder / "expected.safetensors")
    (folder / "expected.json").write_text(json.dumps({
        "sequences": sequences,
        "positions": positions,
        "greedy": greedy,
        "greedy_margin": round(margin, 4),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }) + "\n")
    size = sum(f.stat().st_size for f in folder.iterdir())
    assert size < FOLDER_LIMIT, f"{golden.name}: {size} bytes"
    print(f"{golden.name}: {size} bytes, greedy {greedy}, margin {margin:.3f}, bf16 {bf16_error:.1e}")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("root", type=pathlib.Path, help="the folder to write the models' folders into")
    arguments.add_argument("names", nargs="*", help="which models; all when none is named")
    options = arguments.parse_args()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for golden in goldens():
        if not options.names or golden.name in options.names:
            make(golden, options.root)


if __name__ == "__main__":
    main()
