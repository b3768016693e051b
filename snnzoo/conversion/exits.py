"""Choosing exit rules: thresholds for each time step, on images that the conversion has not seen.

To leave early saves steps, and may change the class. A price, in steps, of a changed class makes one number of both;
thresholds are those of the least sum. What a price leads to on other images is found by cross-validation, and for each
tolerance the price of the fewest steps is taken that keeps it there: on the images that they were chosen on, a
threshold for each of many steps would look better than it is. For the same reason every step at which images leave is
charged a part of a changed class that nobody saw.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from snnzoo.conversion.converted_file import Conversion
from snnzoo.conversion.inputs import network_input
from snnzoo.distributed import ALONE, Rank
from snnzoo.early_exit import MEASURES, NEVER, ChosenRule, ExitRule, ExitTable, trend
from snnzoo.errors import UsageError
from snnzoo.graph.network import SpikingNetwork
from snnzoo.inference import prepare_for_inference
from snnzoo.progress import Progress

TOLERANCES = (0.1, 0.5, 1.0, 2.0)  # points
MEASURE = "gap"
FOLDS = 4
SWEEPS = 4  # over all steps, at most
PRICES = tuple(4.0 * 2**i for i in range(12))  # steps that a changed class costs
HALVINGS = 2  # of the distance between the best of these and the next
UNSEEN = 0.5  # changed classes that a step is charged if images leave at it
FEWEST_IMAGES = 64  # of fewer, not even a tolerance of two points means anything


def calibrate_exits(
    net: SpikingNetwork,
    images: Tensor,
    tolerances: Sequence[float] = TOLERANCES,
    *,
    measure: str = MEASURE,
    batch_size: int = 32,
    progress: Progress | None = None,
    rank: Rank = ALONE,
) -> ExitTable:
    """Choose a network's exit rules, and keep them in its `conversion`, so that `snnzoo.save` writes them.

    Of N images, a rule may change the class of fewer than (N + 1) * tolerance / 100 by cross-validation: one more than
    was seen has to be reckoned with. So a tolerance of 0.1 points needs 1,000 images; with fewer, no image leaves.

    Args:
        net: converted.
        images: held back from its calibration, preprocessed, `[N, C, H, W]`; or frames `[N, T, C, H, W]`.
        tolerances: shares of images, in percent, that may leave with another class than that of all T steps.
        measure: "gap" or "entropy" (`snnzoo.early_exit`).
        progress: called with (done, total, description).
        rank: of several processes, this one (see `snnzoo.distributed`); all choose the same rules.

    Raises:
        UsageError: for a network that was not converted, fewer than 64 images, or tolerances not in (0, 100).
    """
    conversion = net.conversion
    if not isinstance(conversion, Conversion):
        raise UsageError("exit rules are for converted networks: this one was not converted")
    if len(images) < FEWEST_IMAGES:
        raise UsageError(
            f"exit rules take at least {FEWEST_IMAGES} held-back images, and 1,000 for a tolerance of 0.1 points; "
            f"got {len(images)}"
        )
    if conversion.time_steps == 1:
        raise UsageError("exit rules are for networks of more than one time step")
    if not all(0 < tolerance < 100 for tolerance in tolerances):
        raise UsageError(f"tolerances must be points between 0 and 100, got {list(tolerances)}")
    logits = readouts(net, images, conversion.time_steps, batch_size, progress, rank)
    conversion.exits = choose_rules(logits, tolerances, measure)
    return conversion.exits


def readouts(
    net: SpikingNetwork,
    images: Tensor,
    time_steps: int,
    batch_size: int,
    progress: Progress | None = None,
    rank: Rank = ALONE,
) -> Tensor:
    """Return the logits after each step, `[T, N, classes]`, on the CPU; by the network's fast form."""
    fast = prepare_for_inference(net)
    found: dict[int, Tensor] = {}
    for done, part in enumerate(images.split(batch_size)):
        if not rank.takes(done):
            continue
        if progress:
            progress(done * batch_size, len(images), "exit rules")
        found[done] = fast(network_input(part.to(fast.device, fast.dtype), net.coding, time_steps)).cpu()
    if progress:
        progress(len(images), len(images), "exit rules")
    return torch.cat(rank.in_order(found), 1)


def choose_rules(logits: Tensor, tolerances: Sequence[float], measure: str = MEASURE) -> ExitTable:
    """Return the rules for images with these logits after each step, `[T, N, classes]`."""
    images = logits.shape[1]
    blank = _without_thresholds(logits, measure)
    sure, changes = _judged(logits, blank)
    judged = functools.cache(functools.partial(_cross_validated, sure, changes))
    rules = []
    for tolerance in tolerances:
        price = _lowest_price(judged, tolerance / 100 * (images + 1) - 1)
        if price is None:
            steps, changed, thresholds = images * len(logits), 0, blank.thresholds
        else:
            (steps, changed), thresholds = judged(price), _thresholds(sure, changes, price)
        staying = _staying(sure, thresholds)
        rules.append(ChosenRule(tolerance, thresholds, 100 * changed / images, steps / images, staying))
    assert blank.shift is not None
    return ExitTable(measure, images, tuple(map(tuple, blank.shift.tolist())), tuple(rules), blank.onward)


