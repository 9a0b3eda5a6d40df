"""The house has one direction; the package is light to import; nothing of a machine stands in the repository."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ["ground", "text", "datasets", "model", "decoding", "evaluation", "training", "lab", "doors"]
GROUND = {"checks", "command_line", "config", "errors", "log", "model_config", "options", "picture", "runtime"}
PUBLIC = {"__init__"}  # the package itself, whose names are resolved on first use


def room_of(module: str) -> str:
    """minilm.text.shards -> text."""
    parts = module.split(".")
    if parts[0] == "data" or parts[:2] == ["minilm", "datasets"]:
        return "datasets"
    if len(parts) > 1 and parts[1] in ROOMS:
        return parts[1]
    return "ground" if len(parts) > 1 and parts[1] in GROUND else "doors"


def modules() -> list[tuple[str, Path]]:
    found = [(str(p.relative_to(ROOT).with_suffix("")).replace("/", "."), p) for p in (ROOT / "minilm").rglob("*.py")]
    return found + [(f"data.{p.stem}", p) for p in (ROOT / "data").glob("*.py")]


def imported(path: Path) -> set[str]:
    """Every minilm module that a file imports, also inside functions, not for type checkers alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    checked = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    skipped = {inner for block in checked for inner in ast.walk(block)}
    names: set[str] = set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                is_module = (ROOT / (inner.replace(".", "/") + ".py")).is_file()
                names.add(inner if is_module else node.module)
    return {name for name in names if name.startswith("minilm.")}


@pytest.mark.parametrize(("module", "path"), modules(), ids=[name for name, _ in modules()])
def test_imports_go_one_way(module: str, path: Path) -> None:
    mine = ROOMS.index(room_of(module))
    if path.stem in PUBLIC:
        return
    # DESIGN allows from_pretrained and save_pretrained their import inside; it stays within the model's room.
    wrong = {name for name in imported(path) if ROOMS.index(room_of(name)) > mine}
    assert not wrong, f"{module} ({ROOMS[mine]}) imports {wrong}"


def test_rooms_are_told_apart() -> None:
    assert room_of("minilm.text.shards") == "text"
    assert room_of("minilm.config") == "ground"
    assert room_of("minilm.datasets.tales") == room_of("data.tales") == "datasets"
    assert room_of("minilm.train_cli") == "doors"


def test_importing_the_package_costs_nothing() -> None:
    code = "import sys, minilm; dir(minilm); print(*sorted(m.split('.')[0] for m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "numpy", "tyro", "transformers", "requests", "tiktoken", "tokenizers", "huggingface_hub", "tqdm"}
    assert not heavy & set(done.stdout.split())


def test_public_names_resolve() -> None:
    import minilm

    for name in minilm.__all__:
        assert getattr(minilm, name) is not None
    with pytest.raises(AttributeError, match="it has GPT"):
        minilm.nothing  # noqa: B018


def test_nothing_of_one_machine_is_tracked() -> None:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if files.returncode:
        pytest.skip("not a git checkout")
    foreign = re.compile(r"(^|[^\w.-])/(home|work|Users|farm|root)/\w|py" r"pi\.org|python" r"hosted")
    for name in files.stdout.split():
        text = (ROOT / name).read_bytes().decode("utf-8", "replace")
        for line in text.splitlines():
            assert not foreign.search(line), f"{name}: {line.strip()[:120]}"


def test_the_model_and_sampling_leave_the_compiler_alone() -> None:
    """Importing torch's compiler takes over a second."""
    code = (
        "import sys, torch, minilm; m = minilm.GPT(minilm.GPTConfig(n_layer=1, n_head=1, n_embd=8, vocab_size=9)); "
        "minilm.generate_ids(m, torch.tensor([[1]]), 2); print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
