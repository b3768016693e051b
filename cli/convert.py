"""`snnzoo convert`: ANN weights to a spiking network in one file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snnzoo.checkpoints.output import check_outputs
from snnzoo.cli import common
from snnzoo.cli.preparing import Preparing
from snnzoo.cli.tables import choice_table, fit_line, layer_table
from snnzoo.data.folders import class_names, is_frames, list_samples
from snnzoo.data.preprocess import MAX_PIXELS
from snnzoo.distributed import Rank, joined
from snnzoo.errors import UsageError
from snnzoo.export.targets import target_named
from snnzoo.recognition.ann import ann_source

if TYPE_CHECKING:
    from snnzoo.export.for_target import TargetCost

FEW_IMAGES = 64  # fewer than these are too few to choose steps and levels on


def convert(
    model: common.NetworkArgument,
    weights: Annotated[
        str | None, typer.Option(metavar="NAME", help="Weights of `snnzoo list`; the default if none.")
    ] = None,
    manifest_file: common.ManifestOption = None,
    checkpoint: Annotated[Path | None, typer.Option(metavar="FILE", help="Your own weights, instead.")] = None,
    layout: common.LayoutOption = None,
    option: common.OptionOption = None,
    num_classes: Annotated[int | None, typer.Option(metavar="N", help="Classes of the checkpoint.")] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE",
            help="delta or differential (graded spikes, few steps), signed (ternary) or rate (binary, many steps).",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="TARGET",
            help="Instead of --recipe: the neurons that a reader of NIR has (snnzoo export --target), such as sinabs.",
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            help="Without --recipe, -T and --levels: the fewest steps and levels whose agreement with the ANN on "
            "held-back calibration images misses no more than this.  [default: 0.5] Also of --minimise.",
        ),
    ] = None,
    time_steps: Annotated[
        int | None, typer.Option("--time-steps", "-T", metavar="N", help="Steps that the network is meant for.")
    ] = None,
    levels: Annotated[
        int | None,
        typer.Option(metavar="K", help="delta: largest spike, 1 is ternary [default: 3]; differential: sizes [8]."),
    ] = None,
    minimise: Annotated[
        str | None,
        typer.Option(
            metavar="events|steps",
            help="Neurons of the fewest events, or of the fewest steps until images leave (eval --exit), whose "
            "agreement is within --tolerance.",
        ),
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
    exit_samples: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="How many more, to choose rules of early exit on; 0 for none.  [default: twice as many]",
        ),
    ] = None,
    input_size: Annotated[int | None, typer.Option(metavar="N", help="Pixels of the network's input.")] = None,
    resize: Annotated[
        str | None, typer.Option(metavar="N|H,W", help="Resize images so first, then crop; H,W: no crop.")
    ] = None,
    mean: Annotated[str | None, typer.Option(metavar="A,B,C", help="Mean of the training images in [0, 1].")] = None,
    std: Annotated[str | None, typer.Option(metavar="A,B,C", help="Their standard deviation.")] = None,
    preprocess: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Preset: imagenet, imagenet_v2, cifar10 or digits; or auto, the normalisation that fits the network.",
        ),
    ] = None,
    force_fit: Annotated[
        bool, typer.Option("--force-fit", help="Convert also what does not fit the calibration images at all.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT", help="File to write.  [default: MODEL-snn.safetensors]"),
    ] = None,
    max_pixels: common.MaxPixelsOption = MAX_PIXELS,
    batch_size: common.BatchSizeOption = 32,
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
      snnzoo convert resnet20 --checkpoint resnet20.th --calib-data cifar10/train --recipe rate -T 64
      snnzoo convert vgg11 --option pool=avg --checkpoint vgg.pth --calib-data cifar10/train --for sinabs
      snnzoo convert timm:resnet50d.a1_in1k --calib-data imagenet/train
      snnzoo convert mynet.py:make_net --checkpoint mine.pth --preprocess cifar10 --calib-data DIR
      torchrun --nproc-per-node 2 -m snnzoo.cli convert resnet18 --calib-data imagenet/train
    """
    common.check_time_steps(time_steps)
    model_options = common.parse_options(option)
    origin = ann_source(model, weights, checkpoint, num_classes, layout, None, manifest_file, model_options)
    output = output or Path(f"{origin.stem}-snn.safetensors")
    calib_data = calib_data or origin.calibration_source
    frames = calib_data not in (None, "digits") and is_frames(list_samples(Path(str(calib_data)))[0])
    origin.check_convertible(with_images=calib_data is not None)
    preparing = Preparing.parsed(preprocess, input_size, mean, std, resize)
    if frames:
        preparing.refuse_for_frames()
    settings = None if frames else preparing.settings(origin.preprocess, with_images=calib_data is not None)
    given = {"levels": levels, "threshold": threshold, "bias_correction": None if bias_correction else False}
    given["minimise"] = minimise
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    _check_for(target, recipe or levels or minimise, calib_data)
    automatic = recipe is None and time_steps is None and not options and target is None
    _check_tolerance(tolerance, automatic or minimise is not None, calib_data)
    if minimise is not None and calib_data is None:
        raise UsageError("--minimise is judged on calibration images: give --calib-data DIR")
    if minimise is not None and tolerance is not None:
        options["tolerance"] = tolerance
    common.check_device_and_dtype(device, "float32")
    rank = Rank.from_environment()
    if rank.is_first:
        check_outputs({"-o": output, "--json": json}, filter(None, [checkpoint, manifest_file]), force=force)
    quiet = quiet or not rank.is_first

    from snnzoo import conversion
    from snnzoo.conversion.choice import TOLERANCE
    from snnzoo.conversion.exits import FEWEST_IMAGES
    from snnzoo.conversion.fitted import fitted
    from snnzoo.conversion.recipes import make_recipe
    from snnzoo.data.datasets import calibration_images
    from snnzoo.data.loading import LeftOut

    if target is None:
        chosen = make_recipe(recipe or "delta", **options)
    else:
        from snnzoo.export.for_target import check_target, cost_of, recipe_for

        chosen = recipe_for(target, **options)
    notes: list[str] = []
    left_out = LeftOut(notes.append)
    with joined(rank), common.progress_bars(quiet) as progress:
        how: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "progress": progress, "rank": rank}
        module = origin.load(progress, notes.append).to(common.torch_device(device, rank.local_rank))
        if settings is not None:
            settings = preparing.settings_for(module, origin, settings, notes.append)
        images = exit_images = choice = found = None
        if calib_data is not None:
            wanted = calib_samples + (2 * calib_samples if exit_samples is None else exit_samples)
            images = calibration_images(calib_data, settings, wanted, seed, max_pixels, progress, left_out)
        ann = conversion.capture_ann(module, images, origin.model, settings.size if settings else None, notes.append)
        if target is not None:
            check_target(ann, target)
        if images is not None:
            found = fitted(
                ann,
                images,
                settings,
                open_graph=checkpoint is not None and origin.by_keys,
                open_preprocess=preparing.is_auto or (checkpoint is not None and preparing.is_silent),
                force=force_fit,
                progress=progress,
                notify=notes.append,
            )
            ann, settings = found.ann, found.preprocess
            images, exit_images = found.images[:calib_samples], found.images[calib_samples:]
        if automatic and images is not None and len(images) >= FEW_IMAGES:
            choice = conversion.choose(ann, images, TOLERANCE if tolerance is None else tolerance, **how)
            chosen, time_steps = choice.recipe, choice.time_steps
        net = conversion.convert_ann(
            ann,
            images,
            chosen,
            time_steps,
            **how,
            calibration_source=calib_data,
            choice=choice,
            exit_images=exit_images if exit_images is not None and len(exit_images) >= FEWEST_IMAGES else None,
            preprocess=settings,
            classes=origin.classes(ann.num_classes) or class_names(calib_data, ann.num_classes),
            source=origin.record(),
            fit=found and found.to_dict(),
        )
        cost = None
        if target is not None and images is not None:
            info = net.conversion
            assert isinstance(info, conversion.Conversion)
            info.recipe["for"] = target
            cost = cost_of(net, ann, images, exit_images, threshold)
    if not rank.is_first:
        return
    conversion.save(net, output, replace=force)
    for line in notes:
        common.say(line, quiet)
    _report(net.conversion, left_out.names, output, cost, json, force, quiet, verbose)


