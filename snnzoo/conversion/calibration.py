"""Statistics of an ANN's activations on calibration images, per channel, layer by layer.

Memory stays bounded: activations are reduced batch by batch, never kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from snnzoo.conversion.codings import neuron_sites
from snnzoo.errors import SnnzooError
from snnzoo.models.resnet import SpikingNet

Progress = Callable[[int, int, str], None]
BINS = 2048


@contextlib.contextmanager
def _observed(ann: SpikingNet, observe: Callable[[str, Tensor, Tensor], Tensor | None]) -> Iterator[None]:
    """Call `observe(site, input, output)` at every neuron site; what it returns replaces the output."""

    def hook(site: str) -> Callable[[Any, Any, Tensor], Tensor | None]:
        return lambda _, inputs, output: observe(site, inputs[0], output)

    handles = [ann.get_submodule(site).register_forward_hook(hook(site)) for site in neuron_sites(ann)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _run(ann: SpikingNet, images: Tensor, batch_size: int, report: Callable[[int], None]) -> None:
    parameter = next(ann.parameters())
    with torch.inference_mode():
        for batch in images.split(batch_size):
            ann(batch.to(parameter.device, parameter.dtype))
            report(len(batch))


def _channels_first(x: Tensor) -> Tensor:
    """`[N, C, ...] -> [C, everything else]`."""
    return x.transpose(0, 1).flatten(1)


def channel_maxima(
    ann: SpikingNet, images: Tensor, batch_size: int, report: Callable[[int], None]
) -> dict[str, Tensor]:
    """The largest activation of each channel, `{site: [C]}`.

    Args:
        ann: ReLU network, single-step, in eval mode.
        images: `[N, C, H, W]`.

    Raises:
        SnnzooError: if an activation is NaN or infinite.
    """
    maxima: dict[str, Tensor] = {}

    def observe(site: str, _: Tensor, output: Tensor) -> None:
        peak = _channels_first(output).amax(1)
        maxima[site] = torch.maximum(maxima[site], peak) if site in maxima else peak

    with _observed(ann, observe):
        _run(ann, images, batch_size, report)
    for site, peak in maxima.items():
        if not bool(peak.isfinite().all()):
            raise SnnzooError(f"activations at {site} are NaN or infinite: check the weights and the preprocessing")
    return maxima


def channel_percentiles(
    ann: SpikingNet,
    images: Tensor,
    maxima: dict[str, Tensor],
    percentile: float,
    batch_size: int,
    report: Callable[[int], None],
) -> dict[str, Tensor]:
    """The percentile of each channel's activations, to 1/2048 of its maximum, `{site: [C]}`.

    Zeros count. A channel whose percentile is zero, though it fires at times, gets its maximum.
    """
    counts = {site: torch.zeros(len(peak), BINS, device=peak.device) for site, peak in maxima.items()}

    def observe(site: str, _: Tensor, output: Tensor) -> None:
        values = _channels_first(output)
        bins = (values * (BINS / maxima[site].clamp(min=1e-30)).unsqueeze(1)).long().clamp(0, BINS - 1)
        counts[site].scatter_add_(1, bins, torch.ones_like(values, dtype=torch.float32))

    with _observed(ann, observe):
        _run(ann, images, batch_size, report)
    result = {}
    for site, count in counts.items():
        reached = count.cumsum(1) >= count.sum(1, keepdim=True) * (percentile / 100)
        bin_index = reached.to(torch.int8).argmax(1)
        value = (bin_index + 1) / BINS * maxima[site]
        result[site] = torch.where(bin_index > 0, value, maxima[site])
    return result


def fill_dead_channels(thresholds: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give channels that never fired on the calibration images the median threshold of their layer."""
    filled = {}
    for site, theta in thresholds.items():
        alive = theta[theta > 0]
        fallback = alive.median() if len(alive) else torch.ones_like(theta[0])
        filled[site] = torch.where(theta > 0, theta, fallback)
    return filled


def resting_inputs(ann: SpikingNet) -> dict[str, Tensor]:
    """What reaches each neuron when nothing fires: the sum of the biases on its way, `{site: [C]}`."""
    resting: dict[str, Tensor] = {}

    def observe(site: str, x: Tensor, output: Tensor) -> Tensor:
        resting[site] = x[0].flatten(1)[:, 0].clone()
        return torch.zeros_like(output)

    weight = next(ann.parameters())
    with _observed(ann, observe), torch.inference_mode():
        ann(weight.new_zeros(1, weight.shape[1], 32, 32))
    return resting
