"""Models are known by the keys and shapes of their weights."""

import time

import pytest
import torch
from torch import nn

from snnzoo.checkpoints.untrusted import limits
from snnzoo.errors import CheckpointError
from snnzoo.models import factory, registry
from snnzoo.recognition import architecture, identify


def meta(name, **kwargs):
    """Keys and shapes of a model, without data."""
    with torch.device("meta"):
        return factory.build(name, nn.ReLU, **kwargs).state_dict()


@pytest.mark.parametrize(
    "name", [name for name, spec in registry.MODELS.items() if spec.convertible and name != "resnet1202"]
)
def test_every_model_is_known_by_its_weights(name):
    found, kwargs = identify(meta(name, num_classes=7, in_channels=1), "f")
    assert (found, kwargs["num_classes"], kwargs["in_channels"]) == (name, 7, 1)


@pytest.mark.parametrize("option", ["A", "B"])
def test_the_shortcut_of_a_cifar_resnet_is_known(option):
    assert identify(meta("resnet32", option=option), "f") == (
        "resnet32",
        {"num_classes": 10, "in_channels": 3, "option": option},
    )


@pytest.mark.parametrize(
    ("name", "depth", "groups", "width"),
    [("resnet18", 18, 1, 64), ("resnet101", 101, 1, 64), ("resnext50_32x4d", 50, 32, 4),
     ("wide_resnet50_2", 50, 1, 128),
     ("resnext101_64x4d", 101, 64, 4), ("resnet56", 56, 1, 64)],
)  # fmt: skip
def test_depth_groups_and_width_are_read_off(name, depth, groups, width):
    found = architecture(meta(name))
    assert (found.depth, found.groups, found.width_per_group) == (depth, groups, width)


@pytest.mark.parametrize(
    "head",
    [
        ["Linear", 512, 5, False],
        [["Identity"], ["Linear", 512, 5, True]],
        [["Linear", 512, 64, True], ["ReLU"], ["Identity"], ["Linear", 64, 5, True]],
    ],
)
def test_a_replaced_classifier_is_known_and_builds_again(head):
    state_dict = meta("resnet18", head=head)
    name, kwargs = identify(state_dict, "f")
    assert (name, kwargs["num_classes"], kwargs["head"]) == ("resnet18", 5, head)
    assert list(meta(name, **kwargs)) == list(state_dict)


def test_a_plain_classifier_has_no_description():
    assert "head" not in identify(meta("resnet18"), "f")[1]


@pytest.mark.parametrize(
    ("lost", "message"),
    [("fc.", "fc.weight is missing"), ("conv1.", "conv1.weight is missing"), ("layer4.", r"blocks in each stage: \[2"),
     ("layer", "blocks in each stage: none")],
)  # fmt: skip
def test_incomplete_weights_are_refused_with_what_is_missing(lost, message):
    weights = {key: value for key, value in meta("resnet18").items() if not key.startswith(lost)}
    with pytest.raises(CheckpointError, match=message):
        identify(weights, "f")


def test_a_small_stem_before_four_stages_is_that_of_small_images_and_no_other_is_known():
    small, other = (torch.empty(64, 3, size, size, device="meta") for size in (3, 5))
    assert identify({**meta("resnet18"), "conv1.weight": small}, "f")[1]["stem"] == "cifar"
    with pytest.raises(CheckpointError, match="resnet18 has a stem of 7x7 or 3x3, this one 5x5"):
        identify({**meta("resnet18"), "conv1.weight": other}, "f")


def test_incomplete_weights_still_tell_what_they_can():
    weights = {key: value for key, value in meta("resnet50").items() if not key.startswith("fc.")}
    found = architecture(weights)
    assert (found.name, found.num_classes, found.depth) == ("resnet50", None, 50)
    assert architecture({}).name is None


@pytest.mark.slow
def test_as_many_stages_as_a_file_may_have_tensors_are_counted_in_seconds():
    state_dict = {f"layer{i}.0.conv1.weight": torch.zeros(1, 1, 1, 1) for i in range(limits.MAX_TENSORS)}
    started = time.process_time()
    assert architecture(state_dict).stages == (1,) * limits.MAX_TENSORS
    assert time.process_time() - started < 20
