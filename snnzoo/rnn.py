"""Recurrent networks whose gates fire: multi-step by nature, with the weights of `torch.nn.RNN/GRU/LSTM`.

Every sigmoid and tanh of torch.nn's equations is a spike function instead, `s(x) = 1 if x >= 0 else 0`
with a surrogate gradient (Lotfi Rezaabad & Vishwanath 2020, arXiv 2007.04779), one for all or one a gate:

    vanilla   h = hidden(W x + b + U h + c)
    GRU       r = reset(...)  z = update(...)  n = new(W x + b + r * (U h + c))   h = (1 - z) * n + z * h
    LSTM      i = input(...)  f = forget(...)  g = cell(...)  o = output(...)
              c = f * c + i * g    h = o * hidden(c)

In an LSTM c counts spikes, so its `hidden` fires at c >= 1. Hidden states are 0 or 1 throughout. With
sigmoid and tanh for the gates' functions, the output is torch.nn's.

The cells take one step, `[N, input_size]`; the others a sequence, `[T, N, input_size]`. State is an
argument and a result, as in torch.nn: nothing is held between calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snnzoo import surrogate
from snnzoo.base import StepModule

__all__ = [
    "SpikingGRU",
    "SpikingGRUCell",
    "SpikingLSTM",
    "SpikingLSTMCell",
    "SpikingVanillaRNN",
    "SpikingVanillaRNNCell",
]

Function = Callable[[Tensor], Tensor]
States = tuple[Tensor, ...]  # (h,), or (h, c) of an LSTM; each [N, hidden_size]


class _CountSpike(nn.Module):
    """A spike of whoever counted to one: s(c - 1)."""

    def __init__(self, spike: Function) -> None:
        super().__init__()
        self.spike = spike

    def forward(self, c: Tensor) -> Tensor:
        return self.spike(c - 1)


class _Recurrence(StepModule):
    """What cells and sequences share: gates with their functions, and one step.

    `gates` are names in the order of torch.nn's rows; `state_names` say what is carried from step to step.
    """

    gates: ClassVar[tuple[str, ...]]
    function_names: ClassVar[tuple[str, ...]]
    state_names: ClassVar[tuple[str, ...]] = ("h",)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool,
        surrogate_function: Function | None,
        gate_functions: Mapping[str, Function] | None,
        step_mode: str,
    ) -> None:
        super().__init__(step_mode)
        for name, value in (("input_size", input_size), ("hidden_size", hidden_size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.input_size, self.hidden_size, self.bias = input_size, hidden_size, bias
        given = dict(gate_functions or {})
        unknown = [name for name in given if name not in self.function_names]
        if unknown:
            raise ValueError(f"{type(self).__name__} has no gate {unknown[0]!r}, only {', '.join(self.function_names)}")
        for name, function in {**self.spikes(surrogate_function or surrogate.ATan()), **given}.items():
            setattr(self, f"{name}_function", function)

    def spikes(self, spike: Function) -> dict[str, Function]:
        """For each function its default."""
        return dict.fromkeys(self.function_names, spike)

    def step(self, x: Tensor, h: Tensor, states: States) -> States:
        """The next states, from the gates' inputs by way of the input and of the hidden state, `[N, G * hidden]`."""
        raise NotImplementedError

    def register_weights(self, input_size: int, suffix: str = "") -> None:
        """Weights of one layer in one direction, named and drawn as torch.nn does."""
        rows = len(self.gates) * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, input_size), "weight_hh": (rows, self.hidden_size)}
        if self.bias:
            shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
        bound = 1 / math.sqrt(self.hidden_size)
        for name, shape in shapes.items():
            self.register_parameter(name + suffix, nn.Parameter(torch.empty(shape).uniform_(-bound, bound)))

    def project(self, x: Tensor, kind: str, suffix: str = "") -> Tensor:
        """`[..., features] -> [..., G * hidden]`, by the weights of `kind` "ih" or "hh"."""
        bias = getattr(self, f"bias_{kind}{suffix}") if self.bias else None
        return F.linear(x, getattr(self, f"weight_{kind}{suffix}"), bias)

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}, bias={self.bias}"


class _Vanilla(_Recurrence):
    gates = ("hidden",)
    function_names = gates
    hidden_function: Function

    def step(self, x: Tensor, h: Tensor, states: States) -> States:
        return (self.hidden_function(x + h),)


