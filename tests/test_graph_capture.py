"""A captured graph is the user's network: it computes the same, names its neurons, and leaves the module alone.

Oracle: the module itself, in float64. What cannot be converted is one error that names the operation and its module.
"""

import copy
import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers import NETWORKS, CifarResNet18, LeNet, make_mlp
from snnzoo.errors import SnnzooError
from snnzoo.graph.capture import capture
from snnzoo.graph.graph import Graph
from snnzoo.graph.run import run_graph

TABLE = [pytest.param(n, id=n.name, marks=[pytest.mark.slow] if n.slow else []) for n in NETWORKS.values()]
IMAGE = torch.zeros(1, 3, 32, 32)


def logits_of(net, images):
    with torch.no_grad():
        output = net(images)
    return output if isinstance(output, torch.Tensor) else output.logits


def assert_computes(graph, net, images):
    with torch.no_grad():
        actual = run_graph(graph, net.state_dict(), images)
    expected = logits_of(net, images)
    scale = expected.abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9 * scale)


# -- Networks of libraries and users -----------------------------------------------------------------------------------


@pytest.mark.parametrize("network", TABLE)
def test_a_graph_computes_what_its_module_computes_and_its_json_is_the_same_graph(network, record_property):
    net, images = network.build()
    before = copy.deepcopy(net.state_dict())
    start = time.perf_counter()
    graph = capture(net, images)
    record_property("seconds", time.perf_counter() - start)
    assert_computes(graph, net, images)
    assert_computes(graph, net, torch.randn(3, *images.shape[1:], dtype=torch.float64))  # any number of images
    assert Graph.from_json(graph.to_json(), "file") == graph
    assert not any(module.training for module in net.modules())
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    paths = [node.path for node in graph.neurons]
    assert len(set(paths)) == len(paths) > 0


def test_a_relu_that_is_called_twice_names_two_neurons_a_function_is_named_by_where_it_is_called():
    net, _ = NETWORKS["torchvision:resnet18"].build()
    paths = [node.path for node in capture(net, IMAGE).neurons]
    assert paths[:5] == ["relu", "layer1.0.relu", "layer1.0.relu_1", "layer1.1.relu", "layer1.1.relu_1"]
    assert [node.path for node in capture(LeNet(), IMAGE).neurons] == ["relu", "relu_1", "relu_2", "relu_3"]
    assert [node.path for node in capture(CifarResNet18(), IMAGE).neurons][:3] == [
        "relu",
        "layers.0.relu",
        "layers.0.relu_1",
    ]
    assert [node.path for node in capture(make_mlp(), torch.zeros(1, 3, 8, 8)).neurons] == ["2", "4"]


def test_a_neuron_takes_no_name_that_a_tensor_or_another_module_has():
    class Taken(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 10)
            self.relu = nn.BatchNorm2d(4)  # a misleading name

        def forward(self, x):
            return self.fc(F.relu(self.relu(self.conv(x))).mean((2, 3)))

    assert [node.path for node in capture(Taken(), IMAGE).neurons] == ["relu_1"]


# -- Whatever state the module is in -----------------------------------------------------------------------------------


class WithDropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 10)

    def forward(self, x):
        x = F.relu(self.bn(self.conv(x)), inplace=True).mean((2, 3))
        return self.fc(F.dropout(x, 0.5, self.training))


def plain_graph(seed=0):
    torch.manual_seed(seed)
    net = WithDropout()
    return net, capture(net.eval(), IMAGE)


def test_a_module_in_training_mode_is_captured_as_in_eval_mode_and_stays_in_training_mode():
    net, expected = plain_graph()
    net.train()
    net.bn.eval()  # as users freeze it
    statistics = net.bn.running_mean.clone()
    assert capture(net, IMAGE) == expected
    assert net.training
    assert net.conv.training
    assert not net.bn.training
    assert torch.equal(net.bn.running_mean, statistics)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_module_of_any_precision_is_captured_and_keeps_it(dtype):
    net, expected = plain_graph()
    net.to(dtype)
    assert capture(net, IMAGE.to(dtype)) == expected
    assert all(value.dtype == dtype for value in net.parameters())


def test_a_module_in_data_parallel_is_captured_as_what_is_in_it():
    net, expected = plain_graph()
    assert capture(nn.DataParallel(net), IMAGE) == expected


def test_a_compiled_module_is_captured_as_what_was_compiled():
    net, expected = plain_graph()
    assert capture(torch.compile(net), IMAGE) == expected
    assert capture(torch.compile(nn.DataParallel(net)), IMAGE) == expected
    net.compile()  # in place
    assert capture(net, IMAGE) == expected


def test_frozen_and_trainable_parameters_are_captured_alike_and_stay_so():
    net, expected = plain_graph()
    net.conv.requires_grad_(False)
    assert capture(net, IMAGE) == expected
    assert not net.conv.weight.requires_grad
    assert net.fc.weight.requires_grad


def test_hooks_of_the_user_are_left_in_place():
    net, expected = plain_graph()
    calls = []
    net.conv.register_forward_hook(lambda *_: calls.append(1))
    assert capture(net, IMAGE) == expected
    calls.clear()
    net(IMAGE)
    assert calls == [1]


# -- What cannot be converted ------------------------------------------------------------------------------------------


