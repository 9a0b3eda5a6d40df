"""Works of bench/run.py that decode: minilm beside transformers and CTranslate2, greedily, without an end token.

"minilm bf16" and "int8" read weights so and compute in fp32; "eager bf16" computes in bf16. Tokens are told by a hash:
in fp32 those of all contenders are to be equal.
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

from minilm.decoding.engine import generate_ids
from minilm.decoding.rows import accelerate, round_weights
from minilm.model.gpt import GPT

Decoder = Callable[[torch.Tensor, int], list[list[int]]]


def contenders(model: GPT, folder: Path) -> dict[str, Callable[[], Decoder]]:
    """Name -> what builds it: (ids (B, T), new tokens) -> the new tokens of each row."""

    def ours(kind: str) -> Decoder:
        copy = GPT(model.config).eval()
        copy.load_state_dict(model.state_dict())
        if "eager" in kind:
            copy.to(torch.bfloat16 if "bf16" in kind else torch.float32)
        else:
            round_weights(copy, kind)
            print(f"minilm {kind}: {accelerate(copy, kind, 'now')}")
        return lambda ids, n: generate_ids(copy, ids, n, temperature=0.0)[:, ids.shape[1] :].tolist()

    def transformers(dtype: torch.dtype) -> Decoder:
        from transformers import AutoModelForCausalLM

        other: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        other.generation_config.eos_token_id = None

        def decode(ids: torch.Tensor, n: int) -> list[list[int]]:
            options = {"do_sample": False, "max_new_tokens": n, "min_new_tokens": n, "pad_token_id": 0}
            found = other.generate(ids, attention_mask=torch.ones_like(ids), **options)
            return found[:, ids.shape[1] :].tolist()

        return decode

    def ctranslate2(compute_type: str) -> Decoder:
        import ctranslate2

        from_folder = folder / f"ctranslate2-{compute_type}"
        if not from_folder.exists():
            vocabulary = [f"t{i}" for i in range(model.config.vocab_size)]

            class Converter(ctranslate2.converters.TransformersConverter):  # type: ignore[misc]
                def load_tokenizer(self, *_: Any, **__: Any) -> Any:
                    from tokenizers import Tokenizer, models
                    from transformers import PreTrainedTokenizerFast

                    words = Tokenizer(models.WordLevel({t: i for i, t in enumerate(vocabulary)}, unk_token="t0"))
                    return PreTrainedTokenizerFast(
                        tokenizer_object=words, eos_token="t1", bos_token="t1", unk_token="t0"
                    )

            Converter(str(folder)).convert(str(from_folder), quantization=compute_type)
        generator = ctranslate2.Generator(str(from_folder), compute_type=compute_type, inter_threads=1)

        def decode(ids: torch.Tensor, n: int) -> list[list[int]]:
            prompts = [[f"t{i}" for i in row] for row in ids.tolist()]
            found = generator.generate_batch(
                prompts, max_length=n, min_length=n, sampling_topk=1, include_prompt_in_result=False, end_token=[]
            )
            return [result.sequences_ids[0] for result in found]

        return decode

    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16}
    built: dict[str, Callable[[], Decoder]] = {
        f"minilm {k}": lambda k=k: ours(k) for k in ("fp32", "bf16", "int8", "eager fp32", "eager bf16")
    }
    built |= {f"transformers {k}": lambda d=d: transformers(d) for k, d in kinds.items()}
    try:
        import ctranslate2 as _  # noqa: F401
    except ImportError:
        print("ctranslate2 is not installed: left out")
    else:
        built |= {f"ctranslate2 {k}": lambda k=k: ctranslate2(k) for k in ("float32", "int8")}
    return built


def measure(contender: str, _: str, B: int) -> Values:
    """Tokens a second of all B rows, the prompt's pass included."""
    torch.manual_seed(0)
    model, n_new = GPT(gpt2()).eval(), 12 if SMALL else 256
    ids = torch.randint(50257, (B, 32), generator=torch.Generator().manual_seed(B))
    with tempfile.TemporaryDirectory() as name:
        model.save_pretrained(name)
        decoder = contenders(model, Path(name))[contender]()
    decoder(ids, 4)
    start = time.perf_counter()
    decoder(ids, 1)
    first = time.perf_counter() - start
    start = time.perf_counter()
    tokens = decoder(ids, n_new)
    seconds = time.perf_counter() - start
    digest = hashlib.sha256(json.dumps(tokens).encode()).hexdigest()[:8]
    return {"tokens/s": B * n_new / seconds, "first token s": first, "tokens": digest}
