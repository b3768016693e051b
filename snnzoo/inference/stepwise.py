"""Running a folded network a few steps at a time, on fewer and fewer images: those that are sure leave."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from snnzoo.early_exit import ExitRule
from snnzoo.graph.network import Watch, is_static
from snnzoo.inference.network import FoldedNetwork
from snnzoo.ops.spec import select


def run_until_sure(
    network: FoldedNetwork, x_seq: Tensor, rule: ExitRule, runs: Iterable[range], watch: Watch | None = None
) -> tuple[Tensor, Tensor]:
    """Return the logits with which each image leaves, `[N, classes]`, and after how many steps, `[N]`.

    Args:
        network: at t = 0.
        x_seq: `[T, N, ...]`, of the rule's T; a static image, expanded over T, passes the stem once.
        runs: the steps that run together, layer by layer, of T in all. An image that is sure after one of them leaves
            with what is read out there, after the others.
        watch: as of `SpikingNetwork.run`, called for each run of steps with the images that are left; for what comes
            before all neurons once, if the image is static.
    """
    rest = torch.arange(x_seq.shape[1], device=x_seq.device)
    after = torch.full_like(rest, len(x_seq))
    exits = frozenset(rule.exits)
    front = network.front(x_seq[:1], watch) if is_static(x_seq) else {}
    known = {name: value[0] for name, value in front.items()}
    answers: Tensor | None = None
    seen: Tensor | None = None  # the readouts until now, `[T, N, classes]`
    total: Tensor | None = None  # of a trained network's logits, whose mean is its readout
    for steps in runs:
        x = x_seq[steps.start : steps.stop]
        if not known and len(rest) < x_seq.shape[1]:
            x = _of_some(x, rest)
        logits = network.run(x, watch, {name: _repeated(value, len(steps)) for name, value in known.items()})
        seen = logits.new_empty(len(x_seq), *logits.shape[1:]) if seen is None else seen
        answers = torch.empty_like(logits[0], memory_format=torch.contiguous_format) if answers is None else answers
        stays = torch.ones_like(rest, dtype=torch.bool)
        for t, step in zip(steps, logits, strict=True):
            if network.coding is None:
                total = step if total is None else total + step
            seen[t] = step if total is None else total / (t + 1)
            if t in exits:
                readout = rule.readout(seen, t)
                leaving = (stays & rule.is_sure(readout, t)).nonzero()[:, 0]
                answers[rest[leaving]], after[rest[leaving]] = readout[leaving], t + 1
                stays[leaving] = False
        staying = stays.nonzero()[:, 0]
        if len(staying) == 0:
            break
        if len(staying) == len(rest):
            continue
        rest = rest[staying]
        network.select(staying)
        known = {name: select(value, staying) for name, value in known.items()}
        seen = seen[:, staying]
        total = None if total is None else total[staying]
    assert answers is not None
    return answers, after


def _repeated(x: Tensor, time_steps: int) -> Tensor:
    """Return `[N, ...]` at each of so many steps, with a time stride of 0: no neuron writes over it."""
    return x.as_strided((time_steps, *x.shape), (0, *x.stride()))


def _of_some(x_seq: Tensor, chosen: Tensor) -> Tensor:
    """Return some images of `[T, N, ...]`, in the memory format that they have."""
    time_steps, batch = x_seq.shape[:2]
    places = batch * torch.arange(time_steps, device=chosen.device).view(-1, 1) + chosen
    return select(x_seq.flatten(0, 1), places.flatten()).unflatten(0, (time_steps, -1))
