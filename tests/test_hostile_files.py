"""Nothing in a hostile or broken checkpoint hurts: no code runs, no memory fills, and the error is one clear line."""

import argparse
import contextlib
import io
import json
import os
import pickle
import socket
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path

import hostile_corpus as corpus
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from snnzoo.checkpoints.files import file_format, read_checkpoint, read_safetensors
from snnzoo.checkpoints.untrusted import limits, pickles
from snnzoo.checkpoints.wrapping import EMA_WRAPPERS, WRAPPERS
from snnzoo.cli.main import main
from snnzoo.errors import CheckpointError, SnnzooError
from snnzoo.models import factory
from snnzoo.recognition import inspect_checkpoint

PAYLOADS = corpus.payloads()
WEIGHT = {"w": torch.arange(6.0).view(2, 3)}
MEMBERS = corpus.members_of(corpus.saved(WEIGHT))
MEMBERS |= {key: MEMBERS.pop(key) for key in list(MEMBERS) if key.endswith("/data/0")}  # last: it is read
FOLDER = next(iter(MEMBERS)).partition("/")[0]
PICKLE = MEMBERS[f"{FOLDER}/data.pkl"]


@pytest.fixture(autouse=True)
def _working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / corpus.CANARY).exists(), "code of a checkpoint was run"


def written(data, name="file.pth"):
    path = Path(name)
    path.write_bytes(data)
    return path


def refused(data, name="file.pth"):
    """The error that a file gives, which names the file and is one line."""
    path = written(data, name)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    assert text.isprintable()
    return text


# -- Code --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", PAYLOADS)
def test_no_payload_runs_beside_tensors_or_deep_among_them(name, zipped, monkeypatch):
    payload = PAYLOADS[name]
    for content in (
        payload,
        {"state_dict": {**WEIGHT, "x": payload}},
        OrderedDict(WEIGHT, x=[({"deep": (1, payload)},)]),
        {**WEIGHT, "optimizer": {"state": {0: {"step": payload}}}},
    ):
        data = corpus.saved(content, zipped=zipped)
        if name == "a call of a tensor class":
            assert "tensors of a class of their own" in refused(data)
            continue
        path = written(data)
        with monkeypatch.context() as patch:
            for module, function in ((torch, "load"), (pickle, "Unpickler"), (pickle, "_Unpickler"), (pickle, "loads")):
                patch.delattr(module, function)
            read = read_checkpoint(path)
            with contextlib.suppress(SnnzooError):  # where there is no state dict
                inspect_checkpoint(path)
        if isinstance(content, dict):
            assert torch.equal(read.get("state_dict", read)["w"], WEIGHT["w"])


@pytest.mark.parametrize("name", PAYLOADS)
def test_no_plain_pickle_is_read(name):
    for protocol in range(6):
        refused(pickle.dumps({"w": PAYLOADS[name]}, protocol))


OPCODES = {
    "INST": b"(S'touch canary'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nX\x0c\0\0\0touch canaryo.",
    "NEWOBJ": b"\x80\x02cos\nsystem\nX\x0c\0\0\0touch canary\x85\x81.",
    "NEWOBJ of a tensor": b"\x80\x02ctorch\nFloatTensor\nJ\0\0\0\x7f\x85\x81.",
    "NEWOBJ of settings with an argument": b"\x80\x02cargparse\nNamespace\nK\x01\x85\x81.",
    "REDUCE of settings": b"\x80\x02cargparse\nNamespace\n)R.",
    "BUILD of settings from no dict": b"\x80\x02cargparse\nNamespace\n)\x81K\x01b.",
    "BUILD of settings with a state of slots": b"\x80\x02cargparse\nNamespace\n)\x81N}\x86b.",
    "NEWOBJ_EX": b"\x80\x04cos\nsystem\nX\x0c\0\0\0touch canary\x85}\x92.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0ctouch canary\x85R.",
    "EXT1": b"\x80\x02\x82\x01)R.",
    "PERSID": b"\x80\x02Pos.system\n.",
    "REDUCE of a text": b"\x80\x02X\x02\0\0\0os)R.",
    "REDUCE of a tensor": b"\x80\x02ctorch\nTensor\nJ\0\0\0\x7f\x85R.",
    "BUILD of a class": b"\x80\x02ctorch\nSize\n}X\x01\0\0\0aK\x01sb.",
    "BUILD of a dict": b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\0\0\0itemsK\x01sb.",
    "BUFFER": b"\x80\x05\x97.",
    "dtype as a class": b"\x80\x02ctorch\nfloat32\nK\x01\x85R.",
    "set of a tensor": b"\x80\x02c__builtin__\nset\nctorch\nfloat32\n\x85R.",
    "codec": b"\x80\x02c_codecs\nencode\nX\x01\0\0\0aX\x04\0\0\0idna\x86R.",
    "module with a dot": b"\x80\x02ctorch.os\nsystem\nX\x0c\0\0\0touch canary\x85R.",
    "no module": b"\x80\x02c\n\n)R.",
}


