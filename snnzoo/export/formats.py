"""The formats that a converted network is exported to: one row each. Nothing here imports torch until it is used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from snnzoo.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from snnzoo.export.check import Check, Open
    from snnzoo.graph.network import SpikingNetwork

CHECKED_IMAGES = 16


@dataclass(frozen=True)
class Format:
    """One format.

    Args:
        name: on the command line.
        suffix: of its files.
        about: what it is for, in words.
        needs: modules that write it.
        runs_with: modules that run it.
    """

    name: str
    suffix: str
    about: str
    needs: tuple[str, ...] = ()
    runs_with: tuple[str, ...] = ()


FORMATS = {
    row.name: row
    for row in (
        Format("nir", ".nir", "rate-coded networks, for neuromorphic tools and chips", ("nir",)),
        Format("onnx", ".onnx", "T steps unrolled, any coding", ("onnx", "onnxscript"), ("onnxruntime",)),
        Format("pt2", ".pt2", "the same for torch.export"),
        Format("integer", ".npz", "whole numbers and golden traces, for who builds hardware"),
    )
}


def write(
    name: str,
    net: SpikingNetwork,
    path: Path,
    time_steps: int,
    shape: tuple[int, ...],
    *,
    images: Tensor | None,
    replace: bool,
    target: str = "generic",
    stem: bool = True,
) -> Check | None:
    """Write a network in a format, checked on `images` unless they are None; arguments as of the format's function.

    Raises:
        SnnzooError: naming what the format cannot express, or if the file does not compute what the network does.
    """
    if name == "nir":
        from snnzoo.export.nir import write_nir

        read_as = {"target": target, "stem": stem}
        return write_nir(net, path, shape, replace=replace, images=images, time_steps=time_steps, **read_as)
    if name == "integer":
        from snnzoo.export.integer import write_integer

        return write_integer(net, path, time_steps, shape, replace=replace, images=images)
    from snnzoo.export.unrolled import write_onnx, write_pt2

    function = write_onnx if name == "onnx" else write_pt2
    return function(net, path, time_steps, shape, replace=replace, images=images)


def opener(name: str, net: SpikingNetwork, time_steps: int, shape: tuple[int, ...], target: str = "generic") -> Open:
    """Return what makes a file of a format runnable: `path -> (images [N, C, H, W] -> logits [T, N, classes])`."""
    if name == "nir":
        from snnzoo.export.nir import nir_runner

        return nir_runner(net, shape, time_steps, target=target)
    if name == "integer":
        from snnzoo.export.integer import open_integer

        return open_integer
    from snnzoo.export.unrolled import open_onnx, open_pt2

    return open_onnx if name == "onnx" else open_pt2


def images_to_check(
    net: SpikingNetwork, shape: tuple[int, ...], data: str | None, count: int = CHECKED_IMAGES, seed: int = 0
) -> tuple[Tensor, str]:
    """Return images to run a file on, `[N, C, H, W]`, and where they are from.

    Args:
        shape: of one image, `[C, H, W]`.
        data: a folder of images or "digits"; those that the network was calibrated on, where they still are, if None;
            noise, where they are not.

    Raises:
        UsageError: for a folder without images, or images that nothing tells how to prepare.
    """
    import torch

    from snnzoo.conversion.converted_file import Conversion
    from snnzoo.data.datasets import DIGITS, calibration_images
    from snnzoo.data.preprocess import override

    info = net.conversion
    preprocess = info.preprocess if isinstance(info, Conversion) else None
    if data is not None and preprocess is None:
        raise UsageError(f"--data {data}: the network does not say how images are prepared: leave it out")
    if data is None and preprocess is not None and isinstance(info, Conversion):
        source = info.recipe.get("calibration", {}).get("source")
        if isinstance(source, str) and (source == DIGITS or Path(source).is_dir()):
            data = source
    if data is None or preprocess is None:
        return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed)), "noise"
    if tuple(preprocess.size) != shape[1:]:
        preprocess = override(preprocess, shape[1])
    return calibration_images(data, preprocess, count, seed + 1), data
