"""How far each neuron's decoded output is from the ANN's activation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from snnzoo.conversion.inputs import ann_input, network_input
from snnzoo.functional import reset_net
from snnzoo.graph.graph import Node
from snnzoo.graph.network import SpikingNetwork
from snnzoo.graph.run import run_graph


def layer_errors(net: SpikingNetwork, images: Tensor, time_steps: Sequence[int]) -> dict[str, list[float]]:
    """Return the squared error of each neuron, decoded after several T, over the mean square of the ANN's activation.

    The ANN is the network's graph with its tensors. Every site's error holds what those before it have brought in. One
    step is run at a time, so that memory does not grow with T.

    Args:
        net: converted, multi-step.
        images: `[N, C, H, W]`, or frames `[N, T, C, H, W]`; all activations of the ANN are held, so take a few.
        time_steps: T to decode at, ascending.

    Returns:
        for each neuron's path, in the order in which they run, the error after each T.
    """
    assert net.coding is not None
    mean = net.coding.readout == "mean"
    sites = {node.name: node.path for node in net.graph.neurons}
    activations: dict[str, Tensor] = {}
    sums: dict[str, Tensor] = {}

    def keep(node: Node, y: Tensor) -> None:
        if node.name in sites:
            activations[node.name] = y

    def accumulate(node: Node, inputs: list[Tensor], y_seq: Tensor) -> None:
        if node.name in sites:
            sums[node.name] = sums[node.name] + y_seq[0] if node.name in sums else y_seq[0].clone()

    errors: dict[str, list[float]] = {path: [] for path in sites.values()}
    reset_net(net)
    try:
        with torch.inference_mode():
            run_graph(net.graph, net.tensors(), ann_input(images), keep)
            for t, x in enumerate(network_input(images, net.coding, max(time_steps)), start=1):
                net.run(x.unsqueeze(0), accumulate)
                if t in time_steps:
                    for name, total in sums.items():
                        decoded = total / t if mean else total
                        missing = (activations[name] - decoded).double().square().sum()
                        power = activations[name].double().square().sum()
                        errors[sites[name]].append((missing / power.clamp(min=1e-30)).item())
    finally:
        reset_net(net)
    return errors
