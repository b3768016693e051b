"""A table over all names that the library and snnzoo share: the same arguments, the same numbers."""

import inspect
from functools import partial

import pytest
import torch
from torch import nn

import snnzoo.model.sew_resnet
import snnzoo.model.spiking_resnet
import snnzoo.model.spiking_vgg
from snnzoo import base, encoding, functional, layer, monitor, neuron, surrogate

OURS = {
    "base": base,
    "neuron": neuron,
    "surrogate": surrogate,
    "layer": layer,
    "functional": functional,
    "encoding": encoding,
    "monitor": monitor,
}
NOT_TAKEN = {"lava_s_cale"}  # arguments: Lava is reached by NIR
MODELS = ("spiking_resnet", "sew_resnet", "spiking_vgg")


def arguments(function):
    parameters = inspect.signature(function).parameters.values()
    return [p for p in parameters if p.kind is not p.VAR_KEYWORD and p.name not in ("self", *NOT_TAKEN)]


def shared(theirs, ours):
    public = [name for name, value in vars(theirs).items() if getattr(value, "__module__", None) == theirs.__name__]
    return [name for name in public if not name.startswith("_") and hasattr(ours, name)]


def assert_takes_the_same(theirs, ours, name):
    known = {p.name: p for p in arguments(ours)}
    for position, wanted in enumerate(arguments(theirs)):
        if wanted.kind is wanted.VAR_POSITIONAL:
            continue
        assert wanted.name in known, f"{name} takes no {wanted.name}"
        assert list(known).index(wanted.name) == position, f"{name}: place of {wanted.name}"
        default = known[wanted.name].default
        if isinstance(wanted.default, nn.Module):
            assert default is None  # made anew for each neuron; its class is tested by its numbers
        elif wanted.default is not wanted.empty:
            assert default == wanted.default, f"{name}: default of {wanted.name}"


@pytest.mark.parametrize("module", list(OURS))
def test_shared_names_take_the_same_arguments_in_the_same_places(classic, module):
    theirs, ours = getattr(classic, module), OURS[module]
    names = shared(theirs, ours)
    assert names
    for name in names:
        one, other = getattr(theirs, name), getattr(ours, name)
        if inspect.isclass(one) and inspect.isclass(other):
            assert_takes_the_same(one.__init__, other.__init__, f"{module}.{name}")
        elif inspect.isfunction(one):
            assert_takes_the_same(one, other, f"{module}.{name}")


@pytest.mark.parametrize("module", MODELS)
def test_every_constructor_of_networks_takes_the_same_arguments(classic, module):
    theirs, ours = getattr(classic.model, module), getattr(snnzoo.model, module)
    names = [name for name in theirs.__all__ if name[0].islower()]
    assert len(names) >= 16
    for name in names:
        assert_takes_the_same(getattr(theirs, name), getattr(ours, name), name)
        assert getattr(ours, name).__name__ == name


SURROGATES = [
    ("ATan", {}),
    ("ATan", {"alpha": 0.7}),
    ("Sigmoid", {}),
    ("PiecewiseQuadratic", {}),
    ("PiecewiseQuadratic", {"alpha": 0.6}),
    ("PiecewiseExp", {}),
    ("SoftSign", {}),
    ("NonzeroSignLogAbs", {}),
    ("Erf", {}),
    ("QPseudoSpike", {}),
    ("PiecewiseLeakyReLU", {}),
    ("PiecewiseLeakyReLU", {"w": 0.5, "c": 0.0}),
    ("SquarewaveFourierSeries", {}),
    ("SquarewaveFourierSeries", {"n": 5, "T_period": 4.0}),
    ("S2NN", {}),
]


def value_and_gradient(function, x):
    x = x.clone().requires_grad_()
    y = function(x)
    return y.detach(), torch.autograd.grad(y.sum(), x)[0]


@pytest.mark.parametrize(("name", "settings"), SURROGATES)
@pytest.mark.parametrize("spiking", [True, False])
def test_surrogates_have_the_same_values_and_gradients(classic, name, settings, spiking):
    x = torch.linspace(-3.03, 3.03, 400, dtype=torch.float64)
    theirs = value_and_gradient(getattr(classic.surrogate, name)(**settings, spiking=spiking), x)
    ours = value_and_gradient(getattr(surrogate, name)(**settings, spiking=spiking), x)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def applied(function, settings, x):
    return function.apply(x, *settings)


