"""A neuron of a folded network: the residual, and all constants before it, are added by its operator."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snnzoo import ops
from snnzoo.codings import RELU, Coding
from snnzoo.graph.network import each_step, is_static
from snnzoo.ops.reference import channel_view
from snnzoo.ops.spec import Arguments, Memo, NeuronOutput, select
from snnzoo.threshold_node import ThresholdNode


@dataclasses.dataclass(frozen=True)
class Convolution:
    """A convolution without bias that the neuron behind it runs, and with it what is before it.

    `source`: the neuron before it, or None; `first`: the convolution before that, or None.
    """

    weight: Tensor
    settings: Mapping[str, Any]
    source: FoldedNeuron | None = None
    first: Convolution | None = None

    def __call__(self, x_seq: Tensor) -> Tensor:
        """What it gives by itself, `[T, N, C, ...]`."""
        for before in (self.first, self.source):
            x_seq = x_seq if before is None else before(x_seq)
        return each_step(lambda x: F.conv2d(x, self.weight, **self.settings), [x_seq])


class FoldedNeuron(nn.Module):
    """A neuron with the biases of everything before it, folded into one; `step_mode="m"`.

    Its state goes on from call to call until `reset`, as that of any neuron, unless `keeps_state` is set to False.
    Its parameters are float32 or better, whatever the dtype of the network.

    Args:
        node: the neuron as it is in the unfolded network. Not changed.
        bias: what folded layers before it would have added, `[C]`.
        gain: what they would have multiplied its input with, `[C]`; its output lacks that, too.
        in_place: whether its output may take the place of its input in memory.
    """

    v_threshold: float | Tensor
    bias: float | Tensor
    keeps_state = True
    sends_counts = False  # a sequence of whole units, as int8, instead of what they are worth
    counts_events = False  # whether `events` is of use
    keeps_input = False  # whether its input must stay as it is
    state: tuple[Tensor, ...] | None
    rows: Tensor | None  # which images of the state go on; None for all
    t: int  # the next step
    steps: int  # of the last call
    events: Tensor | None = None  # of the last call: outputs that are not 0, at each step and position, [T, ...]

    def __init__(self, node: ThresholdNode, bias: Tensor, gain: Tensor | float = 1.0, in_place: bool = False) -> None:
        super().__init__()
        node = copy.deepcopy(node).double().requires_grad_(False)
        self.coding, self.in_place = _detached(node.coding), in_place
        arguments = node.arguments()
        self.scaled = arguments.get("scaled", False)
        self.activation, self.absolute = arguments.get("activation", RELU), arguments.get("absolute", False)
        self._kept: tuple[Memo, tuple[object, object, object]] = Memo(), (None, None, None)
        self._keep("v_threshold", arguments["v_threshold"] / gain)
        self._keep("bias", (arguments.get("bias", 0.0) + bias) / gain)
        self.reset()

    def _keep(self, name: str, value: float | Tensor) -> None:
        if isinstance(value, Tensor):
            self.register_buffer(name, value.detach().clone())
        else:
            setattr(self, name, value)

    def set_parameters(self, v_threshold: Tensor, bias: Tensor) -> None:
        """Give it other ones, `[C]` each; what was kept of the old ones is forgotten."""
        for own, new in ((self.v_threshold, v_threshold), (self.bias, bias)):
            assert isinstance(own, Tensor)
            own.copy_(new)
        self._kept = Memo(), (None, None, None)

    def reset(self) -> None:
        """Forget the state: the next step is t = 0."""
        vars(self).update(state=None, rows=None, t=0, steps=0)

    def select(self, chosen: Tensor) -> None:
        """Go on with some images only: their places in the batch, `[n]`. On a CPU their state stays where it is."""
        if self.state is None:
            return
        if chosen.device.type == "cpu":
            self.rows = chosen if self.rows is None else self.rows[chosen]
        else:
            self.state = tuple(select(part, chosen) for part in self.state)

    def forward(
        self,
        x_seq: Tensor,
        residual: Tensor | None = None,
        output: str = "sequence",
        convolution: Convolution | None = None,
    ) -> Tensor:
        """`[T, N, C, ...] -> [T, N, C, ...]`, or with `output="sum"` the sum over time, `[N, C, ...]`.

        Args:
            x_seq: input; with `convolution`, what that takes.
            residual: a second one, added to the first.
            output: "sequence" or "sum".
            convolution: one before it, which it then runs, too.
        """
        if convolution is not None:
            outputs = self._with_convolution(x_seq, convolution, residual, output)
            if outputs is not None:
                return outputs
            x_seq = convolution(x_seq)
        v_threshold, bias = self._parameter("v_threshold"), self._parameter("bias")
        result = ops.multi_step_neuron(
            x_seq,
            self.coding,
            v_threshold=v_threshold,
            bias=bias,
            residual=residual,
            state=self.state,
            t=self.t,
            output=output,
            activation=self.activation,
            absolute=self.absolute,
            scaled=self.scaled,
            keep_state=self.keeps_state,
            out_dtype=torch.int8 if self.sends_counts and output == "sequence" else None,
            out=x_seq if self._may_overwrite(x_seq, output) else None,
            reuse_state=True,
            counts_events=self.counts_events and output == "sequence",
            memo=self._memo(v_threshold, bias),
            rows=self.rows,
        )
        self._go_on(result, x_seq.shape[0])
        outputs = result.total if output == "sum" else result.sequence
        assert outputs is not None
        return outputs

    def _go_on(self, result: NeuronOutput, steps: int) -> None:
        # not one by one: a module looks at what it is given for longer than a small layer runs
        state = result.state or None
        rows = self.rows if state is not None and state is self.state else None
        vars(self).update(events=result.events, state=state, rows=rows, steps=steps, t=self.t + steps)

    def _with_convolution(
        self, x_seq: Tensor, convolution: Convolution, residual: Tensor | None, output: str
    ) -> Tensor | None:
        """The outputs behind a convolution from one kernel; None where it does not take them."""
        weight, source = convolution.weight, convolution.source
        if any(neuron is not None and (neuron.sends_counts or neuron.counts_events) for neuron in (self, source)):
            return None
        arguments = self._arguments(x_seq, residual, output)
        if source is None:
            outputs = None if is_static(x_seq) else ops.pointwise_neurons(x_seq, weight, self.coding, arguments)
            if outputs is not None:
                self._go_on(NeuronOutput(outputs, None, ()), len(x_seq))
            return outputs
        before = source._arguments(x_seq, None, "sequence")
        may_overwrite = convolution.first is None and source._may_overwrite(x_seq, output)
        results = ops.depthwise_neurons(
            x_seq,
            self.coding,
            before,
            weight,
            convolution.settings,
            dataclasses.replace(arguments, out=x_seq if may_overwrite else None),
            convolution.first,
        )
        if results is None:
            return None
        for neuron, result in zip((source, self), results, strict=True):
            neuron._go_on(result, len(x_seq))
        return results[1].total if output == "sum" else results[1].sequence

    def _arguments(self, x_seq: Tensor, residual: Tensor | None, output: str) -> Arguments:
        v_threshold, bias = self._parameter("v_threshold"), self._parameter("bias")
        return Arguments(
            v_threshold,
            bias,
            residual,
            self.state,
            self.t,
            output,
            self.scaled,
            x_seq.dtype,
            self.keeps_state,
            self.activation,
            self.absolute,
            reuse_state=True,
            memo=self._memo(v_threshold, bias),
            rows=self.rows,
        )

    def _parameter(self, name: str) -> float | Tensor:
        value = self._buffers.get(name)  # as an attribute, a module looks for it for longer
        return vars(self)[name] if value is None else value

    def _memo(self, v_threshold: float | Tensor, bias: float | Tensor) -> Memo:
        """A new one, if something has changed since the last call."""
        memo, (old_coding, old_threshold, old_bias) = self._kept
        if old_coding is self.coding and old_threshold is v_threshold and old_bias is bias:
            return memo
        self._kept = Memo(), (self.coding, v_threshold, bias)
        return self._kept[0]

    def _may_overwrite(self, x_seq: Tensor, output: str) -> bool:
        if self.keeps_input:
            return False
        return self.in_place and output == "sequence" and not self.sends_counts and x_seq.stride(0) != 0

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


def membrane_updates(neuron: FoldedNeuron, inputs: Sequence[Tensor], outputs: Tensor) -> Tensor:
    """Return how many membranes the call that was last changed at each of its steps, `[T]`; at t = 0 all count.

    Args:
        inputs: of that call, `[T, N, C, ...]`: the input, and residuals.
        outputs: what it gave.
    """
    coding: Coding = neuron.coding
    x_seq = functools.reduce(torch.add, inputs)
    if coding.bias_once and neuron.absolute:
        changes = x_seq.diff(dim=0, prepend=torch.zeros_like(x_seq[:1]))
    elif coding.bias_once:
        changes = x_seq  # the first state is their sum
    else:
        changes = x_seq + channel_view(neuron.bias, x_seq[0]) - outputs
    counts = torch.count_nonzero(changes.flatten(1), dim=1)
    if neuron.t == len(x_seq):
        counts[0] = x_seq[0].numel()
    return counts


def _detached(coding: Any) -> Any:
    """The coding with a learned time constant as a plain number."""
    if isinstance(getattr(coding, "reciprocal_tau", None), Tensor):
        return dataclasses.replace(coding, reciprocal_tau=coding.reciprocal_tau.item())
    return coding