def earliest_steps(logits: Tensor, classes: Tensor) -> tuple[float, float]:
    """Return after how many steps, on average, the class that is foretold is this one for good.

    No rule takes fewer without a changed class. It tells networks apart on fewer images than rules do.

    Args:
        logits: after each step, `[T, N, classes]`.
        classes: that the ANN names, `[N]`.

    Returns:
        the mean steps, T for an image whose last class is another; and how many last classes are those, in percent.
    """
    blank = _without_thresholds(logits, MEASURE)
    wrong = blank.foretold(logits).argmax(-1) != classes
    after = torch.arange(1, len(logits) + 1).unsqueeze(1)
    needed = (1 + (wrong * after).amax(0)).clamp(max=len(logits))
    return needed.double().mean().item(), 100 * (1 - wrong[-1].double().mean().item())


def _lowest_price(judged: Callable[[float], tuple[int, int]], most_changed: float) -> float | None:
    """Return the price that leads to the fewest steps with no more changed classes than that, if there is any."""
    within = [price for price in PRICES if judged(price)[1] <= most_changed]
    if not within:
        return None
    best = min(within, key=judged)
    beyond = best / 2
    for _ in range(HALVINGS):
        middle = math.sqrt(beyond * best)
        if judged(middle)[1] <= most_changed:
            best = min(middle, best, key=judged)
        else:
            beyond = middle
    return best


def _cross_validated(sure: Tensor, changes: Tensor, price: float) -> tuple[int, int]:
    """Return how many steps all images take by rules of a price, and how many leave with a class that changes."""
    images = sure.shape[1]
    at_last = torch.ones(1, images, dtype=torch.bool)  # all leave, with the class that they have
    changed, steps = 0, 0
    for fold in range(FOLDS):
        apart = torch.arange(images) % FOLDS == fold
        thresholds = _thresholds(sure[:, ~apart], changes[:, ~apart], price)
        first = torch.cat([_above(sure, thresholds), at_last]).int().argmax(0, keepdim=True)
        changed += int(torch.cat([changes, ~at_last]).gather(0, first)[0, apart].sum())
        steps += int(first[0, apart].sum()) + int(apart.sum())
    return steps, changed


def _without_thresholds(logits: Tensor, measure: str) -> ExitRule:
    """Return a rule by which none leaves early, that foretells the last logits with the least squared error.

    What is added to a readout is rounded to four digits.
    """
    shifts: list[list[float]] = []
    onward: list[float] = []
    for t in range(len(logits) - 1):
        lacking, change = (logits[-1] - logits[t]).double(), trend(logits, t).double()
        moving = change - change.mean(0)
        times = _four_digits((lacking * moving).sum() / moving.square().sum().clamp(min=1e-30))
        onward.append(times)
        shifts.append([_four_digits(x) for x in (lacking - times * change).mean(0)])
    shift = torch.tensor(shifts, dtype=torch.float64)
    return ExitRule(measure, (NEVER,) * len(shifts), shift, tuple(onward))


def _four_digits(x: Tensor) -> float:
    return float(f"{x.item():.4g}")


def _judged(logits: Tensor, blank: ExitRule) -> tuple[Tensor, Tensor]:
    """Of each image, how sure it is after each early step, and whether its class changes after that: `[T - 1, N]`."""
    readouts = blank.foretold(logits)[:-1]
    return MEASURES[blank.measure](readouts), readouts.argmax(-1) != logits[-1].argmax(-1)


def _thresholds(sure: Tensor, changes: Tensor, price: float) -> tuple[float, ...]:
    """Return those with the least sum of steps and prices, found step by step, each given all others."""
    steps, images = sure.shape
    costs = torch.arange(1, steps + 2, dtype=torch.float64).unsqueeze(1).repeat(1, images)
    costs[:-1] += price * changes
    leaves = torch.zeros(steps + 1, images, dtype=torch.bool)
    leaves[-1] = True
    thresholds = [NEVER] * steps
    for _ in range(SWEEPS):
        before = list(thresholds)
        for t in range(steps):
            here = ~leaves[:t].any(0)
            later = leaves[t + 1 :].int().argmax(0).unsqueeze(0)
            saved = (costs[t + 1 :].gather(0, later)[0] - costs[t])[here]
            thresholds[t] = _best_threshold(sure[t][here], saved, UNSEEN * price)
            leaves[t] = sure[t] > thresholds[t]
        if thresholds == before:
            break
    return tuple(thresholds)


def _above(sure: Tensor, thresholds: tuple[float, ...]) -> Tensor:
    """Return which images would leave after each early step, if they were still there: `[T - 1, N]`, boolean."""
    return sure > torch.tensor(thresholds, dtype=sure.dtype).unsqueeze(1)


def _staying(sure: Tensor, thresholds: tuple[float, ...]) -> tuple[float, ...]:
    """Return the share of images that is left after each early step, rounded to four digits."""
    gone = _above(sure, thresholds).int().cummax(0).values
    return tuple(_four_digits(share) for share in 1 - gone.double().mean(1))


def _best_threshold(sure: Tensor, saved: Tensor, least: float) -> float:
    """The threshold above which most is saved in all, if it is more than `least`; halfway to the next image below."""
    ordered = sure.sort(descending=True)
    totals = saved[ordered.indices].cumsum(0)
    if len(totals) == 0 or totals.max() <= least:
        return NEVER
    last = int(totals.argmax())
    values = ordered.values[last : last + 2].clamp(0, NEVER)
    return float(values.mean() if len(values) == 2 else values[0] / 2)