@pytest.mark.parametrize("name", OPCODES)
def test_no_operation_of_pickle_beyond_those_of_state_dicts_is_done(name):
    with contextlib.suppress(CheckpointError):
        assert not isinstance(read_checkpoint(written(corpus.zip_of_pickle(OPCODES[name]))), torch.Tensor)
    refused(OPCODES[name])


def test_nothing_runs_in_the_tar_format_of_old():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            data = pickle.dumps(PAYLOADS["os.system"], 2)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    assert "damaged" in refused(buffer.getvalue())


# -- Memory and time ---------------------------------------------------------------------------------------------------


def storage(items, kind=b"Float", key=b"0"):
    """Opcodes of a persistent storage of 4-byte numbers."""
    number = b"\x8a\x09" + items.to_bytes(9, "little", signed=True)
    return b"(X\x07\0\0\0storagectorch\n%sStorage\nX\x01\0\0\0%sX\x03\0\0\0cpu" % (kind, key) + number + b"tQ"


def tensor(shape, stride, *, items=4, offset=0, kind=b"Float"):
    """Opcodes of a tensor."""
    numbers = [b"\x8a\x09" + value.to_bytes(9, "little", signed=True) for value in (*shape, *stride)]
    size, step = (b"(" + b"".join(part) + b"t" for part in (numbers[: len(shape)], numbers[len(shape) :]))
    place = b"\x8a\x09" + offset.to_bytes(9, "little", signed=True)
    start = b"ctorch._utils\n_rebuild_tensor_v2\n("
    return start + storage(items, kind) + place + size + step + b"\x89ccollections\nOrderedDict\n)RtR"


def in_dict(value, name=b"w"):
    return b"\x80\x02}X" + struct.pack("<I", len(name)) + name + value + b"s."


def test_the_opcodes_of_these_tests_are_those_of_a_tensor():
    assert read_checkpoint(written(corpus.zip_of_pickle(in_dict(tensor([2, 2], [2, 1])))))["w"].shape == (2, 2)


PICKLES = {
    "a tensor larger than its storage": tensor([1 << 40], [1]),
    "a tensor beyond the end of its storage": tensor([2], [1], offset=3),
    "an offset before its storage": tensor([2], [1], offset=-1),
    "a stride beyond its storage": tensor([2, 2], [1 << 40, 1]),
    "a negative stride": tensor([2], [-1]),
    "a negative size": tensor([-2], [1]),
    "strides of other dimensions": tensor([2, 2], [1]),
    "a size that overflows": tensor([1 << 62, 1 << 62, 4], [0, 0, 0]),
    "an expanded view larger than the memory": tensor([1 << 40], [0]),
    "a tensor without elements, but of endless size": tensor([0, 1 << 50], [1, 1]),
    "too many dimensions": tensor([1] * 65, [1] * 65),
    "a storage larger than its member": tensor([2], [1], items=1 << 40),
    "a storage that is not there": storage(4, key=b"9"),
    "a storage of less than nothing": storage(-4),
    "a type that does not fit its bytes": tensor([2], [1], kind=b"Double"),
    "a type that is none": tensor([2], [1], kind=b"Nonsense"),
    "a conjugated view": tensor([2], [1])[:-2] + b"}X\4\0\0\0conj\x88stR",
    "one storage of two sizes": b"(" + storage(4) + storage(2) + b"t",
    "a memo of four billion": b"K\x01r\xff\xff\xff\xff0",
    "a text longer than the file": b"X\xff\xff\xff\x7fabc",
    "a name longer than any": b"}X" + struct.pack("<I", 5000) + b"k" * 5000 + tensor([2], [1]) + b"s",
    "a name with a terminal's escape": b"}X\5\0\0\0\x1b[31m" + tensor([2], [1]) + b"s",
    "text that is not UTF-8": b"X\2\0\0\0\xff\xfe",
    "an empty stack": b"0000",
    "a missing memo": b"h\7",
    "one key without a value": b"}(K\1u",
}


