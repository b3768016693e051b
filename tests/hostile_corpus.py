"""Checkpoints that are damaged, that lie or that want to run code, made by code; and a process that reads them.

`python tests/hostile_corpus.py FIRST COUNT` mutates COUNT files, reads each as `snnzoo inspect` does, and prints what
came of it as JSON. Every payload, if it ran, would make a file named canary in the working folder.
"""

from __future__ import annotations

import builtins
import collections
import datetime
import faulthandler
import importlib
import io
import json
import os
import random
import runpy
import struct
import subprocess
import sys
import time
import webbrowser
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import nn

CANARY = "canary"
_TOUCH = f"touch {CANARY}"
_OPEN = f"open({CANARY!r}, 'w').close()"
HANG = 10  # seconds
GOOD = 12  # of the seeds are files of no ill will, the first
_WATCHED = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.remove", "subprocess.Popen",
            "socket.connect", "webbrowser.open", "shutil.rmtree", "pty.spawn")  # fmt: skip


class Call:
    """Pickled as a call of `function`, which may be such a call itself."""

    def __init__(self, function, *arguments):
        self.pickled = (function, arguments)

    def __reduce__(self):
        return self.pickled

    def __call__(self):
        raise NotImplementedError  # only pickle asks whether it is callable


def payloads():
    """Objects that make the canary, or much else, when they are unpickled; by what they use."""
    module = Call(importlib.import_module, "os")
    return {
        "os.system": Call(os.system, _TOUCH),
        "eval": Call(eval, _OPEN),
        "exec": Call(exec, _OPEN),
        "open": Call(open, CANARY, "w"),
        "subprocess": Call(subprocess.check_call, ["touch", CANARY]),
        "getattr of a module": Call(Call(getattr, module, "system"), _TOUCH),
        "getattr of a class": Call(Call(getattr, Path, "touch"), Call(Path, CANARY)),
        "getattr chain": Call(Call(getattr, Call(getattr, builtins.dict, "__class__"), "mro"), int),
        "__import__": Call(__import__, "antigravity"),
        "webbrowser": Call(webbrowser.open, "http://localhost:1"),
        "runpy": Call(runpy.run_path, CANARY),
        "torch.load": Call(torch.load, CANARY),
        "torch.hub": Call(torch.hub.load, "owner/repository", "model"),
        "a call of a tensor class": Call(torch._tensor._rebuild_from_type_v2, eval, torch.Tensor, (_OPEN,), {}),
        "bytearray": Call(bytearray, 1 << 40),
        "a set of a range": Call(set, range(1 << 40)),
        "a whole module": nn.Linear(2, 2),
    }


def state_dict():
    """Of a small network with a ResNet's names."""
    torch.manual_seed(0)
    return _small().state_dict()


def _small():
    layers = [("conv1", nn.Conv2d(3, 4, 3, bias=False)), ("bn1", nn.BatchNorm2d(4))]
    for stage in (1, 2, 3):
        block = nn.Sequential(
            collections.OrderedDict(
                conv1=nn.Conv2d(4, 4, 3, bias=False),
                bn1=nn.BatchNorm2d(4),
                conv2=nn.Conv2d(4, 4, 3, bias=False),
                bn2=nn.BatchNorm2d(4),
            )
        )
        layers.append((f"layer{stage}", nn.Sequential(block)))
    return nn.Sequential(collections.OrderedDict([*layers, ("fc", nn.Linear(4, 3))]))


def training_checkpoint():
    """As Lightning saves it: optimizer, schedule, hyper-parameters and callbacks beside the weights."""
    net = _small()
    net.fc(torch.zeros(1, 4)).sum().backward()
    optimizer = torch.optim.Adam(net.parameters())
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 3])
    return {
        "epoch": 3,
        "global_step": 12_345_678_901,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": collections.OrderedDict((f"model.{key}", value) for key, value in net.state_dict().items()),
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [schedule.state_dict()],
        "callbacks": {"ModelCheckpoint{'monitor': 'loss'}": {"best_model_score": torch.tensor(0.3), "mode": "min"}},
        "hyper_parameters": {"lr": 1e-3, "betas": (0.9, 0.99), "name": "é", "nested": [{"a": None}, {1, 2}, b"\xff"]},
    }


