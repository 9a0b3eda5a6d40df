"""Speed of protocol hf-stride-512 on GPT-2 small (random weights) beside transformers' documented loop as it comes.

python bench/perplexity.py TEXT_FILE [TOKENS ROUNDS [fp32 bf16]]; needs the extra `test` and GPT-2's vocabulary. Counts
processor seconds, so that other programs on the machine matter less.
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


def flops(config: GPTConfig, n_read: int, n_headed: int) -> float:
    """Of the products of a forward pass over n_read tokens in windows of CONTEXT, the head on n_headed of them; half of
    attention's scores are masked and counted as not computed."""
    D, L = config.n_embd, config.n_layer
    return n_read * L * (24 * D * D + 2 * CONTEXT * D) + n_headed * 2 * D * config.vocab_size


def main(file: str, n_tokens: int = 2560, rounds: int = 2, *precisions: str) -> None:
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
    loop, mine = [], {precision: list[float]() for precision in precisions or ("fp32",)}
    for _ in range(rounds):  # in turns, so that what else the machine does falls on both
        value, n, seconds = documented_loop(theirs, ids)
        loop.append(seconds)
        for precision, took in mine.items():
            start = time.process_time()
            found = perplexity(ours, text, "hf-stride-512", tokenizer=tokenizer, text="as_is", precision=precision)
            took.append(time.process_time() - start)
            assert found.n_tokens >= n
            error = abs(math.log(found.token_perplexity) - math.log(value))
            print(f"{precision}: x {seconds / took[-1]:.3f}; nats per token differ by {error:.1e}", flush=True)
    print(
        f"{torch.get_num_threads()} threads, {n:,} tokens scored, context {CONTEXT}, stride {STRIDE}, {rounds} rounds"
    )
    print(f"transformers' loop  {rounds * n / sum(loop):8.1f} tokens/s of processor time, perplexity {value:.4f}")
    for precision, took in mine.items():
        ratio = sum(loop) / sum(took)
        print(f"minilm {precision}         {rounds * n / sum(took):8.1f} tokens/s, x {ratio:.2f}")
    n_read = sum(min(CONTEXT, ids.shape[1] - begin) for begin in range(0, ids.shape[1] - STRIDE, STRIDE))
    spared = (n_read - n) * 16 * GPTConfig().n_embd ** 2  # of the last feed-forward
    bound = flops(GPTConfig(), n_read, n_read) / (flops(GPTConfig(), n_read, n) - spared)
    print(f"products alone, head and last feed-forward on {n:,} tokens of {n_read:,}: x {bound:.2f}")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:4]), *sys.argv[4:])
