"""How far each neuron's decoded output is from the ANN's activation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from snnzoo.conversion.converted_file import Conversion
from snnzoo.conversion.inputs import ann_input, network_input
from snnzoo.conversion.sites import neuron_sites
from snnzoo.functional import reset_net
from snnzoo.models.base import SpikingNet


def layer_errors(net: SpikingNet, ann: SpikingNet, images: Tensor, time_steps: Sequence[int]) -> dict[str, list[float]]:
    """Return each neuron site's squared error, decoded after several T, over the mean square of the ANN's activation.

    Every site's error holds what those before it have brought in. One step is run at a time, so that memory does
    not grow with T.

    Args:
        net: converted, multi-step.
        ann: its ANN, single-step.
        images: `[N, C, H, W]`, or frames `[N, T, C, H, W]`; all activations of the ANN are held, so take a few.
        time_steps: T to decode at, ascending.

    Returns:
        for each site, in the order in which they run, the error after each T.
    """
    assert isinstance(net.conversion, Conversion)
    mean = net.conversion.coding.readout == "mean"
    activations: dict[str, Tensor] = {}
    sums: dict[str, Tensor] = {}

    def keep(site: str, _: nn.Module, inputs: object, y: Tensor) -> None:
        activations[site] = y

    def accumulate(site: str, _: nn.Module, inputs: object, y_seq: Tensor) -> None:
        sums[site] = sums[site] + y_seq[0] if site in sums else y_seq[0].clone()

    sites = neuron_sites(net)
    handles = [ann.get_submodule(site).register_forward_hook(partial(keep, site)) for site in sites]
    handles += [net.get_submodule(site).register_forward_hook(partial(accumulate, site)) for site in sites]
    errors: dict[str, list[float]] = {site: [] for site in sites}
    try:
        with torch.inference_mode():
            ann(ann_input(images))
            reset_net(net)
            for t, x in enumerate(network_input(images, net.conversion.coding, max(time_steps)), start=1):
                net(x.unsqueeze(0))
                if t in time_steps:
                    for site, total in sums.items():
                        decoded = total / t if mean else total
                        missing = (activations[site] - decoded).double().square().sum()
                        power = activations[site].double().square().sum()
                        errors[site].append((missing / power.clamp(min=1e-30)).item())
    finally:
        reset_net(net)
        for handle in handles:
            handle.remove()
    return errors
