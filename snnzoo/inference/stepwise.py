"""Running a folded network step by step, on fewer and fewer images: those that are sure leave with all their states."""

from __future__ import annotations

import torch
from torch import Tensor

from snnzoo.early_exit import ExitRule
from snnzoo.graph.network import Watch, is_static
from snnzoo.inference.network import FoldedNetwork, select


def run_until_sure(
    network: FoldedNetwork, x_seq: Tensor, rule: ExitRule, watch: Watch | None = None
) -> tuple[Tensor, Tensor]:
    """Return the logits with which each image leaves, `[N, classes]`, and after how many steps, `[N]`.

    Args:
        network: at t = 0.
        x_seq: `[T, N, ...]`, of the rule's T; a static image, expanded over T, passes the stem once.
        watch: as of `SpikingNetwork.run`, called for each step with the images that are left; for what comes before
            all neurons once, if the image is static.
    """
    rest = torch.arange(x_seq.shape[1], device=x_seq.device)
    steps = torch.full_like(rest, len(x_seq))
    known = network.front(x_seq[:1], watch) if is_static(x_seq) else {}
    answers: Tensor | None = None
    total: Tensor | None = None  # of a trained network's logits, whose mean is its readout
    for t in range(len(x_seq)):
        x = x_seq[t : t + 1] if known or len(rest) == x_seq.shape[1] else select(x_seq[t], rest).unsqueeze(0)
        held = {name: value.clone() for name, value in known.items()}  # a neuron may write over its input
        logits = network.run(x, watch, held)[0]
        if network.coding is None:
            total = logits if total is None else total + logits
            logits = total / (t + 1)
        readout = rule.readout(logits, t)
        answers = torch.empty_like(readout, memory_format=torch.contiguous_format) if answers is None else answers
        sure = rule.is_sure(readout, t)
        leaving, staying = sure.nonzero()[:, 0], (~sure).nonzero()[:, 0]
        if len(leaving) == 0:
            continue
        answers[rest[leaving]], steps[rest[leaving]] = readout[leaving], t + 1
        if len(staying) == 0:
            break
        rest = rest[staying]
        network.select(staying)
        known = {name: select(value[0], staying).unsqueeze(0) for name, value in known.items()}
        total = None if total is None else total[staying]
    assert answers is not None
    return answers, steps
