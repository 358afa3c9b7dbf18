"""Makes the golden GGUF files, with llama.cpp's own Python package, and what it reads back from them.

    python -m venv .venv && .venv/bin/pip install -r crates/checkpoint/tests/goldens/requirements.txt
    .venv/bin/python crates/checkpoint/tests/goldens/make_gguf.py crates/checkpoint/tests/goldens

- `types.gguf` has one tensor of every type that is read, `types/model.safetensors` the same as f32. The blocks are
  random bytes, so that every bit of a layout counts; only their f16 scales are kept finite.
- `llama.gguf` is a tiny random model with llama3 rope scaling and a small byte-level vocabulary, laid out as llama.cpp's
  converter does it: rows of queries and keys interleaved, sizes reversed. `llama/` is the folder it stands for.

The numbers are random from a fixed seed, the vocabulary is learnt from the sentence below: both belong to nobody.
"""

import json
import pathlib
import sys

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

# Where the f16 scales stand in a block.
HALVES = {
    Type.Q8_0: [0], Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q5_1: [0, 2], Type.Q2_K: [80, 82],
    Type.Q3_K: [108], Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208], Type.IQ4_NL: [0], Type.IQ4_XS: [0],
}
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
         r"|\s+(?!\S)|\s+")
SENTENCE = "the banana and the kanana 바나나 바나나"
TEMPLATE = "{% for message in messages %}<|start|>{{ message['content'] }}<|end|>{% endfor %}"

D, LAYERS, N, K, H, F = 8, 2, 4, 2, 6, 12
ROPE = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64}


