"""Nothing in a hostile or broken checkpoint hurts: no code runs, no memory fills, and the error is one clear line."""

import contextlib
import io
import json
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter, OrderedDict

import hostile_corpus as corpus
import numpy
import pytest
import torch
from hostile_reading import FORMATS, WEIGHT, refused, snnzoo, working_folder, written  # noqa: F401 (a fixture)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from snnzoo.checkpoints.files import read_checkpoint
from snnzoo.checkpoints.untrusted import limits, pickles
from snnzoo.checkpoints.wrapping import EMA_WRAPPERS, WRAPPERS
from snnzoo.errors import CheckpointError, SnnzooError
from snnzoo.recognition import inspect_checkpoint

PAYLOADS = corpus.payloads()
MEMBERS = corpus.members_of(corpus.saved(WEIGHT))
MEMBERS |= {key: MEMBERS.pop(key) for key in list(MEMBERS) if key.endswith("/data/0")}  # last: it is read
FOLDER = next(iter(MEMBERS)).partition("/")[0]
PICKLE = MEMBERS[f"{FOLDER}/data.pkl"]


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
def test_no_payload_runs_in_a_pickle_that_torch_save_did_not_write(name, monkeypatch):
    for protocol in range(6):
        path = written(pickle.dumps({**WEIGHT, "x": PAYLOADS[name]}, protocol))
        with monkeypatch.context() as patch:
            for module, function in ((torch, "load"), (pickle, "Unpickler"), (pickle, "_Unpickler"), (pickle, "loads")):
                patch.delattr(module, function)
            if protocol < 2 or name == "a call of a tensor class":
                with pytest.raises(CheckpointError):
                    read_checkpoint(path)
            else:
                assert torch.equal(read_checkpoint(path)["w"], WEIGHT["w"])


@pytest.mark.parametrize(
    "change",
    [
        (b"K\x01\x85", b"K\x02\x85"),  # a shape of more
        (b"K\x01\x85", b"J\xff\xff\xff\x7f\x85"),
        (b"K\x01\x85", b"J\xff\xff\xff\xff\x85"),
        (b"\x8c\x02f4", b"\x8c\x02f8"),
    ],
)
def test_no_array_of_numpy_that_lies_is_believed(change):
    data = pickle.dumps({"w": numpy.full(1, 0.5, numpy.float32)}, 4)
    assert read_checkpoint(written(data))["w"].tolist() == [0.5]
    assert change[0] in data
    with contextlib.suppress(CheckpointError):
        read = read_checkpoint(written(data.replace(*change)))
        assert not isinstance(read["w"], torch.Tensor)


def test_bytes_of_storages_in_a_pickle_are_checked():
    data = pickle.dumps(WEIGHT, 4)
    assert torch.equal(read_checkpoint(written(data))["w"], WEIGHT["w"])
    for end in range(len(data) - 1, 20, -7):
        refused(data[:end])
    refused(b"\x80\x04ctorch.storage\n_load_from_bytes\nC\x02ab\x85R.")


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
    with contextlib.suppress(CheckpointError):
        assert not isinstance(read_checkpoint(written(OPCODES[name])), torch.Tensor)


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


def large(kind, dtype):
    if kind == "pickle":  # its arrays are in it
        return pickle.dumps({f"conv{i}.weight": numpy.zeros(25 << 20, numpy.float32) for i in range(1, 4)}, 4)
    content = {"conv1.weight": torch.zeros(200 << 20, dtype=torch.uint8).view(dtype)}
    return save(content) if kind == "safetensors" else corpus.saved(content, zipped=kind == "zip")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "pickle"])
def test_the_peak_memory_of_a_large_file_is_bounded(kind, dtype):
    if kind in ("legacy", "pickle") and dtype != torch.float32:
        pytest.skip("there are no such files")
    path = written(large(kind, dtype))
    done = subprocess.run([sys.executable, "-c", PEAK, path], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    peak, size = int(done.stdout), path.stat().st_size
    print(f"\n{kind} of {size:,} bytes: peak {peak:,} bytes")
    assert peak < 4 * size + (1 << 30)
