"""Folders of images given to the command line: what becomes of them before the network sees them."""

import contextlib
import io
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from networks import Akamaster, seeded
from PIL import Image
from rows import Row
from torchvision import transforms

import snnzoo
from snnzoo.cli.main import main
from snnzoo.data.datasets import calibration_images
from snnzoo.errors import SnnzooError

FORUM = "discuss.pytorch.org"
NORMAL = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def command(*arguments) -> str:
    """Run a command, and return what it says; a SnnzooError with its message if it fails."""
    said = io.StringIO()
    with patch.object(sys, "argv", ["snnzoo", *map(str, arguments)]), contextlib.redirect_stderr(said):
        try:
            main()
        except SystemExit as end:
            if end.code:
                raise SnnzooError(" ".join(said.getvalue().split())) from None
    return " ".join(said.getvalue().split())


def picture(seed, height=40, width=48, grey=False):
    shape = (height, width) if grey else (height, width, 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8))


def class_folders(folder, names="0123456789", grey=False):
    for seed, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        picture(seed, grey=grey).save(folder / name / "1.png")
    return folder


def network(folder, channels=3, num_classes=10):
    torch.save(seeded(Akamaster, in_channels=channels, num_classes=num_classes).state_dict(), folder / "net.pth")


def converted(folder, *options):
    """Convert the folder's network, and return what the command says."""
    files = ("--checkpoint", folder / "net.pth", "-o", folder / "snn.safetensors")
    return command("convert", "resnet20", "--force-fit", "-T", 1, *files, *options)


def seen(options, theirs, grey=False, channels=3):
    """A row's `run`: the images that a network was converted on, and what torchvision's transforms make of them.

    Args:
        options: of `snnzoo convert`.
        theirs: torchvision's transforms.
        grey: whether the files are.
    """

    def run(folder: Path):
        network(folder, channels)
        data = class_folders(folder / "data", grey=grey)
        converted(folder, "--calib-data", data, *options)
        net = snnzoo.load(folder / "snn.safetensors")
        actual = calibration_images(str(data), net.conversion.preprocess, 10)
        files = sorted(data.rglob("*.png"))
        expected = torch.stack([transforms.Compose(theirs)(Image.open(file)) for file in files])
        return expected.sum((1, 2, 3)).sort().values, actual.sum((1, 2, 3)).sort().values

    return run


def told(options, text, channels=3, grey=False):
    """A row's `run`: whether `snnzoo convert` says something."""

    def run(folder: Path):
        network(folder, channels)
        data = class_folders(folder / "data", grey=grey)
        return True, text in converted(folder, "--calib-data", data, *options)

    return run


def numeric_folders(folder: Path):
    """Eleven folders of numbers: as text, 10 comes before 2; said, since `ImageFolder` has the same order."""
    network(folder, num_classes=11)
    data = class_folders(folder / "data", [str(i) for i in range(11)])
    converted(folder)
    said = command("eval", folder / "snn.safetensors", "--data", data, "--device", "cpu", "--quiet")
    loud = command("eval", folder / "snn.safetensors", "--data", data, "--device", "cpu")
    return (0, 1), (
        said.count("in the order of their names as text"),
        loud.count("in the order of their names as text"),
    )


to_tensor, normalize = transforms.ToTensor(), transforms.Normalize
GREY = ("--mean", "0.1307", "--std", "0.3081", "--input-size", 28)

ROWS = [
    Row(
        "grey images for a network of grey images",
        "github.com/pytorch/examples, mnist",
        seen(
            GREY,
            [transforms.Resize(28), transforms.CenterCrop(28), to_tensor, normalize((0.1307,), (0.3081,))],
            True,
            1,
        ),
    ),
    Row(
        "colour images for a network of grey images",
        FORUM,
        seen(
            GREY,
            [
                transforms.Grayscale(),
                transforms.Resize(28),
                transforms.CenterCrop(28),
                to_tensor,
                normalize((0.1307,), (0.3081,)),
            ],
            False,
            1,
        ),
    ),
    Row(
        "a folder of grey images for a network of colours",
        FORUM,
        seen(
            (),
            [transforms.Grayscale(3), transforms.Resize(32), transforms.CenterCrop(32), to_tensor, normalize(*NORMAL)],
            True,
        ),
    ),
    Row("a network of grey images, no mean given", FORUM, told((), "give --mean and --std", 1, True)),
    Row(
        "a mean of three numbers for a network of grey images",
        FORUM,
        told(("--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5"), "", 1),
        "--mean has 3 numbers",
    ),
    Row(
        "Resize((H, W)) without a crop",
        FORUM,
        seen(("--resize", "32,32"), [transforms.Resize((32, 32)), to_tensor, normalize(*NORMAL)]),
    ),
    Row(
        "Resize((H, W)) of a rectangle",
        "github.com/KaiyangZhou/deep-person-reid",
        seen(("--resize", "48,24"), [transforms.Resize((48, 24)), to_tensor, normalize(*NORMAL)]),
    ),
    Row(
        "resize equal to crop",
        FORUM,
        seen(
            ("--preprocess", "imagenet", "--resize", "32", "--input-size", "32"),
            [transforms.Resize(32), transforms.CenterCrop(32), to_tensor, normalize(*NORMAL)],
        ),
    ),
    Row("a crop larger than the resized image", FORUM, told(("--resize", "16", "--input-size", "32"), ""), "--resize"),
    Row("class folders of numbers", FORUM, numeric_folders),
]
