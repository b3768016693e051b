"""How `snnzoo convert` prepares images: what the options say, over what is known of the network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from snnzoo.cli import common
from snnzoo.data.preprocess import NORMALISATIONS, Pixels, Preprocess, for_channels, override, preset
from snnzoo.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from snnzoo.recognition.ann import AnnSource

AUTO, DEFAULT_SIZE = "auto", 224


@dataclass(frozen=True)
class Preparing:
    """What `--preprocess`, `--input-size`, `--mean`, `--std` and `--resize` say; None where they say nothing."""

    preset: str | None
    input_size: int | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    resize: Pixels | None

    @staticmethod
    def parsed(
        name: str | None, input_size: int | None, mean: str | None, std: str | None, resize: str | None
    ) -> Preparing:
        """Read the options.

        Raises:
            UsageError: naming the option, for what is no number.
        """
        numbers = common.parse_floats("--mean", mean), common.parse_floats("--std", std)
        return Preparing(name, input_size, *numbers, common.parse_pixels("--resize", resize))

    @property
    def normalises(self) -> bool:
        """Whether they give mean or std."""
        return bool(self.mean or self.std)

    @property
    def is_auto(self) -> bool:
        return self.preset == AUTO

    @property
    def is_silent(self) -> bool:
        """Whether they leave open how images are normalised."""
        return self.preset is None and not self.normalises

    def settings(self, known: Preprocess | None, with_images: bool) -> Preprocess:
        """Return what they make of what is known of the network, if anything is.

        Raises:
            UsageError: for values out of range; where something is missing; or for "auto" without images.
        """
        if self.is_auto:
            if not with_images:
                raise UsageError("--preprocess auto is judged by calibration images: give --calib-data DIR")
            if self.normalises:
                raise UsageError("--preprocess auto finds mean and std: leave --mean and --std out")
            known = known or Preprocess(DEFAULT_SIZE, DEFAULT_SIZE, *NORMALISATIONS["ImageNet"])
        elif self.preset is not None:
            known = preset(self.preset)
        return override(known, self.input_size, self.mean, self.std, self.resize)

    def settings_for(
        self, module: nn.Module, origin: AnnSource, settings: Preprocess, notify: Callable[[str], None]
    ) -> Preprocess:
        """Return `settings` for the network itself, once it is loaded: its size, and its number of channels.

        Args:
            notify: called with a line on what had to be assumed.
        """
        from snnzoo.conversion.ann import first_channels

        known = origin.preprocess_of(module)
        if self.preset in (None, AUTO) and known is not None and known != origin.preprocess:
            settings = override(known, self.input_size, self.mean, self.std, self.resize)
            notify("made for small images, which are prepared as those of CIFAR-10: see --preprocess")
        return for_channels(settings, first_channels(module), self.normalises, notify)

    def refuse_for_frames(self) -> None:
        """Raise a UsageError if they say anything."""
        if not self.is_silent or self.input_size is not None or self.resize is not None:
            raise UsageError("--preprocess, --resize, --input-size, --mean and --std are for images: frames stay as is")
