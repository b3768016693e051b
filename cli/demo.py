"""`snnzoo demo`: the whole job in about a minute, with nothing but scikit-learn's digits."""

from __future__ import annotations

from typing import Annotated

import typer

from snnzoo.checkpoints.output import check_outputs
from snnzoo.cli import common
from snnzoo.cli.tables import is_graded, results_table

TIME_STEPS = (1, 2, 4, 8, 16, 32)


def demo(
    recipe: Annotated[str, typer.Option(metavar="RECIPE", help="As of snnzoo convert.")] = "delta",
    device: common.DeviceOption = "auto",
    json: common.JsonOption = None,
    force: common.ForceOption = False,
    quiet: common.QuietOption = False,
    debug: common.DebugOption = False,
) -> None:
    """Train a ResNet-18 on digits, convert it, compare both. No network, no files.

    Example: snnzoo demo --recipe rate
    """
    common.check_device_and_dtype(device, "float32")
    check_outputs({"--json": json}, force=force)
    common.say("resnet18 on scikit-learn's digits: train (kept in the cache), convert, evaluate ...", quiet)

    from snnzoo import conversion, evaluation
    from snnzoo.checkpoints import manifest
    from snnzoo.conversion.recipes import make_recipe
    from snnzoo.data.datasets import calibration_images
    from snnzoo.data.digits import Digits
    from snnzoo.models.factory import build_ann, weights_of

    entry = manifest.find("resnet18", "digits")
    target = common.torch_device(device)
    with common.progress_bars(quiet) as progress:
        state_dict = weights_of(entry, progress)
        images = calibration_images("digits", entry.preprocess, 256, progress=progress)
        ann, other = (build_ann("resnet18", state_dict, entry.tag, num_classes=10).to(target) for _ in range(2))
        net = conversion.convert_ann(other, images, make_recipe(recipe), progress=progress)
        result = evaluation.evaluate(net, ann, Digits("test"), TIME_STEPS, device=target, progress=progress)
    info = net.conversion
    assert isinstance(info, conversion.Conversion)
    report = {"model": "resnet18", "recipe": recipe, "coding": info.coding.to_dict(), "device": str(target)}
    if common.write_json(json, {**report, **result.to_dict()}, force) or quiet:
        return
    title = f"resnet18 on {result.images} held-out digits, {info.coding}"
    common.console().print(results_table(result, title, graded=is_graded(info.coding)))
    common.say("Your own: snnzoo convert resnet18 --checkpoint FILE --num-classes N --calib-data DIR", quiet)
