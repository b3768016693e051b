"""Weights that a checkpoint keeps in parts, as pruning and the normalisations of weights do: what the network computed.

The names and the equations are those of `torch.nn.utils.prune`, `weight_norm` and `spectral_norm`, and of the
parametrizations of the last two.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from snnzoo.errors import first_few


def _pruned(original: Tensor, mask: Tensor) -> Tensor:
    _require(mask.shape == original.shape)
    return original * mask.to(original.dtype)


def _weight_normed(magnitude: Tensor, direction: Tensor) -> Tensor:
    """Each slice of the direction to its magnitude; the slices are along the dimensions in which that is not 1."""
    _require(magnitude.ndim in (0, direction.ndim))
    _require(all(size in (1, whole) for size, whole in zip(magnitude.shape, direction.shape, strict=False)))
    others = [dim for dim in range(direction.ndim) if magnitude.ndim == 0 or magnitude.shape[dim] == 1]
    squares = direction.square()
    return direction * (magnitude / (squares.sum(others, keepdim=True) if others else squares).sqrt())


def _spectrally_normed(original: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Divided by its largest singular value, as the last step of training found it; along the first dimension."""
    matrix = original.flatten(1)
    _require((*u.shape, *v.shape) == matrix.shape)
    return original / (u @ (matrix @ v))


def _require(fits: bool) -> None:
    """Refuse parts whose shapes are others, before anything of their product's size is allocated."""
    if not fits:
        raise ValueError


_FORMS: tuple[tuple[tuple[str, ...], str, Callable[..., Tensor]], ...] = (
    (("{name}_orig", "{name}_mask"), "pruned", _pruned),
    (("{name}_g", "{name}_v"), "weight-normed", _weight_normed),
    (("{name}_orig", "{name}_u", "{name}_v"), "spectrally normed", _spectrally_normed),
    (
        ("parametrizations.{name}.original0", "parametrizations.{name}.original1"),
        "weight-normed",
        _weight_normed,
    ),
    (
        ("parametrizations.{name}.original", "parametrizations.{name}.0._u", "parametrizations.{name}.0._v"),
        "spectrally normed",
        _spectrally_normed,
    ),
)


def put_together(state_dict: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """Return the state dict with each weight and bias that is there in parts as one, in the place of its first part.

    Args:
        notes: gets a line on what was put together.
    """
    for parts, what, combine in _FORMS:
        whole: dict[str, tuple[str, Tensor]] = {}  # by the key of the first part
        others: set[str] = set()
        for first in state_dict:
            path, name = _owner(first, parts[0])
            keys = [path + part.format(name=name) for part in parts]
            if name is None or not all(key in state_dict for key in keys):
                continue
            try:
                whole[first] = f"{path}{name}", combine(*(state_dict[key].detach() for key in keys))
            except (ValueError, IndexError, RuntimeError):  # shapes or types that are no such parts
                continue
            others.update(keys[1:])
        if whole:
            notes.append(f"put together {first_few(name for name, _ in whole.values())}: {what}")
            state_dict = dict(whole.get(key, (key, value)) for key, value in state_dict.items() if key not in others)
    return state_dict


def _owner(key: str, part: str) -> tuple[str, str | None]:
    """The path of the module that a first part belongs to, with its dot, and its parameter; None if it is none."""
    for name in ("weight", "bias"):
        suffix = part.format(name=name)
        if key == suffix or key.endswith(f".{suffix}"):
            return key.removesuffix(suffix), name
    return "", None
