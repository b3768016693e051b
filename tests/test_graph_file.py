"""Files of converted networks: a wrong graph is refused with one clear line, and the first format still loads.

A graph comes from a file that nobody vouches for: whatever is changed in it, no code, no traceback, no hang.
"""

import copy
import functools
import json
import random
import resource
import time

import pytest
import torch
from torch import nn

import snnzoo
from helpers import NETWORKS, Pyramid, make_mlp, shake_batch_norm
from snnzoo.checkpoints.files import read_safetensors, write_safetensors
from snnzoo.conversion.converted_file import load, load_with_ann, save
from snnzoo.errors import CheckpointError
from snnzoo.graph.capture import capture
from snnzoo.graph.graph import LONGEST_NAME, MOST_NODES, Graph, Node
from snnzoo.graph.operations import INPUT
from snnzoo.graph.shapes import value_shapes

# -- Wrong graphs ------------------------------------------------------------------------------------------------------


def graph_of(*nodes, output="last", readout=None):
    return {"nodes": list(nodes), "output": output, "readout": readout}


def node(operation, name="last", inputs=("input",), path="", **fields):
    return {"name": name, "operation": operation, "inputs": list(inputs), "path": path, **fields}


RELU = {"function": {"name": "relu"}}
CONV = {"weight": "conv.weight"}
WRONG = {
    "no object": ([], "no list of nodes"),
    "no nodes": ({"output": "last"}, "no list of nodes"),
    "too many nodes": (graph_of(*[1] * (MOST_NODES + 1)), "nodes, at most"),
    "an empty graph": (graph_of(), "its output is none of its nodes"),
    "a node that is no object": (graph_of(7), "node 0 of its graph is damaged: expected an object"),
    "an unknown field": (graph_of(node("conv2d", code="x")), "expected an object with name"),
    "an unknown operation": (graph_of(node("conv2")), "unknown operation 'conv2': did you mean conv2d"),
    "an operation that is a list": (graph_of(node(["conv2d"])), "unknown operation"),
    "a long operation": (graph_of(node("x" * 10**6)), "unknown operation"),
    "an input from nowhere": (graph_of(node("sum", inputs=["conv"])), "its inputs must be nodes before it"),
    "itself as its input": (graph_of(node("sum", inputs=["last"])), "its inputs must be nodes before it"),
    "inputs that are no names": (graph_of(node("sum", inputs=[["input"]])), "its inputs must be nodes before it"),
    "too few inputs": (graph_of(node("add")), "add does not take 1 inputs"),
    "too many inputs": (graph_of(node("cat", inputs=["input"] * 1001, settings={"dim": 1})), "cat does not take 1001"),
    "a name twice": (graph_of(node("multiply", inputs=["input"] * 2), node("multiply", inputs=["input"] * 2)), "taken"),
    "the input's name": (graph_of(node("add", name="input", inputs=["input"] * 2)), "or taken"),
    "a name that is long": (graph_of(node("add", name="x" * (LONGEST_NAME + 1))), "too long"),
    "no weight": (graph_of(node("conv2d")), "conv2d has the parameters weight, bias"),
    "an unknown parameter": (graph_of(node("conv2d", parameters={**CONV, "gain": "g"})), "conv2d has the parameters"),
    "a parameter that is no key": (graph_of(node("conv2d", parameters={"weight": 3})), "must be keys of tensors"),
    "an unknown setting": (graph_of(node("conv2d", parameters=CONV, settings={"hook": "x"})), "has the settings"),
    "settings that are no object": (graph_of(node("conv2d", parameters=CONV, settings=[1])), "has the settings"),
    "a stride of 0": (graph_of(node("conv2d", parameters=CONV, settings={"stride": [0, 1]})), "stride of conv2d must"),
    "a stride that is true": (graph_of(node("conv2d", parameters=CONV, settings={"stride": [True, 1]})), "stride"),
    "a huge padding": (graph_of(node("conv2d", parameters=CONV, settings={"padding": [1 << 17] * 2})), "padding"),
    "a long list": (graph_of(node("reshape", settings={"sizes": [1] * 65})), "sizes of reshape must"),
    "a factor without end": (graph_of(node("scale", settings={"factor": float("inf")})), "factor of scale must"),
    "a factor that is nan": (graph_of(node("scale", settings={"factor": float("nan")})), "factor of scale must"),
    "a missing setting": (graph_of(node("max_pool2d")), "the setting kernel_size of max_pool2d is missing"),
    "an activation without a path": (graph_of(node("activation", settings=RELU)), "an activation needs a path"),
    "an activation without a function": (graph_of(node("activation", path="relu")), "the setting function"),
    "an unknown activation": (
        graph_of(node("activation", path="a", settings={"function": {"name": "system"}})),
        "unknown activation 'system'",
    ),
    "an activation that never ends": (
        graph_of(node("activation", path="a", settings={"function": {"name": "clamp", "maximum": -1.0}})),
        "minimum must be less than maximum",
    ),
    "two activations of one path": (
        graph_of(node("activation", "a", path="relu", settings=RELU), node("activation", path="relu", settings=RELU)),
        "two activations have one path",
    ),
    "an output that is no node": (graph_of(node("multiply", inputs=["input"] * 2), output="input"), "its output is"),
    "a readout that is no node": (graph_of(node("multiply", inputs=["input"] * 2), readout="x"), "its readout is"),
    "what is behind the readout needs what is before": (
        graph_of(
            node("activation", "a", path="a", settings=RELU),
            node("activation", "b", ["a"], "b", settings=RELU),
            node("add", inputs=["b", "a"]),
            readout="b",
        ),
        "what is behind its readout needs what is before it",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_graph_is_refused_with_one_line_that_says_what_is_wrong(name):
    fields, expected = WRONG[name]
    with pytest.raises(CheckpointError) as caught:
        Graph.from_json(json.dumps(fields), "net.safetensors")
    text = str(caught.value)
    assert text.startswith("net.safetensors: ")
    assert expected in text
    assert "\n" not in text
    assert len(text) < 600


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"nodes": ' * 50_000, "\x00", "nul"])
def test_what_is_no_json_is_refused(text):
    with pytest.raises(CheckpointError, match=r"^net: its graph is damaged"):
        Graph.from_json(text, "net")


# -- Mutated graphs ----------------------------------------------------------------------------------------------------

NUMBERS = [-1, 0, 1, 2, 7, 1 << 16, 1 << 40, 1 << 70, 1e308, float("inf"), float("nan")]
TEXTS = ["", "input", "x" * 2000, "relu", "conv2d", "linear", "cat", "multiply", "../../etc/passwd"]
FUNCTIONS = [
    {"name": "clamp", "minimum": 1, "maximum": 2},
    {"name": "leaky_relu", "slope": [0.1, 0.2]},
    {"name": "exec"},
]
VALUES = [None, True, *NUMBERS, *TEXTS, *FUNCTIONS, [], [1, 1], [0, 0], [65535] * 2, {}, [[1]]]


def places(value, found=None):
    """Every (container, key) in a tree of JSON."""
    found = [] if found is None else found
    for key in value if isinstance(value, dict) else range(len(value)):
        found.append((value, key))
        if isinstance(value[key], (dict, list)):
            places(value[key], found)
    return found


def mutated(fields, rng):
    """The graph with up to three things in it replaced, removed, doubled or swapped."""
    fields = copy.deepcopy(fields)
    for _ in range(rng.randint(1, 3)):
        everywhere = places(fields)
        container, key = rng.choice(everywhere)
        action = rng.randrange(5)
        if action == 0:
            container[key] = copy.deepcopy(rng.choice(VALUES))
        elif action == 1:
            del container[key]
        elif action == 2:
            container[key] = copy.deepcopy(rng.choice(everywhere))[0]  # anything from elsewhere
        elif action == 3:
            other, place = rng.choice(everywhere)
            container[key] = copy.deepcopy(other[place])
        elif isinstance(container, list):
            container.insert(rng.randint(0, len(container)), copy.deepcopy(container[key]))
        elif isinstance(container[key], (int, float)):
            container[key] = container[key] * rng.choice([-1, 2, 1 << 20])
        if not fields:
            break
    return fields


@functools.cache
def converted(name):
    torch.manual_seed(0)
    make, size = {"mlp": (make_mlp, 8), "pyramid": (Pyramid, 16), "hf": (NETWORKS["transformers:basic"].make, 32)}[name]
    images = torch.randn(2, 3, size, size)
    net = snnzoo.convert(make().eval(), images, gamma=0.5, time_steps=2)
    return net, json.loads(net.graph.to_json())


def memory():
    """The most that this process ever held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def error_of(check, changed):
    """The CheckpointError that a graph gives, None if it is read; anything else is a failure that shows the graph."""
    start = time.perf_counter()
    try:
        check(changed)
    except CheckpointError as error:
        return str(error)
    except Exception as error:
        raise AssertionError(f"{type(error).__name__} for {json.dumps(changed)[:5000]}") from error
    finally:
        assert time.perf_counter() - start < 20, json.dumps(changed)[:5000]
    return None


def check_mutations(name, count, check):
    """Only ever a CheckpointError of one line, each in seconds, in little memory; many graphs are refused."""
    _, fields = converted(name)
    rng, before = random.Random(name), memory()
    errors = [error_of(check, mutated(fields, rng)) for _ in range(count)]
    refused = [error for error in errors if error is not None]
    assert len(refused) > count / 4
    assert all("\n" not in error and len(error) < 1000 for error in refused)
    assert memory() - before < 500


def read_with_shapes(name, fields):
    net, _ = converted(name)
    graph = Graph.from_json(json.dumps(fields), "net")
    value_shapes(graph, net.tensors(), net.conversion.input_shape, "net")


def load_changed(name, folder, fields):
    net, _ = converted(name)
    metadata = {**net.conversion.to_metadata(), "graph": json.dumps(fields)}
    write_safetensors(folder / "net.safetensors", net.state_dict(), metadata)
    load(folder / "net.safetensors")


@pytest.mark.parametrize("name", ["mlp", "pyramid", "hf"])
def test_mutated_graphs_are_read_or_refused(name, tmp_path):
    check_mutations(name, 60, functools.partial(read_with_shapes, name))
    check_mutations(name, 25, functools.partial(load_changed, name, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "pyramid", "hf"])
def test_five_thousand_mutated_graphs_are_read_or_refused(name, tmp_path):
    check_mutations(name, 1200, functools.partial(read_with_shapes, name))
    check_mutations(name, 500, functools.partial(load_changed, name, tmp_path))


def test_a_file_whose_tensors_do_not_fit_its_graph_is_refused(tmp_path):
    net, _ = converted("pyramid")
    file = tmp_path / "net.safetensors"
    save(net, file)
    tensors, metadata = read_safetensors(file)
    cases = {
        "the tensor 'fine.weight' is missing": {k: v for k, v in tensors.items() if k != "fine.weight"},
        "'relu.v_threshold' is missing": {k: v for k, v in tensors.items() if k != "relu.v_threshold"},
        r"relu.bias has shape \[9\] instead of \[8\]": {**tensors, "relu.bias": torch.zeros(9)},
        "do not fit each other": {**tensors, "merge.weight": torch.zeros(16, 7, 3, 3)},
        "v_threshold": {**tensors, "relu.v_threshold": -tensors["relu.v_threshold"]},
    }
    for expected, changed in cases.items():
        write_safetensors(file, changed, metadata)
        with pytest.raises(CheckpointError, match=expected) as caught:
            load(file)
        assert str(caught.value).startswith(str(file))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("node", "tensors"),
    [
        (Node("n", "reshape", (INPUT,), settings={"sizes": [47], "kept": 0}), {}),
        (Node("n", "upsample", (INPUT,), settings={"size": [1 << 20, 1 << 20], "scale_factor": None}), {}),
        (
            Node("n", "batch_norm", (INPUT,), {"eps": 1e-5}, {"running_mean": "m", "running_var": "m"}),
            {"m": torch.ones(4)},
        ),
        (Node("n", "conv2d", (INPUT,), {"padding": [0, 0]}, {"weight": "w"}), {"w": torch.ones(2, 3, 5, 5)}),
        (Node("n", "sum", (INPUT,), settings={"dim": [0], "keepdim": False}), {}),
    ],
    ids=lambda value: getattr(value, "operation", ""),
)
def test_what_does_not_fit_is_found_without_images(node, tensors):
    with pytest.raises(CheckpointError, match="net: its graph and its tensors do not fit each other"):
        value_shapes(Graph((node,), "n"), tensors, [3, 4, 4], "net")


# -- Files of the first format -----------------------------------------------------------------------------------------


def first_format(net, model, model_kwargs):
    """Tensors and metadata as snnzoo/1 had them: a model of the zoo by name, an offset beside each bias."""
    conversion = net.conversion
    tensors = dict(net.state_dict())
    for node in net.graph.neurons:
        tensors[f"{node.path}.offset"] = torch.full_like(tensors[f"{node.path}.bias"], 0.25)
    metadata = {
        "format": "snnzoo/1",
        "model": model,
        "model_kwargs": json.dumps(model_kwargs),
        "coding": json.dumps({**conversion.coding.to_dict(), "lead": net.extrapolation}),
        "time_steps": str(conversion.time_steps),
        "recipe": json.dumps(conversion.recipe),
        "preprocess": "null",
        "classes": "null",
        "source": "{}",
        "layers": json.dumps(conversion.layers),
        "snnzoo": "0.1.0",
        "torch": "2.6.0",
    }
    return tensors, metadata


@pytest.mark.parametrize(
    ("model", "recipe", "options"),
    [
        ("resnet20", "delta", {"gamma": 0.5}),
        ("resnet20", "differential", {}),
        ("resnet18", "delta", {"gamma": 0.5, "levels": 7}),
        pytest.param("vgg11_bn", "delta", {"gamma": 0.5}, marks=pytest.mark.slow),
    ],
)
def test_a_file_of_the_first_format_loads_and_gives_equal_logits(model, recipe, options, tmp_path):
    torch.manual_seed(0)
    module = shake_batch_norm(snnzoo.create_model(model, neuron=nn.ReLU, step_mode="s", num_classes=10)).double().eval()
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    net = snnzoo.convert(module, images, recipe, 3, **options)
    tensors, metadata = first_format(net, model, {"num_classes": 10})
    if recipe != "delta":
        metadata["coding"] = json.dumps(net.conversion.coding.to_dict())
    write_safetensors(tmp_path / "old.safetensors", tensors, metadata)
    loaded, ann = load_with_ann(tmp_path / "old.safetensors")
    assert loaded.extrapolation == net.extrapolation
    x_seq = images.expand(3, *images.shape)
    with torch.no_grad():
        torch.testing.assert_close(loaded.double()(x_seq), net(x_seq), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(ann.double()(images), module(images), rtol=1e-9, atol=1e-9)
    save(loaded, tmp_path / "new.safetensors")  # written anew, it is of today's format
    assert read_safetensors(tmp_path / "new.safetensors")[1]["format"] == "snnzoo/2"
    assert load(tmp_path / "new.safetensors").graph == loaded.graph


def test_a_captured_graph_of_a_zoo_model_names_neurons_as_the_model_does():
    module = snnzoo.create_model("resnet20", neuron=nn.ReLU, step_mode="s", num_classes=10)
    graph = capture(module, torch.zeros(1, 3, 32, 32))
    assert [node.path for node in graph.neurons][:3] == ["sn1", "layer1.0.sn1", "layer1.0.sn2"]