def saved(content, *, zipped=True, protocol=2):
    """The bytes that torch.save writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def scripted():
    """The bytes that torch.jit.save writes."""
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(_small()), buffer)
    return buffer.getvalue()


def members_of(data):
    """The members of a zip file, by name."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zip_of(members, compression=zipfile.ZIP_STORED):
    """A zip file of `members`, its checksums right."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def zip_of_pickle(data, storages=(b"\0" * 16,)):
    """A zip file as of torch.save around a pickle given by its opcodes."""
    members = {"archive/data.pkl": data, "archive/version": b"3\n", "archive/byteorder": b"little"}
    return zip_of(members | {f"archive/data/{number}": content for number, content in enumerate(storages)})


def safetensors_of(header, data=b"", length=None):
    """A safetensors file of a header (JSON, or its bytes), which may lie about its length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def seeds():
    """Files to begin from, good and malicious: suffix and bytes."""
    tensors = {key: value for key, value in state_dict().items() if value.ndim}
    good = [
        (".pth", saved(state_dict())),
        (".th", saved({"state_dict": state_dict(), "best_prec1": 91.7}, zipped=False)),
        (".ckpt", saved(training_checkpoint())),
        (".ckpt", saved(training_checkpoint(), zipped=False)),
        (".bin", saved({key: value.bfloat16() for key, value in tensors.items()})),
        (".pt", saved(_small())),
        (".pt", saved({"model": _small(), "best": np.float64(91.7), "when": datetime.date(2020, 1, 2)}, protocol=4)),
        (".pt", scripted()),
        (".pt", saved({"a": torch.arange(6).to(torch.float8_e4m3fn), "b": nn.Parameter(torch.ones(2, 3))})),
        (".safetensors", save(tensors, {"format": "pt"})),
        (".safetensors", save({key: value.half() for key, value in tensors.items()})),
        (".index.json", json.dumps({"weight_map": dict.fromkeys(tensors, "part.safetensors")}).encode()),
    ]
    bad = [(".pth", saved({"conv1.weight": torch.ones(2), "x": payload})) for payload in payloads().values()]
    return [*good, *bad]


def mutated(number, files):
    """One of the files, changed at random: the same for the same number."""
    chance = random.Random(number)
    suffix, data = files[chance.randrange(GOOD) if chance.random() < 0.8 else chance.randrange(len(files))]
    inside = chance.random() < 0.6
    if inside and data.startswith(b"PK"):  # what a zip file holds, so that its checksums are right
        members = members_of(data)
        name = chance.choice([name for name in members if name.endswith("data.pkl")] * 3 + [*members])
        return suffix, zip_of({**members, name: _change(members[name], chance, data)})
    if inside and suffix == ".safetensors":  # its header, so that its length is right
        end = 8 + struct.unpack("<Q", data[:8])[0]
        return suffix, safetensors_of(_change(data[8:end], chance, data), data[end:])
    if inside and suffix in (".th", ".ckpt"):  # the pickles at the beginning, rather than the weights behind them
        return suffix, _change(data[:3000], chance, data) + data[3000:]
    return suffix, _change(data, chance, data)


def _change(data, chance, other):
    for _ in range(chance.choice([1, 1, 1, 2, 4, 16])):
        data = chance.choice(_CHANGES)(data, chance, other)
    return data


def _place(data, chance):
    return chance.randrange(len(data) + 1)


def _flip(data, chance, _):
    place = chance.randrange(max(len(data), 1))
    return data[:place] + bytes(byte ^ 1 << chance.randrange(8) for byte in data[place : place + 1]) + data[place + 1 :]


