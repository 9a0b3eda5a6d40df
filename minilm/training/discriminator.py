"""PPLM's discriminator: a linear head on the mean of what a model reads, trained on any labelled data set.

The model's weights stay as they are, so every document is read once. What is left is a logistic regression, which is
convex: L-BFGS goes to its minimum (Dathathri 2020 takes ten epochs of Adam).

N documents, T tokens, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minilm.decoding.attributes import Head, fingerprint
from minilm.decoding.contexts import evaluating
from minilm.errors import UsageError
from minilm.evaluation.intervals import wilson
from minilm.model.gpt import GPT
from minilm.text.scripts import load_dataset, split_name
from minilm.text.sources import Files
from minilm.text.tokenizer import Tokenizer

BATCH_DOCUMENTS = 32
HELD_OUT_SHARE = 0.1


@dataclass(frozen=True)
class Trained:
    """A head, and how it does on documents that it was not trained on. `str()` is a line."""

    head: Head
    n_train: int
    n_held_out: int
    n_right: int
    majority: float
    """Share of the held-out documents' most frequent class."""

    def __str__(self) -> str:
        low, high = wilson(self.n_right, self.n_held_out)
        return (
            f"{self.head.name}: {len(self.head.labels)} classes ({', '.join(self.head.labels)}) from {self.n_train:,} "
            f"documents; right on {100 * self.n_right / self.n_held_out:.1f} % of {self.n_held_out:,} held out "
            f"({100 * low:.1f} to {100 * high:.1f} %; the most frequent class: {100 * self.majority:.1f} %)"
        )


def labelled(data: str, source: Path | None, max_docs: int, seed: int = 0) -> list[tuple[str, str]]:
    """(text, label) of at most max_docs documents of the training split, drawn evenly over all of it; 0: all.

    data: a data set's name, options behind it; source: a local copy. Raises UsageError where documents have no labels.
    """
    from minilm.text.prepare import downloaded

    name, given = split_name(data)
    dataset = load_dataset(name)
    options = dataset.check_options(given)
    files = Files.at(source.expanduser().absolute()) if source else downloaded(dataset, options)[0]
    random = np.random.default_rng(seed)
    kept: list[tuple[str, str]] = []
    n = 0
    for document in dataset.documents(files, "train", **options):
        if isinstance(document, str):
            raise UsageError(f"{name}'s documents have no labels: choose a data set that has some (docs/data.md)")
        if not document[1]:
            continue  # imdb's unlabelled reviews
        n += 1
        if not max_docs or len(kept) < max_docs:
            kept.append(document)
        elif (at := int(random.integers(n))) < max_docs:  # reservoir (Vitter 1985): many sets are sorted by label
            kept[at] = document
    if len({label for _, label in kept}) < 2:
        raise UsageError(f"{files.given} holds no training documents of two or more classes: nothing can be told apart")
    return kept


@torch.inference_mode()
def means(model: GPT, tokenizer: Tokenizer, texts: Sequence[str]) -> Tensor:
    """(N, D): mean of what the head reads over end-of-text and the text's first tokens, as many as fit the context."""
    rows = [[tokenizer.eot, *map(int, tokenizer.encode(text))][: model.config.block_size] for text in texts]
    found = torch.empty(len(rows), model.config.n_embd)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))  # rows of a batch need little padding
    with evaluating(model):
        for begin in range(0, len(rows), BATCH_DOCUMENTS):
            batch = order[begin : begin + BATCH_DOCUMENTS]
            lengths = torch.tensor([len(rows[i]) for i in batch], device=model.device)
            longest = int(lengths.max())
            ids = torch.tensor([rows[i] + [0] * (longest - len(rows[i])) for i in batch], device=model.device)
            real = torch.arange(longest, device=model.device) < lengths[:, None]  # padding behind a text is not seen
            hidden = model.hidden(ids).float() * real[:, :, None]
            found[batch] = (hidden.sum(dim=1) / lengths[:, None]).cpu()
    return found


def fit(x: Tensor, y: Tensor, n_classes: int, weight_decay: float = 1.0) -> tuple[Tensor, Tensor]:
    """Weight (C, D) and bias (C,) with the least  sum of -ln p(y) + weight_decay / 2 |weight|^2;  x (N, D), y (N,)."""
    x = x.double()
    weight = torch.zeros(n_classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(n_classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, line_search_fn="strong_wolfe", tolerance_change=1e-12)

    def loss() -> Tensor:
        optimizer.zero_grad()
        nats = F.cross_entropy(F.linear(x, weight, bias), y, reduction="sum") + weight_decay / 2 * weight.square().sum()
        mean = nats / len(x)
        mean.backward()
        return mean

    with torch.inference_mode(False), torch.enable_grad():
        optimizer.step(loss)
    return weight.detach().float(), bias.detach().float()


def train_discriminator(
    model: GPT, tokenizer: Tokenizer, name: str, documents: Iterable[tuple[str, str]], seed: int = 0
) -> Trained:
    """A head that tells the documents' labels apart; a tenth of them, drawn by the seed, is held out."""
    texts, names = zip(*documents, strict=True)
    labels = tuple(sorted(set(names)))
    x, y = means(model, tokenizer, texts), torch.tensor([labels.index(label) for label in names])
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(y)))
    n_held_out = max(1, round(HELD_OUT_SHARE * len(y)))
    held_out, train = order[:n_held_out], order[n_held_out:]
    weight, bias = fit(x[train], y[train], len(labels))
    right = int((F.linear(x[held_out], weight, bias).argmax(dim=-1) == y[held_out]).sum())
    majority = float(y[held_out].bincount().max()) / n_held_out
    return Trained(Head(name, labels, weight, bias, fingerprint(model)), len(train), n_held_out, right, majority)
