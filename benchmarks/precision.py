"""How far rounding changes what a converted network says: float32 beside the other dtypes of the inference engine.

    python benchmarks/precision.py resnet20 --checkpoint resnet20-12fca82f.th --data cifar10 --levels 7 -T 8

Agreement is the share of test images on which a dtype names the class that float32 names. `--json FILE` keeps the
result. Other arguments are those of conversion_accuracy.py.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch
from conversion_accuracy import add_data_arguments, load

import snnzoo
from snnzoo.checkpoints.output import atomic_output

DTYPES = ("float32", "float16", "bfloat16", "int16", "int8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser)
    parser.add_argument("--levels", type=int, default=7, help="of the delta recipe")
    parser.add_argument("-T", "--time-steps", type=int, default=8)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--json", type=Path, help="where the results are kept")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    ann, images, x, y = load(args)
    net = snnzoo.convert(ann, images, levels=args.levels, time_steps=args.time_steps)
    assert net.conversion is not None
    print(
        f"{args.model}, {net.conversion.coding}, T = {args.time_steps}, {len(x)} test images, {args.device}", flush=True
    )
    expected = None
    rows: list[dict[str, Any]] = []
    for dtype in ["float32", *(name for name in args.dtypes if name != "float32")]:
        if args.device != "cpu" and dtype.startswith("int"):
            continue  # for CPUs
        fast = snnzoo.prepare_for_inference(net, dtype=getattr(torch, dtype), device=args.device)
        start = time.perf_counter()
        logits = torch.cat([fast.final(part.expand(args.time_steps, *part.shape)).cpu() for part in x.split(125)])
        predicted = logits.argmax(1)
        expected = predicted if expected is None else expected
        rows.append(
            {
                "dtype": dtype,
                "top1": 100 * (predicted == y).double().mean().item(),
                "agreement": 100 * (predicted == expected).double().mean().item(),
                "seconds": time.perf_counter() - start,
            }
        )
        row = rows[-1]
        print(
            f"{dtype:9} top-1 {row['top1']:.2f} %, as float32 {row['agreement']:.2f} %, {row['seconds']:.0f} s",
            flush=True,
        )
        if args.json:
            machine = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
            about = {"coding": net.conversion.coding.to_dict(), "machine": machine, "torch": torch.__version__}
            settings = {key: value if isinstance(value, int) else str(value) for key, value in vars(args).items()}
            with atomic_output(args.json) as temporary:
                temporary.write_text(json.dumps({**settings, **about, "results": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
