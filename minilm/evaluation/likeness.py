"""How like real text generated text is, by the measure of a model: perplexity, MAUVE; and whether it is of the kind
that was asked for, by the measure of a classifier.

None of these numbers means anything without its settings, which the results carry.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from minilm.decoding.contexts import evaluating
from minilm.errors import UsageError
from minilm.evaluation.protocols import get_protocol, windows
from minilm.evaluation.scoring import BATCH_TOKENS, Request, target_nats
from minilm.model.gpt import GPT
from minilm.text.sources import needed
from minilm.text.tokenizer import Tokenizer

MAUVE_TOKENS = 256  # a text is cut to: features of texts of unequal length tell lengths apart, not kinds
CLASSIFIER_FOLDS = 5


class Mauve(NamedTuple):
    """MAUVE (Pillutla 2021), 0 to 1, and all that it depends on besides the texts."""

    value: float
    n_texts: int
    """Of each kind: the larger set is cut to the smaller."""
    n_tokens: int
    """Of each text at most, of the judge's tokenizer; shorter ones are left out."""
    n_buckets: int
    scaling: float
    seed: int

    def __str__(self) -> str:
        return (
            f"{self.value:.4f} ({self.n_texts} texts of each, cut to {self.n_tokens} tokens of the judge, its last "
            f"hidden state; {self.n_buckets} buckets, scaling {self.scaling:g}, seed {self.seed})"
        )


class Obedience(NamedTuple):
    """Whether texts are of the kind that was asked for, as a classifier trained on real ones sees it."""

    obeyed: list[bool]
    """Of each generated text."""
    accuracy: float
    """Of the classifier on real texts that it was not trained on: obedience cannot be trusted beyond it."""
    labels: tuple[str, ...]


def document_nats(
    judge: GPT, tokenizer: Tokenizer, texts: Sequence[str], batch_tokens: int = BATCH_TOKENS
) -> tuple[np.ndarray, np.ndarray]:
    """(nats, tokens) of each text under a model, by protocol `minilm`: each from end-of-text on, every token scored."""
    protocol = get_protocol("minilm").settled(judge.config.block_size)
    requests, owner = [], []
    for i, ids in enumerate(tokenizer.encode_batch(texts)):
        whole = np.array([tokenizer.eot, *ids], np.int64)
        for window in windows(protocol, len(whole)):
            requests.append(Request(whole[window.begin : window.end], window.scored - window.begin))
            owner.append(i)
    nats, tokens = np.zeros(len(texts)), np.zeros(len(texts), np.int64)
    for i, part in zip(owner, target_nats(judge, requests, batch_tokens=batch_tokens), strict=True):
        nats[i] += part.sum(dtype=np.float64)
        tokens[i] += len(part)
    return nats, tokens


@torch.inference_mode()
def features(judge: GPT, rows: Sequence[Sequence[int]], batch_tokens: int = BATCH_TOKENS) -> np.ndarray:
    """What the judge's head would read at the last token of each row of ids, all of one length T: (rows, D) float32."""
    n_rows = max(1, batch_tokens // max(1, len(rows[0])))
    found = []
    with evaluating(judge):
        for start in range(0, len(rows), n_rows):
            ids = torch.tensor([list(row) for row in rows[start : start + n_rows]], device=judge.device)
            found.append(judge.hidden(ids)[:, -1].float().cpu().numpy())
    return np.concatenate(found)


def mauve(
    judge: GPT,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    reference: Sequence[str],
    *,
    n_tokens: int = MAUVE_TOKENS,
    n_buckets: int = 0,
    seed: int = 25,
) -> Mauve:
    """MAUVE between generated and real texts on a judge's features, all texts cut to the same number of tokens and both
    sets to the same size. n_buckets 0: a tenth of the texts of one set, mauve-text's own choice.

    Raises UsageError where mauve-text is missing, the judge cannot read so much, or fewer than two texts are so long.
    """
    compute_mauve = needed("mauve", "eval").compute_mauve
    if not 1 <= n_tokens <= judge.wpe.max_tokens:
        raise UsageError(f"the judge reads 1 to {judge.wpe.max_tokens} tokens, not {n_tokens}")
    kinds = [
        [ids[:n_tokens] for ids in tokenizer.encode_batch(kind) if len(ids) >= n_tokens] for kind in (texts, reference)
    ]
    n = min(map(len, kinds))
    if n < 2:
        raise UsageError(
            f"MAUVE needs two texts or more of {n_tokens} tokens on both sides, and has {len(kinds[0])} generated and "
            f"{len(kinds[1])} real ones: give more or longer texts, or fewer tokens"
        )
    p, q = (features(judge, kind[:n]) for kind in kinds)
    settings = {"num_buckets": n_buckets or max(2, round(n / 10)), "mauve_scaling_factor": 5.0, "seed": seed}
    found = compute_mauve(p_features=p, q_features=q, verbose=False, **settings)
    return Mauve(float(found.mauve), n, n_tokens, int(found.num_buckets), 5.0, seed)


def obedience(
    texts: Sequence[str], asked: Sequence[str], reference: Sequence[str], labels: Sequence[str], seed: int = 0
) -> Obedience:
    """Whether each text is of the kind `asked` of it, by logistic regression on words and pairs of words (tf-idf),
    trained on `reference` texts with their `labels`. Control codes must be cut off first: they give the answer away.

    Raises UsageError where scikit-learn is missing, there is one label only, or too few texts of one.
    """
    needed("sklearn", "eval")
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline

    kinds = tuple(sorted(set(labels)))
    unknown = sorted(set(asked) - set(kinds))
    if unknown:
        raise UsageError(f"no reference text has the label {unknown[0]!r}: they have {', '.join(kinds) or 'none'}")
    if len(kinds) < 2 or min(list(labels).count(kind) for kind in kinds) < CLASSIFIER_FOLDS:
        raise UsageError(f"a classifier needs two labels or more, each on {CLASSIFIER_FOLDS} reference texts or more")
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    classifier = make_pipeline(words, LogisticRegression(max_iter=1000))
    folds = StratifiedKFold(CLASSIFIER_FOLDS, shuffle=True, random_state=seed)
    accuracy = float(cross_val_score(classifier, list(reference), list(labels), cv=folds).mean())
    said = classifier.fit(list(reference), list(labels)).predict(list(texts)) if texts else []
    return Obedience([bool(a == b) for a, b in zip(said, asked, strict=True)], accuracy, kinds)
