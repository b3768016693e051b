"""What a node of a graph may do: one table, one row an operation.

A row says under which names torch.export knows the operation, which of its arguments are signals, parameters and
settings (by the names of PyTorch's schema), how it runs on a batch, and what it does to changes:

- "linear": y = L(x) + c. The change of the output is L of the change of the input; c enters once.
- "activation": a scalar function. A neuron takes its place when the network is converted.
- "nonlinear": neither. It needs what its inputs add up to, and sends how its output changes.

No operation mixes the images of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from snnzoo.graph import settings as check

Parameters = Mapping[str, Tensor]
Settings = Mapping[str, Any]
INPUT = "input"


@dataclass(frozen=True)
class Operation:
    """One row.

    Args:
        name: in graphs and files.
        run: the operation on a batch, `(*signals, **parameters, **settings) -> Tensor`.
        kind: "linear", "activation" or "nonlinear".
        aten: names of the operators, as `torch.ops.aten` has them, whose schema arguments this row uses.
        signals: how many inputs it takes, None for any number from 1.
        parameters: roles of the tensors that it may have.
        required: those of them that it must have.
        settings: for each setting, what checks it when a file is read, and its value where it is left out.
        constant: c of a linear operation, in a shape that broadcasts over an output of so many dimensions; None if
            there is none.
        without_constant: the parameters of L alone; None if L is the identity.
        weighted: whether its weights make it a layer of synapses.
    """

    name: str
    run: Callable[..., Tensor]
    kind: str = "linear"
    aten: tuple[str, ...] = ()
    signals: int | None = 1
    parameters: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    settings: Mapping[str, check.Setting] = field(default_factory=dict)
    constant: Callable[[Parameters, Settings, int], Tensor | None] = lambda parameters, settings, ndim: None
    without_constant: Callable[[Parameters, Settings], Parameters | None] = lambda parameters, settings: parameters
    weighted: bool = False


def _channels(value: Tensor | None, ndim: int) -> Tensor | None:
    """`[C]` in a shape that broadcasts over `[N, C, ...]`."""
    return None if value is None else value.view(-1, *[1] * (ndim - 2))


def _bias(parameters: Parameters, settings: Settings, ndim: int) -> Tensor | None:
    return _channels(parameters.get("bias"), ndim)


def _last_bias(parameters: Parameters, settings: Settings, ndim: int) -> Tensor | None:
    return parameters.get("bias")


def _without_bias(parameters: Parameters, settings: Settings) -> Parameters:
    return {role: value for role, value in parameters.items() if role != "bias"}


def _batch_norm(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    return F.batch_norm(x, running_mean, running_var, weight, bias, eps=eps)


def batch_norm_scale(parameters: Parameters, settings: Settings) -> Tensor:
    """Return what a batch normalisation multiplies its input by, `[C]`."""
    scale = (parameters["running_var"] + settings["eps"]).rsqrt()
    return scale * parameters["weight"] if "weight" in parameters else scale


def _batch_norm_shift(parameters: Parameters, settings: Settings, ndim: int) -> Tensor | None:
    shift = -parameters["running_mean"] * batch_norm_scale(parameters, settings)
    return _channels(shift + parameters["bias"] if "bias" in parameters else shift, ndim)


def _without_mean(parameters: Parameters, settings: Settings) -> Parameters:
    left = _without_bias(parameters, settings)
    return {**left, "running_mean": torch.zeros_like(left["running_mean"])}


def _add(x: Tensor, other: Tensor, alpha: float = 1.0) -> Tensor:
    return x + other if alpha == 1 else x + alpha * other


def _scale(x: Tensor, other: Tensor | None = None, factor: float = 1.0, inverse: bool = False) -> Tensor:
    if other is None:
        return x * factor
    return x / other if inverse else x * other


def _shift(x: Tensor, other: Tensor | None = None, amount: float = 0.0) -> Tensor:
    return x + amount if other is None else x + amount * other


def _shift_amount(parameters: Parameters, settings: Settings, ndim: int) -> Tensor:
    amount: float = settings["amount"]
    return amount * parameters["other"] if "other" in parameters else torch.tensor(amount)


def _reshape(x: Tensor, sizes: list[int], kept: int) -> Tensor:
    """To `[N, *sizes, *the last kept dimensions]`."""
    return x.reshape(x.shape[0], *sizes, *x.shape[x.ndim - kept :])  # not len: torch.export would fix it


def _slice(x: Tensor, dim: int, start: int, end: int, step: int) -> Tensor:
    return x[(slice(None),) * dim + (slice(start, end, step),)]


def _upsample(x: Tensor, size: list[int] | None, scale_factor: list[float] | None, mode: str) -> Tensor:
    align = False if mode == "bilinear" else None
    return F.interpolate(x, size, scale_factor, mode, align_corners=align)  # type: ignore[arg-type]


def _max_pool(x: Tensor, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> Tensor:
    return F.max_pool2d(x, kernel_size, stride or None, padding, dilation, ceil_mode)


def _avg_pool(
    x: Tensor,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    return F.avg_pool2d(x, kernel_size, stride or None, padding, ceil_mode, count_include_pad, divisor_override)


def _not_activated(*_: Tensor, **__: Any) -> Tensor:
    raise AssertionError("an activation runs by its Activation")


_ROWS = (
    Operation(
        "conv2d",
        F.conv2d,
        aten=("conv2d.default", "conv2d.padding"),
        parameters=("weight", "bias"),
        required=("weight",),
        settings={
            "stride": check.pair(1, default=[1, 1]),
            "padding": check.either(check.pair(0, default=[0, 0]), check.one_of("same", "valid")),
            "dilation": check.pair(1, default=[1, 1]),
            "groups": check.integer(1, default=1),
        },
        constant=_bias,
        without_constant=_without_bias,
        weighted=True,
    ),
    Operation(
        "linear",
        F.linear,
        aten=("linear.default",),
        parameters=("weight", "bias"),
        required=("weight",),
        constant=_last_bias,
        without_constant=_without_bias,
        weighted=True,
    ),
    Operation(
        "batch_norm",
        _batch_norm,
        aten=("batch_norm.default", "_native_batch_norm_legit_no_training.default"),
        parameters=("weight", "bias", "running_mean", "running_var"),
        required=("running_mean", "running_var"),
        settings={"eps": check.number(0, 1, default=1e-5)},
        constant=_batch_norm_shift,
        without_constant=_without_mean,
    ),
    Operation("add", _add, signals=2, settings={"alpha": check.number(-1e6, 1e6, default=1.0)}),
    Operation(
        "scale",
        _scale,
        parameters=("other",),
        settings={"factor": check.number(default=1.0), "inverse": check.boolean(False)},
    ),
    Operation(
        "shift",
        _shift,
        parameters=("other",),
        settings={"amount": check.number(default=0.0)},
        constant=_shift_amount,
        without_constant=lambda parameters, settings: None,
    ),
    Operation(
        "cat", lambda *tensors, dim: torch.cat(tensors, dim), signals=None, settings={"dim": check.integer(1, 8)}
    ),
    Operation(
        "slice",
        _slice,
        settings={
            "dim": check.integer(1, 8),
            "start": check.integer(0),
            "end": check.integer(0),
            "step": check.integer(1, default=1),
        },
    ),
    Operation("reshape", _reshape, settings={"sizes": check.integers(1), "kept": check.integer(0, 8, default=0)}),
    Operation("permute", lambda x, dims: x.permute(0, *dims).contiguous(), settings={"dims": check.integers(1, 8)}),
    Operation(
        "channel_shuffle", F.channel_shuffle, aten=("channel_shuffle.default",), settings={"groups": check.integer(1)}
    ),
    Operation(
        "pixel_shuffle", F.pixel_shuffle, aten=("pixel_shuffle.default",), settings={"upscale_factor": check.integer(1)}
    ),
    Operation("pad", lambda x, pad: F.pad(x, pad), settings={"pad": check.integers(-(1 << 16))}),
    Operation(
        "mean",
        lambda x, dim, keepdim: x.mean(dim, keepdim),
        aten=("mean.dim",),
        settings={"dim": check.integers(-8, 8), "keepdim": check.boolean(False)},
    ),
    Operation(
        "sum",
        lambda x, dim, keepdim: x.sum(dim, keepdim),
        aten=("sum.dim_IntList",),
        settings={"dim": check.integers(-8, 8), "keepdim": check.boolean(False)},
    ),
    Operation(
        "avg_pool2d",
        _avg_pool,
        aten=("avg_pool2d.default",),
        settings={
            "kernel_size": check.pair(1),
            "stride": check.either(check.pair(1, default=[]), check.empty()),
            "padding": check.pair(0, default=[0, 0]),
            "ceil_mode": check.boolean(False),
            "count_include_pad": check.boolean(True),
            "divisor_override": check.optional(check.integer(1)),
        },
    ),
    Operation(
        "adaptive_avg_pool2d",
        F.adaptive_avg_pool2d,
        aten=("adaptive_avg_pool2d.default",),
        settings={"output_size": check.pair(1)},
    ),
    Operation(
        "upsample",
        _upsample,
        settings={
            "size": check.optional(check.pair(1)),
            "scale_factor": check.optional(check.numbers(1e-3, 64)),
            "mode": check.one_of("nearest", "bilinear"),
        },
    ),
    Operation(
        "max_pool2d",
        _max_pool,
        kind="nonlinear",
        aten=("max_pool2d.default",),
        settings={
            "kernel_size": check.pair(1),
            "stride": check.either(check.pair(1, default=[]), check.empty()),
            "padding": check.pair(0, default=[0, 0]),
            "dilation": check.pair(1, default=[1, 1]),
            "ceil_mode": check.boolean(False),
        },
    ),
    Operation(
        "adaptive_max_pool2d",
        F.adaptive_max_pool2d,
        kind="nonlinear",
        aten=("adaptive_max_pool2d.default",),
        settings={"output_size": check.pair(1)},
    ),
    Operation(
        "amax",
        lambda x, dim, keepdim: x.amax(dim, keepdim),
        kind="nonlinear",
        aten=("amax.default",),
        settings={"dim": check.integers(-8, 8), "keepdim": check.boolean(False)},
    ),
    Operation("multiply", torch.mul, kind="nonlinear", signals=2),
    Operation(
        "activation",
        _not_activated,
        kind="activation",
        settings={"function": check.fields()},
    ),
)

OPERATIONS: dict[str, Operation] = {row.name: row for row in _ROWS}
BY_ATEN: dict[str, Operation] = {name: row for row in _ROWS for name in row.aten}
