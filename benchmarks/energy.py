"""Energy against accuracy, by all models of `snnzoo.energy`: plain recipes beside those of the fewest events.

    python benchmarks/energy.py resnet20 --checkpoint resnet20-12fca82f.th --data cifar10
    python benchmarks/energy.py resnet20 --checkpoint resnet20-12fca82f.th --data cifar10 --only "K=3" --tolerances 4 6

`--data` holds `train` and `test` in ImageFolder layout. The tolerance of the fewest events is one of agreement on
calibration images held back; the gap on the test images is what it comes to. `--json FILE` keeps the rows.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from conversion_accuracy import add_data_arguments, load
from torch.utils.data import TensorDataset

from snnzoo.checkpoints.output import atomic_output
from snnzoo.conversion import convert_ann
from snnzoo.conversion.recipes import make_recipe
from snnzoo.evaluation import evaluate

NETWORKS: dict[str, tuple[dict[str, Any], int]] = {
    "delta, K=7": ({"levels": 7}, 4),
    "delta, K=3": ({"levels": 3}, 4),
    "ternary: delta, K=1, for T=8": ({"levels": 1}, 8),
    "ternary: delta, K=1, for T=16": ({"levels": 1}, 16),
}


def main() -> None:
    args = parse_arguments()
    ann, images, x, y = load(args)
    rows = []
    for name, (options, time_steps) in NETWORKS.items():
        for tolerance in (None, *args.tolerances):
            if args.only in name and not (tolerance is None and args.no_plain):
                fewest = {} if tolerance is None else {"minimise": "events", "tolerance": tolerance}
                started = time.perf_counter()
                net = convert_ann(ann, images, make_recipe("delta", **options, **fewest), time_steps)
                seconds = time.perf_counter() - started
                result = evaluate(net, ann, TensorDataset(x, y), [time_steps], batch_size=100)
                last, top1 = result.results[-1], result.ann["top1"]
                rows.append(
                    {
                        "network": name,
                        "tolerance": tolerance,
                        "coding": str(net.coding),
                        "gap": round(100 * (top1 - last.top1), 2),
                        "agreement": round(100 * last.agreement, 2),
                        **{model: round(ratio, 3) for model, ratio in last.energy_ratios.items()},
                        "convert_seconds": round(seconds),
                    }
                )
                print(json.dumps(rows[-1]), flush=True)
                if args.json:
                    with atomic_output(args.json) as temporary:
                        temporary.write_text(
                            json.dumps({"model": args.model, "images": len(x), "rows": rows}, indent=1)
                        )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser)
    parser.add_argument("--only", default="", help="only networks whose names contain this")
    parser.add_argument("--tolerances", type=float, nargs="*", default=[1.0, 3.0, 6.0])
    parser.add_argument("--no-plain", action="store_true", help="only those of the fewest events")
    parser.add_argument("--json", type=Path, help="where the rows are kept")
    return parser.parse_args()


if __name__ == "__main__":
    main()
