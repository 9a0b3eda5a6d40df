"""What else is measured at a validation: samples, and `eval_metrics` by name.

- A protocol (`lm-eval`): its rules on the first eval_tokens of the run's validation text, or of a prepared folder
  (`lm-eval@FOLDER`); the number is in its unit.
- A benchmark (`hellaswag@FILE`): its first questions, of eval_tokens together.
- A measure of generated text (`seq-rep-4`, `mauve`): of eval_samples texts, beside as many of the validation text;
  copies are looked for in the first COPY_TOKENS of the training text. The judge is the model itself, or another
  (`judge-perplexity@CHECKPOINT`).

Weights, optimizer and training's random numbers are left alone, so that a run is the same bit for bit with and without.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from minilm.config import TrainConfig, nearest
from minilm.decoding.contexts import evaluating
from minilm.errors import MinilmError, UsageError
from minilm.evaluation.benchmarks import READERS, Question, read_questions, run
from minilm.evaluation.generated import MEASURES, Sample, quality, tell
from minilm.evaluation.perplexity import perplexity
from minilm.evaluation.protocols import PROTOCOLS, get_protocol
from minilm.evaluation.text_metrics import judge, tell_stories
from minilm.log import say
from minilm.model.gpt import GPT
from minilm.model.weights import find_checkpoint, load_pretrained
from minilm.text.folders import tales_of
from minilm.text.mixture import head
from minilm.text.shards import ShardFolder, open_shards
from minilm.text.tokenizer import Tokenizer, check_same, get_tokenizer

SAMPLE_TOKENS = 120
COPY_TOKENS = 2_000_000  # sorted in about half a second
JUDGED = ("judge-perplexity", "gap", "mauve")


class Measures:
    """Called after a step: what metrics.jsonl is to hold beside the loss.

    Raises UsageError on a name that is not known, lacks what it needs, or reads more than the model can.
    """

    def __init__(
        self, config: TrainConfig, model: GPT, tokenizer: Tokenizer, shards: ShardFolder, folder: Path
    ) -> None:
        self.config, self.model, self.tokenizer, self.shards, self.folder = config, model, tokenizer, shards, folder
        self.protocols: dict[str, ShardFolder] = {}
        self.questions: dict[str, list[Question]] = {}
        self.judges: dict[str, tuple[GPT, Tokenizer] | None] = {}
        for word in config.eval_metrics:
            self._add(word, *word.partition("@")[::2])
        val = shards.splits["val"]
        n_real = min(config.eval_samples, val.n_documents) if self.judges else 0
        self._real = [Sample(tokenizer.decode(val.document(i)[:SAMPLE_TOKENS])) for i in range(n_real)]
        self._told = set[str]()

    def _add(self, word: str, name: str, path: str) -> None:
        known = [*PROTOCOLS, *READERS, *MEASURES, "coherence"]
        if name not in known:
            listed = ", ".join(known)
            raise UsageError(f"eval_metrics: there is no {name!r}{nearest(name, known)}: it is one of {listed}")
        if name in PROTOCOLS:
            shards = self.protocols[word] = open_shards(path) if path else self.shards
            if PROTOCOLS[name].documents == "stream":
                check_same(self.tokenizer, shards.tokenizer())
            context = PROTOCOLS[name].context
            if context > self.model.wpe.max_tokens:
                raise UsageError(
                    f"eval_metrics: {name} reads {context} tokens and the model's position table has "
                    f"{self.model.wpe.max_tokens}: leave it out, or train with --position rope or alibi"
                )
        elif name in READERS:
            if not path:
                raise UsageError(f"eval_metrics: name the file of {name} as {name}@FILE")
            self.questions[word] = list(self._affordable(read_questions(name, path)))
        else:
            if self.config.eval_samples < 2:
                raise UsageError(f"eval_metrics: {name} is of sampled texts: set --eval_samples to 2 or more")
            if name == "coherence":
                if self.shards.meta.name != "tales":
                    raise UsageError("eval_metrics: only tales can be graded for coherence: leave it out")
                return  # `_sample` measures it
            if path and name not in JUDGED:
                raise UsageError(f"eval_metrics: {name} takes no path: only {', '.join(JUDGED)} have a judge")
            self.judges[word] = self._judge(path)

    def _affordable(self, questions: list[Question]) -> Iterator[Question]:
        left = self.config.eval_tokens
        for question in questions:
            left -= sum(len(self.tokenizer.encode(f"{question.context} {choice}")) for choice in question.choices)
            if left < 0:
                return
            yield question

    def _judge(self, path: str) -> tuple[GPT, Tokenizer] | None:
        """None: the model itself."""
        if not path:
            return None
        found = find_checkpoint(path)
        model = load_pretrained(found)[0].to(self.model.device)
        return model, get_tokenizer(found if found.is_dir() else found.parent)

    def __call__(self, whole: Callable[[torch.device], GPT | None], step: int) -> dict[str, Any]:
        """By name; what could not be measured is left out, and said once. Nothing on ranks other than the first, and at
        step 0 nothing for samples alone.

        whole: gives the first rank the model in one piece, and all others None; every rank calls it, or none.
        """
        wanted = bool(self.config.eval_metrics) or (self.config.eval_samples > 0 and step > 0)
        model = whole(self.model.device) if wanted else None
        return {} if model is None else self._measured(step, model)

    def _measured(self, step: int, model: GPT) -> dict[str, Any]:
        todo: list[tuple[str, Callable[[], dict[str, float]]]] = []
        todo += [(word, partial(self._perplexity, model, word, shards)) for word, shards in self.protocols.items()]
        todo += [(word, partial(self._benchmark, model, word, asked)) for word, asked in self.questions.items()]
        with torch.random.fork_rng(), evaluating(model):
            values, samples = self._sample(model, step) if self.config.eval_samples else ({}, [])
            todo += [(word, partial(self._quality, model, word, samples)) for word in self.judges]
            for word, measure in todo:
                try:
                    values |= measure()
                except MinilmError as error:
                    if word not in self._told:
                        self._told.add(word)
                        say(f"eval_metrics: {word} cannot be measured at step {step}: {error}")
        return values

    def _sample(self, model: GPT, step: int) -> tuple[dict[str, Any], list[Sample]]:
        """Appends texts to samples.jsonl, the same seed each time; of tales, in the data's level and first style, the
        share that is coherent (copies are looked for at the end of a run)."""
        n, values = self.config.eval_samples, dict[str, Any]()
        if self.shards.meta.name == "tales":
            level, styles = tales_of(self.shards.folder)
            where: dict[str, Any] = {"level": level, "style": styles[0]}
            texts = tell_stories(model, self.tokenizer, n_stories=n, seed=0, **where)
            samples, values = [Sample(text) for text in texts], {"coherence": judge(texts, train=None, **where).share}
        else:
            samples = tell(model, self.tokenizer, [""] * n, max_new_tokens=SAMPLE_TOKENS, seed=0)
        with (self.folder / "samples.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(json.dumps({"step": step, "text": one.text, **values}) + "\n" for one in samples)
        return values, samples

    def _perplexity(self, model: GPT, word: str, shards: ShardFolder) -> dict[str, float]:
        protocol = PROTOCOLS[word.partition("@")[0]]
        split = protocol.split if protocol.split in shards.splits and shards is not self.shards else "val"
        rules, max_tokens = get_protocol(protocol, split=split), self.config.eval_tokens + 1
        # One token more: the first of a stream is no target.
        return {word: perplexity(model, shards, rules, tokenizer=self.tokenizer, max_tokens=max_tokens).value}

    def _benchmark(self, model: GPT, word: str, asked: list[Question]) -> dict[str, float]:
        found = run(word.partition("@")[0], model, self.tokenizer, asked)
        return {f"{word}/{measure}": value for measure, value in found.measures.items()}

    def _quality(self, model: GPT, word: str, samples: list[Sample]) -> dict[str, float]:
        judge_model, judge_tokenizer = self.judges[word] or (model, self.tokenizer)
        train, only = head(self.shards.splits["train"], COPY_TOKENS), [word.partition("@")[0]]
        rows = quality(
            samples, self._real, judge=judge_model, tokenizer=judge_tokenizer, train=train,
            train_tokenizer=self.tokenizer, only=only,
        )  # fmt: skip
        found = [row.generated.value for row in rows if math.isfinite(row.generated.value)]
        if not found:
            raise UsageError("the sampled texts have no such number: they are too short or empty")
        return {word: found[0]}
