"""A GPT as lm-evaluation-harness sees a model. Importing this needs lm-eval, and registers it there as `minilm`."""

from __future__ import annotations

from typing import Any

import lm_eval.models  # noqa: F401  lm-eval's own: it registers them only where nothing else is registered yet
import numpy as np
import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from minilm import runtime
from minilm.decoding.engine import generate_ids
from minilm.errors import UsageError
from minilm.evaluation.benchmarks import token_scores
from minilm.evaluation.scoring import BATCH_TOKENS
from minilm.lm_eval import check_model_args
from minilm.model.weights import find_checkpoint, load_pretrained
from minilm.text.tokenizer import get_tokenizer

MAX_GEN_TOKENS = 256  # where a task does not say


@register_model("minilm")
class MinilmLM(TemplateLM):
    """A GPT as lm-eval's language model: log-likelihoods, rolling log-likelihoods and generation."""

    def __init__(
        self,
        path: str = "",
        tokenizer: str = "",
        device: str = "auto",
        batch_tokens: int = BATCH_TOKENS,
        **ignored: Any,
    ) -> None:
        super().__init__()
        unknown = set(ignored) - {"batch_size", "max_batch_size"}  # lm-eval passes these to every model
        if unknown:
            raise UsageError(f"model_args has no {', '.join(sorted(unknown))}: path, tokenizer, device, batch_tokens")
        path, self.batch_tokens = check_model_args(path, batch_tokens)
        folder = find_checkpoint(path)
        where = runtime.pick_device(device or "auto")
        self.model = load_pretrained(folder)[0].eval().to(where)
        self.tokens = get_tokenizer(tokenizer or (folder if folder.is_dir() else folder.parent))
        self.max_length = self.model.config.block_size

    @property
    def eot_token_id(self) -> int:
        return self.tokens.eot

    @property
    def tokenizer_name(self) -> str:
        return self.tokens.fingerprint

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **ignored: Any) -> list[int]:
        return self.tokens.encode(string)

    def _loglikelihood_tokens(self, requests: list[Any], **ignored: Any) -> list[tuple[float, bool]]:
        pairs = ((context, continuation) for _, context, continuation in requests)
        found = token_scores(self.model, pairs, batch_tokens=self.batch_tokens)
        return [(scores.loglikelihood, scores.is_greedy) for scores in found]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        owners: list[int] = []
        pairs: list[tuple[Any, list[int], list[int]]] = []
        for i, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            for pair in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1):
                owners.append(i)
                pairs.append((None, *make_disjoint_window(pair)))
        sums = np.zeros(len(requests))
        for i, (loglikelihood, _) in zip(owners, self._loglikelihood_tokens(pairs), strict=True):
            sums[i] += loglikelihood
        return sums.tolist()

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        texts = []
        for request in requests:
            context, settings = request.args
            until = settings.get("until") or []
            until = [until] if isinstance(until, str) else list(until)
            ids = self.tok_encode(context) or [self.eot_token_id]
            n = int(settings.get("max_gen_toks", MAX_GEN_TOKENS))
            sampling = bool(settings.get("do_sample", False))
            out = generate_ids(
                self.model,
                torch.tensor([ids[-self.max_length :]], device=self.model.device),
                n,
                temperature=float(settings.get("temperature", 1.0)) if sampling else 0.0,
                top_p=float(settings.get("top_p", 1.0)) if sampling else 1.0,
                seed=0,
                eot=self.eot_token_id,
            )
            new = out[0, min(len(ids), self.max_length) :].tolist()
            text = self.tokens.decode(new[: new.index(self.eot_token_id)] if self.eot_token_id in new else new)
            for stop in until:
                text = text.split(stop)[0] if stop else text
            texts.append(text)
        return texts
