"""What a row of the table of real inputs is, and how it is judged.

A row is an input that somebody has had: a file, a module, a folder of images. It is made anew, as its source has it,
and given to snnzoo as a new user would. Either it must compute what the source's own network computes, or it must be
refused with a message that says what is the matter.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snnzoo.errors import SnnzooError

TOLERANCE = 1e-6  # of the largest expected value


class Verdict(enum.Enum):
    """What may become of an input."""

    RIGHT = "right"
    REFUSED_RIGHTLY = "refused rightly"
    REFUSED_WRONGLY = "refused wrongly"
    SILENTLY_WRONG = "silently wrong"


@dataclass(frozen=True)
class Row:
    """One input.

    Args:
        name: what it is.
        source: the repository, library or thread that it is of.
        run: makes the input in a folder and gives it to snnzoo; returns what its source computes, and what we do.
        refused: a part of the message that refuses it; None for what must work.
    """

    name: str
    source: str
    run: Callable[[Path], tuple[Any, Any]]
    refused: str | None = None

    def __str__(self) -> str:
        return self.name

    def judge(self, folder: Path) -> tuple[Verdict, str]:
        """Return the verdict, and why."""
        try:
            expected, actual = self.run(folder)
        except SnnzooError as error:
            if self.refused is not None and self.refused in str(error):
                return Verdict.REFUSED_RIGHTLY, str(error)
            return Verdict.REFUSED_WRONGLY, str(error)
        except Exception as error:  # a crash, whatever it is
            return Verdict.REFUSED_WRONGLY, f"crashed with {type(error).__name__}: {error}"
        if self.refused is not None:
            return Verdict.SILENTLY_WRONG, "was taken, though it cannot be right"
        if not equal(expected, actual):
            return Verdict.SILENTLY_WRONG, f"gives {actual}, where its source gives {expected}"
        return Verdict.RIGHT, ""


def equal(expected: Any, actual: Any) -> bool:
    """Whether two results are the same: tensors up to rounding, which must not be constant; else plain values."""
    if not isinstance(expected, Tensor):
        return bool(expected == actual)
    assert expected.numel() == 1 or expected.double().std() > 1e-4, "outputs that could not differ prove nothing"
    scale = float(expected.abs().amax())
    return expected.shape == actual.shape and torch.allclose(expected, actual.to(expected), 0, TOLERANCE * scale)
