"""1x1 convolution and neurons in one kernel, against the one after the other; in Triton's interpreter without a GPU."""

import functools

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import snnzoo
from snnzoo import codings, ops
from snnzoo.codings import activations
from snnzoo.early_exit import ExitRule
from snnzoo.errors import UsageError
from snnzoo.ops import backends
from snnzoo.ops.spec import Arguments

if backends.named("triton").unavailable() is not None:
    pytest.skip("needs triton", allow_module_level=True)

from snnzoo.ops import triton_pointwise

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALF = (torch.float16, torch.bfloat16)
CODINGS = {
    "delta": codings.Delta(7, 0.5),
    "delta ternary": codings.Delta(1, 0.8),
    "differential": codings.Differential(6),
}


def drawn(shape, whole, seed):
    """Whole numbers, whose products add up exactly in any order, or noise; channels-last where it has pixels."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-3, 4, shape, generator=generator).float() if whole else torch.randn(shape, generator=generator)
    if len(shape) < 5:
        return x
    return x.flatten(0, 1).contiguous(memory_format=torch.channels_last).view(shape)


def both(coding, size, dtype, whole, residual=None, activation=activations.RELU, scalar=False, scaled=True):
    """Outputs of the one kernel, and of neurons that are given the convolution's sum in float32."""
    time_steps, batch, channels_in, channels, *pixels = size
    x_seq = drawn((time_steps, batch, channels_in, *pixels), whole, 0).to(DEVICE, dtype)
    weight = (drawn((channels, channels_in, 1, 1), whole, 1) * (1 if whole else channels_in**-0.5)).to(DEVICE, dtype)
    if residual is not None:
        steps = 1 if residual == "static" else time_steps
        residual = drawn((steps, batch, channels, *pixels), whole, 2).to(DEVICE, dtype)
        residual = residual.expand(time_steps, *residual.shape[1:])
    theta = 2.5 if scalar else 2 + torch.arange(channels, device=DEVICE) % 7 / 4
    bias = -0.75 if scalar else torch.arange(channels, device=DEVICE) % 5 / 2
    if DEVICE == "cpu" and dtype == torch.bfloat16:
        scaled = False  # Triton's interpreter cuts bits off where devices round
    arguments = Arguments(theta, bias, residual, None, 0, "sequence", scaled, dtype, False, activation)
    assert triton_pointwise.refuses(x_seq, weight, coding, arguments) is None
    found = ops.pointwise_neurons(x_seq, weight, coding, arguments)
    current = F.conv2d(x_seq.float().flatten(0, 1), weight.float()).unflatten(0, (time_steps, batch))
    with ops.use_backend("reference"):
        want = ops.multi_step_neuron(
            current,
            coding,
            v_threshold=theta,
            bias=bias,
            residual=None if residual is None else residual.float(),
            activation=activation,
            scaled=scaled,
        ).sequence.to(dtype)
    assert found.shape == want.shape
    assert found.dtype == dtype
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    return found, want


@pytest.mark.parametrize("coding", CODINGS.values(), ids=CODINGS)
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((4, 2, 64, 64, 8, 8), {}),
        ((3, 2, 40, 70, 9, 9), {"residual": "changing"}),
        ((4, 1, 3, 5, 1, 2), {"residual": "static", "scalar": True}),
        ((2, 3, 33, 130, 4, 5), {"activation": activations.Clamp(0.0, 6.0), "scaled": False}),
        ((1, 1, 1, 1, 1, 1), {}),
    ],
)
def test_spikes_are_equal_where_the_sum_of_the_convolution_is_exact(coding, dtype, size, options):
    found, want = both(coding, size, dtype, whole=True, **options)
    assert torch.equal(found, want)
    assert size[2] == 1 or 0.02 < (want != 0).float().mean() < 0.98


