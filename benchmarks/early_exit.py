"""How many steps and how much time early exit saves, and what it costs in accuracy: one run, one table a network.

    python benchmarks/early_exit.py resnet20 --checkpoint resnet20-12fca82f.th --data cifar10 --limit 5000
    python benchmarks/early_exit.py resnet20 --checkpoint resnet20-12fca82f.th --data cifar10 --limit 5000 --noise 1.0
    OMP_NUM_THREADS=2 python benchmarks/early_exit.py resnet20 --checkpoint resnet20-12fca82f.th --data cifar10 --speed

`--data` holds `train` and `test` in ImageFolder layout. Rules are chosen on `--exit-images` of the train split that the
calibration has not seen, once by the gap of the two largest probabilities and once by their entropy. `--noise` adds
Gaussian noise to the test images alone: what images unlike those that rules were chosen on do to them. `--speed`
measures time on a batch of test images; run it on an idle machine.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
from conversion_accuracy import add_data_arguments, load
from torch import Tensor

import snnzoo
from snnzoo.conversion.exits import choose_rules, readouts
from snnzoo.early_exit import MEASURES
from snnzoo.inference import InferenceNetwork, prepare_for_inference
from snnzoo.inference.measure import seconds_of

NETWORKS: dict[str, tuple[str, dict[str, Any], int]] = {
    "delta, K=7": ("delta", {"levels": 7}, 4),
    "ternary: delta, K=1": ("delta", {"levels": 1}, 16),
    "ternary: signed": ("signed", {}, 16),
    "binary: rate": ("rate", {}, 64),
    "ternary: delta, K=1, earliest": ("delta", {"levels": 1, "minimise": "steps", "tolerance": 8.0}, 16),
}
TOLERANCES = (0.1, 0.4, 0.5, 1.0, 1.5, 2.0, 5.0)
REPEATS = 15


def top1(logits: Tensor, labels: Tensor) -> float:
    """In percent."""
    return 100 * (logits.argmax(1) == labels).double().mean().item()


def print_accuracy(name: str, held_back: Tensor, logits: Tensor, labels: Tensor) -> None:
    """A row a measure and tolerance, from readouts of held-back and of test images."""
    whole = top1(logits[-1], labels)
    print(f"{name}, T={len(logits)}: top-1 {whole:.2f} %")
    print("| measure | tolerance | mean T | top-1 % | loss | class changed % |")
    print("|---|---:|---:|---:|---:|---:|")
    for measure in MEASURES:
        table = choose_rules(held_back, TOLERANCES, measure)
        for tolerance in TOLERANCES:
            answers, steps = table.rule(tolerance).apply(logits)
            accuracy, mean_steps = top1(answers, labels), steps.double().mean().item()
            changed = 100 - top1(answers, logits[-1].argmax(1))
            row = f"{mean_steps:.2f} | {accuracy:.2f} | {whole - accuracy:.2f} | {changed:.2f}"
            print(f"| {measure} | {tolerance:g} | {row} |", flush=True)


def print_speed(name: str, fast: InferenceNetwork, held_back: Tensor, x: Tensor) -> None:
    """What early exit saves of the time of all steps, beside what the steps that it saves promise."""
    table = choose_rules(held_back, TOLERANCES)
    for tolerance in TOLERANCES:
        rule = table.rule(tolerance)
        x_seq = x.expand(rule.time_steps, *x.shape)
        runs = (lambda x_seq=x_seq: fast.final(x_seq)), (lambda rule=rule: fast.until_sure(x, rule))
        # the two of a turn run at one speed of the clock
        turns = [[seconds_of(run, fast.device) for run in runs] for _ in range(1 + REPEATS)][1:]
        all_steps, early = map(statistics.median, zip(*turns, strict=True))
        mean_steps = fast.until_sure(x, rule)[1].double().mean().item()
        promised = 1 - mean_steps / rule.time_steps
        saved = 1 - statistics.median(early / all_steps for all_steps, early in turns)
        print(
            f"{name}, tolerance {tolerance:g}: mean T {mean_steps:.2f} of {rule.time_steps}, {1000 * early:.0f} ms "
            f"instead of {1000 * all_steps:.0f}: {100 * saved:.0f} % saved, {100 * promised:.0f} % promised",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser)
    parser.add_argument("--exit-images", type=int, default=1024, help="held-back images that rules are chosen on")
    parser.add_argument("--noise", type=float, default=0.0, help="standard deviation, of normalised test images")
    parser.add_argument("--speed", action="store_true", help="measure time instead of accuracy")
    parser.add_argument("--batch-size", type=int, default=64, help="images of --speed")
    parser.add_argument("--only", default="", help="only networks whose names contain this")
    args = parser.parse_args()
    calibration = args.calib
    args.calib += args.exit_images
    ann, drawn, x, y = load(args)
    images, held_back = drawn[:calibration], drawn[calibration:]
    x = x + args.noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        print(f"{args.model}, {len(x)} test images, ANN {top1(torch.cat([ann(b) for b in x.split(125)]), y):.2f} %")
    for name, (recipe, options, time_steps) in NETWORKS.items():
        if args.only not in name:
            continue
        net = snnzoo.convert(ann, images, recipe, time_steps, **options)
        if "minimise" in options:
            print(f"{name}: {net.coding}, {net.conversion.recipe['earliest']}")
        chosen_on = readouts(net, held_back, time_steps, 125)
        if args.speed:
            print_speed(name, prepare_for_inference(net), chosen_on, x[: args.batch_size])
        else:
            print_accuracy(name, chosen_on, readouts(net, x, time_steps, 125), y)


if __name__ == "__main__":
    main()
