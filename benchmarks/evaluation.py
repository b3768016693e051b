"""What an evaluation costs beside the forward passes that it cannot do without: one of the ANN, one of the network.

    OMP_NUM_THREADS=2 python benchmarks/evaluation.py
    python benchmarks/evaluation.py --models resnet18 --sizes 64 --images 256 --json evaluation.json

For each model: seconds of the forward passes over all images; of `evaluate` on tensors, which counts hits and activity
and measures the speed, too; and of `evaluate` on a folder of JPEG files, decoding included. All take turns in one
process; figures are medians. Images and weights are random.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

import snnzoo
from snnzoo.data.datasets import ImageFiles
from snnzoo.data.preprocess import Preprocess
from snnzoo.evaluation import evaluate
from snnzoo.inference import measure
from snnzoo.models.factory import build

CLASSES = 10


def main() -> None:
    options = parse_options()
    machine = f"{cpu_name()}, {torch.get_num_threads()} threads"
    print(f"{machine}, torch {torch.__version__}, T = {options.time_steps}, {options.images} images")
    print(f"{'':22}{'ANN ms/image':>14}{'network':>9}{'evaluate':>10}{'folder':>9}{'evaluate':>12}{'folder':>9}")
    report: dict[str, Any] = {"machine": machine, "torch": torch.__version__, "rows": []}
    for model, size in zip(options.models, options.sizes, strict=True):
        row = compare(model, size, options)
        report["rows"].append(row)
        ms = {name: 1000 * seconds / options.images for name, seconds in row["seconds"].items()}
        print(
            f"{model:11}{size:4} px    {ms['ann']:14.2f}{ms['network']:9.2f}{ms['evaluate']:10.2f}{ms['folder']:9.2f}"
            f"{row['evaluate']:11.2f}x{row['folder']:8.2f}x",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet20", "resnet56", "resnet18"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[32, 32, 64], help="of images, one a model")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--time-steps", type=int, default=4)
    parser.add_argument("--workers", type=int, help="threads that read images; as many as `snnzoo eval` if not given")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def compare(model: str, size: int, options: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of each, and ratios to the two forward passes."""
    torch.manual_seed(0)
    ann = build(model, neuron=nn.ReLU, step_mode="s", num_classes=CLASSES).eval()
    images = torch.randn(options.images, 3, size, size)
    net = snnzoo.convert(ann, images[:16], levels=3, gamma=0.5, time_steps=options.time_steps, check_fit=False)
    fast = snnzoo.prepare_for_inference(net)
    labels = torch.arange(options.images) % CLASSES
    workers = {"workers": options.workers} if options.workers else {}

    def batches() -> tuple[Tensor, ...]:
        return images.split(options.batch_size)

    def network() -> None:
        for batch in batches():
            fast(batch.expand(options.time_steps, *batch.shape))

    def evaluated(data: Any) -> None:
        evaluate(net, ann, data, [options.time_steps], batch_size=options.batch_size, check_fit=False, **workers)

    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        files = jpeg_files(Path(folder), images)
        preprocess = Preprocess(size, size, (0.5,) * 3, (0.5,) * 3)
        runs: dict[str, measure.Run] = {
            "ann": lambda: [ann(batch) for batch in batches()],
            "network": network,
            "evaluate": lambda: evaluated((images, labels)),
            "folder": lambda: evaluated(ImageFiles(files, labels.tolist(), preprocess)),
        }
        seconds = measure.interleaved(runs, options.repeats, torch.device("cpu"))
    passes = seconds["ann"] + seconds["network"]
    ratios = {name: seconds[name] / passes for name in ("evaluate", "folder")}
    shown = {key: getattr(options, key) for key in ("images", "batch_size", "time_steps", "workers")}
    return {"model": model, "size": size, **shown, "seconds": seconds, **ratios}


def jpeg_files(folder: Path, images: Tensor) -> list[Path]:
    files = [folder / f"{i}.jpg" for i in range(len(images))]
    for path, image in zip(files, images, strict=True):
        pixels = (image * 40 + 128).clamp(0, 255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(path, quality=90)
    return files


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
