"""The command line, presets and files: what wins, what is refused, and in which words."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilm.config import GPTConfig, TrainConfig
from minilm.errors import UsageError
from minilm.options import ALIASES, BESIDE, MODEL_FIELDS, PRESETS, TRAIN_FIELDS, build, init_of, parse, presets, to_toml


@pytest.mark.parametrize("name", presets())
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_preset_builds(name: str, device: str) -> None:
    config = parse(["--config", name], device).config
    table = tomllib.loads((PRESETS / f"{name}.toml").read_text(encoding="utf-8"))
    for key, value in {**table, **table.get(device, {})}.items():
        if key not in ("cpu", "cuda"):
            for field in ALIASES.get(key, (key,)):
                set_to = getattr(config if field in TRAIN_FIELDS else config.model, field)
                assert (list(set_to) if isinstance(set_to, tuple) else set_to) == value


def test_gpt2_presets_have_gpt2s_shapes() -> None:
    for name, heads, width, layers in (
        ("small", 12, 768, 12), ("medium", 16, 1024, 24), ("large", 20, 1280, 36), ("xl", 25, 1600, 48),
    ):  # fmt: skip
        model = parse(["--config", name], "cuda").config.model
        assert model == replace(GPTConfig(), n_head=heads, n_embd=width, n_layer=layers)
    assert (
        parse(["--config", "small"], "cuda").config.batch_size > parse(["--config", "small"], "cpu").config.batch_size
    )


def test_defaults_then_preset_then_command_line(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text("n_layer = 7\nlr = 0.5\ndropout = 0.25\n[cpu]\nlr = 0.125\n", encoding="utf-8")
    config = parse(["--config", str(mine)]).config
    assert (config.model.n_layer, config.lr, config.model.attn_dropout) == (7, 0.125, 0.25)
    assert parse(["--config", str(mine)], "cuda").config.lr == 0.5
    assert config.warmup_steps == TrainConfig().warmup_steps
    said = parse(["--n_layer", "3", "--config", str(mine), "--lr=2"]).config
    assert (said.model.n_layer, said.lr) == (3, 2.0)


def test_spellings_mean_the_same() -> None:
    wanted = parse(["--n_layer", "2", "--attn_dropout", "0.5", "--qk_norm", "true"]).config
    for words in (
        ["--n-layer", "2", "--attn-dropout=0.5", "--qk-norm=True"],
        ["--n_layer=2", "--attn-dropout", "0.5", "--qk_norm", "yes"],
        ["--n_layer=9", "--n_layer=2", "--attn_dropout=.5", "--qk_norm=1"],
    ):
        assert parse(words).config == wanted
    words = ["--skip_attn", "0", "2", "--data", "my-folder", "--out_dir=a=b"]
    config = parse(words).config
    assert (config.model.skip_attn, config.data, config.out_dir) == ((0, 2), "my-folder", "a=b")
    assert parse(["--freeze", "embeddings", "h.0-5", "--seed=1"]).config.freeze == ("embeddings", "h.0-5")
    assert parse(["--config", "norms", "--train-only", "top:4"]).config.train_only == ("top:4",)
    assert parse(["--config", "norms", "--train_only"]).config.train_only == ()


def test_aliases_set_three_fields() -> None:
    model = parse(["--dropout", "0.3", "--bias=true"]).config.model
    assert (model.embd_dropout, model.attn_dropout, model.resid_dropout) == (0.3, 0.3, 0.3)
    assert (model.attn_bias, model.mlp_bias, model.norm_bias) == (True, True, True)


def test_resume_overwrite_and_init() -> None:
    assert parse([]).resume_from is None
    assert parse(["--resume"]).resume_from == ""
    named = parse(["--resume", "runs/a", "--max_steps", "5"])
    assert (named.resume_from, named.config.existing, named.config.max_steps) == ("runs/a", "resume", 5)
    assert parse(["--overwrite"]).config.existing == "overwrite"
    with pytest.raises(UsageError, match="exclude each other"):
        parse(["--overwrite", "--resume"])
    assert init_of(["--config", "small", "--init=gpt2"]) == "gpt2"
    base = GPTConfig(n_layer=5, n_head=2, n_embd=8)
    config = parse(["--init", "x", "--norm", "rmsnorm"], base=base).config
    assert config.model == replace(base, norm="rmsnorm")
    assert config.optimizer == parse([]).config.optimizer


_HINTS = get_type_hints(GPTConfig) | get_type_hints(TrainConfig)
_CHOICES = {name: get_args(_HINTS[name]) for name in _HINTS if str(_HINTS[name]).startswith("typing.Literal")}


def does_nothing(name: str, values: dict[str, Any]) -> bool:
    """Of the few options below; tiny's optimizer is muon, its precision auto."""
    if name == "rounding":
        return values[name] != "nearest" and not str(values.get("precision")).startswith("pure_")
    without = ("sgd", "adagrad", "adafactor")
    return name == "beta2" and values[name] != TrainConfig.beta2 and values.get("optimizer") in without