class Net(nn.Module):
    """A convolution, what `middle` makes of it, and a classifier; `part` is where `middle` is called."""

    class Part(nn.Module):
        def __init__(self, function):
            super().__init__()
            self.function = function

        def forward(self, x):
            return self.function(x)

    def __init__(self, middle=lambda x: x, end=lambda x: x):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 10)
        self.part, self.end = self.Part(middle), self.Part(end)

    def forward(self, x):
        return self.end(self.fc(self.part(F.relu(self.conv(x))).mean((2, 3))))


def vit():
    import torchvision

    return torchvision.models.VisionTransformer(32, 16, 1, 2, 16, 32, num_classes=10)


def convnext():
    import timm

    return timm.create_model("convnext_atto", num_classes=10)


CONSTANT = torch.rand(4, 1, 1)
REFUSED = {
    "a transformer": (vit, ["encoder.layers.encoder_layer_0.ln_1 (LayerNorm)", "layer_norm", "one with BatchNorm"]),
    "attention": (
        lambda: Net(lambda x: F.scaled_dot_product_attention(x, x, x)),
        ["part (Part)", "scaled_dot_product_attention", "use a convolutional network"],
    ),
    "layer norm": (convnext, ["stem.1", "layer_norm", "one with BatchNorm"]),
    "group norm": (lambda: Net(lambda x: F.group_norm(x, 2)), ["part (Part)", "group_norm", "one with BatchNorm"]),
    "a softmax inside": (lambda: Net(lambda x: x.softmax(1)), ["part (Part)", "softmax", "only at the end"]),
    "a softmax over images": (lambda: Net(end=lambda x: x.softmax(0)), ["end (Part)", "softmax", "only at the end"]),
    "control flow": (lambda: Net(lambda x: x if x.sum() > 0 else -x), ["Net", "control flow that depends on the data"]),
    "mean of a batch": (
        lambda: Net(lambda x: x - x.mean(0, keepdim=True)),
        ["part (Part)", "mean", "mixes the images"],
    ),
    "sum of all": (lambda: Net(lambda x: x + x.sum()), ["part (Part)", "sum"]),
    "a batch put together": (
        lambda: Net(lambda x: x.reshape(1, -1, 32, 32).view_as(x)),
        ["part (Part)", "mixes the images"],
    ),
    "a batch turned": (
        lambda: Net(lambda x: F.relu(x.transpose(0, 1)).mT.transpose(0, 1)),
        ["part (Part)", "transpose", "mixes the images"],
    ),
    "a batch reversed": (lambda: Net(lambda x: x.flip(0)), ["part (Part)", "flip"]),
    "one image of a batch": (lambda: Net(lambda x: x + x[:1]), ["part (Part)", "slice", "mixes the images"]),
    "a tensor in no buffer": (lambda: Net(lambda x: x * CONSTANT), ["part (Part)", "mul", "register it as a buffer"]),
    "an added tensor": (lambda: Net(lambda x: x + CONSTANT), ["part (Part)", "add", "register it as a buffer"]),
    "a quotient": (lambda: Net(lambda x: 1 / (x + 1)), ["part (Part)", "cannot be converted"]),
    "a power": (lambda: Net(lambda x: x**2), ["part (Part)", "pow", "cannot be converted"]),
    "instance norm": (lambda: Net(F.instance_norm), ["part (Part)", "instance_norm", "one with BatchNorm"]),
    "a product of signals": (lambda: Net(lambda x: x @ x), ["part (Part)", "matmul", "attention"]),
    "a padding of ones": (lambda: Net(lambda x: F.pad(x, (1, 1), value=1.0)), ["part (Part)", "pad", "only zeros"]),
    "a sorted signal": (lambda: Net(lambda x: x.sort(1).values), ["part (Part)", "sort"]),
    "random numbers": (lambda: Net(lambda x: x + torch.rand_like(x)), ["part (Part)", "rand_like"]),
    "no logits": (lambda: Net(end=lambda x: {"scores": x}), ["Net gives a dict", "expected logits"]),
    "a map of logits": (lambda: nn.Conv2d(3, 10, 1), ["Conv2d", "expected [N, classes]"]),
    "a number of images": (lambda: Net(lambda x: x * x.size(0)), ["part (Part)", "mul"]),
    "a sum over a batch": (lambda: Net(lambda x: x.cumsum(0)), ["part (Part)", "cumsum"]),
}


@pytest.mark.parametrize("end", [lambda x: x.softmax(1), lambda x: F.log_softmax(x, dim=-1), torch.sigmoid])
def test_what_keeps_ranks_is_left_out_at_the_end_and_said(end):
    said = []
    net = Net(end=end).eval()
    graph = capture(net, IMAGE, said.append)
    assert "is left out" in said[0]
    with torch.no_grad():
        logits = run_graph(graph, net.state_dict(), IMAGE)
        torch.testing.assert_close(end(logits), net(IMAGE))


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_converted_is_one_error_that_names_the_operation_and_the_module(name):
    make, expected = REFUSED[name]
    with pytest.raises(SnnzooError) as caught:
        capture(make(), IMAGE)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    for part in expected:
        assert part in text


def test_images_of_a_wrong_size_are_said_to_be_that():
    with pytest.raises(SnnzooError, match="the input may have the wrong size"):
        capture(LeNet(), torch.zeros(1, 3, 8, 8))


def test_a_network_without_classes_is_refused():
    with pytest.raises(SnnzooError, match=r"Sequential gives an output of shape \[3, 0\]: expected \[N, classes\]"):
        capture(nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(4, 0)), torch.zeros(1, 1, 2, 2))
