"""Data that tests share. Everything that needs a network or a shared folder is made here or skipped."""

import os
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from snnzoo.checkpoints.files import write_safetensors
from snnzoo.data import digits

if not torch.cuda.is_available():  # Triton's kernels then run in its interpreter; it must hear of it before its import
    os.environ.setdefault("TRITON_INTERPRET", "1")

if "PYTEST_XDIST_WORKER" in os.environ:  # several share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of programs that tests start
    torch.set_num_threads(1)

SHARED = Path(os.environ.get("SNNZOO_SHARED") or Path(__file__).resolve().parents[2] / "shared")


@pytest.fixture(scope="session", autouse=True)
def no_misfits():
    """Most networks of tests have BN statistics at random, far from those of any images: `test_fit` is on that."""
    from snnzoo.fit import check

    limit = check.MISFIT
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "MISFIT", float("inf"))
        yield limit


@pytest.fixture
def limits(no_misfits, monkeypatch):
    """Those of the package."""
    monkeypatch.setattr("snnzoo.fit.check.MISFIT", no_misfits)


@pytest.fixture
def run_command(monkeypatch, capfd, tmp_path):
    """Run a command in this process, in an empty folder: exit code, standard output, standard error."""
    from snnzoo.cli import main as cli

    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["snnzoo", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return (stop.value.code or 0, *capfd.readouterr())

    return run


@pytest.fixture
def gpu():
    """A stand-in for a GPU; there is none, and Triton's kernels run in its interpreter."""
    from snnzoo.ops import backends
    from standin import pretended_gpu

    if backends.named("triton").unavailable() is not None or torch.cuda.is_available():
        pytest.skip("needs Triton's interpreter")
    with pretended_gpu() as gpu:
        yield gpu


@pytest.fixture(scope="session")
def cache_with_digits(tmp_path_factory):
    """A TORCH_HOME in which resnet18.digits is cached already, trained in full."""
    home = tmp_path_factory.mktemp("torch_home")
    folder = home / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    write_safetensors(folder / "snnzoo-resnet18-digits.safetensors", digits.train_resnet18(), {})
    return home


@pytest.fixture
def digits_home(cache_with_digits, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(cache_with_digits))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return cache_with_digits


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """An ImageFolder of digits: 10 classes of 3 PNG files."""
    root = tmp_path_factory.mktemp("images")
    data = digits.Digits("test")
    for label in range(10):
        folder = root / str(label)
        folder.mkdir()
        chosen = [i for i, other in enumerate(data.labels) if other == label][:3]
        for i in chosen:
            Image.fromarray(np.asarray(data.images[i])).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def resnet20_checkpoint():
    """The real CIFAR-10 checkpoint, where the shared folder is there."""
    path = SHARED / "checkpoints" / "resnet20-12fca82f.th"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return path


@pytest.fixture(scope="session")
def cifar_folder(tmp_path_factory):
    """Some of CIFAR-10 as JPEG files, where the shared folder is there: 300 images a class to train, 20 to test."""
    archive = SHARED / "data" / "cifar10-jpeg.tar.gz"
    if not archive.is_file():
        pytest.skip(f"{archive} is not there")
    folder, count = tmp_path_factory.mktemp("cifar"), Counter()
    with tarfile.open(archive) as tar:
        for member in tar:
            place = Path(member.name).parent
            if member.isfile() and count[place] < (300 if "train" in place.parts else 20):
                count[place] += 1
                tar.extract(member, folder, filter="data")
    return next(folder.glob("**/train")).parent


@pytest.fixture(scope="module")
def networks():
    """A converted resnet18 of 7 classes, and its ANN."""
    import torchvision  # imports triton, which must have heard of its interpreter by then

    import snnzoo
    from helpers import shake_batch_norm
    from snnzoo.models.factory import build_ann

    torch.manual_seed(0)
    weights = shake_batch_norm(torchvision.models.resnet18(num_classes=7)).state_dict()
    ann, other = (build_ann("resnet18", weights, "weights", num_classes=7) for _ in range(2))
    return snnzoo.convert(other, torch.randn(8, 3, 32, 32), gamma=0.5), ann


@pytest.fixture(scope="module")
def data():
    """10 images of noise with labels of 7 classes."""
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(10, 3, 32, 32, generator=generator)
    return TensorDataset(images, torch.randint(0, 7, (10,), generator=generator))
