"""Accuracy of converted networks, snnzoo beside SpikingJelly's ann2snn: one run, one table.

    python benchmarks/conversion_accuracy.py resnet20 --checkpoint resnet20-12fca82f.th --data cifar10
    python benchmarks/conversion_accuracy.py resnet18 --checkpoint resnet18-cifar10.pth --data cifar10 --size 64

`--data` holds `train` and `test` in ImageFolder layout. Both sides get the same weights, the same calibration images
(`--calib` of the train split) and the same test images, float32. SpikingJelly is left out where it does not import
(`pip install --no-deps spikingjelly==2.0.0 loguru tqdm scipy`). `--json FILE` keeps each row once it is measured, and
goes on from there when started again.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import snnzoo
from snnzoo.checkpoints.files import sha256_of
from snnzoo.checkpoints.output import atomic_output
from snnzoo.conversion import convert_ann
from snnzoo.conversion.recipes import make_recipe
from snnzoo.data.datasets import calibration_images, labelled_data, limited
from snnzoo.data.preprocess import Preprocess, override, preset
from snnzoo.inference import prepare_for_inference
from snnzoo.models.base import SpikingNet

OURS: dict[str, tuple[str, dict[str, Any], int | None, tuple[int, ...]]] = {
    "delta, K=7": ("delta", {"levels": 7}, 4, (4,)),
    "delta, K=7, for T=2": ("delta", {"levels": 7}, 2, (2,)),
    "delta, K=3": ("delta", {"levels": 3}, 4, (4,)),
    "ternary: delta, K=1, for T=8": ("delta", {"levels": 1}, 8, (8,)),
    "ternary: delta, K=1, for T=16": ("delta", {"levels": 1}, 16, (16,)),
    "ternary: signed, for T=16": ("signed", {}, 16, (8, 16)),
    "differential, n=8": ("differential", {}, 4, (4,)),
    "delta, K=7, data-free": ("delta", {"levels": 7}, None, (8,)),
    "binary: rate, for T=32": ("rate", {}, 32, (32,)),
    "binary: rate, for T=64": ("rate", {}, 64, (64,)),
}
PEER: dict[str, dict[str, Any]] = {  # arguments of RateCodingRecipe
    "max": {"mode": "Max"},
    "99.9 %": {"mode": "99.9%"},
    "99.9 %, per channel, from half the threshold": {"mode": "99.9%", "channel_wise": True, "half_threshold": True},
}
PEER_TIME_STEPS = (8, 16, 32, 64)

Logits = Callable[[Tensor, int], Iterable[Tensor]]  # images [N, ...], T -> the decoded logits after each of T steps


def our_network(
    ann: SpikingNet, images: Tensor, recipe: str, options: dict[str, Any], time_steps: int | None
) -> Logits:
    """Converted by snnzoo; data-free if `time_steps` is None."""
    snn = convert_ann(copy.deepcopy(ann), images if time_steps else None, make_recipe(recipe, **options), time_steps)
    fast = prepare_for_inference(snn)
    return lambda x, steps: fast(x.expand(steps, *x.shape))


def peer_network(ann: SpikingNet, images: Tensor, options: dict[str, Any]) -> Logits:
    """Converted by SpikingJelly: its outputs summed over time, as in its own examples."""
    from spikingjelly.activation_based import ann2snn, functional
    from spikingjelly.activation_based.ann2snn.recipes import RateCodingRecipe

    recipe = RateCodingRecipe(images.split(64), **options)
    snn = ann2snn.Converter(recipe=recipe).convert(Plain(copy.deepcopy(ann))).eval()

    def logits(x: Tensor, steps: int) -> Iterator[Tensor]:
        functional.reset_net(snn)
        return accumulate(snn(x) for _ in range(steps))

    return logits


class Plain(nn.Module):
    """The ANN without the checks of shapes and step modes, which a symbolic trace cannot follow.

    A shortcut of option A becomes a 1x1 convolution of the same values: SpikingJelly 2.0 does not convert padding.
    """

    def __init__(self, ann: SpikingNet) -> None:
        super().__init__()
        self.ann = ann
        blocks = [module for module in ann.modules() if isinstance(getattr(module, "downsample", None), nn.Module)]
        for block in blocks:
            if not isinstance(block.downsample, nn.Sequential):
                planes = block.conv1.in_channels
                weight = block.downsample(torch.eye(planes).view(planes, planes, 1, 1)).transpose(0, 1)
                convolution = nn.Conv2d(planes, len(weight), 1, stride=block.conv1.stride, bias=False)
                convolution.weight.data.copy_(weight)
                block.downsample = convolution

    def forward(self, x: Tensor) -> Tensor:
        x = self.ann.encode(x)
        return self.ann.fc(self.ann.avgpool(x).flatten(1))


def measure(
    logits: Logits, x: Tensor, y: Tensor, expected: Tensor, time_steps: tuple[int, ...]
) -> list[dict[str, Any]]:
    """Top-1 and agreement with the ANN, both in percent, after each of `time_steps`."""
    hits, agreed = dict.fromkeys(time_steps, 0), dict.fromkeys(time_steps, 0)
    with torch.inference_mode():
        for images, labels, wanted in zip(x.split(125), y.split(125), expected.split(125), strict=True):
            for t, decoded in enumerate(logits(images, max(time_steps)), start=1):
                if t in hits:
                    hits[t] += int((decoded.argmax(1) == labels).sum())
                    agreed[t] += int((decoded.argmax(1) == wanted).sum())
    n = len(x) / 100
    return [{"time_steps": t, "top1": hits[t] / n, "agreement": agreed[t] / n} for t in time_steps]


def table(results: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["| network | T | top-1 % | gap | agreement % |", "|---|---:|---:|---:|---:|"]
    for name, rows in results["networks"].items():
        for row in rows:
            gap = results["ann_top1"] - row["top1"]
            lines.append(f"| {name} | {row['time_steps']} | {row['top1']:.2f} | {gap:.2f} | {row['agreement']:.2f} |")
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser)
    parser.add_argument("--only", default="", help="only networks whose names contain this")
    parser.add_argument("--json", type=Path, help="where the results are kept")
    return parser.parse_args()


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Those that `load` takes."""
    parser.add_argument("model")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with train and test, in ImageFolder layout")
    parser.add_argument("--size", type=int, default=32, help="pixels of the network's input")
    parser.add_argument("--calib", type=int, default=512, help="calibration images")
    parser.add_argument("--limit", type=int, help="test images; all of them if left out")