@given(st.fixed_dictionaries({}, optional={
    **{name: st.sampled_from(choices) for name, choices in _CHOICES.items() if name != "existing"},
    "lr": st.floats(0, 1), "seed": st.integers(0, 2**40), "max_steps": st.integers(1, 10**9),
    "norm_scale": st.booleans(), "out_dir": st.text("ab \"\\'=ü/", max_size=5), "skip_mlp": st.just((0, 2)),
    "beta2": st.floats(0, 0.999),
}))  # fmt: skip
def test_command_line_and_file_say_the_same(values: dict[str, Any]) -> None:
    words = [
        word for name, value in values.items()
        for word in ([f"--{name}={value}"] if name != "skip_mlp" else ["--skip_mlp", *map(str, value)])
    ]  # fmt: skip
    if idle := [name for name in values if does_nothing(name, values)]:
        with pytest.raises(UsageError, match=f"--({'|'.join(idle)}) does nothing without"):
            parse(words)
        return
    config = parse(words).config
    assert all(getattr(config if k in TRAIN_FIELDS else config.model, k) == v for k, v in values.items())
    assert build(tomllib.loads(to_toml(config))) == config


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--activatio", "relu"], r"no option --activatio \(did you mean --activation\?\)"),
        (["--warmup-stps", "3"], r"did you mean --warmup_steps\?"),
        (["--dropuot", "0"], r"did you mean --dropout\?"),
        (["relu"], "no option relu"),
        (["--config", "smal"], r"no preset .*'smal' \(did you mean small\?\): presets are .*large, .*medium"),
        (["--activation", "rel"], r"activation is 'rel': choose gelu_tanh, .* \(did you mean relu\?\)"),
        (["--precision", "fp8"], "choose auto, fp32, tf32, bf16"),
        (["--n_layer", "x"], "--n_layer takes a whole number, not 'x'"),
        (["--n_layer", "2.5"], "takes a whole number"),
        (["--lr", "fast"], "--lr takes a number"),
        (["--qk_norm", "maybe"], "--qk_norm takes true or false"),
        (["--skip_attn", "0", "x"], "--skip_attn takes whole numbers"),
        (["--unfreeze_every_steps", "-1"], "unfreeze_every_steps must be 0 or more"),
        (["--lr"], "--lr takes one value, not none"),
        (["--lr", "1", "2"], "--lr takes one value, not 1 2"),
        (["--config"], "--config needs a value"),
        (["--n_layer", "0"], "n_layer must be at least 1, not 0"),
        (["--n_head", "5"], r"n_head \(5\) must divide n_embd"),
        (["--dropout", "2"], r"must lie in \[0, 1\)"),
        (["--lr", "nan"], "lr must be 0 or more"),
        (["--seed", "99999999999999999999"], r"seed must be 0 or more and under 2\^63"),
        (["--batch_size", "8", "--micro_batch_size", "3"], "must divide batch_size"),
    ],
)
def test_misuse_is_one_sentence(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse(words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--optimizer adamw --momentum 0.5", "--momentum does nothing without --optimizer muon or sgd: add that"),
        ("--lora_alpha 8", "--lora_alpha does nothing without --lora_rank: add that, or leave --lora_alpha out"),
        ("--config lora --lora_rank 0 --lora_dropout 0.5", "without --lora_rank"),
        ("--stride 4", "without --packing sliding"),
        ("--decay_share 0.5", "without --schedule wsd"),
        ("--rounding stochastic --precision bf16", "without --precision pure_bf16 or pure_fp16"),
        ("--distill_temperature 1", "without --distill"),
        ("--swap_at_step 3", "without --swap_activation"),
    ],
)
def test_an_option_that_does_nothing_is_refused(words: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(words.split())


def test_an_option_that_does_nothing_may_stand_at_its_default_or_in_a_file(tmp_path: Path) -> None:
    for name in BESIDE:
        assert parse([]).config == parse(["--config", "tiny"]).config
        value = getattr(TrainConfig(), name)
        words = [f"--{name}", *(value if isinstance(value, tuple) else [str(value)])]
        assert getattr(parse(words).config, name) == value
    mine = tmp_path / "mine.toml"
    mine.write_text("stride = 4\nmomentum = 0.5\n")
    assert parse(["--config", str(mine)]).config.stride == 4


def test_the_command_lines_length_takes_the_place_of_the_presets(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text("max_epochs = 4.0\nmax_steps = 12\n")
    words = ["--config", str(mine)]
    assert parse(words).config.max_epochs == 4.0
    for name in ("max_steps", "max_tokens", "max_epochs"):
        config = parse([*words, f"--{name}", "7"]).config
        lengths = (config.max_steps, config.max_tokens, config.max_epochs)
        assert lengths == {"max_steps": (7, 0, 0), "max_tokens": (1000, 7, 0), "max_epochs": (1000, 0, 7)}[name]
    with pytest.raises(UsageError, match="--max_steps and --max_epochs exclude each other"):
        parse(["--max_epochs", "2", "--max_steps", "5"])


def test_finetune_reads_its_text_four_times_at_most() -> None:
    for device in ("cpu", "cuda"):
        config = parse(["--config", "finetune"], device).config
        assert (config.max_epochs, config.max_tokens, config.eps) == (4.0, 0, 1e-5)
        assert config.patience > 0
        assert config.lr <= 5e-5


def test_bad_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    for text, message in (
        ("n_layers = 3", r"'n_layers', which is no option \(did you mean n_layer\?\)"),
        ("n_layer = ", "is no TOML file"),
        ('n_layer = "3"', "n_layer takes int"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UsageError, match=message):
            parse(["--config", str(path)])


def test_help_tells_every_option_without_torch() -> None:
    code = "import sys; from minilm.train_cli import main\ntry: main(['--help'])\n"
    code += "finally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in (*TRAIN_FIELDS, *MODEL_FIELDS, "resume", "overwrite", "dropout", "bias"):
        assert f"--{name}" in done.stdout
    documented = " ".join(done.stdout.replace("│", " ").split())
    assert "Frozen" not in documented
    assert "Largest gradient norm. 0: off." in documented
    assert len(fields(TrainConfig)) - 1 + len(fields(GPTConfig)) == len(TRAIN_FIELDS + MODEL_FIELDS)


def test_every_value_of_a_preset_has_its_reason() -> None:
    for name in presets():
        for line in (PRESETS / f"{name}.toml").read_text(encoding="utf-8").splitlines():
            if re.match(r"\w+ = ", line):
                assert len(line.partition("#")[2]) > 3, f"{name}: {line}"
