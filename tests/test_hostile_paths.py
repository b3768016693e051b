"""Safetensors files, shards and paths that are hostile or broken: refused in one clear line."""

import json
import os
import socket
from pathlib import Path

import hostile_corpus as corpus
import pytest
import torch
from hostile_reading import FORMATS, WEIGHT, refused, snnzoo, working_folder, written  # noqa: F401 (a fixture)
from safetensors.torch import save

from snnzoo.checkpoints.files import file_format, read_checkpoint, read_safetensors
from snnzoo.errors import CheckpointError
from snnzoo.recognition import inspect_checkpoint

PAYLOADS = corpus.payloads()


# -- Safetensors -------------------------------------------------------------------------------------------------------


def entry(shape=(2,), offsets=(0, 8), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


EIGHT = b"\0" * 8
SAFETENSORS = {
    "a header of no length": corpus.safetensors_of({"w": entry()}, EIGHT, 0),
    "a header beyond the file": corpus.safetensors_of({"w": entry()}, EIGHT, 1 << 20),
    "a header beyond the memory": corpus.safetensors_of({"w": entry()}, EIGHT, (1 << 63) - 1),
    "a header shorter than it is": corpus.safetensors_of({"w": entry()}, EIGHT, 10),
    "a header that is a list": corpus.safetensors_of(b"[1, 2, 3]", EIGHT),
    "a header that is no JSON": corpus.safetensors_of(b"{'w': 3}", EIGHT),
    "a header that is not UTF-8": corpus.safetensors_of(b'{"\xff\xfe": 1}', EIGHT),
    "a header nested without end": corpus.safetensors_of(b'{"a":' * 100_000, EIGHT),
    "a header of 33 MiB": corpus.safetensors_of(b'{"w":"' + b" " * (33 << 20) + b'"}'),
    "tensors that overlap": corpus.safetensors_of({"v": entry(), "w": entry(offsets=(4, 12))}, EIGHT + EIGHT),
    "tensors in one place": corpus.safetensors_of({"v": entry(), "w": entry()}, EIGHT),
    "a hole between tensors": corpus.safetensors_of({"v": entry(), "w": entry(offsets=(12, 20))}, b"\0" * 20),
    "bytes behind the last": corpus.safetensors_of({"w": entry()}, EIGHT + b"hello"),
    "an offset beyond the file": corpus.safetensors_of({"w": entry((1 << 40,), (0, 1 << 42))}, EIGHT),
    "offsets in another order": corpus.safetensors_of({"w": entry(offsets=(8, 0))}, EIGHT),
    "an offset before the file": corpus.safetensors_of({"w": entry(offsets=(-8, 0))}, EIGHT),
    "a shape of other bytes": corpus.safetensors_of({"w": entry((3,))}, EIGHT),
    "a shape that overflows": corpus.safetensors_of({"w": entry((1 << 62, 1 << 62, 4))}, EIGHT),
    "a shape of nothing, but endless": corpus.safetensors_of({"w": entry((0, 1 << 50), (0, 0))}),
    "a negative shape": corpus.safetensors_of({"w": entry((-2,))}, EIGHT),
    "a type that does not fit its bytes": corpus.safetensors_of({"w": entry(dtype="F64")}, EIGHT),
    "a type that is none": corpus.safetensors_of({"w": entry(dtype="Q9")}, EIGHT),
    "a type of half bytes": corpus.safetensors_of({"w": entry((16,), dtype="F4")}, EIGHT),
    "a key with a terminal's escape": corpus.safetensors_of({"\x1b[31m": entry()}, EIGHT),
    "a key longer than any name": corpus.safetensors_of({"k" * 5000: entry()}, EIGHT),
    "metadata that is no text": corpus.safetensors_of({"__metadata__": {"a": 1}, "w": entry()}, EIGHT),
}


@pytest.mark.skipif(not hasattr(torch, "float4_e2m1fn_x2"), reason="PyTorch has no type of half bytes")
def test_a_type_that_pytorch_has_but_cannot_compute_with_is_named():
    assert "w is of type torch.float4_e2m1fn_x2, which PyTorch cannot compute with" in refused(
        SAFETENSORS["a type of half bytes"], "file.safetensors"
    )


def test_8_bit_and_complex_types_are_read():
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.uint8, torch.bool, torch.bfloat16):
        written(save({"w": torch.zeros(4, dtype=torch.uint8).repeat(2).view(dtype)}), "file.safetensors")
        assert read_checkpoint(Path("file.safetensors"))["w"].dtype == dtype


@pytest.mark.parametrize("name", SAFETENSORS)
def test_no_safetensors_header_that_lies_is_believed(name):
    refused(SAFETENSORS[name], "file.safetensors")
    with pytest.raises(CheckpointError):
        read_safetensors(Path("file.safetensors"))


# -- Shards ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path):
    """Two shards and their index, beside a checkpoint outside the folder."""
    (tmp_path / "secret.safetensors").write_bytes(save({"a": torch.zeros(2)}))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "part-1.safetensors").write_bytes(save({"a": torch.ones(2), "other": torch.ones(1)}))
    (folder / "part-2.bin").write_bytes(corpus.saved({"b": torch.ones(3)}))
    return folder


def index_of(folder, weight_map):
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 20}, "weight_map": weight_map}))
    return path


def test_shards_are_read_as_one_state_dict_in_the_order_of_the_index(shards):
    index = index_of(shards, {"b": "part-2.bin", "a": "part-1.safetensors"})
    assert file_format(index) == "index"
    read = read_checkpoint(index)
    assert list(read) == ["b", "a"]
    assert torch.equal(read["b"], torch.ones(3))
    assert inspect_checkpoint(index)["format"] == "sharded, by its index"


