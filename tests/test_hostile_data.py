"""Folders of images and frames that are odd, damaged or out to hurt: one line, or an image less, no memory filled."""

import io
import os
import re
import resource
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_report import measured

import snnzoo
from helpers import shake_batch_norm
from snnzoo.data import frames
from snnzoo.data.datasets import ImageFiles, labelled_data
from snnzoo.data.folders import check_class_folders, list_samples
from snnzoo.data.frames import read_frames
from snnzoo.data.preprocess import Preprocess
from snnzoo.errors import SnnzooError, UnreadableSample, UsageError
from snnzoo.evaluation import evaluate
from snnzoo.report.figures import write_plot
from snnzoo.report.html import render

SMALL = Preprocess(16, 16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def image(path, size=(20, 20), **options):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (10, 200, 30)).save(path, **options)
    return Path(path)


def read(path, **options):
    return ImageFiles([Path(path)], [0], SMALL, **options)[0][0]


# -- Images ------------------------------------------------------------------------------------------------------------


def test_formats_are_told_by_their_content_and_eps_which_starts_a_program_is_none(monkeypatch):
    for name, kind in (("a.jpg", "PNG"), ("b.png", "JPEG"), ("c.bmp", "TIFF"), ("d.tiff", "BMP"), ("e.ppm", "WEBP")):
        assert read(image(name, format=kind)).shape == (3, 16, 16)
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("a program was started"))
    monkeypatch.setattr(subprocess, "check_call", lambda *a, **k: pytest.fail("a program was started"))
    image("f.jpg", format="EPS")
    with pytest.raises(UnreadableSample, match=r"^f\.jpg: cannot read this image: cannot identify"):
        read("f.jpg")


def test_images_and_strips_with_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch):
    for size in ((1, 1_000_000), (8_000_000, 1)):
        path = image("strip.png", size)
        assert path.stat().st_size < 100_000
        before = peak()
        with pytest.raises(UnreadableSample, match=r"resized to .* more than the limit of 89,478,485 \(--max-pixels\)"):
            read(path)
        assert peak() - before < 50 << 20
    path = image("large.png", (300, 200))
    with pytest.raises(UnreadableSample, match=r"300 x 200 pixels, are more than the limit of 59,999"):
        read(path, max_pixels=59_999)
    assert read(path, max_pixels=60_000).shape == (3, 16, 16)


