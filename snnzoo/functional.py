"""Propagation patterns as functions: reset, step mode, and the two ways through time.

`seq_to_ann_forward` folds time into the batch for stateless modules; `multi_step_forward` loops a
single-step module over time. Both wrap the *forward* of modules, so that no state_dict key changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from snnzoo.base import StepContainer

Modules = nn.Module | list[nn.Module] | tuple[nn.Module, ...]

# Modules whose output depends on nothing but their input, even in training mode. Others, subclasses of
# these included, are trusted in eval mode only.
_ALWAYS_DETERMINISTIC = {
    nn.Sequential,
    nn.Identity,
    nn.Flatten,
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.ReLU,
    nn.GroupNorm,
    nn.LayerNorm,
}


def reset_net(net: nn.Module) -> None:
    """Reset every module of `net` that has state: the next step is t = 0."""
    for module in stateful(net):
        module.reset()


def stateful(net: nn.Module) -> list[Any]:
    """Return the modules of `net` that can be reset."""
    return [module for module in net.modules() if callable(getattr(module, "reset", None))]


def set_step_mode(
    net: nn.Module, step_mode: str, keep_step_mode_instance: type | tuple[type, ...] = StepContainer
) -> None:
    """Set `step_mode` ("s" or "m") of every module of `net` that has one.

    Args:
        keep_step_mode_instance: classes of modules that stay as they are, with all that they contain. Containers
            are multi-step, and what they contain is single-step, so they stay in any case.
    """
    if isinstance(net, (StepContainer, keep_step_mode_instance)):
        return
    if hasattr(net, "step_mode"):
        setattr(net, "step_mode", step_mode)  # noqa: B010 - of any class
    for child in net.children():
        set_step_mode(child, step_mode, keep_step_mode_instance)


def set_backend(net: nn.Module, backend: str, instance: type | tuple[type, ...] = nn.Module) -> None:
    """Set `backend` of every neuron of `net` that is an `instance`; ours for the device runs, whichever it is.

    Raises:
        ValueError: for a name that neurons do not take.
    """
    for module in net.modules():
        if isinstance(module, instance) and hasattr(module, "backend"):
            setattr(module, "backend", backend)  # noqa: B010 - of any class


def seq_to_ann_forward(x_seq: Tensor, stateless_module: Modules) -> Tensor:
    """Run stateless modules on a sequence, time folded into the batch.

    Args:
        x_seq: `[T, N, ...]`. A stride-0 time axis (`x.expand(T, *x.shape)`) is computed once, and the
            result expanded again, where the modules are deterministic: not through dropout or batch
            statistics in training mode.
        stateless_module: a module, or a list, tuple or `nn.Sequential` of them, applied in order.

    Returns:
        `[T, N, ...]`.

    Example:
        >>> seq_to_ann_forward(torch.rand(16, 8, 4), nn.Linear(4, 2)).shape
        torch.Size([16, 8, 2])
    """
    deterministic = all(not m.training or is_deterministic(type(m)) for m in _submodules(stateless_module))
    return fold_time(x_seq, lambda x: _apply(x, stateless_module), deterministic)


def fold_time(x_seq: Tensor, function: Callable[[Tensor], Tensor], deterministic: bool) -> Tensor:
    """Run `function` on `x_seq [T, N, ...]` with time folded into the batch; once, if it is static and that will do.

    Raises:
        ValueError: if `x_seq` has no time axis.
    """
    if x_seq.ndim < 2:
        raise ValueError(f"x_seq must have the shape [T, N, ...], got {list(x_seq.shape)}")
    time_steps, batch = x_seq.shape[:2]
    if time_steps > 1 and x_seq.stride(0) == 0 and deterministic:
        y = function(x_seq[0])
        return y.unsqueeze(0).expand(time_steps, *y.shape)
    return function(x_seq.flatten(0, 1)).unflatten(0, (time_steps, batch))


def is_deterministic(kind: type[nn.Module]) -> bool:
    """Return whether what modules of this very class compute depends on their input alone, also in training."""
    return kind in _ALWAYS_DETERMINISTIC


def multi_step_forward(x_seq: Tensor, single_step_module: Modules) -> Tensor:
    """Run single-step modules on a sequence, one step after the other.

    Args:
        x_seq: `[T, N, ...]`.
        single_step_module: a module, or a list, tuple or `nn.Sequential` of them, applied in order at each step.

    Returns:
        `[T, N, ...]`.

    Example:
        >>> multi_step_forward(torch.rand(8, 4), neuron.IFNode()).shape
        torch.Size([8, 4])
    """
    return torch.stack([_apply(x, single_step_module) for x in x_seq])


def _as_iterable(modules: Modules) -> Iterable[nn.Module]:
    return modules if isinstance(modules, (list, tuple)) else (modules,)


def _apply(x: Tensor, modules: Modules) -> Tensor:
    for module in _as_iterable(modules):
        x = module(x)
    return x


def _submodules(modules: Modules) -> Iterator[nn.Module]:
    for module in _as_iterable(modules):
        yield from module.modules()
