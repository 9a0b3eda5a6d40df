"""`sample.py --prompts FILE.jsonl`: many prompts to one line of JSON each, written as they end.

A line of the file is a JSON string, or an object with "prompt" and, where wanted, "id" and "seed". Results carry the
line's number, since they come in the order in which texts end. A run that was broken off goes on where it stood: a
line's text depends on its own seed alone, and results that are there are kept if they were made in the same way.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minilm.errors import MinilmError, UsageError
from minilm.log import say

if TYPE_CHECKING:
    from minilm.model.gpt import GPT
    from minilm.text.tokenizer import Tokenizer


@dataclass
class Line:
    """One prompt of the file."""

    number: int  # from 1
    prompt: str
    id: Any = None
    seed: int | None = None


def read_prompts(path: Path) -> tuple[list[Line], list[str]]:
    """The file's prompts, and what is wrong with the lines that hold none. Empty lines are passed over.

    Raises UsageError where the file cannot be read.
    """
    lines, wrong = [], []
    try:
        text = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UsageError(f"--prompts {path}: {error.strerror}") from None
    for number, raw in enumerate(text, 1):
        if raw.strip():
            try:
                lines.append(_line(number, json.loads(raw.decode("utf-8-sig" if number == 1 else "utf-8"))))
            except UnicodeDecodeError:
                wrong.append(f"line {number}: not UTF-8")
            except json.JSONDecodeError as error:
                wrong.append(f"line {number}: not JSON ({error.msg}, column {error.colno})")
            except UsageError as error:
                wrong.append(f"line {number}: {error}")
            except (RecursionError, ValueError) as error:  # nested too deep, a number of thousands of digits
                wrong.append(f"line {number}: not usable as JSON ({str(error).partition(':')[0]})")
    return lines, wrong


def _line(number: int, value: Any) -> Line:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UsageError("half of a surrogate pair, which is not valid Unicode") from None
    if isinstance(value, str):
        return Line(number, value)
    if not isinstance(value, dict) or not isinstance(value.get("prompt"), str):
        raise UsageError('neither a string nor an object with a text under "prompt"')
    if foreign := value.keys() - {"prompt", "id", "seed"}:
        raise UsageError(f"{min(foreign)!r} is not known here: an object has prompt, id and seed")
    seed = value.get("seed")
    if seed is not None and not (type(seed) is int and seed >= 0):
        raise UsageError(f"seed must be a whole number, 0 or more, not {seed!r}")
    return Line(number, value["prompt"], value.get("id"), seed)


def sample_prompts(
    model: GPT, tokenizer: Tokenizer, path: Path, out: Path, decoding: dict[str, Any], seed: int, name: str
) -> int:
    """Decodes what `out` does not hold yet; returns how many lines of the file were wrong.

    name: of the model; with `decoding` and seed it decides whether results that are there may stay. Raises UsageError
    where they may not.
    """
    from tqdm import tqdm

    from minilm.decoding.engine import row_seeds, stream_batch

    lines, wrong = read_prompts(path)
    for text in wrong:
        say(f"{path}, {text}: passed over")
    made_by = hashlib.sha256(json.dumps([name, seed, decoding], sort_keys=True, default=str).encode()).hexdigest()[:12]
    done = _done(out, {line.number: line.prompt for line in lines}, made_by)
    last = max((line.number for line in lines), default=0)
    seeds = row_seeds(seed, last)
    todo = [line for line in lines if line.number not in done]
    if done:
        say(f"{out}: {len(done)} results are there, {len(todo)} to go")
    own_seeds = [seeds[line.number - 1] if line.seed is None else line.seed for line in todo]
    texts: dict[int, list[Any]] = {}
    scored = decoding.get("alternatives") is not None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a", encoding="utf-8") as file, tqdm(total=len(lines), initial=len(done), unit="text") as bar:
            pieces = stream_batch(model, tokenizer, [line.prompt for line in todo], **{**decoding, "seed": own_seeds})
            for piece in pieces:
                texts.setdefault(piece.row, []).append(piece)
                if piece.last:
                    line, its = todo[piece.row], texts.pop(piece.row)
                    result = {"line": line.number, "id": line.id, "prompt": line.prompt}
                    result |= {"text": "".join(p.text for p in its), "n_tokens": len(its), "seed": own_seeds[piece.row]}
                    if scored:
                        result["tokens"] = list(_scores(its, tokenizer))
                    file.write(json.dumps({**result, "made_by": made_by}, ensure_ascii=False) + "\n")
                    file.flush()
                    bar.update()
    except OSError as error:
        raise MinilmError(f"{out}: {error.strerror}") from error
    return len(wrong)


def _scores(pieces: list[Any], tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    for piece in pieces:
        best = [[tokenizer.decode([token]), round(logprob, 5)] for token, logprob in piece.alternatives]
        yield {"token": tokenizer.decode([piece.token]), "logprob": round(piece.logprob, 5), "best": best}


def _done(out: Path, prompts: dict[int, str], made_by: str) -> set[int]:
    """Lines whose results are there. A last line that a kill cut short is taken away."""
    if out.is_dir():
        raise UsageError(f"{out} is a folder: name a file for --out")
    if not out.exists():
        return set()
    raw = out.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    done = set()
    for number, text in enumerate(whole.decode("utf-8", "replace").splitlines(), 1):
        try:
            result = json.loads(text)
            same = result["made_by"] == made_by and prompts.get(result["line"]) == result["prompt"]
        except (ValueError, KeyError, TypeError):
            raise UsageError(f"{out}, line {number} is no result of this command: give another --out") from None
        if not same:
            raise UsageError(
                f"{out} holds results of other prompts, options or another model: give another --out, or delete it"
            )
        done.add(result["line"])
    if len(whole) < len(raw):
        with out.open("r+b") as file:
            file.truncate(len(whole))
    return done
