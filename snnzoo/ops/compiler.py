"""Shared libraries from C++ sources of this package, built by the machine's compiler when first needed, and kept."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch

# products and sums are not contracted: results round as those of operations one by one. Nobody looks at exceptions of
# floating point: without that, g++ does not vectorise most neurons for AVX2
FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-shared", "-fopenmp"),
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
)
FLAGS_OF_CAPABILITY = {"AVX2": ("-march=x86-64-v3",), "AVX512": ("-march=x86-64-v4", "-mprefer-vector-width=512")}


class BuildError(RuntimeError):
    """No library can be had here; the message says why."""


def cache_folder() -> Path:
    """Return where libraries are kept: `snnzoo` in XDG_CACHE_HOME, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "snnzoo"


@functools.cache
def load(source: Path, *options: str) -> ctypes.CDLL | None:
    """Return the library of a C++ source; None, after a warning, where it cannot be built.

    It is built once for a source, compiler and kind of CPU, and found in `cache_folder` from then on.
    """
    try:
        return ctypes.CDLL(str(_built(source, options)))
    except (BuildError, OSError) as error:
        warnings.warn(f"neurons run without their CPU kernels, in a slower form: {error}", stacklevel=2)
        return None


def _built(source: Path, options: tuple[str, ...]) -> Path:
    if not sys.platform.startswith("linux"):
        raise BuildError(f"they are built on Linux only, not on {sys.platform}")
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise BuildError("there is no C++ compiler (install g++, or name one in CXX)")
    command = [compiler, *FLAGS, *FLAGS_OF_CAPABILITY.get(torch.backends.cpu.get_cpu_capability(), ()), *options]
    version = _run([compiler, "--version"])
    texts = [path.read_text() for path in (source, *sorted(source.parent.glob("*.h")))]
    key = hashlib.sha256("\0".join([*texts, version, *command]).encode()).hexdigest()[:16]
    target = cache_folder() / f"{source.stem}-{key}.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder, target.name)
            _run([*command, str(source), "-o", str(made)])
            made.replace(target)  # as a whole: another process may want it, too
    return target


def _run(command: list[str]) -> str:
    """Return what a command prints; a BuildError with what it complains of."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]} does not run: {error}") from None
    if done.returncode:
        complaints = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        raise BuildError(f"{command[0]} fails: {next((c for c in complaints if 'error' in c), complaints[0])}")
    return done.stdout
