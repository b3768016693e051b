"""Data to calibrate and evaluate on: folders of images or of event frames, with classes or without, and the digits."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from snnzoo.data.digits import Digits
from snnzoo.data.folders import check_class_folders, is_frames, list_samples
from snnzoo.data.frames import FrameFiles
from snnzoo.data.loading import LeftOut
from snnzoo.data.preprocess import MAX_PIXELS, Preprocess
from snnzoo.errors import UnreadableSample, UsageError
from snnzoo.progress import Progress

DIGITS = "digits"


FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")  # no others: EPS, for one, would start Ghostscript


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """Image files with labels, as (tensor, label).

    Args:
        max_pixels: of an image that is read, and of what it is resized to.

    Raises:
        UnreadableSample: on reading, naming the file, if an image cannot be read or is too large.
    """

    def __init__(
        self, files: list[Path], labels: list[int], preprocess: Preprocess, max_pixels: int = MAX_PIXELS
    ) -> None:
        self.files, self.labels = files, labels
        self.preprocess, self.transform, self.max_pixels = preprocess, preprocess.transform(), max_pixels
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or max_pixels, max_pixels)
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # there is an error instead

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path = self.files[index]
        try:
            with Image.open(path, formats=FORMATS) as image:
                self._check_size(image.width, image.height)
                return self.transform(image.convert("RGB")), self.labels[index]
        except Exception as error:  # Pillow's readers have no error of their own
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UnreadableSample(f"{path}: cannot read this image: {reason}; remove it or replace it") from None

    def _check_size(self, width: int, height: int) -> None:
        """Before anything is decoded."""
        resized = self.preprocess.pixels_resized(width, height)
        if max(width * height, resized) > self.max_pixels:
            what = f"{width} x {height} pixels" + ("" if resized <= self.max_pixels else f", resized to {resized:,.0f}")
            raise ValueError(f"{what}, are more than the limit of {self.max_pixels:,} (--max-pixels)")


def files_data(
    files: list[Path], labels: list[int], preprocess: Preprocess | None, max_pixels: int = MAX_PIXELS
) -> ImageFiles | FrameFiles:
    """Return images or frames from files, all of one kind; frames are not preprocessed.

    Raises:
        UsageError: for images without a preprocessing.
    """
    if is_frames(files[0]):
        return FrameFiles(files, labels)
    if preprocess is None:
        raise UsageError(f"{files[0].parent} has images, but the network was converted for frames of events (.npz)")
    return ImageFiles(files, labels, preprocess, max_pixels)


def labelled_tensors(samples: Tensor, labels: Tensor) -> TensorDataset:
    """Return a data set of images `[N, C, H, W]`, or of frames `[T, N, C, H, W]`, and their labels `[N]`."""
    return TensorDataset(samples.transpose(0, 1) if samples.ndim == 5 else samples, labels)


def labelled_data(
    name: str,
    preprocess: Preprocess | None,
    classes: list[str] | None,
    num_classes: int,
    max_pixels: int = MAX_PIXELS,
) -> Dataset:  # type: ignore[type-arg]
    """Return the data set `name`: "digits" (held-out part), or a folder in ImageFolder layout, of images or of frames.

    Args:
        preprocess: of images; None if the network was made for frames.
        classes: the network's class names, where they are known; folders are matched by them.
        num_classes: of the network.
        max_pixels: of an image.

    Raises:
        UsageError: if the folder is not one, or its classes are not the network's.
    """
    if name == DIGITS:
        return Digits("test", _for_digits(preprocess).transform())
    folders = check_class_folders(Path(name))
    list_samples(Path(name))  # of one kind
    if classes and set(folders) <= set(classes):
        index = {folder: classes.index(folder) for folder in folders}
    elif len(folders) == max(num_classes, 2):  # one output tells two classes apart
        index = {folder: i for i, folder in enumerate(folders)}
    else:
        raise UsageError(f"{name} has {len(folders)} class folders, but the network has {num_classes} classes")
    files, labels = [], []
    for folder in folders:
        samples = list_samples(Path(name, folder))
        files += samples
        labels += [index[folder]] * len(samples)
    return files_data(files, labels, preprocess, max_pixels)


def _for_digits(preprocess: Preprocess | None) -> Preprocess:
    if preprocess is None:
        raise UsageError("the digits are images, but the network was converted for frames of events (.npz)")
    return preprocess


def limited(data: Dataset, limit: int | None, seed: int = 0) -> Dataset:  # type: ignore[type-arg]
    """Return a random subset of `limit` samples, the same for the same seed; all of them if None."""
    total = len(data)  # type: ignore[arg-type]
    return data if limit is None or limit >= total else Subset(data, drawn(total, limit, seed)[:limit])


def drawn(total: int, wanted: int, seed: int) -> list[int]:
    """Return the places of all samples, in the order in which `wanted` of them are drawn: as they are if that is all"""
    if wanted >= total:
        return list(range(total))
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed)).tolist()


def calibration_images(
    name: str,
    preprocess: Preprocess | None,
    samples: int,
    seed: int = 0,
    max_pixels: int = MAX_PIXELS,
    progress: Progress | None = None,
    leave_out: LeftOut | None = None,
) -> Tensor:
    """Return `samples` random images, `[N, C, H, W]`: of the digits' training part, or from anywhere below a folder.

    Of a folder of frames, `[N, T, C, H, W]`. There are fewer if the folder has no more.

    Args:
        leave_out: called for each that cannot be read, in whose place another is drawn.

    Raises:
        UsageError: if the folder has no images or frames.
        UnreadableSample: naming the file, if one cannot be read, without `leave_out`.
        SnnzooError: if none can be read, or more than `leave_out` puts up with.
    """
    data: Dataset  # type: ignore[type-arg]
    if name == DIGITS:
        data = Digits("train", _for_digits(preprocess).transform())
    else:
        files = list_samples(Path(name))
        data = files_data(files, [0] * len(files), preprocess, max_pixels)
    images: list[Tensor] = []
    order = drawn(len(data), samples, seed)  # type: ignore[arg-type]
    total = min(samples, len(order))
    for i in order:
        try:
            images.append(data[i][0])
        except UnreadableSample as error:
            if leave_out is None:
                raise
            leave_out(error)
        if progress:
            progress(len(images), total, "reading calibration images")
        if len(images) == total:
            break
    if leave_out is not None:
        leave_out.require_some(len(images))
    return torch.stack(images)
