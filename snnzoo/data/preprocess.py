"""How an image file becomes a network's input. Plain data, kept in manifest entries and converted files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from snnzoo.errors import UsageError, suggestion

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

INTERPOLATIONS = ("nearest", "bilinear", "bicubic")
ORDERS = ("RGB", "BGR")
MAX_SIZE = 4096  # pixels of a side that images are resized or cropped to
MAX_PIXELS = 89_478_485  # of an image that is read, and of what it is resized to; Pillow's own limit


Pixels = int | tuple[int, int]  # of a square, or height and width


def _sides(pixels: Pixels) -> tuple[int, int]:
    return (pixels, pixels) if isinstance(pixels, int) else (pixels[0], pixels[1])


@dataclass(frozen=True)
class Preprocess:
    """Resize the shorter side or both, crop the centre, scale to [0, 1], put channels in order, normalise.

    Of one channel, images are made grey.

    Args:
        resize: pixels of the shorter side; or height and width, whatever the image's proportion is.
        crop: pixels of the square cut from the centre, or its height and width.
        mean, std: per channel, in the network's order, of images in [0, 1].
        interpolation: "nearest", "bilinear" or "bicubic".
        order: of the network's channels, "RGB" or "BGR".

    Raises:
        ValueError: if a field is out of range.
    """

    resize: Pixels
    crop: Pixels
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    order: str = "RGB"

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(m) for m in self.mean))
        object.__setattr__(self, "std", tuple(float(s) for s in self.std))
        for name in ("resize", "crop"):
            pixels = getattr(self, name)
            object.__setattr__(self, name, pixels if isinstance(pixels, int) else tuple(pixels))
        if min(*_sides(self.resize), *self.size) < 1:
            raise ValueError(f"resize and crop must be at least 1 pixel, got {self.resize} and {self.crop}")
        if any(cut > whole for cut, whole in zip(self.size, _sides(self.resize), strict=True)):
            raise ValueError(f"crop must be at most resize, got {self.crop} of {self.resize} pixels")
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(f"mean has {len(self.mean)} channels and std {len(self.std)}: give one of each a channel")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got {self.interpolation!r}")
        if self.order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {self.order!r}")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what the network sees."""
        return _sides(self.crop)

    def pixels_resized(self, width: int, height: int) -> float:
        """Return the pixels of an image of that size when it is resized; a long strip has many."""
        if isinstance(self.resize, int):
            return self.resize**2 * max(width, height) / max(min(width, height), 1)
        return self.resize[0] * self.resize[1]

    def to_dict(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def transform(self) -> Callable[[Image], Tensor]:
        """Return what makes an RGB image a float32 tensor `[C, *size]`."""
        return self._prepared

    def _prepared(self, image: Image) -> Tensor:
        """What torchvision's transforms give, bit for bit; but to import those takes seconds."""
        import numpy as np
        import torch
        from PIL.Image import Resampling

        if len(self.mean) == 1:
            image = image.convert("L")
        image = image.resize(self._resized(*image.size), Resampling[self.interpolation.upper()])
        height, width = self.size
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        pixels = np.array(image.crop((left, top, left + width, top + height)))
        x = torch.from_numpy(pixels).view(height, width, -1).permute(2, 0, 1).contiguous().float().div(255)
        if self.order == "BGR":
            x = x.flip(0)
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return x.sub_(mean).div_(std)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of an image of that size when it is resized."""
        if not isinstance(self.resize, int):
            return self.resize[1], self.resize[0]
        shorter, longer = self.resize, int(self.resize * max(width, height) / min(width, height))
        return (shorter, longer) if width <= height else (longer, shorter)


_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

PRESETS = {
    "imagenet": Preprocess(256, 224, _IMAGENET_MEAN, _IMAGENET_STD),
    "imagenet_v2": Preprocess(232, 224, _IMAGENET_MEAN, _IMAGENET_STD),
    "cifar10": Preprocess(32, 32, _IMAGENET_MEAN, _IMAGENET_STD),
    "digits": Preprocess(32, 32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}

NORMALISATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {  # mean and std, in the order RGB
    "ImageNet": (_IMAGENET_MEAN, _IMAGENET_STD),
    "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR-10, std of images": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "0.5": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "none, of 0 to 255": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
    "ImageNet's mean, of 0 to 255": (_IMAGENET_MEAN, (1 / 255, 1 / 255, 1 / 255)),
}


def preset(name: str) -> Preprocess:
    """Return the preset called `name`; a UsageError that lists them if there is none."""
    if name not in PRESETS:
        known = ", ".join(PRESETS)
        raise UsageError(f"unknown preprocess {name!r}: {suggestion(name, PRESETS, '')} (known: {known})")
    return PRESETS[name]


def override(
    base: Preprocess | None,
    input_size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    resize: Pixels | None = None,
) -> Preprocess:
    """Return `base` with what the user gave.

    Args:
        input_size: sets crop, and without `resize` also resize, in the same proportion.
        resize: of the shorter side; or height and width, and without `input_size` nothing is cropped.

    Raises:
        UsageError: for values out of range, or where something is missing and there is no `base`.
    """
    if base is None:
        if (input_size or resize) is None or mean is None or std is None:
            raise UsageError(
                "how the network's images are prepared is not known: give --preprocess NAME (imagenet, cifar10, ...), "
                "or --input-size N, --mean A,B,C and --std A,B,C"
            )
        base = Preprocess(1, 1, (0.0,), (1.0,))  # all of it is replaced
    if input_size is not None and input_size < 1:
        raise UsageError(f"--input-size must be at least 1 pixel, got {input_size}")
    crop: Pixels = base.crop if input_size is None else input_size
    if resize is None:
        resize = base.resize
        if input_size is not None:
            resize = round(min(_sides(base.resize)) * input_size / min(base.size))
    elif input_size is None and not isinstance(resize, int):
        crop = resize
    try:
        replace(base, resize=resize, crop=crop)
    except ValueError as error:
        raise UsageError(f"--resize and --input-size: {error}") from None
    try:
        return replace(base, resize=resize, crop=crop, mean=mean or base.mean, std=std or base.std)
    except ValueError as error:
        raise UsageError(f"--mean/--std: {error}") from None


def for_channels(settings: Preprocess, channels: int | None, given: bool, notify: Callable[[str], None]) -> Preprocess:
    """Return the preprocessing for a network that takes so many channels; None where that is not known.

    Args:
        given: whether mean and std are the user's own.
        notify: called with a line if the mean and std of grey images had to be assumed.

    Raises:
        UsageError: if mean and std are of another number of channels.
    """
    if channels in (None, len(settings.mean)):
        return settings
    if channels == 1 and not given:
        grey = (sum(settings.mean) / len(settings.mean),), (sum(settings.std) / len(settings.std),)
        notify(
            f"images are made grey, and normalised by mean {grey[0][0]:.4g} and std {grey[1][0]:.4g}, the averages of "
            f"those of colours: give --mean and --std, one number each, if the network was trained with others"
        )
        return replace(settings, mean=grey[0], std=grey[1])
    if channels not in (1, 3):
        raise UsageError(f"the network takes {channels} channels, but images have 1 or 3: give frames (.npz)")
    raise UsageError(
        f"--mean has {len(settings.mean)} numbers, but the network takes {channels} channels: give {channels}"
    )