def _cut(data, chance, _):
    return data[: _place(data, chance)]


def _remove(data, chance, _):
    place = _place(data, chance)
    return data[:place] + data[place + chance.randrange(64) :]


def _copy(data, chance, other):
    place, source, size = _place(data, chance), _place(other, chance), chance.randrange(64)
    return data[:place] + other[source : source + size] + data[place + chance.choice([0, size]) :]


def _number(data, chance, _):
    """A number that may be a length, a size or an offset."""
    value = chance.choice([0, 1, 127, 128, 255, 1 << 15, (1 << 16) - 1, 1 << 31, (1 << 32) - 1, 1 << 62, (1 << 63) - 1])
    size = chance.choice([1, 2, 4, 8])
    place = _place(data, chance)
    return data[:place] + (value & (1 << 8 * size) - 1).to_bytes(size, "little") + data[place + size :]


def _opcode(data, chance, _):
    """An operation of pickle, or a digit, or a bracket of JSON."""
    place = _place(data, chance)
    written = chance.choice([bytes([byte]) for byte in b'0123456789()}]de.cRbQ\x85\x86\x87\x81h\x8a-[{,:"s'])
    return data[:place] + written + data[place + chance.choice([0, 1]) :]


def _digits(data, chance, _):
    """Another number in a text."""
    found = [place for place in range(len(data)) if data[place : place + 1].isdigit()]
    if not found:
        return data
    place = chance.choice(found)
    return data[:place] + chance.choice([b"0", b"9" * 12, b"-1", b"1e9", b"null", b"99"]) + data[place + 1 :]


_CHANGES = (_flip, _flip, _cut, _remove, _copy, _number, _number, _opcode, _opcode, _digits)


def _virtual_peak():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmPeak:")[2].split()[0]) << 10


def _read_all(first, count):
    """Read `count` mutated files in this process, and tally what came of it."""
    from snnzoo.errors import SnnzooError
    from snnzoo.recognition import inspect_checkpoint

    files = seeds()
    Path("part.safetensors").write_bytes(next(data for suffix, data in files if suffix == ".safetensors"))
    for suffix, data in files[:GOOD]:  # what they import is imported, and the pools of memory are filled
        Path(f"good{suffix}").write_bytes(data)
        inspect_checkpoint(Path(f"good{suffix}"))
    events = []
    sys.addaudithook(lambda event, _: events.append(event) if event in _WATCHED else None)
    tally = collections.Counter(files=0, read=0, refused=0, executions=0, tracebacks=0, hangs=0)
    before, largest, slowest, failures = _virtual_peak(), 0, 0.0, []
    for number in range(first, first + count):
        suffix, data = mutated(number, files)
        path = Path(f"file{suffix}")
        path.write_bytes(data)
        largest = max(largest, len(data))
        events.clear()
        faulthandler.dump_traceback_later(6 * HANG, exit=True)
        started = time.monotonic()
        try:
            inspect_checkpoint(path)
            tally["read"] += 1
        except SnnzooError:
            tally["refused"] += 1
        except BaseException as error:
            tally["tracebacks"] += 1
            failures.append(f"{number}: {type(error).__name__}: {error}")
        took = time.monotonic() - started
        faulthandler.cancel_dump_traceback_later()
        slowest = max(slowest, took)
        tally["files"] += 1
        tally["hangs"] += took > HANG
        if events or Path(CANARY).exists():
            tally["executions"] += 1
            failures.append(f"{number}: ran code {events}")
            Path(CANARY).unlink(missing_ok=True)
    return {
        **tally,
        "slowest": round(slowest, 3),
        "largest_file": largest,
        "memory": _virtual_peak() - before,  # allocated beyond what good files need, touched or not
        "failures": failures[:20],
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(_read_all(int(sys.argv[1]), int(sys.argv[2]))))