def make_types(folder: pathlib.Path, rng: np.random.Generator) -> None:
    writer = gguf.GGUFWriter(folder / "types.gguf", "llama")
    writer.add_head_count(1)
    expected = {}
    for kind in (Type.F32, Type.F16, Type.BF16):
        values = rng.normal(size=(2, 256)).astype(np.float32)
        stored = gguf.quants.quantize(values, kind)
        writer.add_tensor(f"{kind.name}.weight", stored, raw_dtype=kind)
        expected[f"{kind.name}.weight"] = gguf.quants.dequantize(stored, kind).astype(np.float32)
    for kind, places in HALVES.items():
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = rng.integers(0, 256, size=(2 * 256 // elements, size), dtype=np.uint8)
        for place in places:
            scales = (rng.normal(size=len(blocks)) * 0.01).astype(np.float16)
            blocks[:, place:place + 2] = scales[:, None].view(np.uint8)
        stored = blocks.reshape(2, -1)
        writer.add_tensor(f"{kind.name}.weight", stored, raw_dtype=kind)
        expected[f"{kind.name}.weight"] = gguf.quants.dequantize(stored, kind).astype(np.float32)
    finish(writer)
    (folder / "types").mkdir(exist_ok=True)
    save_file(expected, folder / "types" / "model.safetensors")


def make_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator([SENTENCE], trainers.BpeTrainer(
        vocab_size=268, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<|begin|>", "<|end|>", "<|start|>")])
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    begin = tokenizer.token_to_id("<|begin|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", pair="<|begin|> $A <|begin|>:1 $B:1", special_tokens=[("<|begin|>", begin)])
    return tokenizer


def interleave(matrix: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head: first half and second half become neighbours."""
    return matrix.reshape(heads, 2, -1, *matrix.shape[1:]).swapaxes(1, 2).reshape(matrix.shape)


def make_llama(folder: pathlib.Path, rng: np.random.Generator) -> None:
    tokenizer = make_tokenizer()
    vocab_size = tokenizer.get_vocab_size() + 2  # two rows without a token
    writer = gguf.GGUFWriter(folder / "llama.gguf", "llama")
    writer.add_name("tiny")
    writer.add_context_length(256)
    writer.add_embedding_length(D)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(F)
    writer.add_head_count(N)
    writer.add_head_count_kv(K)
    writer.add_key_length(H)
    writer.add_value_length(H)
    writer.add_rope_dimension_count(H)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_scaling_orig_ctx_len(ROPE["original_max_position_embeddings"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocab_size)
    add_tokenizer(writer, tokenizer, vocab_size)

    tensors = {}

    def add(name: str, other: str, *shape: int, heads: int | None = None, half: bool = False) -> None:
        values = (rng.normal(size=shape) * 0.5).astype(np.float16 if half else np.float32)
        tensors[other] = values
        writer.add_tensor(name, values if heads is None else interleave(values, heads))

    add("token_embd.weight", "model.embed_tokens.weight", vocab_size, D, half=True)
    for i in range(LAYERS):
        there, here = f"blk.{i}", f"model.layers.{i}"
        add(f"{there}.attn_norm.weight", f"{here}.input_layernorm.weight", D)
        add(f"{there}.attn_q.weight", f"{here}.self_attn.q_proj.weight", N * H, D, heads=N, half=True)
        add(f"{there}.attn_k.weight", f"{here}.self_attn.k_proj.weight", K * H, D, heads=K)
        add(f"{there}.attn_v.weight", f"{here}.self_attn.v_proj.weight", K * H, D)
        add(f"{there}.attn_output.weight", f"{here}.self_attn.o_proj.weight", D, N * H)
        add(f"{there}.ffn_norm.weight", f"{here}.post_attention_layernorm.weight", D)
        add(f"{there}.ffn_gate.weight", f"{here}.mlp.gate_proj.weight", F, D)
        add(f"{there}.ffn_up.weight", f"{here}.mlp.up_proj.weight", F, D)
        add(f"{there}.ffn_down.weight", f"{here}.mlp.down_proj.weight", D, F)
    add("output_norm.weight", "model.norm.weight", D)
    writer.add_tensor("rope_freqs.weight", rope_factors())
    finish(writer)

    (folder / "llama").mkdir(exist_ok=True)
    save_file(tensors, folder / "llama" / "model.safetensors")
    tokenizer.save(str(folder / "llama" / "tokenizer.json"), pretty=False)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": D,
        "num_hidden_layers": LAYERS, "num_attention_heads": N, "num_key_value_heads": K, "head_dim": H,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": ROPE,
        "vocab_size": vocab_size, "tie_word_embeddings": True, "bos_token_id": tokenizer.token_to_id("<|begin|>"),
        "eos_token_id": [tokenizer.token_to_id("<|end|>")], "attention_bias": False, "mlp_bias": False,
        "intermediate_size": F,
    }
    (folder / "llama" / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    named = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "chat_template": TEMPLATE,
             "clean_up_tokenization_spaces": False, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "llama" / "tokenizer_config.json").write_text(json.dumps(named, indent=2) + "\n")


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer, vocab_size: int) -> None:
    model = json.loads(tokenizer.to_str())
    added = {token["id"]: token["special"] for token in model["added_tokens"]}
    tokens, kinds = [], []
    for i in range(vocab_size):
        token = tokenizer.id_to_token(i)
        tokens.append(f"[PAD{i}]" if token is None else token)
        kinds.append(gguf.TokenType.UNUSED if token is None else gguf.TokenType.NORMAL if i not in added
                     else gguf.TokenType.CONTROL if added[i] else gguf.TokenType.USER_DEFINED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.token_to_id("<|begin|>"))
    writer.add_eos_token_id(tokenizer.token_to_id("<|end|>"))
    writer.add_chat_template(TEMPLATE)


def rope_factors() -> np.ndarray:
    """Llama 3.1's, of which the middle one lies on the ramp."""
    turns = ROPE["original_max_position_embeddings"] * 10000.0 ** (-np.arange(0, H, 2) / H) / (2 * np.pi)
    low, high, factor = ROPE["low_freq_factor"], ROPE["high_freq_factor"], ROPE["factor"]
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    rng = np.random.default_rng(20261123)
    make_types(folder, rng)
    make_llama(folder, rng)


if __name__ == "__main__":
    main()
