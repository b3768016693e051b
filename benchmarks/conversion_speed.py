"""What a conversion costs, beside the forward passes that it cannot do without, and beside SpikingJelly's ann2snn.

    python benchmarks/conversion_speed.py                                          # CIFAR ResNets, 512 images
    python benchmarks/conversion_speed.py --models resnet18 --size 64
    python benchmarks/conversion_speed.py --models resnet50 --size 224 --images 32 --json conversion_speed.json
    python benchmarks/conversion_speed.py --models resnet20 --checkpoint resnet20-12fca82f.th --data cifar10 --only auto
    python benchmarks/conversion_speed.py --models resnet20 --profile              # where the time of a conversion goes

The passes are one of the ANN and one of T steps of the converted network, in its fast form, over each calibration
image. They and the conversion take turns in one process, after one turn that warms up (with `--repeats 0` that one
counts: for large images, where it warms up soon); figures are medians. Memory is what the conversion takes at most,
beyond the ANN and the images. Weights and images are random, unless `--checkpoint` and `--data` (with `train` in
ImageFolder layout) are given: the T that `auto` chooses depends on them. SpikingJelly is left out where it does not
import (`pip install --no-deps spikingjelly==2.0.0 loguru tqdm scipy`).
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import platform
import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from conversion_accuracy import Plain, trained
from torch import Tensor, nn

import snnzoo
from snnzoo.conversion import calibration, choice, converter, recipes
from snnzoo.fit import check
from snnzoo.graph.network import SpikingNetwork
from snnzoo.inference import measure
from snnzoo.models.base import SpikingNet

RECIPES: dict[str, dict[str, Any]] = {
    "delta, K=7, T=4": {"recipe": "delta", "levels": 7, "time_steps": 4},
    "ternary: delta, K=1, T=8": {"recipe": "delta", "levels": 1, "time_steps": 8},
    "rate, T=32": {"recipe": "rate", "time_steps": 32},
    "auto": {"recipe": "auto"},
}
BATCH = 64
PARTS: dict[str, tuple[Any, str]] = {
    "capture": (converter, "capture_ann"),
    "check of fit": (check, "check_fit"),
    "choice: judging": (choice.Judge, "agreement"),
    "nodes of the ANN": (calibration._Walk, "_run_ann"),
    "nodes of the network": (calibration._Walk, "_run_network"),
    "sampling": (calibration._Walk, "collect"),
    "thresholds": (recipes, "fit_threshold"),
    "biases": (recipes, "fit_bias"),
    "reports of sites": (calibration.Site, "measure"),
}


def main() -> None:
    options = parse_options()
    machine = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    report: dict[str, Any] = {
        "machine": machine, "torch": torch.__version__, "images": options.images, "size": options.size,
        "repeats": options.repeats, "results": [],
    }  # fmt: skip
    print(f"{machine}, torch {torch.__version__}, {options.images} images of {options.size} pixels", flush=True)
    print("| network | recipe | passes s | convert s | ratio | memory GiB |\n|---|---|---:|---:|---:|---:|", flush=True)
    warnings.filterwarnings("ignore", message="its batch normalisation was never trained")
    for model in options.models:
        ann, images = network_and_images(model, options)
        if options.profile:
            for name in RECIPES:
                if options.only in name:
                    profile(ann, images, name)
            continue
        rows = [ours(ann, images, name, options.repeats) for name in RECIPES if options.only in name]
        for row in [*rows, *peer(ann, images, options.repeats)]:
            report["results"].append({"model": model, **row})
        if options.json:
            options.json.write_text(json.dumps(report, indent=1) + "\n")


def network_and_images(model: str, options: argparse.Namespace) -> tuple[SpikingNet, Tensor]:
    """Those of the checkpoint and the data; random ones without."""
    if options.checkpoint:
        return trained(model, options.checkpoint, options.data, options.size, options.images)[:2]
    torch.manual_seed(0)
    ann = snnzoo.create_model(model, neuron=nn.ReLU, step_mode="s").eval()
    return ann, torch.randn(options.images, 3, options.size, options.size)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet20", "resnet56"])
    parser.add_argument("--checkpoint", type=Path, help="of the one model")
    parser.add_argument("--data", type=Path, help="folder with train, for the checkpoint")
    parser.add_argument("--size", type=int, default=32, help="pixels of the images")
    parser.add_argument("--images", type=int, default=512, help="calibration images")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", help="only recipes whose names contain this")
    parser.add_argument("--profile", action="store_true", help="say what a conversion's parts take, instead")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def ours(ann: nn.Module, images: Tensor, name: str, repeats: int) -> dict[str, Any]:
    """The cost of one recipe."""
    found: list[SpikingNetwork] = []

    def convert() -> None:
        found[:] = [snnzoo.convert(ann, images, check_fit=False, **RECIPES[name])]

    memory = measure.peak_memory(convert, images.device)
    (net,) = found
    time_steps = net.conversion.time_steps  # type: ignore[union-attr]
    fast = snnzoo.prepare_for_inference(net)

    def passes() -> None:
        with torch.inference_mode():
            for batch in images.split(BATCH):
                ann(batch)
                fast.final(batch.expand(time_steps, *batch.shape))

    seconds = in_turns({"passes": passes, "convert": convert}, repeats)
    row = {"recipe": name, "time_steps": time_steps, **seconds, "memory": memory}
    row["ratio"] = seconds["convert"] / seconds["passes"]
    show(ann, row)
    return row


def profile(ann: nn.Module, images: Tensor, name: str) -> None:
    """Print the seconds of each part of one conversion; what none of them has is "the rest"."""
    taken: dict[str, float] = defaultdict(float)

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                taken[part] += time.perf_counter() - start

        return run

    snnzoo.convert(ann, images, check_fit=False, **RECIPES[name])  # warms up
    with contextlib.ExitStack() as stack:
        for part, (place, attribute) in PARTS.items():
            stack.enter_context(mock.patch.object(place, attribute, timed(part, getattr(place, attribute))))
        start = time.perf_counter()
        snnzoo.convert(ann, images, check_fit=False, **RECIPES[name])
        total = time.perf_counter() - start
    taken["the rest"] = total - sum(taken.values())
    told = ", ".join(f"{part} {seconds:.2f}" for part, seconds in taken.items())
    print(f"{getattr(ann, 'model_name', '')}, {name}: {total:.2f} s: {told}", flush=True)


def peer(ann: nn.Module, images: Tensor, repeats: int) -> list[dict[str, Any]]:
    """The cost of SpikingJelly's conversion, whose thresholds depend on no T."""
    try:
        from spikingjelly.activation_based import ann2snn
        from spikingjelly.activation_based.ann2snn.recipes import RateCodingRecipe
    except ImportError as error:
        print(f"SpikingJelly is left out: {error}")
        return []
    plain = Plain(copy.deepcopy(ann))  # type: ignore[arg-type]

    def convert() -> None:
        recipe = RateCodingRecipe(images.split(BATCH), mode="99.9%", channel_wise=True, half_threshold=True)
        ann2snn.Converter(recipe=recipe).convert(copy.deepcopy(plain))

    def passes() -> None:
        with torch.inference_mode():
            for batch in images.split(BATCH):
                ann(batch)

    memory = measure.peak_memory(convert, images.device)
    seconds = in_turns({"passes": passes, "convert": convert}, repeats)
    row = {"recipe": "SpikingJelly 99.9 %, per channel (passes: of the ANN)", **seconds, "memory": memory}
    row["ratio"] = seconds["convert"] / seconds["passes"]
    show(ann, row)
    return [row]


def in_turns(runs: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median seconds of each."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(1 + repeats):
        for name, run in runs.items():
            seconds[name].append(measure.seconds_of(run, torch.device("cpu")))
    return {name: statistics.median(measured[1:] or measured) for name, measured in seconds.items()}


def show(ann: nn.Module, row: dict[str, Any]) -> None:
    """One line of the table."""
    memory = "" if row["memory"] is None else f"{row['memory'] / 2**30:.2f}"
    steps = f" (T={row['time_steps']})" if row["recipe"] == "auto" else ""
    name = getattr(ann, "model_name", type(ann).__name__)
    print(
        f"| {name} | {row['recipe']}{steps} | {row['passes']:.2f} | {row['convert']:.2f} | {row['ratio']:.2f} "
        f"| {memory} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
