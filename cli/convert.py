"""`snnzoo convert`: ANN weights to a spiking network in one file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snnzoo.checkpoints import manifest
from snnzoo.checkpoints.layout_rules import layout_named
from snnzoo.checkpoints.output import check_outputs
from snnzoo.cli import common
from snnzoo.data.folders import is_frames, list_samples
from snnzoo.data.preprocess import MAX_PIXELS, Preprocess, override, preset
from snnzoo.errors import CheckpointError, UsageError, first_few
from snnzoo.models.factory import check_convertible
from snnzoo.models.registry import list_weights, model_spec, split_tag

if TYPE_CHECKING:
    from torch import Tensor

RECIPES = ("delta", "differential", "signed", "rate")
FEW_IMAGES = 64
THRESHOLDS = ("mse", "balanced", "percentile", "max")


def convert(
    model: common.ModelArgument,
    weights: Annotated[
        str | None, typer.Option(metavar="NAME", help="Weights of `snnzoo list`; the default if none.")
    ] = None,
    manifest_file: common.ManifestOption = None,
    checkpoint: Annotated[Path | None, typer.Option(metavar="FILE", help="Your own weights, instead.")] = None,
    layout: common.LayoutOption = None,
    num_classes: Annotated[int | None, typer.Option(metavar="N", help="Classes of the checkpoint.")] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE",
            help="delta or differential (graded spikes, few steps), signed (ternary) or rate (binary, many steps).",
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            help="Without --recipe, -T and --levels: the fewest steps and levels whose agreement with the ANN on "
            "held-back calibration images misses no more than this.  [default: 0.5]",
        ),
    ] = None,
    time_steps: Annotated[
        int | None, typer.Option("--time-steps", "-T", metavar="N", help="Steps that the network is meant for.")
    ] = None,
    levels: Annotated[
        int | None,
        typer.Option(metavar="K", help="delta: largest spike, 1 is ternary [default: 3]; differential: sizes [8]."),
    ] = None,
    threshold: Annotated[
        str | None, typer.Option(metavar="HOW", help="rate: mse, balanced, percentile (99.9) or max.  [default: mse]")
    ] = None,
    bias_correction: Annotated[
        bool, typer.Option("--bias-correction/--no-bias-correction", help="rate: take out each channel's mean error.")
    ] = True,
    calib_data: Annotated[
        str | None,
        typer.Option(metavar="DIR|digits", help="Images to calibrate on, or event frames (.npz); data-free if none."),
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
    max_pixels: common.MaxPixelsOption = MAX_PIXELS,
    batch_size: common.BatchSizeOption = 64,
    device: common.DeviceOption = "auto",
    seed: common.SeedOption = 0,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show a line for every layer.")] = False,
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
    check_convertible(name, with_images=True)
    output = output or Path(f"{name}-snn.safetensors")
    if time_steps is not None and time_steps < 1:
        raise UsageError(f"--time-steps must be at least 1, got {time_steps}")
    origin = _origin(name, tag, checkpoint, num_classes, manifest_file, layout)
    automatic = _is_automatic(recipe, time_steps, levels, threshold, bias_correction, tolerance)
    recipe = recipe or "delta"
    recipe_options = _recipe_options(recipe, levels, threshold, bias_correction)
    base = preset(preprocess) if preprocess else origin.preprocess
    settings: Preprocess | None
    settings = override(base, input_size, common.parse_floats("--mean", mean), common.parse_floats("--std", std))
    calib_data, frames = _calibration_source(calib_data, origin)
    check_convertible(name, with_images=calib_data is not None)
    if frames:
        if any(option is not None for option in (preprocess, input_size, mean, std)):
            raise UsageError("--preprocess, --input-size, --mean and --std are for images, frames are taken as is")
        settings = None
    common.check_device_and_dtype(device, "float32")
    if tolerance is not None and calib_data is None:
        raise UsageError("--tolerance is judged on calibration images: give --calib-data DIR")
    inputs = filter(None, [checkpoint, manifest_file])
    check_outputs({"-o": output, "--json": json}, inputs, force=force)

    from snnzoo import conversion
    from snnzoo.conversion.choice import TOLERANCE
    from snnzoo.conversion.recipes import make_recipe
    from snnzoo.data.datasets import calibration_images
    from snnzoo.models.factory import build_ann

    chosen = make_recipe(recipe, **recipe_options)
    with common.progress_bars(quiet) as progress:
        state_dict, source, notes = origin.read(progress)
        kwargs = _architecture(name, state_dict, num_classes, origin)
        ann = build_ann(name, state_dict, origin.title, **kwargs).to(common.torch_device(device))
        images = None
        if calib_data is not None:
            images = calibration_images(calib_data, settings, calib_samples, seed, max_pixels, progress)
        choice = None
        if automatic and images is not None and len(images) >= FEW_IMAGES:
            tolerance = TOLERANCE if tolerance is None else tolerance
            choice = conversion.choose(ann, images, tolerance, batch_size=batch_size, seed=seed, progress=progress)
            chosen, time_steps = choice.recipe, choice.time_steps
        net = conversion.convert_ann(
            ann,
            images,
            chosen,
            time_steps,
            batch_size=batch_size,
            seed=seed,
            progress=progress,
            calibration_source=calib_data,
            choice=choice,
            preprocess=settings,
            source=source,
        )
    conversion.save(net, output, replace=force)
    for line in notes:
        common.say(line, quiet)
    _report(net.conversion, output, json, force, quiet, verbose)


@dataclass(frozen=True)
class _Origin:
    """Where the ANN's weights come from: a manifest entry, or the user's file."""

    title: str
    preprocess: Preprocess
    entry: manifest.WeightsEntry | None = None
    checkpoint: Path | None = None
    layout: str | None = None

    def read(self, progress: Any) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
        """The state dict in torchvision's keys, what the converted file says about it, and lines for the user."""
        from snnzoo.checkpoints.files import read_checkpoint, sha256_of
        from snnzoo.checkpoints.layout_rules import is_neuron_key
        from snnzoo.models.factory import weights_of
        from snnzoo.recognition import read_layout

        if self.entry is not None:
            source = {"weights": self.entry.tag, "url": self.entry.url or self.entry.source}
            return weights_of(self.entry, progress), source, []
        assert self.checkpoint is not None
        found = read_layout(read_checkpoint(self.checkpoint), self.title, self.layout)
        if found.layout.differs and self.layout is None:
            raise CheckpointError(
                f"{self.title}: layout {found.layout.name}: {found.layout.differs}, so that the converted network "
                f"would compute something else; give --layout {found.layout.name} to convert its weights all the same"
            )
        source = {"file": self.checkpoint.name, "sha256": sha256_of(self.checkpoint)}
        neurons = [key for key in found.state_dict if is_neuron_key(key)]
        left_out = [f"left out {first_few(neurons)}: parameters of neurons, calibrated anew"] if neurons else []
        return found.state_dict, source, [found.summary, *found.notes, *left_out]