@pytest.mark.parametrize("coding", CODINGS.values(), ids=CODINGS)
@pytest.mark.parametrize("dtype", HALF)
def test_elsewhere_spikes_differ_only_where_rounding_decides(coding, dtype):
    found, want = both(coding, (4, 2, 200, 70, 9, 9), dtype, whole=False, residual="changing")
    assert (found != want).float().mean() < 1e-3
    assert (want != 0).float().mean() > 0.05


class Bottlenecks(nn.Module):
    """Two of them; the shortcut of the first is a pointwise convolution, too."""

    def __init__(self):
        super().__init__()
        block = torchvision.models.resnet.Bottleneck
        project = nn.Sequential(nn.Conv2d(8, 32, 1, bias=False), nn.BatchNorm2d(32))
        self.stem, self.relu = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()
        self.blocks = nn.Sequential(block(8, 8, downsample=project), block(32, 8))
        self.fc = nn.Linear(32, 5)

    def forward(self, x):
        return self.fc(self.blocks(self.relu(self.stem(x))).mean((2, 3)))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    ann = Bottlenecks()
    with torch.no_grad():
        for _ in range(20):
            ann.train()(images(64))  # in place of a training
    return snnzoo.convert(ann.eval(), images(64), levels=7, gamma=0.5, time_steps=4)


def images(count):
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", HALF)
def test_a_network_gives_its_logits_with_pairs_run_as_one(gpu, net, monkeypatch, dtype):
    prepare = functools.partial(snnzoo.prepare_for_inference, net, dtype=dtype, device="cuda", cuda_graph=False)
    plain, fused = prepare(), prepare(fuse_pointwise=True)
    calls = []
    forward = triton_pointwise.forward
    monkeypatch.setattr(triton_pointwise, "forward", lambda *call: calls.append(call) or forward(*call))
    x = images(4)
    x_seq, exact = x.expand(4, *x.shape), net(x.expand(4, *x.shape))
    logits = fused(x_seq)
    assert len(calls) == 4  # the first and the last convolution of both blocks
    assert [call[3].residual is not None for call in calls] == [False, True, False, True]
    # the one that does not round between convolution and neuron is no further from the network in float32
    assert (logits.cpu() - exact).norm() <= 1.1 * (plain(x_seq).cpu() - exact).norm() + 1e-3 * exact.norm()
    torch.testing.assert_close(fused.final(x_seq), logits[-1], rtol=1e-2, atol=1e-2)
    recorded = prepare(fuse_pointwise=True, cuda_graph=True)
    for _ in range(2):
        assert torch.equal(recorded(x_seq), logits)


def test_a_sequence_in_pieces_one_that_is_watched_and_other_backends_go_without(gpu, net, monkeypatch):
    prepare = functools.partial(snnzoo.prepare_for_inference, net, dtype=torch.float16, device="cuda", cuda_graph=False)
    plain, fused = prepare(), prepare(fuse_pointwise=True)
    monkeypatch.setattr(triton_pointwise, "forward", None)
    x = images(2)
    long = x.expand(9, *x.shape)
    assert torch.equal(fused(long), plain(long))
    short, values = x.expand(4, *x.shape), ([], [])
    for fast, seen in zip((fused, plain), values, strict=True):
        fast(short, lambda node, _, value, seen=seen: seen.append(value.clone()))
    assert all(torch.equal(*pair) for pair in zip(*values, strict=True))
    with ops.use_backend("reference"):
        assert torch.equal(fused(short), plain(short))
    rule = ExitRule("gap", (0.05, 0.05, 0.05))
    for one, other in zip(fused.until_sure(x, rule), plain.until_sure(x, rule), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "options",
    [{"device": "cpu"}, {"dtype": torch.float32}, {"compile": True}, {"memory_format": torch.contiguous_format}],
)
def test_what_it_cannot_do_is_refused(gpu, net, options):
    usual = {"device": "cuda", "dtype": torch.float16}
    with pytest.raises(UsageError, match="fuse_pointwise needs a CUDA device"):
        snnzoo.prepare_for_inference(net, fuse_pointwise=True, **{**usual, **options})