def test_a_bomb_beyond_pillows_limit_is_refused_without_a_warning(recwarn):
    header = b"P6 100000 100000 255\n"
    Path("bomb.ppm").write_bytes(header + b"x" * 30)
    with pytest.raises(UnreadableSample, match=r"bomb\.ppm: cannot read this image"):
        read("bomb.ppm")
    assert not recwarn.list


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def test_damaged_images_of_every_format_are_one_line_or_an_image():
    refused = 0
    for kind, suffix in (("PNG", "png"), ("JPEG", "jpg"), ("BMP", "bmp"), ("TIFF", "tif"), ("WEBP", "webp")):
        whole = image(f"whole.{suffix}", format=kind).read_bytes()
        for i in range(0, len(whole), max(1, len(whole) // 40)):
            for data in (whole[:i], whole[:i] + bytes([whole[i] ^ 0xFF]) + whole[i + 1 :]):
                Path("x.png").write_bytes(data)
                result, message = attempt(lambda: read("x.png"))
                refused += result is None
                assert re.fullmatch("x.png: cannot read this image: .*", message) or result.shape == (3, 16, 16)
    assert refused > 100


def attempt(function):
    """What it gives and an empty message, or None and the message of its error."""
    try:
        return function(), ""
    except UnreadableSample as error:
        return None, str(error)


# -- Folders -----------------------------------------------------------------------------------------------------------


def test_pipes_sockets_and_devices_are_refused_by_name_and_nothing_waits():
    image("data/a/1.png")
    os.mkfifo("data/a/pipe.png")
    with pytest.raises(UsageError, match=r"data/a/pipe\.png: is a pipe, socket or device, expected a file: remove it"):
        list_samples(Path("data"))
    Path("data/a/pipe.png").unlink()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("data/a/socket.png")
        with pytest.raises(UsageError, match=r"socket\.png: is a pipe, socket or device"):
            list_samples(Path("data"))
    Path("data/a/socket.png").unlink()
    Path("data/a/zero.jpg").symlink_to("/dev/zero")
    with pytest.raises(UsageError, match=r"zero\.jpg: is a pipe, socket or device"):
        list_samples(Path("data"))
    with pytest.raises(UsageError, match="is a file"):
        list_samples(Path("/dev/null"))


def test_links_are_followed_but_not_back_up():
    for name in ("data/a/x/1.png", "data/b/2.png"):
        image(name)
    Path("data/a/x/up").symlink_to("..")
    Path("data/a/top").symlink_to("../..")
    Path("data/c").symlink_to("b")
    found = [str(path) for path in list_samples(Path("data"))]
    assert found == ["data/a/x/1.png", "data/b/2.png", "data/c/2.png"]
    Path("data/d").symlink_to("d")
    assert check_class_folders(Path("data")) == ["a", "b", "c"]
    with pytest.raises(UsageError, match="data/d: no such folder"):
        list_samples(Path("data/d"))


def test_a_folder_that_cannot_be_read_is_named_not_left_out(monkeypatch):
    image("data/a/1.png")
    image("data/a/closed/2.png")
    scandir = os.scandir

    def without_permission(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", without_permission)
    with pytest.raises(UsageError, match=r"^data/a/closed: cannot read this folder: Permission denied$"):
        list_samples(Path("data"))


def test_folders_may_be_nested_deeply_and_names_be_of_any_length():
    deep = Path("data", *["d"] * 1200)
    top = os.getcwd()
    os.mkdir("data")
    os.chdir("data")
    for _ in range(1200):
        os.mkdir("d")
        os.chdir("d")
    Image.new("RGB", (4, 4)).save("n" * 251 + ".png")
    os.chdir(top)
    found = list_samples(Path("data"))
    subprocess.run(["rm", "-r", "data"], check=True)  # which Python's rmtree cannot
    assert found == [deep / ("n" * 251 + ".png")]
    with pytest.raises(UsageError, match="File name too long"):
        list_samples(Path("n" * 300))


# -- Evaluation --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_networks():
    torch.manual_seed(0)
    ann, other = (
        shake_batch_norm(snnzoo.create_model("resnet20", neuron=torch.nn.ReLU, step_mode="s")) for _ in range(2)
    )
    other.load_state_dict(ann.state_dict())
    return snnzoo.convert(other, torch.rand(8, 3, 16, 16), time_steps=1, gamma=0.5), ann


def test_unreadable_images_are_left_out_named_and_told_up_to_a_limit(small_networks, monkeypatch):
    for label in range(10):
        for i in range(3):
            image(f"data/{label}/{i}.png", (10 + label, 10 + i))
    whole = evaluate(*small_networks, labelled_data("data", SMALL, None, 10), [1], batch_size=4)
    assert (whole.images, whole.left_out) == (30, [])
    for label in range(10):
        Path(f"data/{label}/3.png").write_bytes(b"not a picture")
    for name in "abcde":  # a batch of nothing else
        Path(f"data/9/{name}.png").symlink_to("nowhere")
    told = []
    rest = evaluate(
        *small_networks, labelled_data("data", SMALL, None, 10), [1], batch_size=4, notify=told.append, workers=2
    )
    assert rest.images == 30
    assert rest.results[0].top1 == whole.results[0].top1
    assert rest.confusion == whole.confusion
    told = [note for note in told if "left out: " in note]
    assert len(rest.left_out) == len(told) == 15
    assert rest.left_out[0].startswith("data/0/3.png: cannot read this image")
    assert rest.to_dict()["left_out"] == rest.left_out
    monkeypatch.setattr("snnzoo.data.loading.MAX_LEFT_OUT", 14)
    with pytest.raises(SnnzooError, match="more than 14 images cannot be read; the last one is data/9/"):
        evaluate(*small_networks, labelled_data("data", SMALL, None, 10), [1])


def test_nothing_that_can_be_read_is_an_error(small_networks):
    for label in range(10):
        Path(f"data/{label}").mkdir(parents=True)
        Path(f"data/{label}/1.png").touch()
    with pytest.raises(SnnzooError, match=r"none of 10 images can be read; the first one is data/0/1\.png"):
        evaluate(*small_networks, labelled_data("data", SMALL, None, 10), [1])


def test_names_that_are_not_text_are_shown_by_their_numbers_in_reports_and_plots():
    one = measured("a\x1b[31m\nb", classes=3)
    one = type(one)(one.label, one.evaluation, one.coding, one.spikes, [os.fsdecode(b"\xff"), "<b>", "c" * 300], {})
    one.evaluation.left_out.append("x\udcff.png: cannot read")
    text = render([one], "title\udcff", "command")
    text.encode()
    assert "title\\udcff" in text
    assert "x\\udcff.png" in text
    assert "\x1b" not in text
    write_plot([one], Path("plot.png"))
    assert Path("plot.png").stat().st_size > 10_000


# -- Frames ------------------------------------------------------------------------------------------------------------


def npy(shape, dtype="<f4", data=b"", version=(1, 0)):
    """An .npy file whose header may lie."""
    text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape!r}, }}".encode()
    length = len(text) + 1
    size = length.to_bytes(2 if version == (1, 0) else 4, "little")
    return b"\x93NUMPY" + bytes(version) + size + text + b"\n" + data


