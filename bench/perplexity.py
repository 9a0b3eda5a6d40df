"""Speed of protocol hf-stride-512 on GPT-2 small (random weights) beside transformers' documented loop as it comes.

python bench/perplexity.py TEXT_FILE [TOKENS]; needs the extra `test` and GPT-2's vocabulary. Counts processor seconds,
so that other programs on the machine matter less.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

import torch

from minilm.config import GPTConfig
from minilm.evaluation.perplexity import perplexity
from minilm.model.gpt import GPT
from minilm.text.tokenizer import get_tokenizer

CONTEXT, STRIDE = 1024, 512


def documented_loop(model: torch.nn.Module, ids: torch.Tensor) -> tuple[float, int, float]:
    """(perplexity, tokens scored, processor seconds) of transformers' model, window by window, with labels."""
    total, count, before = 0.0, 0, 0
    start = time.process_time()
    for begin in range(0, ids.shape[1], STRIDE):
        end = min(begin + CONTEXT, ids.shape[1])
        labels = ids[:, begin:end].clone()
        labels[:, : -(end - before)] = -100
        with torch.no_grad():
            loss = model(ids[:, begin:end], labels=labels).loss
        n = int((labels[:, 1:] != -100).sum())
        total, count, before = total + loss.item() * n, count + n, end
        if end == ids.shape[1]:
            break
    return math.exp(total / count), count, time.process_time() - start


def main(file: str, n_tokens: int = 6144) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(GPT2Config()).eval()
    ours = GPT(GPTConfig()).eval()
    for name, parameter in ours.named_parameters():
        value = theirs.state_dict()[f"transformer.{name}"]
        parameter.data.copy_(value.T if "c_" in name and value.dim() == 2 else value)
    tokenizer = get_tokenizer("gpt2")
    text = Path(file).read_text(encoding="utf-8")
    text = tokenizer.decode(tokenizer.encode(text)[:n_tokens])
    ids = torch.tensor([tokenizer.encode(text)])
    theirs(ids[:, :64])
    value, n, seconds = documented_loop(theirs, ids)
    print(f"{torch.get_num_threads()} threads, {n:,} tokens scored, context {CONTEXT}, stride {STRIDE}")
    print(f"transformers' loop  {n / seconds:8.1f} tokens/s of processor time            perplexity {value:.4f}")
    for precision in ("fp32", "bf16"):
        start = time.process_time()
        found = perplexity(ours, text, "hf-stride-512", tokenizer=tokenizer, text="as_is", precision=precision)
        mine = time.process_time() - start
        print(
            f"minilm {precision}         {found.n_tokens / mine:8.1f} tokens/s, x {seconds / mine:.2f}   "
            f"perplexity {found.token_perplexity:.4f}"
        )


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:3]))
