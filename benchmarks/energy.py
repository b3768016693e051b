"""Energy against accuracy, by all models of `snnzoo.energy`: plain recipes beside those of the fewest events.

    python benchmarks/energy.py resnet20 --checkpoint resnet20-12fca82f.th --data cifar10
    python benchmarks/energy.py resnet20 --checkpoint resnet20-12fca82f.th --data cifar10 --only "K=3" --tolerances 4 6

`--data` holds `train` and `test` in ImageFolder layout. The tolerance of the fewest events is one of agreement on
calibration images held back; the gap on the test images is what it comes to. `--exits` adds a row of early exit for
each of its tolerances, by rules chosen on 1,024 training images more: its energy is that of the steps that images took.
`--json FILE` keeps the rows.
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
from snnzoo.conversion import calibrate_exits, convert_ann
from snnzoo.conversion.recipes import make_recipe
from snnzoo.evaluation import evaluate
from snnzoo.evaluation.results import Evaluation

EXIT_IMAGES = 1024
NETWORKS: dict[str, tuple[dict[str, Any], int]] = {
    "delta, K=7": ({"levels": 7}, 4),
    "delta, K=3": ({"levels": 3}, 4),
    "ternary: delta, K=1, for T=8": ({"levels": 1}, 8),
    "ternary: delta, K=1, for T=16": ({"levels": 1}, 16),
    "ternary: delta, K=1, for T=32": ({"levels": 1}, 32),
}


def main() -> None:
    args = parse_arguments()
    calibration = args.calib
    args.calib += EXIT_IMAGES if args.exits else 0
    ann, drawn, x, y = load(args)
    images, held_back = drawn[:calibration], drawn[calibration:]
    rows = []
    for name, (options, time_steps) in NETWORKS.items():
        for tolerance in (None, *args.tolerances):
            if args.only in name and not (tolerance is None and args.no_plain):
                fewest = {} if tolerance is None else {"minimise": "events", "tolerance": tolerance}
                started = time.perf_counter()
                net = convert_ann(ann, images, make_recipe("delta", **options, **fewest), time_steps)
                seconds = time.perf_counter() - started
                row = {"network": name, "tolerance": tolerance, "coding": str(net.coding)}
                table = calibrate_exits(net, held_back, args.exits) if args.exits else None
                for points in args.exits or [None]:
                    rule = table.rule(points) if table else None
                    result = evaluate(net, ann, TensorDataset(x, y), [time_steps], batch_size=100, exit=rule)
                    added = [{**row, "exit": points, **of_early_exit(result)}] if rule else []
                    if points is None or points == args.exits[0]:
                        added.insert(0, {**row, **of_all_steps(result, time_steps), "convert_seconds": round(seconds)})
                    rows += added
                    print(*map(json.dumps, added), sep="\n", flush=True)
                if args.json:
                    report = {"model": args.model, "images": len(x), "rows": rows}
                    with atomic_output(args.json) as temporary:
                        temporary.write_text(json.dumps(report, indent=1))


def of_all_steps(result: Evaluation, time_steps: int) -> dict[str, float]:
    """Gap, agreement and energy after all steps, by each model."""
    last = result.results[-1]
    energy = {model: round(ratio, 3) for model, ratio in last.energy_ratios.items()}
    return {"mean_steps": time_steps, **_against_ann(result, last.top1, last.agreement), **energy}


def of_early_exit(result: Evaluation) -> dict[str, float]:
    """Those of the steps that images took, by the arithmetic."""
    row = result.exit
    assert row is not None
    energy = round(row.energy_uj / result.ann["energy_uj"], 3)
    return {
        "mean_steps": round(row.mean_steps, 2),
        **_against_ann(result, row.top1, row.agreement),
        "arithmetic": energy,
    }


def _against_ann(result: Evaluation, top1: float, agreement: float | None) -> dict[str, float]:
    gap, agreed = 100 * (result.ann["top1"] - top1), 100 * (agreement or 0.0)
    return {"gap": round(gap, 2), "agreement": round(agreed, 2)}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser)
    parser.add_argument("--only", default="", help="only networks whose names contain this")
    parser.add_argument("--tolerances", type=float, nargs="*", default=[1.0, 3.0, 6.0])
    parser.add_argument("--exits", type=float, nargs="*", default=[], help="tolerances of early exit")
    parser.add_argument("--no-plain", action="store_true", help="only those of the fewest events")
    parser.add_argument("--json", type=Path, help="where the rows are kept")
    return parser.parse_args()


if __name__ == "__main__":
    main()
