"""Layers of torch.nn with a step mode."""

import copy
import pickle

import pytest
import torch
from torch import nn

from snnzoo import functional, layer, neuron

CASES = [
    ("Conv1d", (3, 4, 3), (2, 3, 9)),
    ("Conv2d", (3, 4, 3), (2, 3, 6, 6)),
    ("Conv3d", (3, 4, 3), (2, 3, 4, 4, 4)),
    ("ConvTranspose2d", (3, 4, 3), (2, 3, 4, 4)),
    ("BatchNorm1d", (3,), (2, 3)),
    ("BatchNorm2d", (3,), (2, 3, 4, 4)),
    ("GroupNorm", (1, 3), (2, 3, 4, 4)),
    ("MaxPool2d", (2,), (2, 3, 4, 4)),
    ("AvgPool2d", (2,), (2, 3, 4, 4)),
    ("AdaptiveAvgPool2d", (1,), (2, 3, 4, 4)),
    ("Flatten", (), (2, 3, 4, 4)),
    ("Linear", (4, 5), (2, 4)),
]


@pytest.mark.parametrize(("name", "arguments", "shape"), CASES)
def test_both_step_modes_equal_the_layer_of_torch_with_the_same_keys(name, arguments, shape):
    theirs = getattr(nn, name)(*arguments).eval()
    ours = getattr(layer, name)(*arguments, step_mode="m").eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert isinstance(ours, getattr(nn, name))
    x_seq = torch.randn(5, *shape)
    expected = torch.stack([theirs(x) for x in x_seq])
    torch.testing.assert_close(ours(x_seq), expected)
    functional.set_step_mode(ours, "s")
    assert torch.equal(ours(x_seq[0]), theirs(x_seq[0]))
    assert repr(pickle.loads(pickle.dumps(ours))) == repr(ours) == repr(copy.deepcopy(ours))


def test_a_static_input_is_computed_once_unless_batch_statistics_depend_on_it():
    x_seq = torch.randn(2, 3, 5, 5).expand(4, 2, 3, 5, 5)
    assert layer.Conv2d(3, 4, 3, step_mode="m")(x_seq).stride(0) == 0
    norm = layer.BatchNorm2d(3, step_mode="m")
    assert norm(x_seq).stride(0) != 0
    assert norm.eval()(x_seq).stride(0) == 0


def test_a_step_without_time_is_an_error_in_multi_step_mode():
    with pytest.raises(ValueError, match=r"Conv2d with step_mode='m' needs x_seq \[T, N, C, ...\]"):
        layer.Conv2d(3, 4, 3, step_mode="m")(torch.rand(2, 3, 5, 5))
    with pytest.raises(ValueError, match=r"'s'.*'m'"):
        layer.Linear(3, 4, step_mode="x")


class Kept(nn.Sequential):
    pass


def test_modes_and_backends_of_a_network_are_set_by_class():
    net = nn.Sequential(layer.Linear(3, 4), neuron.IFNode(), Kept(neuron.LIFNode()))
    functional.set_step_mode(net, "m", keep_step_mode_instance=(Kept,))
    assert [net[0].step_mode, net[1].step_mode, net[2][0].step_mode] == ["m", "m", "s"]
    with pytest.warns(UserWarning, match="runs its own implementation"):
        functional.set_backend(net, "triton", neuron.IFNode)
    assert [net[1].backend, net[2][0].backend] == ["triton", "torch"]
    with pytest.raises(ValueError, match="backend must be one of torch, cupy, triton"):
        functional.set_backend(net, "lava")
    with pytest.raises(ValueError, match="backend must be one of torch, cupy, triton"):
        neuron.IFNode(backend="lava")
