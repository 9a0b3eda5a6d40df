"""What the machine is and can do: device, precision, threads, seeds, speed of its matrix products."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from minilm.errors import UsageError

if TYPE_CHECKING:
    import torch

# Dense bf16 peak in FLOP/s (fp16 where the card has no bf16), from the makers' data sheets.
PEAK_FLOPS = {"B200": 2250e12, "H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}
PEAK_FLOPS |= {"A10": 125e12, "4090": 165e12, "3090": 71e12, "V100": 125e12, "T4": 65e12}
PACKAGED = Path(__file__).resolve().parents[1] / "models"
NO_CACHE = "glibc.malloc.tcache_count=0"
PRECISIONS = ("fp32", "tf32", "bf16", "fp16", "pure_bf16", "pure_fp16")


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name. Raises UsageError where it is not there."""
    import torch

    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in has.items() if there))
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name!r} is no device: use auto, cpu, cuda, cuda:1 or mps") from None
    if not has.get(device.type, False):
        raise UsageError(f"--device {name}: this machine has {', '.join(k for k, v in has.items() if v)}")
    return device


def matmul_flops(device: torch.device, dtype: torch.dtype, rows: int = 512, width: int = 256) -> float:
    """FLOP/s of (rows, width) x (width, 4 width), the product that a feed-forward runs; best of eight in a second.

    Where a sixteenth of the rows shows that one product would take longer (bf16 without hardware for it is hundreds of
    times slower), their rate is the answer.
    """
    import torch

    rate = 0.0
    b = torch.randn(width, 4 * width, device=device).to(dtype)
    for n, repeats in ((max(rows // 16, 1), 3), (rows, 8)):
        a, flops = torch.randn(n, width, device=device).to(dtype), 2.0 * n * width * 4 * width
        if rate and flops / rate > 1.0:
            break
        best, began = float("inf"), time.perf_counter()
        for _ in range(repeats):
            synchronize(device)
            start = time.perf_counter()
            a @ b
            synchronize(device)
            best = min(best, time.perf_counter() - start)
            if time.perf_counter() - began > 1.0:
                break
        rate = flops / best
    return rate


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """What MFU is a share of: a card's data sheet, else the best square product measured here."""
    import torch

    if device.type == "cuda":
        card = torch.cuda.get_device_name(device)
        for key, flops in PEAK_FLOPS.items():
            if key in card:
                return flops if dtype != torch.float32 else flops / 2
    return matmul_flops(device, dtype, rows=512, width=1024)


def missing_precisions(device: torch.device) -> dict[str, str]:
    """Precisions that the device cannot run, each with the reason."""
    import torch

    missing = {"tf32": "it needs an NVIDIA card of 2020 or later"}
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device)[0] >= 8:
            missing = {}
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            missing |= dict.fromkeys(("bf16", "pure_bf16"), "this card has no bf16")
    return missing


def pick_precision(precision: str, device: torch.device, width: int) -> str:
    """The precision asked for, or for "auto" the fastest that keeps weights and optimizer state in fp32.

    On a CPU fp32 and bf16 are timed on the product that a model of this width runs most. Raises UsageError on one that
    the device cannot run, with those that it can.
    """
    import torch

    missing = missing_precisions(device)
    if precision in missing:
        runs = [name for name in PRECISIONS if name not in missing]
        raise UsageError(f"--precision {precision}: {missing[precision]}; this machine runs {', '.join(runs)}")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "fp16" if "bf16" in missing else "bf16"
    if device.type == "mps":
        return "fp32"
    # A tenth more, since casts and norms do not get faster.
    faster = matmul_flops(device, torch.bfloat16, width=width) > 1.1 * matmul_flops(device, torch.float32, width=width)
    return "bf16" if faster else "fp32"


def pick_dtype(precision: str, device: torch.device, width: int) -> torch.dtype:
    """The dtype of that precision's products."""
    import torch

    name = pick_precision(precision, device, width).removeprefix("pure_")
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name, torch.float32)


def compiler_missing() -> str | None:
    """Why torch.compile cannot build C++ here, or None where it can."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        compiler = get_cpp_compiler()
    except InvalidCxxCompiler:
        return "no C++ compiler was found (install g++ or clang)"
    return None if shutil.which(compiler) else f"the C++ compiler {compiler} was not found"


def packaged(name: str) -> Path | None:
    """The folder of a model that `minilm lab present` made and the repository keeps in models/."""
    folder = PACKAGED / name
    return folder if len(Path(name).parts) == 1 and (folder / "config.json").is_file() else None


def tune_allocator() -> bool:
    """Keeps freed memory in the process: page faults otherwise cost a CPU step up to a third of its time.

    Sets glibc's M_MMAP_THRESHOLD (-3) to 1 GiB and M_TRIM_THRESHOLD (-1) to its maximum; elsewhere does nothing.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(-3, 1 << 30) and mallopt(-1, (1 << 31) - 1))


def begin_tuned() -> None:
    """`tune_allocator`, and `python train.py` or `minilm` begins anew without glibc's cache of small pieces: they lie
    beside each of torch's aligned blocks and, cached, keep a block from the place of one of its own size. Only a new
    process can be without it (docs/performance-log.md)."""
    started, own = os.environ.get("GLIBC_TUNABLES"), Path(sys.argv[0]).name in ("train.py", "minilm")
    if started == NO_CACHE:
        del os.environ["GLIBC_TUNABLES"]  # what this process starts, compilers too, is as ever
    elif started is None and sys.platform == "linux" and own and sys.orig_argv[-len(sys.argv) :] == sys.argv:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {"GLIBC_TUNABLES": NO_CACHE})
    tune_allocator()


def free_bytes(device: torch.device) -> int | None:
    """Memory that can still be had on the device, or None where the system does not say."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def set_step_seed(seed: int, step: int, rank: int = 0) -> None:
    """Seeds torch as a function of (seed, step, rank): a resumed step draws the dropout that it would have drawn."""
    import torch

    mixed = hashlib.blake2b(f"{seed} {step} {rank}".encode(), digest_size=4).digest()  # a CPU generator takes 32 bits
    number = int.from_bytes(mixed, "little")
    # torch.manual_seed does the same, but on a machine without a card formats the whole call stack each time.
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(number)


def versions() -> dict[str, str]:
    """Python, torch and minilm, the machine's processor or card, for a run's record."""
    import platform

    import torch

    import minilm

    card = torch.cuda.get_device_name() if torch.cuda.is_available() else processor_name()
    return {
        "minilm": minilm.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.system(),
        "processor": card,
        "threads": str(torch.get_num_threads()),
    }


def processor_name() -> str:
    """What the system calls the processor, else its architecture."""
    import platform

    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def resident_bytes() -> int:
    """The memory that this process holds now; where the system does not say, the most that it has held."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return peak_resident_bytes()
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_resident_bytes() -> int:
    """The most memory that this process has held so far; on Linux getrusage says its parent's, where that held more."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def git_commit() -> str:
    """Commit of the source tree that minilm runs from, '+' where it has changes; empty outside a checkout."""
    here = Path(__file__).resolve().parent.parent
    git = shutil.which("git")
    if git is None or not (here / ".git").exists():
        return ""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}

    def ask(*words: str) -> str:
        done = subprocess.run([git, "-C", str(here), *words], capture_output=True, text=True, env=environment)
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = ask("rev-parse", "HEAD")
    return commit + ("+" if commit and ask("status", "--porcelain", "--untracked-files=no") else "")


def synchronize(device: torch.device) -> None:
    """Waits for what a card has been given."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