def _minimised_line(recipe: dict[str, Any]) -> str:
    what = {"events": "fewest", "steps": "earliest"}[recipe["minimise"]]
    trade = recipe[what]
    found = f"fewest {recipe['minimise']}" if trade["within"] else "nothing is, so these are the closest,"
    steps = f"{trade['mean_steps']:.2f} steps and " if "mean_steps" in trade else ""
    return (
        f"{found} within {recipe['tolerance']:g} points of the ANN: {steps}{trade['agreement']:.2f} % agreement on "
        f"{trade['held_back']} held-back images"
    )


def _exits_line(exits: Any, images: int) -> str:
    if exits is None:
        why = "too few images are left beyond those to calibrate on" if images else "they are chosen on --calib-data"
        return f"no rules of early exit: {why}"
    kept = ", ".join(f"{rule.mean_steps:.2f} for {rule.tolerance:g} points" for rule in exits.rules)
    return f"early exit, mean steps by tolerance on {exits.images} held-back images: {kept}"


def _check_tolerance(tolerance: float | None, automatic: bool, calib_data: str | None) -> None:
    if tolerance is None:
        return
    if not automatic:
        raise UsageError(
            "--tolerance chooses steps and levels: leave --recipe, -T, --levels and the like out, or add --minimise"
        )
    if not 0 <= tolerance < 100:
        raise UsageError(f"--tolerance must be percentage points in [0, 100), got {tolerance:g}")
    if calib_data is None:
        raise UsageError("--tolerance is judged on calibration images: give --calib-data DIR")


