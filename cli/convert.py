"""`snnzoo convert`: ANN weights to a spiking network in one file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snnzoo.checkpoints import manifest
from snnzoo.checkpoints.output import check_output
from snnzoo.cli import common
from snnzoo.errors import CheckpointError, UsageError
from snnzoo.evaluation.folders import list_images
from snnzoo.models.registry import list_weights, model_spec, split_tag
from snnzoo.preprocess import Preprocess, override, preset

if TYPE_CHECKING:
    from torch import Tensor

RECIPES = ("delta", "rate")
THRESHOLDS = ("max", "percentile")


def convert(
    model: common.ModelArgument,
    weights: Annotated[
        str | None, typer.Option(metavar="NAME", help="Weights of `snnzoo list`; the default if none.")
    ] = None,
    manifest_file: common.ManifestOption = None,
    checkpoint: Annotated[Path | None, typer.Option(metavar="FILE", help="Your own weights, instead.")] = None,
    num_classes: Annotated[int | None, typer.Option(metavar="N", help="Classes of the checkpoint.")] = None,
    recipe: Annotated[str, typer.Option(help="delta (graded spikes, few steps) or rate (binary spikes).")] = "delta",
    time_steps: Annotated[
        int | None, typer.Option("--time-steps", "-T", metavar="N", help="Steps that the network is meant for.")
    ] = None,
    levels: Annotated[
        int | None, typer.Option(metavar="K", help="delta: largest spike in levels; 1 is ternary.  [default: 3]")
    ] = None,
    threshold: Annotated[
        str | None, typer.Option(help="rate: max or percentile (99.9).  [default: percentile]")
    ] = None,
    calib_data: Annotated[
        str | None, typer.Option(metavar="DIR|digits", help="Images to calibrate on; labels are not used.")
    ] = None,
    calib_samples: Annotated[int, typer.Option(metavar="N", min=1, help="How many of them.")] = 512,
    input_size: Annotated[int | None, typer.Option(metavar="N", help="Pixels of the network's input.")] = None,
    mean: Annotated[str | None, typer.Option(metavar="A,B,C", help="Mean of the training images in [0, 1].")] = None,
    std: Annotated[str | None, typer.Option(metavar="A,B,C", help="Their standard deviation.")] = None,
    preprocess: Annotated[
        str | None, typer.Option(metavar="NAME", help="Preset: imagenet, imagenet_v2, cifar10 or digits.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT", help="File to write.  [default: MODEL-snn.safetensors]"),
    ] = None,
    batch_size: common.BatchSizeOption = 64,
    device: common.DeviceOption = "auto",
    seed: common.SeedOption = 0,
    json: common.JsonOption = None,
    force: common.ForceOption = False,
    quiet: common.QuietOption = False,
    debug: common.DebugOption = False,
) -> None:
    """Convert ANN weights to a spiking network.

    \b
    Examples:
      snnzoo convert resnet18 --weights digits
      snnzoo convert resnet18 --calib-data imagenet/train -o resnet18-snn.safetensors
      snnzoo convert resnet20 --checkpoint resnet20.th --calib-data cifar10/train --recipe rate -T 64
    """
    name, tag = split_tag(model, weights)
    output = output or Path(f"{name}-snn.safetensors")
    if time_steps is not None and time_steps < 1:
        raise UsageError(f"--time-steps must be at least 1, got {time_steps}")
    origin = _origin(name, tag, checkpoint, num_classes, manifest_file)
    recipe_options = _recipe_options(recipe, levels, threshold)
    base = preset(preprocess) if preprocess else origin.preprocess
    settings = override(base, input_size, common.parse_floats("--mean", mean), common.parse_floats("--std", std))
    calib_data = _calibration_source(calib_data, origin)
    common.check_device_and_dtype(device, "float32")
    check_output(output, force)
    common.check_json(json, force)

    from snnzoo import conversion
    from snnzoo.conversion.recipes import make_recipe
    from snnzoo.evaluation.data import calibration_images

    chosen = make_recipe(recipe, **recipe_options)
    with common.progress_bars(quiet) as progress:
        state_dict, source = origin.read(progress)
        kwargs = _architecture(name, state_dict, num_classes, origin)
        ann = conversion.build_ann(name, state_dict, origin.title, **kwargs).to(common.torch_device(device))
        images = calibration_images(calib_data, settings, calib_samples, seed, progress)
        net = conversion.convert_ann(
            ann,
            images,
            chosen,
            time_steps,
            batch_size=batch_size,
            progress=progress,
            calibration_source=calib_data,
            preprocess=settings,
            source=source,
        )
    conversion.save(net, output)
    _report(net.conversion, output, json, quiet)


@dataclass(frozen=True)
class _Origin:
    """Where the ANN's weights come from: a manifest entry, or the user's file."""

    title: str
    preprocess: Preprocess
    entry: manifest.WeightsEntry | None = None
    checkpoint: Path | None = None

    def read(self, progress: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The state dict in torchvision's keys, and what the converted file says about it."""
        from snnzoo.checkpoints.files import read_checkpoint, sha256_of
        from snnzoo.checkpoints.layouts import to_torchvision
        from snnzoo.models.registry import weights_of

        if self.entry is not None:
            source = {"weights": self.entry.tag, "url": self.entry.url or self.entry.source}
            return weights_of(self.entry, progress), source
        assert self.checkpoint is not None
        state_dict = to_torchvision(read_checkpoint(self.checkpoint), self.title)
        return state_dict, {"file": self.checkpoint.name, "sha256": sha256_of(self.checkpoint)}


