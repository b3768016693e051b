"""What the tests of hostile files share: a folder that no code may touch, and how a file is refused."""

import io
import sys
from pathlib import Path

import hostile_corpus as corpus
import pytest
import torch
from safetensors.torch import save

from snnzoo.checkpoints.files import read_checkpoint
from snnzoo.cli.main import main
from snnzoo.errors import CheckpointError

WEIGHT = {"w": torch.arange(6.0).view(2, 3)}
FORMATS = {
    "zip": corpus.saved(WEIGHT),
    "legacy": corpus.saved(WEIGHT, zipped=False),
    "safetensors": save(WEIGHT, {"format": "pt"}),
}


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch):
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