def _check_for(target: str | None, given: str | int | None, calib_data: str | None) -> None:
    if target is None:
        return
    target_named(target)
    if given is not None:
        raise UsageError("--for chooses the neurons: leave --recipe and --levels out")
    if calib_data is None:
        raise UsageError("--for fits neurons to images: give --calib-data DIR, a few hundred without labels")
    common.check_installed(f"--for {target}", ("nir",), "export")


def _report(
    conversion: Any,
    left_out: list[str],
    output: Path,
    cost: TargetCost | None,
    json: str | None,
    force: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    calibration = conversion.recipe["calibration"]
    result = {
        "file": str(output),
        "model": conversion.model,
        "recipe": conversion.recipe,
        "coding": conversion.coding.to_dict(),
        "time_steps": conversion.time_steps,
        "preprocess": conversion.preprocess and conversion.preprocess.to_dict(),
        "source": conversion.source,
        **({"gammas": conversion.gammas} if conversion.gammas else {}),
        "layers": conversion.layers,
        "exits": conversion.exits and conversion.exits.to_dict(),
        "left_out": left_out,
        "fit": conversion.fit,
        **({"for": cost.to_dict()} if cost else {}),
        "size": output.stat().st_size,
    }
    common.write_json(json, result, force)
    if verbose and json != "-" and conversion.layers:
        common.console().print(layer_table(conversion.layers))
    if "choice" in conversion.recipe and not quiet:
        common.console(stderr=True).print(choice_table(conversion.recipe["choice"]))
    if conversion.recipe.get("minimise"):
        common.say(_minimised_line(conversion.recipe), quiet)
    source = conversion.source.get("weights") or conversion.source.get("file")
    shape = "{}x{} input".format(*conversion.preprocess.size) if conversion.preprocess else "frames of events"
    images = calibration["images"]
    how = f"calibrated on {images} images of {calibration['source']}" if images else "data-free"
    common.say(
        f"{conversion.model} ({source}) -> {conversion.coding}, {conversion.coding.spikes}, T={conversion.time_steps}, "
        f"{shape}, {how}",
        quiet,
    )
    if conversion.gammas_told:
        common.say(f"gamma: {conversion.gammas_told}", quiet)
    if not images:
        common.say(
            "data-free: thresholds are guessed from the BN statistics; expect to need more time steps than with "
            "--calib-data, a few hundred images without labels, which also tell whether network and preprocessing fit "
            "(unchecked here)",
            quiet,
        )
    if conversion.fit is not None:
        common.say(fit_line(conversion.fit), quiet)
    if 0 < images < FEW_IMAGES:
        common.say(f"only {images} calibration images: {FEW_IMAGES} or more make a better network", quiet)
    if cost is not None:
        common.say(str(cost), quiet)
    if conversion.time_steps > 1:
        common.say(_exits_line(conversion.exits, images), quiet)
    data = "digits" if calibration["source"] == "digits" else "DIR"
    common.say(f"wrote {output} ({result['size'] / 1e6:.1f} MB); next: snnzoo eval {output} --data {data}", quiet)
