"""Networks as NIR graphs (Pedersen et al. 2024, Nature Communications 15, 8122), read by many tools and chips.

NIR has binary spikes. What a converted spike is worth, its threshold, is folded into the weights behind it, and
BN into those before it: every threshold is then 1.

A NIR graph is in continuous time; read with the time step `dt` in which it was written, it computes what the
network computes, step by step:

    IF:   v += r * dt * x,                       r = 1 / dt
    LIF:  v += dt / tau * (v_leak - v + r * x),  tau = steps * dt,  r = 1 (input decays) or steps (it does not)

Potentials are shifted so that all start from 0, whatever `v_reset` is. NIR's IF and LIF reset to a value; a
soft reset is written with an integrator, a threshold, and a connection back that takes the threshold off before
the next step. This also holds rate coding's start from half the threshold.

So it is for the target "generic". Other readers take IF in ways of their own, and few know all nodes: `targets` lists
what each takes for granted, and the graph is written so that it computes the same there.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import nir
from torch import Tensor

from snnzoo._version import __version__
from snnzoo.conversion.converted_file import Conversion
from snnzoo.errors import SnnzooError, UsageError
from snnzoo.export.check import Check, Open, Run, write_checked
from snnzoo.export.host import Host
from snnzoo.export.nir_builder import Builder
from snnzoo.export.nir_run import NirNetwork
from snnzoo.export.targets import GENERIC, Target, target_named
from snnzoo.graph.network import SpikingNetwork
from snnzoo.graph.operations import INPUT
from snnzoo.graph.shapes import value_shapes
from snnzoo.graph.trained import as_graph
from snnzoo.models.base import SpikingNet
from snnzoo.threshold_node import ThresholdNode

DT = 1e-4  # seconds; the step that readers of IF and LIF suppose unless told otherwise


def write_nir(
    net: SpikingNet | SpikingNetwork,
    path: str | Path,
    input_shape: tuple[int, ...],
    *,
    replace: bool = True,
    images: Tensor | None = None,
    time_steps: int | None = None,
    **options: Any,
) -> Check | None:
    """Write `to_nir(net, input_shape, **options)` to a file, wholly or not at all.

    Args:
        replace: whether a file of that name may be replaced.
        images: `[N, C, H, W]`, on which the file is read back and run as its target's reader would, beside the
            network; None for no check.
        time_steps: T of that; what the network was converted for if None.

    Returns:
        what the check found, which is in the file's metadata, too.

    Raises:
        SnnzooError: as `to_nir`, if the file cannot be written, or does not compute what the network does.
    """
    graph = to_nir(net, input_shape, **options)
    facts = dict(graph.metadata)

    def content(more: dict[str, str]) -> bytes:
        graph.metadata = {**facts, **more}
        written = io.BytesIO()  # HDF5 may not notice that a disk is full
        nir.write(written, graph)
        return written.getvalue()

    if time_steps is None:
        time_steps = net.conversion.time_steps if isinstance(net.conversion, Conversion) else 4
    read_as = {name: options[name] for name in ("target", "stem", "dt") if name in options}
    opened = nir_runner(net, input_shape, time_steps, **read_as)
    return write_checked(Path(path), content, opened, net, images, time_steps, replace=replace)


def nir_runner(
    net: SpikingNet | SpikingNetwork,
    input_shape: tuple[int, ...],
    time_steps: int,
    *,
    target: str | Target = GENERIC,
    stem: bool = True,
    dt: float = DT,
) -> Open:
    """Return `path -> (images [N, C, H, W] -> logits [T, N, classes])`, of files that `write_nir` wrote of `net`."""
    row = target if isinstance(target, Target) else target_named(target)

    def opened(path: Path) -> Run:
        reader = NirNetwork(nir.read(path), row, dt)
        network = as_graph(net, input_shape).cpu()
        host = Host(network, *_ends(network, row, stem))
        return lambda images: host.logits(reader(host.inputs(images, time_steps)))

    return opened


def to_nir(
    net: SpikingNet | SpikingNetwork,
    input_shape: tuple[int, ...],
    *,
    stem: bool = True,
    dt: float = DT,
    target: str | Target = GENERIC,
) -> nir.NIRGraph:
    """The network as a NIR graph that takes one step of input, `[C, H, W]`, and gives one step of logits.

    The logits of a rate-coded network are the mean of all steps' outputs so far; what it starts from,
    a constant image, is its input at every step.

    Args:
        net: with IF, LIF or PLIF neurons, or converted with the recipe "rate", or for the target (`Target.coding`).
        input_shape: of one image, `[C, H, W]`.
        stem: False leaves out what is before the first neuron, for torchvision's ResNets, whose stem has a
            max pool: the graph's input is the first neuron's input current, which the host computes.
        dt: seconds of one step.
        target: who is to read it (`targets.TARGETS`).

    Raises:
        UsageError: for a target that there is not.
        SnnzooError: naming the layer, if NIR or the target cannot express the network, and what to do instead.
    """
    row = target if isinstance(target, Target) else target_named(target)
    if not any(isinstance(module, ThresholdNode) for module in net.modules()):
        raise SnnzooError("the network has no spiking neurons: a NIR graph would have no use of time")
    if row.spikes_alone and not stem:
        raise UsageError(f"target {row.name} takes spikes: what is before the first neurons is left out as it is")
    network = as_graph(net, input_shape).cpu()
    shapes = {INPUT: tuple(input_shape)}
    shapes |= value_shapes(network.graph, network.tensors(), input_shape, network.model_name)
    start, output = _ends(network, row, stem)
    builder = Builder(network, row, dt, shapes, start)
    needed = _needed(network, start, output)
    for node in network.graph:
        if node.name in needed:
            builder.add(node)
    return builder.graph(output, _metadata(net, row))


def _ends(network: SpikingNetwork, target: Target, stem: bool) -> tuple[str, str]:
    """The values that a graph begins and ends with."""
    first, last = network.sites[0], network.sites[-1]
    if not target.spikes_alone:
        return INPUT if stem else first.inputs[0], network.graph.output
    if last.name not in network.graph.behind_neurons and any(
        user.name not in network.graph.behind_neurons for user in network.graph.consumers[last.name]
    ):
        raise SnnzooError(f"{last.path} is not the last layer of its network but for linear ones: take another target")
    return first.name, last.name


def _needed(network: SpikingNetwork, start: str, output: str) -> set[str]:
    """The nodes that the output depends on, from the value `start` on."""
    needed, pending = set(), [output]
    while pending:
        name = pending.pop()
        if name not in needed and name not in (start, INPUT):
            needed.add(name)
            pending += network.graph[name].inputs
    return needed


def _metadata(net: SpikingNet | SpikingNetwork, target: Target) -> dict[str, Any]:
    """What a reader may want to know."""
    facts: dict[str, Any] = {"snnzoo": __version__, "model": getattr(net, "model_name", type(net).__name__)}
    facts |= {"target": target.name, "read": target.read}
    conversion = net.conversion
    if isinstance(conversion, Conversion):
        facts["time_steps"] = conversion.time_steps
        facts["readout"] = "mean of the outputs of all steps so far"
        facts["preprocess"] = json.dumps(conversion.preprocess and conversion.preprocess.to_dict())
        facts["classes"] = json.dumps(conversion.classes)
    return facts
