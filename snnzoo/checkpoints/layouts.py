"""Reading a checkpoint in whatever key layout: from the names it uses to torchvision's, which are ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from snnzoo.checkpoints.layout_rules import FOREIGN, LAYOUTS, Layout, is_neuron_key, layout_named, writable_layout
from snnzoo.checkpoints.positional import Networks, names_by_position
from snnzoo.checkpoints.wrapping import renamed, unwrap
from snnzoo.errors import CheckpointError, first_few

_CLASSIFIERS = ("fc.", "classifier.")
_HEADS = (*_CLASSIFIERS, "head.", "decode_head.", "aux_classifier.")


@dataclass(frozen=True)
class Detected:
    """A checkpoint read: torchvision's keys, the layout it had, and how sure that is.

    Args:
        state_dict: in torchvision's keys; a key that the layout does not know is as it was.
        layout: the layout detected, or asked for.
        matched, total: keys that the layout knows, of how many.
        wrapping, notes, extra: as `Unwrapped`; `notes` also says what was assumed.
    """

    state_dict: dict[str, Tensor]
    layout: Layout
    matched: int
    total: int
    wrapping: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def confidence(self) -> float:
        """The share of keys that the layout knows, in [0, 1]."""
        return self.matched / self.total

    @property
    def summary(self) -> str:
        """One line: `layout huggingface (sure: all 122 keys are its own), inside state_dict, module.`"""
        if self.layout.name == "sequential":
            sure = f"likely: its {self.total} tensors have the order and shapes of a ResNet"
        elif self.matched == self.total:
            sure = f"sure: all {self.total} keys are its own"
        else:
            sure = f"{'likely' if self.confidence > 0.9 else 'unsure'}: {self.matched} of {self.total} keys are its own"
        return f"layout {self.layout.name} ({sure})" + (f", inside {', '.join(self.wrapping)}" if self.wrapping else "")


def translate(content: Any, source: str, networks: Networks, layout: str | None = None) -> Detected:
    """Find the key layout of a loaded checkpoint, and translate it to torchvision's.

    `recognition.read_layout` does it for the networks of the zoo.

    Args:
        content: a state dict, or dicts around one; as `checkpoints.files.read_checkpoint` returns it.
        source: named in errors.
        networks: what a checkpoint whose layers have numbers for names may be of.
        layout: one of `LAYOUTS`, instead of detection; keys that it does not know are then left out.

    Raises:
        UsageError: for an unknown `layout`.
        CheckpointError: if it holds no state dict, is in no layout known or in either of several, or is the
            checkpoint of another architecture.
    """
    asked = None if layout is None else layout_named(layout)
    unwrapped = unwrap(content, source)
    refuse_empty(unwrapped.state_dict, source)
    _refuse_foreign(unwrapped.state_dict, source)
    _refuse_pre_activation(unwrapped.state_dict, source)
    total, notes = len(unwrapped.state_dict), list(unwrapped.notes)
    if asked is None:
        chosen, names = _detect(unwrapped.state_dict, source, networks)
    else:
        chosen, names = asked, _names(unwrapped.state_dict, asked, networks)
        if not names:
            raise CheckpointError(f"{source}: no key is of layout {asked.name}: leave --layout out to detect it")
        unknown = [key for key in unwrapped.state_dict if key not in names]
        if unknown:
            notes.append(f"left out {first_few(unknown)}: layout {asked.name} does not know them")
    kept = {key: value for key, value in unwrapped.state_dict.items() if asked is None or key in names}
    state_dict = renamed(kept, (names.get(key, key) for key in kept), source)
    _refuse_other_norms(state_dict, source)
    if chosen.assumes:
        notes.append(f"layout {chosen.name}: assumed that {chosen.assumes}")
    if chosen.differs:
        notes.append(f"layout {chosen.name}: {chosen.differs}, so that the same weights compute something else")
    return Detected(state_dict, chosen, len(names), total, unwrapped.wrapping, tuple(notes), unwrapped.extra)


def _names(state_dict: Mapping[str, Tensor], layout: Layout, networks: Networks) -> dict[str, str]:
    """torchvision's name for each key that the layout knows."""
    if layout.name == "sequential":
        return names_by_position(state_dict, networks) or {}
    return {key: name for key in state_dict if (name := layout.to_torchvision(key)) is not None}


