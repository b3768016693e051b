"""`snnzoo.load_ann`: the ANN of any weights in one call, computing what the model they are from computes."""

from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

import snnzoo
from helpers import shake_batch_norm
from snnzoo.checkpoints.layouts import from_torchvision
from snnzoo.errors import CheckpointError, UsageError


@pytest.fixture(scope="module")
def resnet18():
    torch.manual_seed(0)
    return shake_batch_norm(torchvision.models.resnet18(num_classes=7)).double().eval()


def same_logits(ann, theirs):
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return torch.allclose(ann.double()(x), theirs(x), atol=1e-12)


@pytest.mark.parametrize("layout", ["torchvision", "huggingface", "container"])
def test_a_checkpoint_in_any_layout_gives_the_ann_it_is_from_and_says_what_was_found(resnet18, layout, tmp_path):
    file, lines = tmp_path / "mine.pth", []
    torch.save({"state_dict": from_torchvision(resnet18.state_dict(), layout), "epoch": 3}, file)
    ann = snnzoo.load_ann("resnet18", checkpoint=file, notify=lines.append)
    assert same_logits(ann, resnet18)
    assert not ann.training
    assert lines[0].startswith("layout ")
    assert same_logits(snnzoo.load_ann("resnet18", checkpoint=str(file), layout=layout, num_classes=7), resnet18)


def test_a_head_that_is_given_takes_the_place_of_the_inferred_one(resnet18, tmp_path):
    theirs = torchvision.models.resnet18().double().eval()
    theirs.fc = nn.Sequential(nn.Linear(512, 16), nn.Tanh(), nn.Linear(16, 5)).double()
    torch.save(theirs.state_dict(), tmp_path / "mine.pth")
    head = [["Linear", 512, 16, True], ["Tanh"], ["Linear", 16, 5, True]]
    ann = snnzoo.load_ann("resnet18", checkpoint=tmp_path / "mine.pth", head=head)
    assert same_logits(ann, theirs)
    assert not same_logits(snnzoo.load_ann("resnet18", checkpoint=tmp_path / "mine.pth"), theirs)  # takes it for a ReLU


def test_what_does_not_go_together_or_does_not_fit_is_an_error(resnet18, tmp_path):
    file = tmp_path / "mine.pth"
    torch.save(resnet18.state_dict(), file)
    for mistake, message in (
        ({"weights": "digits", "checkpoint": file}, "either weights"),
        ({"layout": "timm"}, "--layout is for a --checkpoint of yours"),
        ({"head": [["Linear", 512, 7, True]]}, "head is for a checkpoint of yours"),
        ({"weights": "digits", "num_classes": 7}, "have 10 classes"),
        ({"checkpoint": Path("nowhere.pth")}, "nowhere.pth: no such file"),
    ):
        with pytest.raises(UsageError, match=message):
            snnzoo.load_ann("resnet18", **mistake)
    with pytest.raises(CheckpointError, match="has 7 classes, not 5"):
        snnzoo.load_ann("resnet18", checkpoint=file, num_classes=5)
    with pytest.raises(CheckpointError, match="holds the weights of resnet18, not resnet34"):
        snnzoo.load_ann("resnet34", checkpoint=file)