class _GRU(_Recurrence):
    gates = ("reset", "update", "new")
    function_names = gates
    reset_function: Function
    update_function: Function
    new_function: Function

    def step(self, x: Tensor, h: Tensor, states: States) -> States:
        (x_r, x_z, x_n), (h_r, h_z, h_n) = x.chunk(3, -1), h.chunk(3, -1)
        r, z = self.reset_function(x_r + h_r), self.update_function(x_z + h_z)
        n = self.new_function(x_n + r * h_n)
        return ((1 - z) * n + z * states[0],)


class _LSTM(_Recurrence):
    gates = ("input", "forget", "cell", "output")
    function_names = (*gates, "hidden")
    state_names = ("h", "c")
    input_function: Function
    forget_function: Function
    cell_function: Function
    output_function: Function
    hidden_function: Function

    def spikes(self, spike: Function) -> dict[str, Function]:
        return {**super().spikes(spike), "hidden": _CountSpike(spike)}

    def step(self, x: Tensor, h: Tensor, states: States) -> States:
        i, f, g, o = (x + h).chunk(4, -1)
        c = self.forget_function(f) * states[1] + self.input_function(i) * self.cell_function(g)
        return self.output_function(o) * self.hidden_function(c), c


class _Cell(_Recurrence):
    """One step: `x [N, input_size]` and the state before it, to the state after it."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        surrogate_function: Function | None = None,
        gate_functions: Mapping[str, Function] | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, surrogate_function, gate_functions, "s")
        self.register_weights(input_size)

    def advance(self, x: Tensor, states: States | None) -> States:
        if self.step_mode == "m":
            name = type(self).__name__
            raise ValueError(f"{name} takes single steps, but has step_mode='m': use {name.removesuffix('Cell')}")
        if x.ndim != 2 or x.shape[1] != self.input_size:
            raise ValueError(f"{type(self).__name__} needs x of shape [N, {self.input_size}], got {list(x.shape)}")
        wanted = (len(x), self.hidden_size)
        states = _checked(states, self.state_names, wanted, x)
        return self.step(self.project(x, "ih"), self.project(states[0], "hh"), states)


class _Sequence(_Recurrence):
    """All steps, layer after layer: `x_seq [T, N, input_size]` to `[T, N, D * hidden_size]`, D directions."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        surrogate_function: Function | None = None,
        gate_functions: Mapping[str, Function] | None = None,
        step_mode: str = "m",
    ) -> None:
        super().__init__(input_size, hidden_size, bias, surrogate_function, gate_functions, step_mode)
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {num_layers}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.num_layers, self.dropout, self.bidirectional = num_layers, dropout, bidirectional
        self._directions = ("", "_reverse") if bidirectional else ("",)
        for layer in range(num_layers):
            features = input_size if layer == 0 else hidden_size * len(self._directions)
            for direction in self._directions:
                self.register_weights(features, f"_l{layer}{direction}")

    def run(self, x_seq: Tensor, states: States | None) -> tuple[Tensor, States]:
        """Outputs `[T, N, D * hidden]` of the last layer, and final states, each `[layers * D, N, hidden]`."""
        name = type(self).__name__
        if self.step_mode == "s":
            raise ValueError(
                f"{name} has step_mode='s', but runs whole sequences: use {name}Cell for single steps, or set "
                f"step_mode='m'"
            )
        if x_seq.ndim != 3 or x_seq.shape[2] != self.input_size or len(x_seq) == 0:
            raise ValueError(f"{name} needs x_seq of shape [T, N, {self.input_size}], got {list(x_seq.shape)}")
        wanted = (self.num_layers * len(self._directions), x_seq.shape[1], self.hidden_size)
        states = _checked(states, self.state_names, wanted, x_seq)
        finals: list[States] = []
        for layer in range(self.num_layers):
            if layer > 0:
                x_seq = self.drop(x_seq)
            outputs = []
            for direction in self._directions:
                initial = tuple(state[len(finals)] for state in states)
                output, final = self.run_layer(x_seq, initial, f"_l{layer}{direction}")
                outputs.append(output)
                finals.append(final)
            x_seq = torch.cat(outputs, -1)
        return x_seq, tuple(torch.stack(final) for final in zip(*finals, strict=True))

    def run_layer(self, x_seq: Tensor, states: States, suffix: str) -> tuple[Tensor, States]:
        """One layer in one direction; a reverse one begins at the last step."""
        backwards = suffix.endswith("_reverse")
        gates = self.project(x_seq, "ih", suffix)
        outputs = []
        for x in reversed(gates) if backwards else gates:
            states = self.step(x, self.project(states[0], "hh", suffix), states)
            outputs.append(states[0])
        return torch.stack(outputs[::-1] if backwards else outputs), states

    def drop(self, x_seq: Tensor) -> Tensor:
        """Dropout between layers: one mask for all T, drawn anew in each call."""
        if self.dropout == 0 or not self.training:
            return x_seq
        return x_seq * F.dropout(torch.ones_like(x_seq[0]), self.dropout)

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, num_layers={self.num_layers}, dropout={self.dropout}, "
            f"bidirectional={self.bidirectional}"
        )