def _detect(state_dict: Mapping[str, Tensor], source: str, networks: Networks) -> tuple[Layout, dict[str, str]]:
    """The layout that knows most of the keys, with its names for them."""
    known = {layout.name: _names(state_dict, layout, networks) for layout in LAYOUTS.values() if layout.rules}
    best = max(len(set(names.values())) for names in known.values())
    if best < len(state_dict) / 2:
        by_position = names_by_position(state_dict, networks)
        if by_position is not None:
            _refuse_concatenated_pools(state_dict, by_position, source)
            return LAYOUTS["sequential"], by_position
        raise CheckpointError(
            f"{source}: its keys ({first_few(state_dict)}) are in no layout known ({', '.join(LAYOUTS)}): if it is a "
            f"ResNet or VGG, say which layout it is with --layout; if it is a network of your own, give its code, "
            f"FILE.py:FUNCTION in place of the model's name"
        )
    first, *others = (name for name, names in known.items() if len(set(names.values())) == best)
    rivals = [name for name in others if known[name] != known[first]]
    if rivals:
        raise CheckpointError(
            f"{source}: could be in layout {' or '.join([first, *rivals])}, {best} of its {len(state_dict)} keys each: "
            f"say which with --layout"
        )
    return LAYOUTS[first], known[first]


def _refuse_concatenated_pools(state_dict: Mapping[str, Tensor], names: Mapping[str, str], source: str) -> None:
    """Refuse fastai's usual head, of which the first layer has twice as many inputs as the last convolution outputs."""
    width = next((value.shape[0] for value in reversed(list(state_dict.values())) if value.ndim == 4), 0)
    head = next((value.shape[-1] for key, value in state_dict.items() if names[key].startswith("fc.")), width)
    if head == 2 * width:
        raise CheckpointError(
            f"{source}: its head pools by average and by maximum together (fastai's AdaptiveConcatPool2d), which no "
            "model of the zoo does: train it with concat_pool=False"
        )


