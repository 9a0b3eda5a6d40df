"""Works of bench/run.py that decode: GPT-2's shape with random weights by minilm, transformers and CTranslate2.

Greedy, no end token. Compiling is done before the clock starts. A digest of the tokens is recorded: those of one
machine in fp32 are equal.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from works import SMALL, Values, gpt2

from minilm.decoding.compiled import accelerate, round_to_int8
from minilm.decoding.engine import generate_ids
from minilm.model.gpt import GPT

Decoder = Callable[[torch.Tensor, int], list[list[int]]]
N_PROMPT, N_NEW = 32, 12 if SMALL else 256


def measure(contender: str, _: str, B: int) -> Values:
    """Tokens a second of all rows together, the prompt's pass included."""
    torch.manual_seed(0)
    model = GPT(gpt2()).eval()
    ids = torch.randint(50257, (B, N_PROMPT), generator=torch.Generator().manual_seed(B))
    who, _, kind = contender.partition(" ")
    values: Values = {}
    if who == "minilm":
        decoder, values["as"] = minilm(model, kind, B)
    else:
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            decoder = {"transformers": transformers, "ctranslate2": ctranslate2}[who](Path(folder), kind)
    decoder(ids, 4)
    start = time.perf_counter()
    decoder(ids, 1)
    first = time.perf_counter() - start
    start = time.perf_counter()
    tokens = decoder(ids, N_NEW)
    seconds = time.perf_counter() - start
    digest = hashlib.sha256(json.dumps(tokens).encode()).hexdigest()[:8]
    return {"tokens/s": B * N_NEW / seconds, "first token s": first, "tokens": digest, **values}


def minilm(model: GPT, kind: str, B: int) -> tuple[Decoder, str]:
    """As sample.py has it: one row compiled, several eager; int8 read by the byte where that is fast."""
    if "bf16" in kind:
        model = model.to(torch.bfloat16)
    if "int8" in kind:
        round_to_int8(model)
    how = "eager" if "eager" in kind or B > 1 or SMALL else accelerate(model, "int8" in kind, "now")
    return lambda ids, n: generate_ids(model, ids, n, temperature=0.0)[:, ids.shape[1] :].tolist(), how


def transformers(folder: Path, kind: str) -> Decoder:
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    model.generation_config.eos_token_id = None

    def decode(ids: torch.Tensor, n: int) -> list[list[int]]:
        options = {"do_sample": False, "max_new_tokens": n, "min_new_tokens": n, "pad_token_id": 0}
        found = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        return found[:, ids.shape[1] :].tolist()

    return decode


def ctranslate2(folder: Path, compute_type: str) -> Decoder:
    import ctranslate2

    vocabulary = [f"t{i}" for i in range(50257)]

    class Converter(ctranslate2.converters.TransformersConverter):  # type: ignore[misc]
        def load_tokenizer(self, *_: Any, **__: Any) -> Any:
            from tokenizers import Tokenizer, models
            from transformers import PreTrainedTokenizerFast

            words = Tokenizer(models.WordLevel({t: i for i, t in enumerate(vocabulary)}, unk_token="t0"))
            return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="t1", bos_token="t1", unk_token="t0")

    converted = folder / "ctranslate2"
    Converter(str(folder)).convert(str(converted), quantization=compute_type)
    generator = ctranslate2.Generator(str(converted), compute_type=compute_type, intra_threads=torch.get_num_threads())

    def decode(ids: torch.Tensor, n: int) -> list[list[int]]:
        prompts = [[f"t{i}" for i in row] for row in ids.tolist()]
        found = generator.generate_batch(
            prompts, max_length=n, min_length=n, sampling_topk=1, include_prompt_in_result=False, end_token=[]
        )
        return [result.sequences_ids[0] for result in found]

    return decode