def _checked(states: States | None, names: tuple[str, ...], shape: tuple[int, ...], x: Tensor) -> States:
    """The initial states; zeros if none were given."""
    if states is None:
        return tuple(x.new_zeros(shape) for _ in names)
    for name, state in zip(names, states, strict=True):
        if state.shape != shape:
            raise ValueError(f"the initial {name} must have shape {list(shape)}, got {list(state.shape)}")
    return states


class SpikingVanillaRNNCell(_Vanilla, _Cell):
    """`torch.nn.RNNCell` that fires: `x [N, input_size], h [N, hidden_size] -> h`.

    Args:
        input_size, hidden_size, bias: as in torch.nn.
        surrogate_function: the spike function of every gate, `surrogate.ATan()` if None.
        gate_functions: others for some gates, by name: "hidden".

    Raises:
        ValueError: if a size is out of range, a gate is unknown, or a shape does not fit.
    """

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        return self.advance(x, None if h is None else (h,))[0]


class SpikingGRUCell(_GRU, _Cell):
    """`torch.nn.GRUCell` that fires: `x [N, input_size], h [N, hidden_size] -> h`.

    Arguments as `SpikingVanillaRNNCell`; its gates are "reset", "update" and "new".
    """

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        return self.advance(x, None if h is None else (h,))[0]


class SpikingLSTMCell(_LSTM, _Cell):
    """`torch.nn.LSTMCell` that fires: `x [N, input_size], (h, c) -> (h, c)`, each `[N, hidden_size]`.

    Arguments as `SpikingVanillaRNNCell`; its functions are "input", "forget", "cell", "output" and "hidden".
    """

    def forward(self, x: Tensor, states: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        h, c = self.advance(x, states)
        return h, c


class SpikingVanillaRNN(_Vanilla, _Sequence):
    """`torch.nn.RNN` that fires: `x_seq [T, N, input_size] -> [T, N, D * hidden_size]`, and the final `h`.

    D is 2 if bidirectional, else 1; `h` is `[num_layers * D, N, hidden_size]`, before and after.

    Args:
        input_size, hidden_size, num_layers, bias, bidirectional: as in torch.nn.
        dropout: probability, in [0, 1), of dropping outputs between layers in training; unlike torch.nn's, a
            mask holds for all T.
        surrogate_function: the spike function of every gate, `surrogate.ATan()` if None.
        gate_functions: others for some gates, by name: "hidden".
        step_mode: "m"; for single steps there is `SpikingVanillaRNNCell`.

    Raises:
        ValueError: if an argument is out of range, the mode is single-step, or a shape does not fit.

    Example:
        >>> output, h = SpikingVanillaRNN(4, 8, num_layers=2)(torch.rand(16, 3, 4))
        >>> output.shape, h.shape
        (torch.Size([16, 3, 8]), torch.Size([2, 3, 8]))
    """

    def forward(self, x_seq: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        output, (h,) = self.run(x_seq, None if h is None else (h,))
        return output, h


class SpikingGRU(_GRU, _Sequence):
    """`torch.nn.GRU` that fires. As `SpikingVanillaRNN`; its gates are "reset", "update" and "new"."""

    def forward(self, x_seq: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        output, (h,) = self.run(x_seq, None if h is None else (h,))
        return output, h


class SpikingLSTM(_LSTM, _Sequence):
    """`torch.nn.LSTM` that fires. As `SpikingVanillaRNN`, but that the state is `(h, c)`.

    Its functions are "input", "forget", "cell", "output", and "hidden", which makes h of c.
    """

    def forward(
        self, x_seq: Tensor, states: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        output, (h, c) = self.run(x_seq, states)
        return output, (h, c)
