"""NIR graphs run step by step, in plain PyTorch, as a target's reader would run them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import nir
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from snnzoo.codings import RELU
from snnzoo.errors import SnnzooError
from snnzoo.export.targets import GENERIC, Target

Step = Callable[[Tensor], Tensor]


class NirNetwork:
    """A NIR graph, run from a fresh state at each call: `[T, N, ...] -> [T, N, ...]`.

    What connects into a node adds up; what comes from a node that has not run yet in a step is that of the step before.

    Args:
        graph: of nodes that `to_nir` writes.
        target: whose IF it is run with; "generic" for NIR's own equations.
        dt: seconds of one step.
        dtype: of all values.

    Raises:
        SnnzooError: for a node of another kind.
    """

    def __init__(
        self, graph: nir.NIRGraph, target: Target = GENERIC, dt: float = 1e-4, dtype: torch.dtype = torch.float64
    ) -> None:
        self.graph, self.target, self.dt, self.dtype = graph, target, dt, dtype
        self.order = _in_order(graph)
        self.sources: dict[str, list[str]] = {name: [] for name in graph.nodes}
        for source, name in graph.edges:
            self.sources[name].append(source)

    @torch.inference_mode()
    def __call__(self, x_seq: Tensor, record: Iterable[str] = ()) -> Tensor:
        """Return the outputs of all steps; `recorded` then has those of the nodes named in `record`, `[T, N, ...]`."""
        steps = {name: self._step_of(name, node) for name, node in self.graph.nodes.items()}
        seen: dict[str, list[Tensor]] = {name: [] for name in record}
        outputs, before = [], dict[str, Tensor]()
        for x in x_seq.to(self.dtype):
            values: dict[str, Tensor] = {}
            for name in self.order:
                given = [values.get(source, before.get(source)) for source in self.sources[name]]
                inputs = [value for value in given if value is not None]
                if name == "input":
                    values[name] = x
                elif inputs:
                    values[name] = steps[name](sum(inputs[1:], start=inputs[0]))
            outputs.append(values["output"])
            for name, kept in seen.items():
                kept.append(values[name])
            before = values
        self.recorded = {name: torch.stack(kept) for name, kept in seen.items()}
        return torch.stack(outputs)

    def _step_of(self, name: str, node: nir.NIRNode) -> Step:
        """A function of one step, with a state of its own."""
        if isinstance(node, (nir.IF, nir.LIF, nir.I, nir.LI)):
            return self._neuron(node)
        keys = ("weight", "bias", "scale", "threshold")
        values = {key: self._tensor(getattr(node, key)) for key in keys if hasattr(node, key)}
        if isinstance(node, (nir.Input, nir.Output)):
            return lambda x: x
        if isinstance(node, nir.Affine):
            return lambda x: F.linear(x, values["weight"], values["bias"])
        if isinstance(node, nir.Conv2d):
            padding = node.padding if isinstance(node.padding, str) else _pair(node.padding)
            stride, dilation = _pair(node.stride), _pair(node.dilation)
            return lambda x: F.conv2d(x, values["weight"], values["bias"], stride, padding, dilation, int(node.groups))
        if isinstance(node, (nir.AvgPool2d, nir.SumPool2d)):
            kernel, pool = _pair(node.kernel_size), (_pair(node.stride), _pair(node.padding))
            area = kernel[0] * kernel[1] if isinstance(node, nir.SumPool2d) else 1
            return lambda x: F.avg_pool2d(x, kernel, *pool) * area
        if isinstance(node, nir.Flatten):
            return lambda x: x.flatten(1)
        if isinstance(node, nir.Scale):
            return lambda x: x * values["scale"]
        if isinstance(node, nir.Threshold):
            return lambda x: (x > values["threshold"]).to(x.dtype)
        raise SnnzooError(f"{name} is a NIR node of kind {type(node).__name__}, which is not run here")

    def _neuron(self, node: Any) -> Step:
        """A neuron or integrator that starts from 0."""
        parameters = {
            key: self._tensor(getattr(node, key))
            for key in ("r", "tau", "v_leak", "v_threshold", "v_reset")
            if hasattr(node, key)
        }
        dt, state = self.dt, [torch.zeros((), dtype=self.dtype)]
        if isinstance(node, nir.IF) and not self.target.is_generic:
            coding, theta = self.target.coding(), parameters["v_threshold"]

            def fire(x: Tensor) -> Tensor:
                spikes, _, (state[0],) = coding.step(x, (state[0].expand_as(x),), theta, 0, RELU)
                return spikes

            return fire

        def step(x: Tensor) -> Tensor:
            v = state[0]
            if "tau" in parameters:
                v = v + dt / parameters["tau"] * (parameters["v_leak"] - v + parameters["r"] * x)
            else:
                v = v + dt * parameters["r"] * x
            if "v_threshold" not in parameters:
                state[0] = v
                return v
            spikes = v > parameters["v_threshold"]
            state[0] = torch.where(spikes, parameters["v_reset"], v)
            return spikes.to(self.dtype)

        return step

    def _tensor(self, values: Any) -> Tensor:
        return torch.from_numpy(np.asarray(values)).to(self.dtype)


def _pair(value: Any) -> tuple[int, int]:
    pair = np.broadcast_to(np.asarray(value), (2,))
    return int(pair[0]), int(pair[1])


def _in_order(graph: nir.NIRGraph) -> list[str]:
    """All nodes that the output depends on, each behind those before it; connections back are left out of account."""
    sources: dict[str, list[str]] = {name: [] for name in graph.nodes}
    for source, name in graph.edges:
        sources[name].append(source)
    order: list[str] = []
    entered: set[str] = set()
    pending = [("output", False)]
    while pending:
        name, is_done = pending.pop()
        if is_done:
            order.append(name)
        elif name not in entered:
            entered.add(name)
            pending.append((name, True))
            pending += [(source, False) for source in sources[name] if source not in entered]
    return order
