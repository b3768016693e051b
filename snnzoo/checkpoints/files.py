"""Reading checkpoints safely, and writing safetensors files wholly or not at all."""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from snnzoo.checkpoints.output import atomic_output
from snnzoo.errors import CheckpointError


def sha256_of(path: Path) -> str:
    """The hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_checkpoint(path: Path) -> Any:
    """What a .safetensors, .pt, .pth, .th, .bin or .ckpt file holds, tensors on the CPU.

    Pickled files are read with `weights_only=True`: no code in them is run.

    Raises:
        CheckpointError: if the file cannot be read, or holds more than tensors and plain values.
    """
    require_file(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error) or "weights_only" in str(error).lower():
            raise CheckpointError(
                f"{path}: refused, because it holds pickled objects beyond tensors and plain values, and loading "
                f"those could run any code; save its state_dict alone with torch.save(net.state_dict(), ...)"
            ) from error
        raise CheckpointError(f"{path}: not a checkpoint, or damaged: {_one_line(error)}") from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: not a checkpoint, or damaged: {_one_line(error)}") from error


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file.

    Raises:
        CheckpointError: if it is not a valid one.
    """
    require_file(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
            return tensors, dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a safetensors file, or damaged: {_one_line(error)}") from error


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file beside `path`, then rename it to `path`.

    Raises:
        SnnzooError: if it cannot be written.
    """
    contiguous = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    with atomic_output(path) as temporary:
        try:
            save_file(contiguous, temporary, metadata=dict(metadata))
        except SafetensorError as error:
            raise OSError(_one_line(error)) from error


def require_file(path: Path) -> None:
    """Raise a CheckpointError unless `path` is a file that is there."""
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder, expected a checkpoint file")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) < 200 else text[:200] + " ..."
