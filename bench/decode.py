"""Decoding speed of GPT-2's shape, random weights: minilm against transformers and, where installed, CTranslate2.

`nice python bench/decode.py` measures what bench/results/decode.jsonl does not hold yet, round by round, all contenders
in turn, and prints ratios within the rounds: an interrupted run goes on where it stood, and a machine whose speed
changes spoils a round, not the comparison. Greedy, no end token; fp32 tokens are checked to be equal. "minilm bf16" and
"int8" read weights so and compute in fp32; "eager bf16" computes in bf16. On a machine that does other work too,
OMP_NUM_THREADS=1 and the last column, processor time, are what can be compared.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from works import SMALL, Values, gpt2

from minilm.config import GPTConfig
from minilm.decoding.engine import generate_ids
from minilm.decoding.rows import accelerate, round_weights
from minilm.model.gpt import GPT
from minilm.runtime import versions

RESULTS = Path(__file__).resolve().parent / "results" / "decode.jsonl"
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
    """The works decode-1 and decode-8 of bench/run.py: tokens a second of all rows, the prompt's pass included."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--rounds", type=int, default=5)
    add("--batch_sizes", type=int, nargs="+", default=[1, 8])
    add("--prompt_tokens", type=int, default=32)
    add("--new_tokens", type=int, default=256)
    add("--n_layer", type=int, default=12)
    add("--n_embd", type=int, default=768)
    add("--only", nargs="*", default=[], help="contenders whose names hold one of these")
    add("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.manual_seed(0)
    shape = {"n_layer": options.n_layer, "n_embd": options.n_embd, "n_head": options.n_embd // 64}
    model = GPT(GPTConfig(**shape, vocab_size=50257)).eval()
    setting = {**shape, "prompt_tokens": options.prompt_tokens, "new_tokens": options.new_tokens, **versions()}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lines = options.out.read_text(encoding="utf-8").splitlines() if options.out.exists() else []
    rows = [row for row in map(json.loads, lines) if row["setting"] == setting]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.save_pretrained(folder)
        built = contenders(model, folder)
        wanted = [n for n in built if not options.only or any(part in n for part in options.only)]
        ready: dict[str, Decoder] = {}
        tokens: dict[tuple[str, int], list[list[int]]] = {}
        for round_ in range(options.rounds):
            for B in options.batch_sizes:
                ids = torch.randint(50257, (B, options.prompt_tokens), generator=torch.Generator().manual_seed(B))
                for who in wanted:
                    if any((row["who"], row["B"], row["round"]) == (who, B, round_) for row in rows):
                        continue
                    if who not in ready:
                        ready[who] = built[who]()
                        ready[who](ids, 4)  # warm
                    row: dict[str, Any] = {"who": who, "B": B, "round": round_, "setting": setting}
                    for key, n in (("first_s", 1), ("all_s", options.new_tokens)):
                        start, cpu = time.perf_counter(), time.process_time()
                        found = ready[who](ids, n)
                        row |= {
                            key: time.perf_counter() - start,
                            key.replace("_s", "_cpu_s"): time.process_time() - cpu,
                        }
                    tokens[who, B] = found
                    rows.append(row)
                    with options.out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")
                for who in ("transformers fp32", "ctranslate2 float32"):
                    if (who, B) in tokens and ("minilm fp32", B) in tokens:
                        same = tokens[who, B] == tokens["minilm fp32", B]
                        print(f"batch {B}: tokens of minilm fp32 and {who} are {'equal' if same else 'NOT equal'}")
    report(rows, options.new_tokens)


def report(rows: list[dict[str, Any]], n: int) -> None:
    """Tokens a second over the whole request and the ratios to two peers: medians over the rounds."""
    peers = [peer for peer in ("transformers fp32", "ctranslate2 int8") if any(row["who"] == peer for row in rows)]
    columns = [f"x {peer}{how}" for peer in peers for how in ("", ", processor time")]
    print(f"| contender | batch | rounds | first token, s | tokens/s | {' | '.join(columns)} |")
    print("|---|" + "---|" * (4 + len(columns)))
    for B in sorted({row["B"] for row in rows}):
        of = {(row["who"], row["round"]): row for row in rows if row["B"] == B}
        for who in dict.fromkeys(row["who"] for row in rows):
            mine = [row for row in rows if (row["B"], row["who"]) == (B, who)]
            if not mine:
                continue
            first, speed = (
                statistics.median(x) for x in zip(*((r["first_s"], B * n / r["all_s"]) for r in mine), strict=True)
            )
            ratios = []
            for peer in peers:
                pairs = [(of[peer, row["round"]], row) for row in mine if (peer, row["round"]) in of]
                for key in ("all_s", "all_cpu_s"):
                    ratios.append(f"{statistics.median(p[key] / r[key] for p, r in pairs):.2f}" if pairs else "")
            print(f"| {who} | {B} | {len(mine)} | {first:.3f} | {speed:.1f} | {' | '.join(ratios)} |")


if __name__ == "__main__":
    main()