def trained(model: str, checkpoint: Path, data: Path, size: int, images: int) -> tuple[SpikingNet, Tensor, Preprocess]:
    """The ANN of a checkpoint, so many calibration images, and how these were prepared."""
    settings = override(preset("cifar10"), size)
    ann = snnzoo.load_ann(model, checkpoint=checkpoint)
    return ann, calibration_images(str(data / "train"), settings, images), settings


def load(args: argparse.Namespace) -> tuple[SpikingNet, Tensor, Tensor, Tensor]:
    """The ANN, calibration images, test images and their labels."""
    ann, images, settings = trained(args.model, args.checkpoint, args.data, args.size, args.calib)
    data = limited(labelled_data(str(args.data / "test"), settings, None, 10), args.limit)
    samples = [data[i] for i in range(len(data))]  # type: ignore[arg-type]
    return ann, images, torch.stack([image for image, _ in samples]), torch.tensor([label for _, label in samples])


def main() -> None:
    args = parse_arguments()
    ann, images, x, y = load(args)
    with torch.inference_mode():
        expected = torch.cat([ann(batch) for batch in x.split(125)]).argmax(1)
    results: dict[str, Any] = {
        "model": args.model,
        "sha256": sha256_of(args.checkpoint),
        "size": args.size,
        "calibration_images": len(images),
        "test_images": len(x),
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "ann_top1": 100 * (expected == y).double().mean().item(),
        "networks": {},
    }
    if args.json and args.json.exists():
        kept = json.loads(args.json.read_text())
        same = all(kept[key] == results[key] for key in ("sha256", "size", "calibration_images", "test_images"))
        assert same, f"{args.json}: of another run; choose another file"
        results["networks"] = kept["networks"]
    print(f"{args.model}, {len(x)} test images, ANN {results['ann_top1']:.2f} %", flush=True)

    networks: dict[str, tuple[Callable[[], Logits], tuple[int, ...]]] = {
        f"snnzoo {name}": (lambda r=recipe, o=options, t=steps: our_network(ann, images, r, o, t), read_at)
        for name, (recipe, options, steps, read_at) in OURS.items()
    }
    try:
        import spikingjelly.activation_based.ann2snn  # noqa: F401 (only whether it imports)
    except ImportError as error:
        print(f"SpikingJelly is left out: {error}")
    else:
        for name, options in PEER.items():
            networks[f"SpikingJelly {name}"] = (lambda o=options: peer_network(ann, images, o), PEER_TIME_STEPS)
    for name, (build, time_steps) in networks.items():
        if name in results["networks"] or args.only not in name:
            continue
        start = time.perf_counter()
        results["networks"][name] = measure(build(), x, y, expected, time_steps)
        print(f"{name}: {results['networks'][name]} ({time.perf_counter() - start:.0f} s)", flush=True)
        if args.json:
            with atomic_output(args.json) as temporary:
                temporary.write_text(json.dumps(results, indent=2) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
