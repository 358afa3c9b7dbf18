"""Writes scores.json: what transformers makes of small rows of logits before it samples.

    pip install transformers==5.23.0 torch==2.15.0
    python crates/engine/tests/goldens/make.py

The list of processors, and so their order, is transformers' own (GenerationMixin._get_logits_processor on a tiny
model). It has no presence and frequency penalties; OpenAI's formula is put where transformers puts custom processors:
    score[i] -= presence * (count[i] > 0) + frequency * count[i],  count over generated tokens only
    (https://platform.openai.com/docs/guides/text-generation, "Frequency and presence penalties").
"""

import itertools
import json
import math
import pathlib

import torch
import transformers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, LogitsProcessor, LogitsProcessorList

assert transformers.__version__ == "5.23.0", transformers.__version__

VOCABULARY = 23
EOS = [2, 17]


class PresenceAndFrequency(LogitsProcessor):
    def __init__(self, presence, frequency, prompt_len):
        self.presence, self.frequency, self.prompt_len = presence, frequency, prompt_len

    def __call__(self, input_ids, scores):
        count = torch.bincount(input_ids[0, self.prompt_len :], minlength=VOCABULARY).to(scores.dtype)
        return scores - self.presence * (count > 0) - self.frequency * count


def case(model, name, seed, scale, prompt, generated, params):
    logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * scale
    config = GenerationConfig(
        do_sample=params.get("temperature") != 0,
        temperature=params.get("temperature", 1.0) or 1.0,
        top_k=params.get("top_k", 0),
        top_p=params.get("top_p", 1.0),
        min_p=params.get("min_p"),
        repetition_penalty=params.get("repetition_penalty", 1.0),
        sequence_bias=[[[int(t)], b] for t, b in params.get("logit_bias", {}).items()] or None,
        min_new_tokens=params.get("min_tokens", 0),
        eos_token_id=EOS,
        pad_token_id=0,
    )
    model._prepare_special_tokens(config, kwargs_has_attention_mask=True)
    custom = [PresenceAndFrequency(params.get("presence_penalty", 0.0), params.get("frequency_penalty", 0.0), len(prompt))]
    processors = model._get_logits_processor(
        config, input_ids_seq_length=len(prompt), logits_processor=LogitsProcessorList(custom), device="cpu"
    )
    scores = processors(torch.tensor([prompt + generated]), logits.clone())[0].tolist()
    return {
        "name": name,
        "logits": logits[0].tolist(),
        "prompt": prompt,
        "generated": generated,
        "eos_token_ids": EOS,
        "params": params,
        "scores": [None if math.isinf(score) else score for score in scores],
    }


def main():
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
        )
    )
    alone = {
        "temperature": [{"temperature": 0.3}, {"temperature": 1.7}],
        "top_k": [{"top_k": 1}, {"top_k": 5}, {"top_k": 99}],
        "top_p": [{"top_p": 0.1}, {"top_p": 0.7}, {"top_p": 0.95}],
        "min_p": [{"min_p": p} for p in (0.02, 0.1, 0.2, 0.3, 0.5, 1.0)],
        "repetition": [{"repetition_penalty": 1.3}, {"repetition_penalty": 0.8}],
        "presence": [{"presence_penalty": 0.9}, {"presence_penalty": -0.5}],
        "frequency": [{"frequency_penalty": 0.4}],
        "bias": [{"logit_bias": {"2": -100.0, "5": 3.5, "22": -1.25}}],
        "min_tokens": [{"min_tokens": 4}, {"min_tokens": 5}],  # four were generated: may stop, may not
    }
    together = [
        {"temperature": 0.7, "top_k": 9, "top_p": 0.85},
        {"temperature": 1.6, "top_k": 9, "top_p": 0.6},  # top_p before top_k would keep others
        {"temperature": 1.4, "top_p": 0.9, "min_p": 0.05},
        {"temperature": 0.6, "top_k": 12, "top_p": 0.95, "min_p": 0.1, "repetition_penalty": 1.2},
        {"logit_bias": {"7": 4.0, "3": -2.0}, "repetition_penalty": 1.5, "presence_penalty": 0.3,
         "frequency_penalty": 0.2, "min_tokens": 9, "temperature": 0.8, "top_k": 10, "top_p": 0.9, "min_p": 0.02},
        {"temperature": 0.0, "repetition_penalty": 1.1, "presence_penalty": 0.5, "logit_bias": {"4": 1.0}, "min_tokens": 6},
    ]
    settings = [(name, p) for name, ps in alone.items() for p in ps] + [("together", p) for p in together]
    cases = [
        case(model, f"{name} {i}, logits x{scale}", 100 * i + int(scale), scale, [1, 5, 7, 5, 22], [3, 7, 3, 11], params)
        for (i, (name, params)), scale in itertools.product(enumerate(settings), [1.0, 4.0])
    ]
    # The k-th largest twice: both stay.
    tie = case(model, "top_k tie", 7, 1.0, [1], [], {"top_k": 3})
    third = sorted(tie["logits"])[-3]
    tie["logits"][tie["logits"].index(min(tie["logits"]))] = third
    warper = transformers.TopKLogitsWarper(3)
    scores = warper(None, torch.tensor([tie["logits"]]))[0].tolist()
    assert sum(not math.isinf(s) for s in scores) == 4
    tie["scores"] = [None if math.isinf(score) else score for score in scores]
    path = pathlib.Path(__file__).with_name("scores.json")
    lines = ",\n".join(json.dumps(c) for c in cases + [tie])
    path.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