@pytest.mark.parametrize(
    "name",
    ["../secret.safetensors", "/etc/passwd", "", ".", "..", "sub/part", "sub\\part", "C:part", "a\0b", "a\nb", 3, None,
     ["part-1.safetensors"], {"a": 1}],
    ids=repr,
)  # fmt: skip
def test_no_shard_outside_the_folder_is_read(shards, name):
    with pytest.raises(CheckpointError, match="expected the name of a file beside it"):
        read_checkpoint(index_of(shards, {"a": name}))


def test_an_index_that_does_not_fit_its_shards_is_refused(shards):
    with pytest.raises(CheckpointError, match=r"names tensors that are not there: x in part-2\.bin"):
        read_checkpoint(index_of(shards, {"b": "part-2.bin", "x": "part-2.bin"}))
    with pytest.raises(CheckpointError, match=r"missing\.safetensors: no such file"):
        read_checkpoint(index_of(shards, {"b": "missing.safetensors"}))
    with pytest.raises(CheckpointError, match="is an index, expected a file of tensors"):
        read_checkpoint(index_of(shards, {"b": "model.safetensors.index.json"}))
    (shards / "more.bin").write_bytes(corpus.saved({"b": torch.ones(3), "epoch": 3}))
    with pytest.raises(CheckpointError, match="holds more than named tensors"):
        read_checkpoint(index_of(shards, {"b": "more.bin"}))
    (shards / "evil.bin").write_bytes(corpus.saved({"b": PAYLOADS["os.system"]}))
    with pytest.raises(CheckpointError, match="holds more than named tensors"):
        read_checkpoint(index_of(shards, {"b": "evil.bin"}))


@pytest.mark.parametrize(
    "data",
    [b"{", b"{}", b'{"weight_map": []}', b'{"weight_map": {}}', b'{"weight_map": {"\\u001b[31m": "a"}}',
     b'{"weight_map":' * 100_000, b'{"weight_map": 1' + b"0" * 5000 + b"}", b'{"weight_map": "\xff"}'],
    ids=range(8),
)  # fmt: skip
def test_an_index_that_is_none_is_refused(data):
    refused(data, "model.safetensors.index.json")


# -- Paths -------------------------------------------------------------------------------------------------------------


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo("pipe")
    os.symlink("loop", "loop")
    os.symlink("nowhere", "dangling")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    Path("folder").mkdir()
    Path("folder/model.pth").write_bytes(b"")
    Path("empty").write_bytes(b"")
    expected = {
        "pipe": "pipe, socket or device",
        "socket": "pipe, socket or device",
        "/dev/zero": "pipe, socket or device",
        "loop": "symbolic links",
        "dangling": "a link to a file that is not there",
        "folder": "is a folder, expected a checkpoint file: give a file in it, such as model.pth",
        "empty": "empty",
        "missing": "no such file",
        "nul\0l": "null",
        "n" * 300: "too long",
    }
    for name, text in expected.items():
        for read in (read_checkpoint, read_safetensors, inspect_checkpoint):
            with pytest.raises(CheckpointError, match=text):
                read(Path(name))


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
def test_a_file_without_permission_is_refused():
    path = written(FORMATS["zip"])
    path.chmod(0)
    with pytest.raises(CheckpointError, match="Permission denied"):
        read_checkpoint(path)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_is_what_it_holds_whatever_its_name(kind):
    for name in (b"caf\xe9.pth", "модель.safetensors".encode(), b"no suffix", b"wrong.json", b".th"):
        path = Path(os.fsdecode(name))
        path.write_bytes(FORMATS[kind])
        if kind == "safetensors" and name.startswith(b"caf"):
            with pytest.raises(CheckpointError, match="not UTF-8, which the safetensors library needs"):
                read_checkpoint(path)
            continue
        assert torch.equal(read_checkpoint(path)["w"], WEIGHT["w"])
        assert file_format(path) == kind


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\x1f\x8b\x08\0", "unpack it first"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\x93NUMPY\1\0", "NumPy"),
        (b"hello", "expected a PyTorch or safetensors file"),
        (b"\0" * 100_000, "expected a PyTorch or safetensors file"),
    ],
)
def test_what_is_often_mistaken_for_a_checkpoint_is_named(data, text):
    assert text in refused(data)


def test_the_command_line_shows_names_that_are_not_utf8_and_says_no_in_one_line(monkeypatch):
    path = Path(os.fsdecode(b"caf\xe9.pth"))
    path.write_bytes(FORMATS["zip"])
    code, out, err = snnzoo(monkeypatch, "inspect", str(path))
    assert (code, err) == (0, b"")
    assert b"file        caf\\udce9.pth\n" in out
    assert b"PyTorch (zip)" in out
    path.write_bytes(corpus.saved(PAYLOADS["os.system"]))
    code, out, err = snnzoo(monkeypatch, "inspect", str(path))
    assert (code, out, err.count(b"\n")) == (1, b"", 1)
    assert err.startswith(b"Error: caf\\udce9.pth: holds an object of 'posix.system', not a state dict")


def test_what_a_terminal_would_obey_is_shown_as_text(monkeypatch):
    written(corpus.saved({"state_dict": WEIGHT, "note": "\x1b[2J\x1b]0;title\7 \u202e hello"}))
    code, out, _ = snnzoo(monkeypatch, "inspect", "file.pth")
    assert code == 0
    assert rb"note: \x1b[2J\x1b]0;title\x07 \u202e hello" in out