@pytest.mark.parametrize("name", PICKLES)
def test_no_pickle_that_lies_is_believed(name):
    refused(corpus.zip_of_pickle(in_dict(PICKLES[name])))


BESIDE = {
    "bytes by the tebibyte": b"cbuiltins\nbytearray\n\x8a\x06\0\0\0\0\0\x10\x85R",
    "lists without end": b"]" * 100_000 + b"a" * 99_999,
    "tuples without end": b"N" + b"\x85" * 100_000,
    "objects without end": b"cnet\nNet\n" + b")R" * 100_000,
    "a list in itself": b"]q\1h\1a",
    "a dict in itself under all names": b"}q\1("
    + b"".join(b"X" + struct.pack("<I", len(key)) + key.encode() + b"h\1" for key in (*WRAPPERS, *EMA_WRAPPERS))
    + b"u",
    "billion laughs": b"]K\1a" + (b"q\x010](" + b"h\1" * 9 + b"e") * 30,
    "billion laughs in tuples": b"K\1" + b"q\1h\1\x86" * 60,
    "a key that takes years to hash": b"}K\1" + b"q\1h\1\x86" * 60 + b"K\1s",
    "keys that hash to one number": b"}("
    + b"".join(b"\x8a\x0a" + (((1 << 61) - 1) * n).to_bytes(10, "little") + b"N" for n in range(1, 10_000))
    + b"u",
    "a dict as a key": b"}}K\1s",
    "a key longer than any name": b"}X" + struct.pack("<I", 5000) + b"k" * 5000 + b"K\1s",
    "a key with a terminal's escape": b"}X\5\0\0\0\x1b[31mK\1s",
    "half a surrogate": b"X\3\0\0\0\xed\xa0\x80",
    "a number of more digits than Python shows": b"\x8b\x10\x27\0\0" + b"\7" * 10_000,
    "a class with a terminal's escape": b"c\x1b[31m\n\x1b]0;\7\n)R",
    "a module in itself": b"cnet\nNet\n)\x81q\1}X\x08\0\0\0_modules}X\1\0\0\0ah\1ssb",
    "a module that is there twice in one that is there twice": b"cnet\nNet\n)\x81"
    + b"q\x010cnet\nNet\n)\x81}X\x08\0\0\0_modules}(X\1\0\0\0ah\1X\1\0\0\0bh\1usb" * 60,
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("key", ["w", "model"])
@pytest.mark.parametrize("name", BESIDE)
def test_nothing_beside_the_weights_hurts(name, key, zipped, monkeypatch):
    key_of = b"X" + struct.pack("<I", len(key)) + key.encode()
    data = b"\x80\x02}(" + key_of + BESIDE[name] + b"X\x0c\0\0\0conv1.weight" + tensor([2, 2], [2, 1]) + b"u."
    if zipped:
        data = corpus.zip_of_pickle(data)
    else:
        parts = [torch.serialization.MAGIC_NUMBER, 1001, {"little_endian": True}]
        data = b"".join(pickle.dumps(part, 2) for part in parts) + data + pickle.dumps(["0"], 2)
        data += struct.pack("<q", 4) + b"\0" * 16
    path = written(data)
    assert torch.equal(read_checkpoint(path)["conv1.weight"], torch.zeros(2, 2))
    code, out, err = snnzoo(monkeypatch, "inspect", str(path))
    assert code in (0, 1)
    assert b"\x1b" not in out + err
    assert err.count(b"\n") == (code == 1)
    assert not err or err.startswith(b"Error: file.pth: ")


def test_more_tensors_or_operations_than_a_network_can_have_are_refused(monkeypatch):
    data = corpus.zip_of_pickle(b"\x80\x02](" + tensor([1], [1]) * 60 + b"e.")
    assert len(read_checkpoint(written(data))) == 60
    monkeypatch.setattr(limits, "MAX_TENSORS", 50)
    assert "more than 50 tensors" in refused(data)
    monkeypatch.setattr(pickles, "MAX_OPERATIONS", 100)
    assert "too many parts" in refused(data)


def test_a_zip_bomb_is_refused_before_it_inflates():
    zeros = b"\0" * (64 << 20)
    members = {**MEMBERS, f"{FOLDER}/data/0": zeros}
    bomb = corpus.zip_of(members, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 100_000
    assert "compressed" in refused(bomb)
    assert "compressed" in refused(corpus.zip_of({**MEMBERS, f"{FOLDER}/data.pkl": zeros}, zipfile.ZIP_DEFLATED))


def patched(data, signature, offset, value):
    """`data` with a field overwritten, at an offset from the last record of that signature."""
    place = data.rindex(signature) + offset
    return data[:place] + value + data[place + len(value) :]


MAX32 = b"\xff\xff\xff\xff"
ZIPS = {
    "no members": corpus.zip_of({}),
    "not of torch.save": corpus.zip_of({"a/readme.txt": b"hello"}),
    "a size beyond the file": patched(
        patched(corpus.zip_of(MEMBERS), b"PK\1\2", 20, b"\xff\xff\xff\x7f"), b"PK\1\2", 24, b"\xff\xff\xff\x7f"
    ),
    "sizes that differ": patched(corpus.zip_of(MEMBERS), b"PK\1\2", 24, b"\xff\0\0\0"),
    "a header beyond the file": patched(corpus.zip_of(MEMBERS), b"PK\1\2", 42, b"\xff\xff\xff\x7f"),
    "a zip64 size without its field": patched(corpus.zip_of(MEMBERS), b"PK\1\2", 24, MAX32),
    "encrypted": patched(corpus.zip_of(MEMBERS), b"PK\1\2", 8, b"\1\0"),
    "another compression": patched(corpus.zip_of(MEMBERS), b"PK\1\2", 10, b"\x63\0"),
    "a directory of more entries": patched(corpus.zip_of(MEMBERS), b"PK\5\6", 10, b"\xff\xff"),
    "a directory beyond the file": patched(corpus.zip_of(MEMBERS), b"PK\5\6", 12, MAX32),
    "a directory elsewhere": patched(corpus.zip_of(MEMBERS), b"PK\5\6", 16, b"\0\0\0\0"),
    "a comment": patched(corpus.zip_of(MEMBERS), b"PK\5\6", 20, b"\5\0") + b"hello",
    "something before it": b"PK hello" + corpus.zip_of(MEMBERS),
    "something behind it": corpus.zip_of(MEMBERS) + b"hello",
    "a zip behind it": corpus.zip_of(MEMBERS) + corpus.zip_of({**MEMBERS, "b": b""}),
    "a storage of another size": corpus.zip_of({**MEMBERS, f"{FOLDER}/data/0": b"\0" * 4}),
    "a storage missing": corpus.zip_of({key: value for key, value in MEMBERS.items() if not key.endswith("/0")}),
    "a storage outside the folder": corpus.zip_of(
        {key.replace("data/0", "data/../0"): value for key, value in MEMBERS.items()}
    ),
    "names twice, but for their case": corpus.zip_of({**MEMBERS, f"{FOLDER}/DATA.PKL": PICKLE}),
    "two folders": corpus.zip_of({**MEMBERS, "other/data.pkl": PICKLE}),
    "a byte order that is none": corpus.zip_of({**MEMBERS, f"{FOLDER}/byteorder": b"middle"}),
    "a name that is not UTF-8": corpus.zip_of({**MEMBERS, f"{FOLDER}/é": b""}).replace("é".encode(), b"\xff\xfe"),
}


@pytest.mark.parametrize("name", ZIPS)
def test_no_zip_directory_that_lies_is_believed(name):
    refused(ZIPS[name])


def test_members_that_overlap_are_refused():
    """Two entries of the directory name the same bytes: the bomb that needs no compression."""
    data = corpus.zip_of({**MEMBERS, f"{FOLDER}/data/1": MEMBERS[f"{FOLDER}/data/0"]})
    read_checkpoint(written(data))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        other = archive.getinfo(f"{FOLDER}/data/0").header_offset
    assert "overlap" in refused(patched(data, b"PK\1\2", 42, struct.pack("<I", other)))


# -- Damage ------------------------------------------------------------------------------------------------------------

FORMATS = {
    "zip": corpus.saved(WEIGHT),
    "legacy": corpus.saved(WEIGHT, zipped=False),
    "safetensors": save(WEIGHT, {"format": "pt"}),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_truncated_anywhere_is_refused(kind):
    data = FORMATS[kind]
    for end in range(0, len(data), 7 if kind == "zip" else 1):
        refused(data[:end], "file")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_flipped_bit_is_refused_or_changes_a_value_but_no_more(kind):
    data = FORMATS[kind]
    for place in range(0, len(data), 7 if kind == "zip" else 1):
        flipped = data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :]
        with contextlib.suppress(CheckpointError):
            read_checkpoint(written(flipped))


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


@pytest.mark.parametrize("name", SAFETENSORS)
def test_no_safetensors_header_that_lies_is_believed(name):
    if name == "a type of half bytes" and hasattr(torch, "float4_e2m1fn_x2"):
        pytest.skip("PyTorch has that type")
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


def snnzoo(monkeypatch, *arguments):
    """Exit code, standard output and standard error of the command."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict") for _ in range(2)]
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", streams[0])
        patch.setattr(sys, "stderr", streams[1])
        patch.setattr(sys, "argv", ["snnzoo", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
    for stream in streams:
        stream.flush()
    return caught.value.code, *(stream.buffer.getvalue() for stream in streams)


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


# -- What is good still loads ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(corpus.GOOD))
def test_the_good_files_of_the_corpus_load(number):
    suffix, data = corpus.seeds()[number]
    Path("part.safetensors").write_bytes(next(data for suffix, data in corpus.seeds() if suffix == ".safetensors"))
    read_checkpoint(written(data, f"file{suffix}"))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_training_checkpoint_comes_back_as_torch_reads_it(zipped):
    path = written(corpus.saved(corpus.training_checkpoint(), zipped=zipped))
    expected, read = torch.load(path, weights_only=False), read_checkpoint(path)
    assert list(read) == list(expected)
    torch.testing.assert_close(read["state_dict"], expected["state_dict"], rtol=0, atol=0)
    nested = [{"a": None}, [1, 2], read["hyper_parameters"]["nested"][2]]  # a set as a list, bytes opaque
    assert read["hyper_parameters"] == {**expected["hyper_parameters"], "nested": nested}
    torch.testing.assert_close(read["optimizer_states"], expected["optimizer_states"], rtol=0, atol=0)
    assert read["lr_schedulers"] == expected["lr_schedulers"]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_the_settings_of_torchvisions_training_script_do_not_keep_its_weights_from_loading(zipped):
    settings = argparse.Namespace(model="resnet18", lr=0.1, nested={"sizes": [224, 232]}, resume=None)
    read = read_checkpoint(written(corpus.saved({"model": WEIGHT, "epoch": 3, "args": settings}, zipped=zipped)))
    assert torch.equal(read["model"]["w"], WEIGHT["w"])
    assert read["args"].kind == "argparse.Namespace"
    assert dict(read["args"]) == vars(settings)


STORED = [torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int64, torch.bool,
          torch.complex64, torch.uint16, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2]  # fmt: skip


@pytest.mark.parametrize("dtype", STORED, ids=str)
def test_tensors_of_every_type_come_back_bit_for_bit(dtype):
    value = torch.arange(6).to(dtype).view(2, 3)
    content = {"w": value, "none": torch.empty(0, 3, dtype=dtype), "scalar": torch.tensor(1).to(dtype)}
    read = read_checkpoint(written(corpus.saved(content)))
    for key, expected in content.items():
        assert read[key].dtype == dtype
        assert read[key].shape == expected.shape
        assert torch.equal(read[key].flatten().view(torch.uint8), expected.flatten().view(torch.uint8))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_views_tied_weights_and_parameters_come_back(zipped):
    weight = torch.randn(4, 6)
    content = {
        "weight": weight, "tied": weight, "rows": weight[1:3], "transposed": weight.t(), "part": weight[1:, 2:4],
        "expanded": torch.randn(1, 3).expand(5, 3), "parameter": nn.Parameter(weight.clone()),
        "frozen": nn.Parameter(torch.ones(2), requires_grad=False), "grad": torch.ones(2, requires_grad=True),
        "channels last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    }  # fmt: skip
    read = read_checkpoint(written(corpus.saved(content, zipped=zipped)))
    for key, expected in content.items():
        assert torch.equal(read[key], expected), key
        assert read[key].stride() == expected.stride(), key
    assert read["tied"].data_ptr() == read["weight"].data_ptr()


def test_tensors_of_a_zip_and_of_safetensors_are_mapped_not_copied():
    big = {"w": torch.zeros(8 << 20)}
    for name, data in (("a.pth", corpus.saved(big)), ("a.safetensors", save(big))):
        read = read_checkpoint(written(data, name))
        assert Path(name).name in Path("/proc/self/maps").read_text()
        assert torch.equal(read["w"], big["w"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_weights_that_are_not_numbers_load_and_are_counted(dtype):
    weight = torch.tensor([1.0, float("nan"), float("inf")]).to(dtype)
    bad = 3 - int(weight.float().isfinite().sum())  # float8_e4m3fn has no infinity
    assert bad == (1 if dtype == torch.float8_e4m3fn else 2)
    path = written(corpus.saved({"conv1.weight": weight, "b": torch.ones(2)}))
    assert inspect_checkpoint(path)["not_finite"] == {"conv1.weight": bad}


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64], ids=str)
def test_weights_of_a_type_that_means_something_else_are_not_loaded(dtype):
    net = factory.build("resnet20", nn.ReLU, step_mode="s")
    weights = {**net.state_dict(), "layer1.0.conv1.weight": net.state_dict()["layer1.0.conv1.weight"].to(dtype)}
    path = written(corpus.saved(weights))
    with pytest.raises(CheckpointError, match=r"layer1\.0\.conv1\.weight " + str(dtype).removeprefix("torch.")):
        factory.load_ann_weights(net, read_checkpoint(path), "file.pth")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn], ids=str)
def test_weights_of_every_floating_type_are_loaded(dtype):
    net = factory.build("resnet20", nn.ReLU, step_mode="s")
    weight = net.state_dict()["layer1.0.conv1.weight"].to(dtype)
    factory.load_ann_weights(net, {**net.state_dict(), "layer1.0.conv1.weight": weight}, "file.pth")
    assert torch.equal(net.state_dict()["layer1.0.conv1.weight"], weight.float())


# -- At random ---------------------------------------------------------------------------------------------------------

QUICK = settings(max_examples=150, deadline=2000, suppress_health_check=list(HealthCheck))
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 200), 1 << 200) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner)
    | st.dictionaries(st.text("abc.é ", max_size=4) | st.integers(-9, 9), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip


@QUICK
@given(content=PLAIN, zipped=st.booleans())
def test_whatever_plain_values_torch_saves_come_back(content, zipped):
    path = written(corpus.saved({"x": content, **WEIGHT}, zipped=zipped))
    read = read_checkpoint(path)
    assert repr(read["x"]) == repr(content)
    assert torch.equal(read["w"], WEIGHT["w"])


PIECES = st.sampled_from([
    *(bytes([code]) for code in b"(]}tuesabRQ0)N\x85\x86\x87\x88\x89\x81"), b"K\1", b"q\1", b"h\1", b"X\1\0\0\0a",
    b"M\xff\xff", b"J\xff\xff\xff\xff", b"G@\t!\xfbTD-\x18", b"U\1b", b"\x8a\1\7", b"ccollections\nOrderedDict\n",
    b"ctorch\nSize\n", b"ctorch\nfloat32\n", b"c__builtin__\nset\n", b"cos\nsystem\n", b"ccollections\nCounter\n",
    b"ctorch._utils\n_rebuild_parameter\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n",
    storage(4), storage(5), tensor([2, 2], [2, 1]), tensor([4], [1]), tensor([5], [1]), b"X\x07\0\0\0storage",
])  # fmt: skip


@settings(QUICK, max_examples=400)
@given(pieces=st.lists(PIECES, max_size=25))
def test_operations_of_pickle_at_random_are_read_or_refused(pieces):
    path = written(corpus.zip_of_pickle(b"\x80\x02" + b"".join(pieces) + b"."))
    with contextlib.suppress(SnnzooError):
        inspect_checkpoint(path)


@QUICK
@given(data=st.binary(max_size=600), start=st.sampled_from([b"", b"PK\3\4", b"\x80\x02", b"{", b"\x08" + b"\0" * 7]))
def test_bytes_at_random_are_refused(data, start):
    path = written(start + data)
    with pytest.raises(SnnzooError):
        read_checkpoint(path)


def mutated_files(first, count, tmp_path):
    """What came of `count` mutated files, read in a process of their own."""
    command = [sys.executable, corpus.__file__, str(first), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600, cwd=tmp_path)
    assert done.returncode == 0, f"the process died: {done.stderr[-2000:]}"
    return Counter(json.loads(done.stdout))


def check(tally, count):
    shown = ", ".join(f"{key} {value:,}" for key, value in tally.items() if key != "failures")
    print(f"\nmutated checkpoints: {shown}")
    assert not tally["failures"]
    assert tally["files"] == count
    assert tally["read"] + tally["refused"] == count
    assert min(tally["read"], tally["refused"]) > count / 20  # both happen
    assert tally["executions"] == tally["tracebacks"] == tally["hangs"] == 0
    assert tally["memory"] < 1 << 30  # the files are small: 4 times their size would not show


def test_a_few_mutated_files_do_no_harm(tmp_path):
    check(mutated_files(0, 500, tmp_path), 500)


@pytest.mark.slow
def test_twelve_thousand_mutated_files_do_no_harm(tmp_path):
    check(mutated_files(1_000_000, 12_000, tmp_path), 12_000)


PEAK = """
import resource, sys
from pathlib import Path
from snnzoo.recognition import inspect_checkpoint
inspect_checkpoint(Path(sys.argv[1]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_the_peak_memory_of_a_large_file_is_bounded(kind, dtype):
    if kind == "legacy" and dtype != torch.float32:
        pytest.skip("torch.save writes no such file that torch.load reads")
    content = {"conv1.weight": torch.zeros(200 << 20, dtype=torch.uint8).view(dtype)}
    path = written(save(content) if kind == "safetensors" else corpus.saved(content, zipped=kind == "zip"))
    done = subprocess.run([sys.executable, "-c", PEAK, path], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    peak, size = int(done.stdout), path.stat().st_size
    print(f"\n{kind} of {size:,} bytes: peak {peak:,} bytes")
    assert peak < 4 * size + (1 << 30)
