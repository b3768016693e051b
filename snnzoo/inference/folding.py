"""Batch normalisation folded away: its scale into the convolution's weights, its shift into the neuron's bias.

A convolution then has no bias at all. What BN would have added is added by the neuron, which knows when: at
every step, or in differential codings once, at t = 0. There the `offset` of an unfolded neuron, which takes
repeated biases off again, has nothing left to do.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from snnzoo import ops
from snnzoo.codings import RELU
from snnzoo.threshold_node import ThresholdNode

NEGLIGIBLE = 1e-5  # so much of an offset, and of the threshold, is rounding


def fold(layer: Any, bn: Any = None) -> tuple[Any, Tensor]:
    """Of a convolution with its BN, or of a layer alone: the layer without bias, and the bias `[C]`, in float64."""
    layer = copy.deepcopy(layer).double().eval()
    if bn is not None:
        layer = fuse_conv_bn_eval(layer, copy.deepcopy(bn).double().eval())
    bias = layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias.detach()
    layer.bias = None
    return layer.requires_grad_(False), bias


class FoldedNeuron(nn.Module):
    """A neuron with the biases of everything before it, folded into one; `step_mode="m"`.

    Its state goes on from call to call until `reset`, as that of any neuron, unless `keeps_state` is set to False.
    Its parameters are float32 or better, whatever the dtype of the network. Its output takes the place of its
    input in memory.

    Args:
        node: the neuron as it is in the unfolded network. Not changed.
        bias: what folded layers before it would have added at every step, `[C]`.
    """

    v_threshold: float | Tensor
    bias: float | Tensor
    offset: float | Tensor
    keeps_state = True
    sends_counts = False  # a sequence of whole units, as int8, instead of what they are worth

    def __init__(self, node: ThresholdNode, bias: Tensor) -> None:
        super().__init__()
        node = copy.deepcopy(node).double().requires_grad_(False)
        self.coding = _detached(node.coding)
        arguments = node.arguments()
        self.scaled = arguments.get("scaled", False)
        self.activation, self.absolute = arguments.get("activation", RELU), arguments.get("absolute", False)
        offset = arguments.get("offset", 0.0)
        if self.coding.bias_once and not self.absolute:
            left = offset - bias
            scale = torch.as_tensor(offset).abs() + torch.as_tensor(node.v_threshold)
            offset = 0.0 if bool((left.abs() <= NEGLIGIBLE * scale).all()) else left
        self._keep("v_threshold", arguments["v_threshold"])
        self._keep("bias", arguments.get("bias", 0.0) + bias)
        self._keep("offset", offset)
        self.reset()

    def _keep(self, name: str, value: float | Tensor) -> None:
        if isinstance(value, Tensor):
            self.register_buffer(name, value.detach().clone())
        else:
            setattr(self, name, value)

    def reset(self) -> None:
        """Forget the state: the next step is t = 0."""
        self.state: tuple[Tensor, ...] | None = None
        self.t = self.steps = 0

    def forward(self, x_seq: Tensor, residual: Tensor | None = None, output: str = "sequence") -> Tensor:
        """`[T, N, C, ...] -> [T, N, C, ...]`, or with `output="sum"` the sum over time, `[N, C, ...]`."""
        result = ops.multi_step_neuron(
            x_seq,
            self.coding,
            v_threshold=self.v_threshold,
            bias=self.bias,
            offset=self.offset,
            residual=residual,
            state=self.state,
            t=self.t,
            output=output,
            activation=self.activation,
            absolute=self.absolute,
            scaled=self.scaled,
            keep_state=self.keeps_state,
            out_dtype=torch.int8 if self.sends_counts and output == "sequence" else None,
            out=None if output == "sum" or self.sends_counts or (len(x_seq) > 1 and x_seq.stride(0) == 0) else x_seq,
        )
        self.state = result.state or None
        self.steps = len(x_seq)
        self.t += self.steps
        outputs = result.total if output == "sum" else result.sequence
        assert outputs is not None
        return outputs

    def spike_value(self, t: int, dtype: torch.dtype) -> float | Tensor:
        """Return what a unit of its spikes is worth at step t."""
        return self.v_threshold * self.coding.spike_value(t, dtype) if self.scaled else 1.0

    def shrink(self, x: Tensor) -> Tensor:
        """Scale what belongs to the steps last run, `[T * N, ...]`, from units of t = 0 to their own, in place."""
        first = self.coding.spike_value(0, x.dtype)
        for t, step in zip(range(self.t - self.steps, self.t), x.chunk(self.steps), strict=True):
            share = self.coding.spike_value(t, x.dtype) / first
            if share != 1:
                step.mul_(share)
        return x

    def extra_repr(self) -> str:
        return f"{self.coding}"


def _detached(coding: Any) -> Any:
    """The coding with a learned time constant as a plain number."""
    if isinstance(getattr(coding, "reciprocal_tau", None), Tensor):
        return dataclasses.replace(coding, reciprocal_tau=coding.reciprocal_tau.item())
    return coding
