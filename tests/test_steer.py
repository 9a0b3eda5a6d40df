"""PPLM: against the paper's equations in float64 without minilm's code, closed forms; heads against scikit-learn."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minilm.cli import run_door
from minilm.config import GPTConfig
from minilm.decoding.attributes import Head, Steering, bag_of_words, fingerprint, load_head, steering, words_of
from minilm.decoding.engine import generate, stream_batch
from minilm.decoding.steer import Steered
from minilm.errors import UsageError
from minilm.model.gpt import GPT
from minilm.text.tokenizer import get_tokenizer
from minilm.training.discriminator import fit, means, train_discriminator

BYTES = get_tokenizer("bytes")
V, D, H, L = 30, 16, 2, 2


def tiny(**changes: Any) -> GPT:
    torch.manual_seed(0)
    values: dict[str, Any] = {
        "n_layer": L,
        "n_head": H,
        "n_embd": D,
        "block_size": 24,
        "vocab_size": V,
        "init_std": 0.4,
    }
    return GPT(GPTConfig(**{**values, **changes})).eval()


def head() -> Head:
    weight = torch.randn(3, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Head("toy", ("a", "b", "c"), weight, torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64), "")


Past = list[tuple[Tensor, Tensor]]  # keys and values (H, T, D / H) of each layer


def reads(w: dict[str, Tensor], x: Tensor, past: Past) -> tuple[Tensor, Past]:
    """GPT-2 (Radford 2019) one token at a time: embedding x (D,) -> what the head reads, and the longer past."""

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean()
        return w[f"{name}.weight"] * centred / (centred.square().mean() + 1e-5).sqrt() + w[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return w[f"{name}.weight"] @ x + w[f"{name}.bias"]

    x = x + w["wpe.weight"][past[0][0].shape[1]]
    grown = []
    for i in range(L):
        q, k, v = (y.view(H, 1, D // H) for y in linear(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn").split(D))
        keys, values = torch.cat((past[i][0], k), dim=1), torch.cat((past[i][1], v), dim=1)
        grown.append((keys, values))
        scores = (q * keys).sum(dim=-1) / math.sqrt(D // H)
        y = (scores.softmax(dim=-1)[:, :, None] * values).sum(dim=1).reshape(D)
        x = x + linear(y, f"h.{i}.attn.c_proj")
        u = linear(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")
        u = 0.5 * u * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))
        x = x + linear(u, f"h.{i}.mlp.c_proj")
    return norm(x, "ln_f"), grown


def pplm(w: dict[str, Tensor], s: Steering, tokens: list[int], n_prompt: int) -> list[Tensor]:
    """ln(q^g p^(1 - g)) before each token behind the prompt (and one more), by the paper's equations."""
    empty = [(torch.zeros(H, 0, D // H, dtype=torch.float64),) * 2 for _ in range(L)]
    plain, moved, total, norms = empty, empty, torch.zeros(D, dtype=torch.float64), [0.0] * L
    found = []
    for at, token in enumerate(tokens):
        x = w["wte.weight"][token]
        hidden, after = reads(w, x, plain)
        p = (w["wte.weight"] @ hidden).softmax(dim=0)
        if at + 1 < n_prompt:
            plain = moved = after
            total = total + hidden
            continue
        T = plain[0][0].shape[1]
        moves = [(torch.zeros_like(k), torch.zeros_like(v)) for k, v in moved]
        for _ in range(s.n_iterations if T else 0):
            flat = [m.detach().requires_grad_() for pair in moves for m in pair]
            moves = [(flat[2 * i], flat[2 * i + 1]) for i in range(L)]
            pushed = [(k + a, v + b) for (k, v), (a, b) in zip(moved, moves, strict=True)]
            now, _ = reads(w, x, pushed)
            q = (w["wte.weight"] @ now).softmax(dim=0)
            loss = s.kl_scale * (q * (q / p).log()).sum()
            for bag in s.bags:
                loss = loss - sum(q[i] for i in bag).log()  # type: ignore[union-attr]
            if s.head is not None:
                ahead, _ = reads(w, q @ w["wte.weight"], after)
                mean = (total + now + ahead) / (T + 2)
                loss = loss + F.cross_entropy((s.head.weight @ mean + s.head.bias)[None], torch.tensor([1]))
            slopes = torch.autograd.grad(loss, flat)
            window = torch.zeros(T, 1, dtype=torch.float64)
            window[T - s.window if 0 < s.window < T else 0 :] = 1.0
            for i in range(L):
                pair = [slopes[2 * i] * window, slopes[2 * i + 1] * window]
                size = math.sqrt(sum(float((g * g).sum()) for g in pair))
                norms[i] = max(norms[i], size) if s.head is None else size
                step = s.step_size / norms[i] ** s.gamma
                moves[i] = (moves[i][0] - step * pair[0], moves[i][1] - step * pair[1])
        pushed = [((k + a).detach(), (v + b).detach()) for (k, v), (a, b) in zip(moved, moves, strict=True)]
        now, moved = reads(w, x, pushed)
        q = (w["wte.weight"] @ now).softmax(dim=0)
        found.append(s.gm_scale * q.log() + (1 - s.gm_scale) * p.log())
        plain, total = after, total + hidden
    return found


CASES: list[dict[str, Any]] = [
    {"bags": ((3, 4, 7),), "step_size": 0.3},
    {"bags": ((3, 4), (9,)), "window": 2, "kl_scale": 0.5, "gm_scale": 0.7, "gamma": 1.0, "step_size": 0.3},
    {"head": head(), "label": "b", "window": 0, "gamma": 1.0, "n_iterations": 4, "step_size": 0.2, "gm_scale": 0.95},
    {"bags": ((5,),), "head": head(), "label": "b", "window": 3, "n_iterations": 2, "step_size": 0.2},
]


@pytest.mark.parametrize("case", CASES)
def test_moves_equal_the_papers_equations(case: dict[str, Any]) -> None:
    model, s = tiny().double(), Steering(**case)
    tokens = [2, 11, 5, 8, 21, 4]
    other = [7, 1, 2, 30 - 1, 0, 12]
    weights = {k: v.detach() for k, v in model.state_dict().items()}
    expected = [torch.stack(pair) for pair in zip(*(pplm(weights, s, row, 3) for row in (tokens, other)), strict=True)]
    texts = Steered(model, s, [tokens[:3], other[:3]])
    for i, pair in enumerate(expected):
        torch.testing.assert_close(texts.logits(), pair, rtol=1e-8, atol=1e-9)
        if i + 3 < len(tokens):
            texts.extend([tokens[3 + i], other[3 + i]])


def test_closed_forms() -> None:
    model, prompt = tiny().double(), [2, 11, 5, 8]
    plain = model(torch.tensor([prompt]))[:, -1].log_softmax(dim=-1)
    for still in ({"step_size": 0.0}, {"gm_scale": 0.0}, {"n_iterations": 0}):
        found = Steered(model, Steering(bags=((3,),), **still), [prompt]).logits()
        torch.testing.assert_close(found.log_softmax(dim=-1), plain)
    moved = Steered(model, Steering(bags=((3,),), gm_scale=1.0), [prompt]).logits()
    half = Steered(model, Steering(bags=((3,),), gm_scale=0.5), [prompt]).logits()
    product = (moved.exp() * plain.exp()).sqrt()  # q^1/2 p^1/2, renormalised
    torch.testing.assert_close(half.softmax(dim=-1), product / product.sum())
    text = Steered(model, Steering(bags=((3,),), kl_scale=0.0), [prompt])
    with_kl = Steered(model, Steering(bags=((3,),), kl_scale=2.0), [prompt])
    hidden = torch.randn(1, 1, D, dtype=torch.float64)
    kl = F.kl_div(plain, text._log_p(hidden), log_target=True, reduction="sum")  # KL(q | p) of torch
    torch.testing.assert_close(
        with_kl._loss(hidden, text.plain, plain) - text._loss(hidden, text.plain, plain), 2.0 * kl, check_dtype=False
    )


@pytest.mark.parametrize(
    "changes", [{}, {"position": "rope", "n_kv_head": 1, "skip_attn": (0,)}, {"position": "alibi"}]
)
def test_weights_stay_and_the_bag_gains(changes: dict[str, Any]) -> None:
    model = tiny(**changes).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    s = Steering(bags=((3, 4),), step_size=0.5, window=0)
    gains = []
    with torch.inference_mode():
        for kind in (Steering(bags=((3, 4),), step_size=0.0), s):
            text = Steered(model, kind, [[2, 11, 5]])
            shares = []
            for token in range(40):  # past the context: its last half is read again
                shares.append(float(text.logits().softmax(dim=-1)[0, [3, 4]].sum()))
                text.extend([token % V])
            gains.append(sum(shares) / len(shares))
    assert gains[1] > 1.2 * gains[0]
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_row_is_the_same_alone() -> None:
    model = tiny(vocab_size=257)
    options: dict[str, Any] = {"steering": Steering(bags=((101, 32),), step_size=0.2), "max_new_tokens": 30}
    prompts, seeds = ["ab", "c", "", "xy", "zz"], [5, 6, 7, 8, 9]
    options["stop"] = ["e"]  # rows of one length end at different times
    together = generate(model, BYTES, prompts, seed=seeds, **options)
    assert together == [generate(model, BYTES, p, seed=s, **options) for p, s in zip(prompts, seeds, strict=True)]
    assert together != generate(model, BYTES, prompts, seed=seeds, max_new_tokens=30, stop=["e"])
    assert len({len(text) for text in together}) > 2


# --- bags and heads


def test_words_of_a_bag() -> None:
    tokenizer = get_tokenizer("bytes")
    assert bag_of_words(["a", "b", "a", "long", ""], tokenizer) == ([97, 98], ["long"])
    with pytest.raises(UsageError, match="one token"):
        bag_of_words(["long"], tokenizer)


def test_head_is_the_minimum_that_scikit_learn_finds() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(120, 6, generator=generator)
    y = (x[:, 0] + 0.5 * torch.randn(120, generator=generator) > 0).long() + (x[:, 1] > 1).long()
    weight, bias = fit(x, y, 3, weight_decay=0.5)
    theirs = linear_model.LogisticRegression(C=2.0, tol=1e-10, max_iter=5000).fit(x.numpy(), y.numpy())
    ours = F.linear(x, weight, bias).softmax(dim=-1)
    torch.testing.assert_close(
        ours.double(), torch.from_numpy(theirs.predict_proba(x.double().numpy())), atol=2e-4, rtol=0.0
    )


def test_means_are_those_of_each_document_alone() -> None:
    model, texts = tiny(vocab_size=257), ["abc", "", "a longer one than the context has room for", "xy"]
    for text, mean in zip(texts, means(model, BYTES, texts), strict=True):
        ids = torch.tensor([[BYTES.eot, *BYTES.encode(text)][:24]])
        torch.testing.assert_close(mean, model.hidden(ids).mean(dim=1)[0], atol=1e-5, rtol=1e-5)


def test_trained_saved_loaded(tmp_path: Path) -> None:
    model = tiny(vocab_size=257)
    documents = [("aaa" + "a" * (i % 5), "low") if i % 2 else ("zzz" + "z" * (i % 4), "high") for i in range(80)]
    trained = train_discriminator(model, BYTES, "letters", documents)
    assert (trained.n_train, trained.n_held_out, trained.n_right) == (72, 8, 8)
    assert "letters: 2 classes (high, low) from 72 documents; right on 100.0 % of 8 held out" in str(trained)
    trained.head.save(tmp_path)
    found = load_head(tmp_path, "", model)
    assert found.labels == ("high", "low")
    assert torch.equal(found.weight, trained.head.weight)
    assert fingerprint(model.bfloat16()) == found.made_for
    with pytest.raises(UsageError, match="other weights"):
        load_head(tmp_path, "letters", tiny(vocab_size=257, init_std=0.3))
    with pytest.raises(UsageError, match="name one as NAME:LABEL"):
        load_head(tmp_path, "words", model)
    with pytest.raises(UsageError, match="no class 'hihg'"):
        found.index("hihg")


def test_the_doors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    news, folder = tmp_path / "news", tmp_path / "model"
    news.mkdir()
    rows = [
        f'"{2 if i % 2 else 3}","{"goal" if i % 2 else "shares"} {i}","{"ball " if i % 2 else "cash "} {i}"'
        for i in range(60)
    ]
    (news / "train.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    tiny(vocab_size=257).save_pretrained(folder, BYTES)
    words = ["--discriminator", "ag_news", "--init", str(folder), "--source", str(news), "--device", "cpu"]
    assert run_door("train", words) == 0
    out, err = capsys.readouterr()
    assert "business, sports" in err
    assert "--attribute ag_news:business" in out
    sample = ["--checkpoint", str(folder), "--prompt", "go", "--max_new_tokens", "6", "--seed", "3", "--device", "cpu"]
    steer = ["--attribute", "sports", "--steer", "n_iterations=1,step_size=0.5"]
    assert run_door("sample", sample + steer) == 0
    steered = capsys.readouterr().out
    model = GPT.from_pretrained(folder)
    s = steering((), load_head(folder, "ag_news", model), "sports", "n_iterations=1,step_size=0.5")
    assert (s.step_size, s.n_iterations, s.window, s.gamma, s.gm_scale) == (0.5, 1, 0, 1.0, 0.95)
    assert steered == generate(model, BYTES, "go", max_new_tokens=6, seed=3, steering=s) + "\n"
    assert run_door("sample", [*sample, "--bag", "a,b,word"]) == 0
    assert "word: several tokens each, left out" in capsys.readouterr().err
    for wrong, said in (
        (["--steer", "window=2"], "--steer goes with"),
        (["--attribute", "sprots"], "no class 'sprots'"),
        (["--bag", "word"], "one token"),
        (["--bag", "a", "--steer", "windw=2"], "no setting 'windw'"),
        (["--bag", "a", "--n_beams", "2"], "exclude each other"),
    ):
        assert run_door("sample", sample + wrong) == 2
        assert said in capsys.readouterr().err
    assert run_door("train", ["--discriminator", "tinyshakespeare", "--init", str(folder), "--source", str(news)]) == 2


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "needs a bag"),
        ({"gm_scale": 1.5}, "gm_scale"),
        ({"window": -1}, "window"),
        ({"step_size": -1.0}, "step_size"),
    ],
)
def test_misuse(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Steering(**({**values, "bags": ((1,),)} if values else {}))


def test_tokens_outside_the_vocabulary() -> None:
    with pytest.raises(UsageError, match="outside"):
        list(stream_batch(tiny(vocab_size=257), BYTES, ["a"], steering=Steering(bags=((300,),))))


def test_a_bag_is_a_file_or_words(tmp_path: Path) -> None:
    (tmp_path / "bag.txt").write_text("war\narmy\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    assert words_of(str(tmp_path / "bag.txt")) == ["war", "army"]
    assert words_of("war,army") == ["war", "army"]
    assert len(words_of(",".join(["word"] * 200))) == 200  # longer than a file's name may be
    with pytest.raises(UsageError, match="is not UTF-8"):
        words_of(str(tmp_path / "latin.txt"))
