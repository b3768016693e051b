"""`snnzoo predict`: what a converted network takes images for."""

from __future__ import annotations

import functools
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snnzoo.checkpoints.output import check_outputs
from snnzoo.cli import common
from snnzoo.data.folders import samples_of
from snnzoo.data.preprocess import MAX_PIXELS
from snnzoo.errors import printable

if TYPE_CHECKING:
    from snnzoo.evaluation.prediction import Prediction


def predict(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that snnzoo convert wrote.")],
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...|DIR", help="Images, event frames (.npz), or folders of them.")
    ],
    exit: common.ExitOption = None,
    max_pixels: common.MaxPixelsOption = MAX_PIXELS,
    batch_size: common.BatchSizeOption = 64,
    workers: common.WorkersOption = 1,
    device: common.DeviceOption = "auto",
    dtype: common.DtypeOption = "float32",
    json: common.JsonOption = None,
    force: common.ForceOption = False,
    quiet: common.QuietOption = False,
    debug: common.DebugOption = False,
) -> None:
    """Name the five likeliest classes of each image, one line an image.

    \b
    Examples:
      snnzoo predict resnet18-snn.safetensors photo.jpg
      snnzoo predict resnet18-snn.safetensors photos --exit 0.5 --json -
    """
    common.check_converted(file)
    samples = samples_of(images)
    common.check_device_and_dtype(device, dtype)
    check_outputs({"--json": json}, [file, *samples], force=force)

    import torch

    from snnzoo import conversion
    from snnzoo.data.loading import LeftOut
    from snnzoo.evaluation import prediction

    net = conversion.load(file)
    info = net.conversion
    assert isinstance(info, conversion.Conversion)
    left_out = LeftOut(functools.partial(common.say, quiet=quiet))
    found: list[dict[str, Any]] = []
    for one in prediction.predict(
        net,
        samples,
        exit=None if exit is None else conversion.exit_rule(info, exit, str(file)),
        batch_size=batch_size,
        device=common.torch_device(device),
        dtype=getattr(torch, dtype),
        workers=workers,
        max_pixels=max_pixels,
        leave_out=left_out,
    ):
        found.append({**asdict(one), "image": str(one.image)})
        if json != "-":
            common.console().print(_line(one), markup=False)
    left_out.require_some(len(found))
    settings = {"file": str(file), "time_steps": info.time_steps, "exit": exit}
    common.write_json(json, {**settings, "predictions": found, "left_out": left_out.names}, force)


def _line(one: Prediction) -> str:
    guesses = ", ".join(f"{guess.name} {100 * guess.probability:.1f} %" for guess in one.guesses)
    return printable(f"{one.image}: {guesses}; {one.steps} step{'s' if one.steps > 1 else ''}")
