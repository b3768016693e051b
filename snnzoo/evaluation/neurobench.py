"""The metrics of NeuroBench, by its names and definitions (Yik et al. 2025, Nature Communications 16:1545).

They are those of the network in its fast form, whose BN is in the weights. What a unit of a neuron's spikes is worth,
its threshold, is taken to be folded into the weights behind it, as exports do, so that spikes of -1, 0 and 1 accumulate
only; a factor that is the same for all of a step (gamma of `delta`) scales what is accumulated, not each weight.
"""

from __future__ import annotations

from typing import Any

from snnzoo.evaluation.activity import Activity, layer_names
from snnzoo.graph.graph import Graph
from snnzoo.graph.network import SpikingNetwork

_KEEPS_UNITS = {"reshape", "permute", "cat", "slice", "pad", "contiguous"}  # of spikes of -1, 0 and 1


def neurobench_metrics(net: SpikingNetwork, activity: Activity, time_steps: int) -> dict[str, Any]:
    """Return the metrics that NeuroBench's harness gives the network, run step by step for `time_steps`.

    What a static image alone decides is computed once, and the classifier once, on what is read out. Whether operations
    accumulate (`Effective_ACs`) is told by the coding, not by what a batch happens to hold. Weights count whether they
    are zero or not. `MembraneUpdates` is left out where changes of membranes were not counted.

    Args:
        net: the folded network that was run.
        activity: what it did.
    """
    weights = [net.tensors()[node.parameters["weight"]] for node in net.graph if node.row.weighted]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    held = [*net.parameters(), *net.buffers()]
    metrics: dict[str, Any] = {
        "Footprint": sum(value.numel() * value.element_size() for value in held),
        "ConnectionSparsity": round(zeros / sum(weight.numel() for weight in weights), 4),
        "ParameterCount": sum(value.numel() for value in net.parameters()),
        "ActivationSparsity": 1 - activity.events_per_neuron_step(time_steps),
        "SynapticOperations": _synaptic_operations(net, activity, time_steps),
    }
    if activity.membranes:
        metrics["MembraneUpdates"] = activity.membrane_updates_per_image(time_steps)
    return metrics


def _synaptic_operations(net: SpikingNetwork, activity: Activity, time_steps: int) -> dict[str, float]:
    units = _layers_of_units(net)
    accumulates = multiplies = 0.0
    dense = 0
    for layer in activity.layer_counts(time_steps):
        dense += layer.dense * (1 if layer.analog else time_steps)
        if layer.analog:
            multiplies += activity.analog[layer.name][time_steps - 1] / activity.images
        elif layer.name in units:
            accumulates += layer.operations
        else:
            multiplies += layer.operations
    return {"Effective_MACs": multiplies, "Effective_ACs": accumulates, "Dense": dense}


def _layers_of_units(net: SpikingNetwork) -> set[str]:
    """The layers that see spikes of -1, 0 and 1, one neuron's at each input."""
    graph: Graph = net.graph
    known = {node.name for node in net.sites if getattr(net.neuron(node.path).coding, "largest_unit", 0) == 1}
    for node in graph:
        if node.operation in _KEEPS_UNITS and all(name in known for name in node.inputs):
            known.add(node.name)
    names = layer_names(graph)
    return {names[node.name] for node in graph if node.row.weighted and node.inputs[0] in known}