def npz(*members, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


GOOD = np.arange(2 * 2 * 4 * 4, dtype=np.float32).reshape(2, 2, 4, 4)
MEMBER = npy(GOOD.shape, data=GOOD.tobytes())


def encrypted():
    data = bytearray(npz(("frames.npy", MEMBER)))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    return bytes(data)


def bomb():
    zeros = np.zeros((16, 4, 64, 64), np.float32).tobytes()
    return npz(("frames.npy", npy((16, 4, 64, 64), data=zeros)), compression=zipfile.ZIP_BZIP2)


LIES = {
    "11 GiB": (npz(("frames.npy", npy((100, 2, 3840, 3840), data=b"\0" * 64))), "does not fit the file's size"),
    "4 TiB": (npz(("frames.npy", npy((1 << 20, 1 << 10, 1 << 10, 1)))), "does not fit the file's size"),
    "beyond 64 bits": (npz(("frames.npy", npy((1 << 40, 1 << 40, 1 << 40, 4)))), "does not fit the file's size"),
    "a negative shape": (npz(("frames.npy", npy((-2, 2, 4, -4), data=GOOD.tobytes()))), "must have the shape"),
    "a shape that is none": (npz(("frames.npy", npy("x"))), "cannot read these frames"),
    "a type that is none": (npz(("frames.npy", npy((1, 1, 1, 1), "x"))), "cannot read these frames"),
    "records": (npz(("frames.npy", npy((1, 1, 1, 1), [("a", "<f4")], b"\0" * 4))), "must be numbers"),
    "more values than declared": (npz(("frames.npy", MEMBER + b"\0")), "does not fit the file's size"),
    "two arrays of the name": (None, "2 arrays called 'frames'"),
    "encrypted": (encrypted(), "is encrypted"),
    "another compression": (bomb(), "compressed in an unusual way"),
    "version 3": (npz(("frames.npy", npy((2, 2, 4, 4), version=(3, 0)))), "unknown version"),
    "no npy": (npz(("frames.npy", b"nothing")), "cannot read these frames"),
}


@pytest.mark.parametrize("case", LIES)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_no_file_of_frames_that_lies_is_believed_and_none_fills_the_memory(case):
    data, message = LIES[case]
    Path("x.npz").write_bytes(data or npz(("frames.npy", MEMBER), ("frames.npy", MEMBER)))
    before = peak()
    with pytest.raises(UnreadableSample, match=message) as caught:
        read_frames(Path("x.npz"))
    assert str(caught.value).startswith("x.npz: ")
    assert "\n" not in str(caught.value)
    assert peak() - before < 50 << 20


def test_recordings_beyond_the_limit_are_refused_and_good_ones_read(monkeypatch):
    Path("x.npz").write_bytes(npz(("frames.npy", MEMBER), ("other.npy", b"left alone")))
    assert torch.equal(read_frames(Path("x.npz")), torch.from_numpy(GOOD))
    monkeypatch.setattr(frames, "MAX_VALUES", GOOD.size - 1)
    with pytest.raises(UnreadableSample, match="64 values, more than the limit of 63"):
        read_frames(Path("x.npz"))


def test_flipped_bytes_in_frames_are_one_line_or_frames():
    np.savez_compressed("good.npz", frames=GOOD)
    whole = Path("good.npz").read_bytes()
    for i in range(len(whole)):
        Path("x.npz").write_bytes(whole[:i] + bytes([whole[i] ^ 0x55]) + whole[i + 1 :])
        result, message = attempt(lambda: read_frames(Path("x.npz")))
        assert re.fullmatch(r"x.npz: .*", message) or torch.equal(result, torch.from_numpy(GOOD)), i


def test_the_commands_say_it_in_one_line():
    image("data/a/1.png")
    os.mkfifo("data/a/pipe.png")
    command = ["convert", "resnet18", "--checkpoint", __file__, "--calib-data", "data"]
    done = subprocess.run([sys.executable, "-m", "snnzoo.cli", *command], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "Error: data/a/pipe.png: is a pipe, socket or device, expected a file: remove it\n"
