"""What an ANN and its converted network are given for the same sample: an image, or frames of events.

Samples are images `[N, C, H, W]`, or frames `[N, T, C, H, W]` (the batch first, so that both are sliced alike).
An ANN has no time: it sees the mean of the frames. The network sees them one after the other.
"""

from __future__ import annotations

from torch import Tensor

from snnzoo.codings import Coding
from snnzoo.errors import UsageError


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


def network_input(samples: Tensor, coding: Coding | None, time_steps: int, *, accumulated: bool = False) -> Tensor:
    """What a network of this coding sees, `[T, N, C, H, W]`; None is that of a network that was trained as it is.

    An image stays the same for all T. Frames are given as they come where the mean of outputs decodes. Where
    their sum does, the first neuron follows its input, so each step is given the mean of the frames until then.

    Args:
        accumulated: give what it adds up to (the mean until then) also where the mean of outputs decodes.

    Raises:
        UsageError: if there are fewer frames than `time_steps`.
    """
    if not has_frames(samples):
        return samples.expand(time_steps, *samples.shape)
    if samples.shape[1] < time_steps:
        raise UsageError(f"the data have {samples.shape[1]} frames each, but {time_steps} time steps were asked for")
    x_seq = samples[:, :time_steps].transpose(0, 1)
    if not accumulated and (coding is None or coding.readout == "mean"):
        return x_seq
    counts = x_seq.new_tensor(range(1, time_steps + 1)).view(-1, 1, 1, 1, 1)
    return x_seq.cumsum(0) / counts