def _origin(
    name: str,
    tag: str | None,
    checkpoint: Path | None,
    num_classes: int | None,
    manifest_file: Path | None,
    layout: str | None,
) -> _Origin:
    if layout is not None:
        layout_named(layout)
        if checkpoint is None:
            raise UsageError("--layout is for a --checkpoint of yours: weights of the manifest have theirs in it")
    if checkpoint is not None:
        if tag is not None:
            raise UsageError(f"give either weights ({tag}) or --checkpoint, not both")
        if not checkpoint.is_file():
            raise UsageError(f"--checkpoint {checkpoint}: no such file")
        return _Origin(str(checkpoint), preset(model_spec(name).preprocess), checkpoint=checkpoint, layout=layout)
    entry = manifest.find(name, tag or "DEFAULT", list_weights(manifest_file))
    if num_classes not in (None, entry.num_classes):
        raise UsageError(f"weights {entry.tag} have {entry.num_classes} classes: leave --num-classes out")
    return _Origin(entry.tag, entry.preprocess, entry=entry)


def _architecture(name: str, state_dict: dict[str, Tensor], num_classes: int | None, origin: _Origin) -> dict[str, Any]:
    """The arguments that build `name` for these weights, as far as their shapes settle them."""
    from snnzoo.recognition.head import infer_head
    from snnzoo.recognition.identification import identify

    infer_head(state_dict)  # for its error, where the classifier is the trouble
    try:
        found, kwargs = identify(state_dict, origin.title)
    except CheckpointError:
        found, kwargs = name, {}  # the comparison of keys will say what is wrong
    if found != name:
        raise CheckpointError(f"{origin.title}: holds the weights of {found}, not {name}: snnzoo convert {found} ...")
    classes = kwargs.get("num_classes", num_classes)
    if num_classes not in (None, classes):
        raise CheckpointError(f"{origin.title}: has {classes} classes, not {num_classes}: give --num-classes {classes}")
    return kwargs if num_classes is None else {**kwargs, "num_classes": num_classes}


def _is_automatic(
    recipe: str | None,
    time_steps: int | None,
    levels: int | None,
    threshold: str | None,
    bias_correction: bool,
    tolerance: float | None,
) -> bool:
    """Whether steps and levels are to be chosen for the user, who has said nothing about them."""
    automatic = all(option is None for option in (recipe, time_steps, levels, threshold)) and bias_correction
    if tolerance is not None and not automatic:
        raise UsageError("--tolerance chooses steps and levels: leave --recipe, -T, --levels and the like out")
    if tolerance is not None and not 0 <= tolerance < 100:
        raise UsageError(f"--tolerance must be percentage points in [0, 100), got {tolerance:g}")
    return automatic