def refuse_empty(tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuse layers with no weights at all: what is computed of nothing is an error, or zero without a word.

    Raises:
        CheckpointError: naming the first few.
    """
    empty = [f"{key} {list(value.shape)}" for key, value in tensors.items() if 0 in value.shape and _is_of_layer(key)]
    if empty:
        raise CheckpointError(f"{source}: layers without weights: {first_few(empty)}; the file is damaged")


def _is_of_layer(key: str) -> bool:
    return key.endswith((".weight", ".bias", ".running_mean", ".running_var"))


def _refuse_foreign(state_dict: Mapping[str, Tensor], source: str) -> None:
    """Refuse what its keys show to be no torchvision ResNet, though many keys may be alike."""
    for key, value in state_dict.items():
        named = (reason for pattern, reason in FOREIGN if pattern.search(key))
        reason = _foreign_shape(key, value) or next(named, None)
        if reason:
            raise CheckpointError(
                f"{source}: no torchvision ResNet: it has {reason}, see {key}; the zoo has no such model: give its "
                f"code, FILE.py:FUNCTION in place of the model's name"
            )


def _foreign_shape(key: str, value: Tensor) -> str | None:
    if value.ndim == 5:
        return "convolutions in three dimensions (a network for videos)"
    if value.ndim == 4 and key.startswith(_HEADS):
        return "a head of convolutions (segmentation, or a classifier without Linear layers)"
    return None


def _refuse_other_norms(state_dict: Mapping[str, Tensor], source: str) -> None:
    if "bn1.weight" in state_dict and not any(key.endswith(".running_mean") for key in state_dict):
        raise CheckpointError(
            f"{source}: has no running_mean and running_var of its normalisation: either it was saved from "
            "named_parameters(), which leaves buffers out (save net.state_dict() instead), or that is GroupNorm or "
            "LayerNorm, which have none (the zoo has BN only)"
        )


def _refuse_pre_activation(state_dict: Mapping[str, Tensor], source: str) -> None:
    """Refuse blocks whose BN is as wide as what goes into the convolution of its number, not as what comes out."""
    for key, value in state_dict.items():
        first, _, place = key.rpartition(".conv1.weight")
        norm = state_dict.get(f"{first}.bn1.weight")
        if first and not place and value.ndim == 4 and norm is not None and len(value) != len(norm) == value.shape[1]:
            raise CheckpointError(
                f"{source}: no torchvision ResNet: its blocks have BN before its convolutions (pre-activation, as "
                f"PreActResNet and Wide ResNet), see {key}: give its code, FILE.py:FUNCTION in place of the model's "
                f"name"
            )


def from_torchvision(state_dict: Mapping[str, Tensor], layout: str, source: str = "state dict") -> dict[str, Tensor]:
    """Return a state dict in torchvision's keys in another layout, the inverse of `translate`.

    Raises:
        UsageError: if there is no such layout, or it can only be read.
        CheckpointError: if the layout has no name for a key.
    """
    chosen = writable_layout(layout)
    names = {key: chosen.from_torchvision(key) for key in state_dict}
    unnamed = [key for key, name in names.items() if name is None]
    if unnamed:
        raise CheckpointError(f"{source}: layout {layout} has no name for {first_few(unnamed)}")
    return renamed(state_dict, (str(names[key]) for key in state_dict), source)


def check_fits(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], source: str) -> None:
    """Compare the keys and shapes that a model expects with a checkpoint's; neurons' parameters do not count.

    `num_batches_tracked` may be missing: BN counts batches for training only.

    Raises:
        CheckpointError: with the first few keys of each kind that do not fit, and their number; or those of weights
            that are integers or complex, which a network would take for something else.
    """
    missing, unexpected, mismatched = compare(expected, given)
    others = [text for text in mismatched if not text.startswith(_CLASSIFIERS)]
    if mismatched and not (others or missing or unexpected):
        classes, wanted = (tensors[_last_classifier_weight(tensors)].shape[0] for tensors in (given, expected))
        if classes != wanted:
            raise CheckpointError(f"{source}: has {classes} classes, not {wanted}: give --num-classes {classes}")
    whole = [
        f"{key} {str(given[key].dtype).removeprefix('torch.')}"
        for key, value in expected.items()
        if key in given and value.is_floating_point() and not given[key].is_floating_point()
    ]
    if whole:
        raise CheckpointError(
            f"{source}: {len(whole)} weights are no real floating-point numbers ({first_few(whole)}): if they are "
            "quantized, dequantize them first"
        )
    problems = [
        f"{len(keys)} {kind} ({first_few(keys)})"
        for keys, kind in ((missing, "missing"), (unexpected, "unexpected"), (mismatched, "of another shape"))
        if keys
    ]
    if problems:
        raise CheckpointError(f"{source}: keys do not fit the model: {'; '.join(problems)}")


def compare(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> tuple[list[str], list[str], list[str]]:
    """Return keys missing, keys unexpected, and a text on each tensor of another shape; without neurons' parameters."""
    missing = [key for key in expected if key not in given and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in given if key not in expected]
    mismatched = [
        f"{key} {list(given[key].shape)} instead of {list(value.shape)}"
        for key, value in expected.items()
        if key in given and given[key].shape != value.shape and not is_neuron_key(key)
    ]
    return [k for k in missing if not is_neuron_key(k)], [k for k in unexpected if not is_neuron_key(k)], mismatched


def _last_classifier_weight(tensors: Mapping[str, Tensor]) -> str:
    return [key for key, value in tensors.items() if key.startswith(_CLASSIFIERS) and value.ndim == 2][-1]
