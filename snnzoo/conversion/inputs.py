"""What an ANN and its converted network are given for the same sample: an image, or frames of events.

Samples are images `[N, C, H, W]`, or frames `[N, T, C, H, W]` (the batch first, so that both are sliced alike).
An ANN has no time: it sees the mean of the frames. The network sees them one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snnzoo.codings import Coding
from snnzoo.errors import UsageError

MOST_IMAGES = 512  # taken of a loader
_NAMES = ("pixel_values", "image", "images", "img", "x", "input")  # of the images in a batch that is a dict


def collected(images: Any, most: int = MOST_IMAGES) -> Tensor:
    """Return calibration samples, the batch first: `[N, C, H, W]`, or frames `[N, T, C, H, W]`.

    Args:
        images: a tensor or NumPy array `[N, C, H, W]`, or frames `[T, N, C, H, W]`; or a loader or data set of them or
            of single images, alone, first in a tuple or in a dict.
        most: images that are taken of a loader.

    Raises:
        UsageError: if there are none, or they are of another shape or kind.
    """
    found = _tensor(images)
    if found is None:
        if not isinstance(images, Iterable) and not hasattr(images, "__getitem__"):
            raise UsageError(f"calibration images are a {type(images).__name__}: expected a tensor or a loader")
        found = _from_loader(images, most)
    if found.ndim not in (2, 4, 5) or found.numel() == 0:
        raise UsageError(
            f"calibration images must have the shape [N, C, H, W], or frames [T, N, C, H, W], got {list(found.shape)}"
        )
    return found.transpose(0, 1) if has_frames(found) else found


def _tensor(images: Any) -> Tensor | None:
    """A tensor of what is one, or a NumPy array or dict; None of what is iterated over."""
    if isinstance(images, str):
        raise UsageError(
            f"calibration images are the text {images[:80]!r}: give tensors, or let snnzoo convert --calib-data read a "
            "folder"
        )
    if isinstance(images, Mapping):
        name = next((name for name in _NAMES if name in images), None)
        if name is None:
            raise UsageError(
                f"a batch of calibration images has {', '.join(map(str, images)) or 'nothing'}: expected "
                f"{', '.join(_NAMES[:-1])} or {_NAMES[-1]} among them"
            )
        return _tensor(images[name])
    if isinstance(images, np.ndarray):
        return torch.from_numpy(images)
    return images if isinstance(images, Tensor) else None


def _from_loader(loader: Iterable[Any], most: int) -> Tensor:
    """The first images of a loader's batches, or of a data set's samples."""
    parts: list[Tensor] = []
    count = 0
    for batch in loader:
        part = _tensor(batch[0] if isinstance(batch, (list, tuple)) and batch else batch)
        if part is None:
            raise UsageError(f"calibration images come as {type(batch).__name__}: expected tensors")
        parts.append(part if part.ndim not in (1, 3) else part.unsqueeze(0))
        count += parts[-1].shape[1 if has_frames(parts[-1]) else 0]
        if count >= most:
            break
    if not parts:
        raise UsageError("no calibration images were given")
    dim = 1 if has_frames(parts[0]) else 0
    try:
        whole = torch.cat(parts, dim)
    except (RuntimeError, TypeError) as error:
        shapes = ", ".join(str(list(part.shape)) for part in parts[:3])
        raise UsageError(f"calibration images of several shapes cannot be put together: {shapes} ...") from error
    return whole.narrow(dim, 0, min(most, whole.shape[dim]))


def has_frames(samples: Tensor) -> bool:
    """Whether samples are frames of events, not images."""
    return samples.ndim == 5


def check_floating(samples: Tensor, what: str) -> None:
    """Refuse images of whole numbers, whose scale nobody knows.

    Raises:
        UsageError: saying `what` they are.
    """
    if not samples.is_floating_point():
        raise UsageError(
            f"{what} are {str(samples.dtype).removeprefix('torch.')}: give what the network takes, preprocessed, as "
            "float32"
        )


def ann_input(samples: Tensor) -> Tensor:
    """What the ANN sees, `[N, C, H, W]`: images, or the mean of the frames."""
    return samples.mean(1) if has_frames(samples) else samples


def network_input(samples: Tensor, coding: Coding | None, time_steps: int) -> Tensor:
    """What a network of this coding sees, `[T, N, C, H, W]`; None is that of a network that was trained as it is.

    An image stays the same for all T. Frames are given as they come where the mean of outputs decodes. Where
    their sum does, the first neuron follows its input, so each step is given the mean of the frames until then.

    Raises:
        UsageError: if there are fewer frames than `time_steps`.
    """
    if not has_frames(samples):
        return samples.expand(time_steps, *samples.shape)
    if samples.shape[1] < time_steps:
        raise UsageError(f"the data have {samples.shape[1]} frames each, but {time_steps} time steps were asked for")
    x_seq = samples[:, :time_steps].transpose(0, 1)
    if coding is None or coding.readout == "mean":
        return x_seq
    counts = x_seq.new_tensor(range(1, time_steps + 1)).view(-1, 1, 1, 1, 1)
    return x_seq.cumsum(0) / counts