def test_functions_of_surrogates_are_there_by_their_names(classic):
    names = {name.lower(): name for name, _ in SURROGATES}
    functions = [
        name for name in vars(classic.surrogate) if name.replace("_", "") in names and name not in names.values()
    ]
    assert len(functions) == len(names)
    x = torch.linspace(-1, 1, 50, dtype=torch.float64)
    for function in functions:
        settings = getattr(surrogate, names[function.replace("_", "")])().settings
        theirs, ours = (
            value_and_gradient(partial(apply, settings), x)
            for apply in (partial(applied, getattr(library, function)) for library in (classic.surrogate, surrogate))
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


NODES = [
    ("IFNode", {}),
    ("LIFNode", {}),
    ("LIFNode", {"tau": 3.0, "decay_input": False}),
    ("ParametricLIFNode", {}),
    ("ParametricLIFNode", {"init_tau": 4.0, "decay_input": False}),
]


@pytest.mark.parametrize(("name", "settings"), NODES)
@pytest.mark.parametrize("v_reset", [0.0, None, -0.25])
@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("multi_step", [False, True])
@pytest.mark.parametrize("function", [None, "ATan", "SoftSign", "PiecewiseLeakyReLU"])
def test_neurons_have_equal_spikes_potentials_and_gradients(
    classic, name, settings, v_reset, detach_reset, multi_step, function
):
    x_seq = torch.randn(8, 3, 4, dtype=torch.float64) + 0.4
    results = []
    for library, functions in ((classic.neuron, classic.surrogate), (neuron, surrogate)):
        chosen = {} if function is None else {"surrogate_function": getattr(functions, function)()}
        make = getattr(library, ("MultiStep" if multi_step else "") + name)
        node = make(v_threshold=0.8, v_reset=v_reset, detach_reset=detach_reset, **settings, **chosen).double()
        x = x_seq.clone().requires_grad_()
        spikes = node(x) if multi_step else torch.stack([node(step) for step in x])
        weights = torch.linspace(0.5, 2, spikes.numel(), dtype=torch.float64).view_as(spikes)
        loss = (spikes * weights).sum() + node.v.sum()
        if multi_step:
            loss = loss + node.v_seq.square().sum()
        inputs = [x, *node.parameters()]
        results.append((spikes.detach(), node.v.detach(), *torch.autograd.grad(loss, inputs)))
    assert torch.equal(results[0][0], results[1][0])
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["Dropout", "Dropout2d", "MultiStepDropout", "MultiStepDropout2d"])
def test_dropouts_draw_the_same_mask(classic, name):
    x = torch.rand((5, 2, 4, 3, 3) if name.startswith("Multi") else (2, 4, 3, 3))
    outputs = []
    for library in (classic.layer, layer):
        torch.manual_seed(0)
        module = getattr(library, name)()
        outputs.append(torch.stack([module(x), module(x)]))
    assert torch.equal(*outputs)


@pytest.mark.parametrize(("name", "settings", "values"), [
    ("PoissonEncoder", (), torch.rand(3, 4)),
    ("LatencyEncoder", (9,), torch.rand(3, 4)),
    ("LatencyEncoder", (9, "log"), torch.rand(3, 4)),
    ("WeightedPhaseEncoder", (5,), torch.rand(3, 4) * (1 - 2**-5)),
])  # fmt: skip
def test_encoders_send_the_same_spikes(classic, name, settings, values):
    outputs = []
    for library in (classic.encoding, encoding):
        torch.manual_seed(0)
        encoder = getattr(library, name)(*settings)
        outputs.append(torch.stack([encoder(values) for _ in range(11)]))
    assert torch.equal(*outputs)


def test_monitors_count_the_same(classic):
    results = []
    for library, monitors in ((classic.neuron, classic.monitor), (neuron, monitor)):
        net = nn.Sequential(library.MultiStepIFNode(), library.MultiStepLIFNode(v_threshold=0.6))
        watch = monitors.Monitor(net, device="cpu", backend="torch")
        watch.enable()
        net(torch.rand(6, 3, 4, generator=torch.Generator().manual_seed(0)))
        rates = [float(watch.get_avg_firing_rate(all=False, module_name=name)) for name in ("0", "1")]
        results.append([*rates, float(watch.get_avg_firing_rate()), float(watch.get_nonfire_ratio())])
    assert results[0] == pytest.approx(results[1], rel=1e-6)


def test_thresholds_that_depend_on_the_label_are_the_same(classic):
    x_seq, labels = torch.rand(6, 4, 3) * 1.2, torch.eye(3)[[0, 1, 2, 0]]
    outputs = []
    for library in (classic.neuron, neuron):
        node = library.IFNode()
        node.v_threshold = torch.where(labels == 1, 1.1, 0.9)
        outputs.append(torch.stack([node(x) for x in x_seq]))
    assert torch.equal(*outputs)