def _recipe_options(recipe: str, levels: int | None, threshold: str | None, bias_correction: bool) -> dict[str, Any]:
    common.check_choice("--recipe", recipe, RECIPES)
    if levels is not None and recipe not in ("delta", "differential"):
        raise UsageError(f"--levels is an option of --recipe delta or differential, not of {recipe}")
    if levels is not None and levels < 1:
        raise UsageError(f"--levels must be at least 1, got {levels}")
    if recipe != "rate" and (threshold is not None or not bias_correction):
        option = "--threshold" if threshold is not None else "--no-bias-correction"
        raise UsageError(f"{option} is an option of --recipe rate, not of {recipe}")
    if threshold is not None:
        common.check_choice("--threshold", threshold, THRESHOLDS)
    options: dict[str, Any] = {"levels": levels, "threshold": threshold}
    if not bias_correction:
        options["bias_correction"] = False
    return {key: value for key, value in options.items() if value is not None}


def _calibration_source(calib_data: str | None, origin: _Origin) -> tuple[str | None, bool]:
    """Where to calibrate, and whether on frames of events.

    The digits are at hand for their own weights; otherwise there is no data but what the user names.
    """
    if calib_data is None and origin.entry is not None and origin.entry.recipe == "digits":
        return "digits", False
    if calib_data in (None, "digits"):
        return calib_data, False
    return calib_data, is_frames(list_samples(Path(str(calib_data)))[0])


def _choice_table(choice: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("T", "levels", "agreement %", "events per neuron"):
        table.add_column(heading, no_wrap=True, justify="right")
    table.add_column("")
    for candidate in choice["candidates"]:
        mark = "<- chosen" if candidate == choice["chosen"] else ""
        numbers = (f"{candidate['agreement']:.2f}", f"{candidate['events']:.2f}")
        table.add_row(str(candidate["time_steps"]), str(candidate["levels"]), *numbers, mark)
    tolerance, held_back = choice["tolerance"], choice["held_back"]
    found = "the fewest steps, then levels," if choice["within"] else "none is, so this is the closest,"
    table.caption = f"{found} within {tolerance:g} points of the ANN on {held_back} held-back images"
    table.caption_justify = "left"
    return table


def _layer_table(layers: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("neurons", "channels", "threshold", "clipped %", "error", "events"):
        table.add_column(heading, no_wrap=True, justify="left" if heading == "neurons" else "right")
    for layer in layers:
        table.add_row(
            layer["site"],
            str(layer["channels"]),
            f"{layer['threshold']:.4g}",
            f"{100 * layer['clipped']:.3f}",
            f"{layer['error']:.2e}",
            f"{layer['events']:.3f}",
        )
    table.caption = "error: squared, over the mean square of the ANN's activation; events: per neuron and step"
    table.caption_justify = "left"
    return table


def _report(conversion: Any, output: Path, json: str | None, force: bool, quiet: bool, verbose: bool) -> None:
    calibration = conversion.recipe["calibration"]
    result = {
        "file": str(output),
        "model": conversion.model,
        "recipe": conversion.recipe,
        "coding": conversion.coding.to_dict(),
        "time_steps": conversion.time_steps,
        "preprocess": conversion.preprocess and conversion.preprocess.to_dict(),
        "source": conversion.source,
        "layers": conversion.layers,
        "size": output.stat().st_size,
    }
    common.write_json(json, result, force)
    if verbose and json != "-" and conversion.layers:
        common.console().print(_layer_table(conversion.layers))
    if "choice" in conversion.recipe and not quiet:
        common.console(stderr=True).print(_choice_table(conversion.recipe["choice"]))
    source = conversion.source.get("weights") or conversion.source.get("file")
    pixels = conversion.preprocess and conversion.preprocess.crop
    shape = f"{pixels}x{pixels} input" if pixels else "frames of events"
    images = calibration["images"]
    how = f"calibrated on {images} images of {calibration['source']}" if images else "data-free"
    common.say(
        f"{conversion.model} ({source}) -> {conversion.coding}, {conversion.coding.spikes}, T={conversion.time_steps}, "
        f"{shape}, {how}",
        quiet,
    )
    if not images:
        common.say(
            "data-free: thresholds are guessed from the BN statistics; expect to need more time steps than with "
            "--calib-data, a few hundred images without labels",
            quiet,
        )
    elif images < FEW_IMAGES:
        common.say(f"only {images} calibration images: {FEW_IMAGES} or more make a better network", quiet)
    data = "digits" if calibration["source"] == "digits" else "DIR"
    common.say(f"wrote {output} ({result['size'] / 1e6:.1f} MB); next: snnzoo eval {output} --data {data}", quiet)
