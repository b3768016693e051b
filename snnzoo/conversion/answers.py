"""What a network answers with its logits: the class of the largest, or by its sign where there is but one."""

from __future__ import annotations

from torch import Tensor

MOST_ERROR = 0.1  # standard deviations


def answers(logits: Tensor) -> Tensor:
    """Return the class that logits `[..., classes]` name, `[...]`: of one output 1 where it is positive, else 0."""
    return logits.argmax(-1) if logits.shape[-1] > 1 else (logits[..., 0] > 0).long()


def is_close(expected: Tensor, actual: Tensor) -> bool:
    """Whether outputs `[N, 1]` are the expected ones up to a tenth of their standard deviation; of several, always.

    Several are judged by their ranks. One is not: its sign may be that of all images, as that of an age.
    """
    if expected.shape[1] > 1:
        return True
    error = (expected - actual).double().square().mean().sqrt()
    return bool(error <= MOST_ERROR * expected.double().std())