def _origin(
    name: str, tag: str | None, checkpoint: Path | None, num_classes: int | None, manifest_file: Path | None
) -> _Origin:
    if checkpoint is not None:
        if tag is not None:
            raise UsageError(f"give either weights ({tag}) or --checkpoint, not both")
        if not checkpoint.is_file():
            raise UsageError(f"--checkpoint {checkpoint}: no such file")
        return _Origin(str(checkpoint), preset(model_spec(name).preprocess), checkpoint=checkpoint)
    entry = manifest.find(name, tag or "DEFAULT", list_weights(manifest_file))
    if num_classes not in (None, entry.num_classes):
        raise UsageError(f"weights {entry.tag} have {entry.num_classes} classes: leave --num-classes out")
    return _Origin(entry.tag, entry.preprocess, entry=entry)


def _architecture(name: str, state_dict: dict[str, Tensor], num_classes: int | None, origin: _Origin) -> dict[str, Any]:
    """The arguments that build `name` for these weights, as far as their shapes settle them."""
    from snnzoo.models.identify import identify

    try:
        found, kwargs = identify(state_dict, origin.title)
    except CheckpointError:
        found, kwargs = name, {}  # the comparison of keys will say what is wrong
    if found != name:
        raise CheckpointError(f"{origin.title}: holds the weights of {found}, not {name}: snnzoo convert {found} ...")
    return kwargs if num_classes is None else {**kwargs, "num_classes": num_classes}


def _recipe_options(recipe: str, levels: int | None, threshold: str | None) -> dict[str, Any]:
    common.check_choice("--recipe", recipe, RECIPES)
    if levels is not None and recipe != "delta":
        raise UsageError(f"--levels is an option of --recipe delta, not of {recipe}")
    if threshold is not None and recipe != "rate":
        raise UsageError(f"--threshold is an option of --recipe rate, not of {recipe}")
    if levels is not None and levels < 1:
        raise UsageError(f"--levels must be at least 1, got {levels}")
    if threshold is not None:
        common.check_choice("--threshold", threshold, THRESHOLDS)
    return {key: value for key, value in (("levels", levels), ("threshold", threshold)) if value is not None}


def _calibration_source(calib_data: str | None, origin: _Origin) -> str:
    if calib_data is None:
        if origin.entry is not None and origin.entry.recipe == "digits":
            return "digits"
        raise UsageError("--calib-data is missing: give a folder of typical images (a few hundred, without labels)")
    if calib_data != "digits":
        list_images(Path(calib_data))
    return calib_data


def _report(conversion: Any, output: Path, json: str | None, quiet: bool) -> None:
    calibration = conversion.recipe["calibration"]
    result = {
        "file": str(output),
        "model": conversion.model,
        "recipe": conversion.recipe,
        "coding": conversion.coding.to_dict(),
        "time_steps": conversion.time_steps,
        "preprocess": conversion.preprocess.to_dict(),
        "source": conversion.source,
        "size": output.stat().st_size,
    }
    common.write_json(json, result)
    source = conversion.source.get("weights") or conversion.source.get("file")
    pixels = conversion.preprocess.crop
    common.say(
        f"{conversion.model} ({source}) -> {conversion.coding}, T={conversion.time_steps}, {pixels}x{pixels} input, "
        f"calibrated on {calibration['images']} images of {calibration['source']}",
        quiet,
    )
    data = "digits" if calibration["source"] == "digits" else "DIR"
    common.say(f"wrote {output} ({result['size'] / 1e6:.1f} MB); next: snnzoo eval {output} --data {data}", quiet)
