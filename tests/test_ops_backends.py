"""Every implementation of the multi-step operator against the reference, in a table of shapes, dtypes and layouts.

The Triton kernels run on a CUDA device where there is one, else in Triton's interpreter (conftest.py).
"""

import itertools

import pytest
import torch

from snnzoo import ops, surrogate
from snnzoo.ops import backends

DEVICES = {"cpu": "cpu"}
if backends.missing("triton") is None:
    DEVICES["triton"] = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = DEVICES.get("triton") == "cpu"

CODINGS = {
    "if hard": ops.IF(),
    "if hard -0.25": ops.IF(-0.25),
    "if soft": ops.IF(None),
    "if soft half": ops.IF(None, half_start=True),
    "lif hard": ops.LIF(0.0, reciprocal_tau=0.3),
    "lif soft": ops.LIF(None, reciprocal_tau=0.3),
    "lif hard no decay": ops.LIF(-0.25, reciprocal_tau=0.6, decay_input=False),
    "plif": ops.LIF(None, reciprocal_tau=torch.tensor(0.4)),
    "signed": ops.Signed(),
    "delta": ops.Delta(3, 0.6),
    "delta ternary": ops.Delta(1, 0.8),
    "delta encoder": ops.Delta(7, 0.5, differential=False),
    "differential": ops.Differential(6),
    "differential encoder": ops.Differential(3, differential=False),
}
SHAPES_AND_LAYOUTS = [
    ((1, 1, 1), "contiguous"),
    ((4, 2, 3), "contiguous"),
    ((3, 2, 3, 7), "static"),
    ((3, 2, 5, 3, 3), "contiguous"),
    ((3, 2, 5, 3, 3), "channels_last"),
    ((3, 2, 5, 3, 3), "static channels_last"),
    ((2, 2, 5, 3, 3), "sliced"),
    ((2, 3, 4, 1, 1), "channels_last"),
    ((2, 1, 3, 2, 2, 2), "channels_last"),
]
OUTPUTS_AND_DTYPES = [
    ("sequence", torch.float32),
    ("sequence", torch.bfloat16),
    ("sum", torch.float16),
    ("both", torch.float16),
]


@pytest.fixture(params=DEVICES)
def backend(request):
    with ops.use_backend(request.param):
        yield request.param


def to_device(coding, device):
    if isinstance(getattr(coding, "reciprocal_tau", None), torch.Tensor):
        return ops.LIF(coding.v_reset, reciprocal_tau=coding.reciprocal_tau.to(device))
    return coding


def sequence(shape, layout="contiguous", dtype=torch.float32, device="cpu", seed=0):
    """Noise on a grid of sixteenths, in part: neurons meet their thresholds exactly."""
    generator = torch.Generator().manual_seed(seed)
    x_seq = torch.randn(shape, generator=generator) * 0.8 + 0.3
    x_seq[:, ::2] = (x_seq[:, ::2] * 16).round() / 16
    x_seq = x_seq.to(device, dtype)
    if "channels_last" in layout:
        formats = {5: torch.channels_last, 6: torch.channels_last_3d}
        x_seq = x_seq.flatten(0, 1).contiguous(memory_format=formats[len(shape)]).view(shape)
    if "static" in layout:
        x_seq = x_seq[:1].expand(shape)
    return torch.stack([x_seq, x_seq], -1)[..., 0] if layout == "sliced" else x_seq


def assert_equal_to_reference(x_seq, coding, **arguments):
    actual = ops.multi_step_neuron(x_seq, coding, **arguments)
    with ops.use_backend("reference"):
        expected = ops.multi_step_neuron(x_seq, coding, **arguments)
    for one, other in zip((actual[0], actual[1], *actual[2]), (expected[0], expected[1], *expected[2]), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert one.dtype == other.dtype
            if (
                INTERPRETED and backends.forced() == "triton" and one.dtype == torch.bfloat16
            ):  # Triton's interpreter cuts bits off where devices round
                torch.testing.assert_close(one, other, rtol=2**-7, atol=0)
            else:
                assert torch.equal(one, other)
    return actual


def per_channel(shape, device, low=0.2):
    return torch.linspace(low, low + 0.7, shape[2], device=device) if len(shape) > 2 else low + 0.3


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize(("shape", "layout"), SHAPES_AND_LAYOUTS, ids=str)
def test_every_coding_in_every_layout_and_shape(backend, coding, layout, shape):
    device = DEVICES[backend]
    assert_equal_to_reference(
        sequence(shape, layout, device=device),
        to_device(CODINGS[coding], device),
        v_threshold=per_channel(shape, device),
        bias=per_channel(shape, device, -0.2),
        offset=per_channel(shape, device, -0.1),
        payload=True,
    )


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize(("output", "dtype"), OUTPUTS_AND_DTYPES, ids=str)
def test_every_output_and_dtype(backend, coding, dtype, output):
    device, shape = DEVICES[backend], (6, 2, 3, 5)
    x_seq, residual = (sequence(shape, dtype=dtype, device=device, seed=seed) for seed in (0, 1))
    coding = to_device(CODINGS[coding], device)
    for payload, theta in itertools.product([False, True], [0.7, per_channel(shape, device)]):
        assert_equal_to_reference(x_seq, coding, v_threshold=theta, residual=residual, payload=payload, output=output)
    assert_equal_to_reference(x_seq, coding, v_threshold=0.7, output=output, out_dtype=torch.int8)
    assert_equal_to_reference(x_seq, coding, v_threshold=0.7, output=output, out_dtype=torch.int8, payload=True)


@pytest.mark.parametrize("coding", CODINGS)
def test_state_goes_in_and_out(backend, coding):
    device, shape = DEVICES[backend], (7, 2, 3, 5)
    x_seq, coding = sequence(shape, device=device), to_device(CODINGS[coding], device)
    arguments = {"v_threshold": per_channel(shape, device), "bias": 0.05, "offset": 0.02, "payload": True}
    whole = assert_equal_to_reference(x_seq, coding, **arguments)
    first = assert_equal_to_reference(x_seq[:3], coding, **arguments)
    second = assert_equal_to_reference(x_seq[3:], coding, state=first.state, t=3, **arguments)
    assert torch.equal(torch.cat([first.sequence, second.sequence]), whole.sequence)
    assert all(map(torch.equal, second.state, whole.state))
    assert ops.multi_step_neuron(x_seq, coding, keep_state=False).state == ()


@pytest.mark.parametrize("coding", ["if soft", "signed", "delta", "differential encoder"])
@pytest.mark.parametrize("alias", ["x_seq", "residual"])
@pytest.mark.parametrize("layouts", list(itertools.product(["contiguous", "channels_last"], repeat=2)), ids=str)
def test_the_sequence_may_overwrite_its_inputs(backend, coding, alias, layouts):
    device, shape = DEVICES[backend], (4, 2, 5, 3, 3)
    coding = to_device(CODINGS[coding], device)
    inputs = {
        "x_seq": sequence(shape, layouts[0], device=device),
        "residual": sequence(shape, layouts[1], device=device, seed=1),
    }
    expected = ops.multi_step_neuron(**inputs, coding=coding, v_threshold=0.6)
    actual = ops.multi_step_neuron(**inputs, coding=coding, v_threshold=0.6, out=inputs[alias])
    assert actual.sequence is inputs[alias]
    assert torch.equal(actual.sequence, expected.sequence)
    assert all(map(torch.equal, actual.state, expected.state))


@pytest.mark.parametrize("time_steps", [1, 2, 70])
@pytest.mark.parametrize("coding", ["if soft", "signed", "delta", "differential"])
def test_any_number_of_steps(backend, coding, time_steps):
    device = DEVICES[backend]
    assert_equal_to_reference(sequence((time_steps, 1, 3, 5), device=device), CODINGS[coding], payload=True)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("coding", ["lif hard", "delta"])
def test_sizes_beyond_one_block_or_chunk(backend, layout, coding):
    device = DEVICES[backend]
    shape = (2, 2, 7, 17, 11) if backend == "triton" and INTERPRETED else (2, 3, 7, 131, 101)
    assert_equal_to_reference(
        sequence(shape, layout, device=device),
        CODINGS[coding],
        v_threshold=per_channel(shape, device),
        bias=per_channel(shape, device),
    )


@pytest.mark.skipif("triton" not in DEVICES, reason="needs triton")
def test_offsets_of_64_bits_give_the_same(monkeypatch):
    from snnzoo.ops import triton_launch

    monkeypatch.setattr(triton_launch, "WIDE_FROM", 0)
    device, shape = DEVICES["triton"], (4, 2, 3, 5)
    with ops.use_backend("triton"):
        for coding in ("if soft", "delta"):
            assert_equal_to_reference(sequence(shape, device=device), CODINGS[coding])
        case = ("lif", None, False, surrogate.ATan())
        assert_gradients_close(case, shape, torch.float32, device, v_threshold=0.7)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("coding", CODINGS)
def test_a_cuda_graph_replays_it(coding):
    x_seq, coding = sequence((5, 2, 3, 7), device="cuda"), to_device(CODINGS[coding], "cuda")
    arguments = {"v_threshold": per_channel((5, 2, 3, 7), "cuda"), "payload": True}
    expected = ops.multi_step_neuron(x_seq, coding, **arguments).sequence  # compiles the kernel
    static, graph = torch.zeros_like(x_seq), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        sequence_of_graph = ops.multi_step_neuron(static, coding, **arguments).sequence
    static.copy_(x_seq)
    graph.replay()
    assert torch.equal(sequence_of_graph, expected)


def test_a_static_residual_and_an_empty_batch(backend):
    device, shape = DEVICES[backend], (5, 2, 3, 4)
    residual = sequence(shape, "static", device=device, seed=1)
    assert_equal_to_reference(sequence(shape, device=device), ops.IF(), residual=residual)
    assert_equal_to_reference(torch.empty(3, 0, 4, device=device), ops.IF(), output="both")


def gradients(x_seq, coding, weights, **arguments):
    leaves = {"x_seq": x_seq, **{k: arguments[k] for k in ("residual", "state") if k in arguments}}
    leaves = {k: (v[0] if k == "state" else v).detach().clone().requires_grad_() for k, v in leaves.items()}
    if isinstance(getattr(coding, "reciprocal_tau", None), torch.Tensor):
        leaves["tau"] = coding.reciprocal_tau.detach().clone().requires_grad_()
        coding = ops.LIF(
            coding.v_reset, coding.half_start, coding.surrogate, coding.detach_reset,
            reciprocal_tau=leaves["tau"], decay_input=coding.decay_input,
        )  # fmt: skip
    inputs = {**arguments, **{k: (v,) if k == "state" else v for k, v in leaves.items() if k != "tau"}}
    result = ops.multi_step_neuron(inputs.pop("x_seq"), coding, output="both", **inputs)
    parts = (result.sequence, result.total, result.state[0])
    loss = sum((part * weight).sum() for part, weight in zip(parts, weights, strict=True))
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


GRADIENTS = list(itertools.product(
    ["if", "lif", "plif", "plif no decay"],
    [None, 0.0, -0.25],
    [False, True],
    [surrogate.ATan(), surrogate.Sigmoid(3.0), surrogate.PiecewiseQuadratic(0.8)],
))  # fmt: skip


def coding_with_gradient(kind, v_reset, detach_reset, function, dtype):
    common = (v_reset, False, function, detach_reset)
    if kind == "if":
        return ops.IF(*common)
    tau = 0.3 if kind == "lif" else torch.tensor(0.3, dtype=dtype)
    return ops.LIF(*common, reciprocal_tau=tau, decay_input=kind != "plif no decay")


def assert_gradients_close(case, shape, dtype, device, **arguments):
    coding = to_device(coding_with_gradient(*case, dtype), device)
    x_seq, residual, *weights = (sequence(shape, device=device, seed=seed).to(dtype) for seed in range(5))
    weights = (weights[0], weights[1][0], weights[2][0])
    arguments = {"residual": residual * 0.3, "state": (residual[0] * 0.5,), "payload": True, **arguments}
    actual = gradients(x_seq, coding, weights, **arguments)
    with ops.use_backend("reference"):
        expected = gradients(x_seq, coding, weights, **arguments)
    tolerance = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], **tolerance)


@pytest.mark.parametrize("case", GRADIENTS, ids=str)
def test_gradients_equal_those_of_the_reference(backend, case):
    device, shape = DEVICES[backend], (5, 2, 3, 5)
    dtype = torch.float64 if backend == "cpu" else torch.float32
    theta = per_channel(shape, device).to(dtype)
    assert_gradients_close(case, shape, dtype, device, v_threshold=theta, bias=0.1)


@pytest.mark.parametrize(
    ("time_steps", "layout"), [(1, "contiguous"), (3, "channels_last"), (16, "static"), (34, "contiguous")]
)
def test_gradients_of_any_number_of_steps_in_any_layout(backend, time_steps, layout):
    device, shape = DEVICES[backend], (time_steps, 2, 3, 3, 3)
    for seed, coding in enumerate((ops.LIF(None, reciprocal_tau=0.4), ops.IF())):
        results = []
        for name in (backend, "reference"):
            with ops.use_backend(name):
                x_seq = sequence(shape, layout, device=device, seed=seed).detach().requires_grad_()
                spikes = ops.multi_step_neuron(x_seq, coding, v_threshold=0.8).sequence
                weights = sequence(shape, device=device, seed=9)
                results.append(torch.autograd.grad((spikes * weights).sum(), x_seq)[0])
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_half_precision_gradients_have_the_dtype_of_their_inputs(backend):
    device, shape = DEVICES[backend], (4, 2, 3, 5)
    x_seq, residual = (
        sequence(shape, dtype=torch.float16, device=device, seed=seed).requires_grad_() for seed in (0, 1)
    )
    ops.multi_step_neuron(x_seq, ops.IF(), residual=residual).sequence.sum().backward()
    assert x_seq.grad.dtype == residual.grad.dtype == torch.float16
    with ops.use_backend("reference"):
        wide = x_seq.detach().float().requires_grad_()
        ops.multi_step_neuron(wide, ops.IF(), residual=residual.detach().float()).sequence.sum().backward()
    torch.testing.assert_close(x_seq.grad.float(), wide.grad, rtol=1e-2, atol=1e-3)


def test_an_implementation_that_is_not_to_be_had_says_why(monkeypatch):
    monkeypatch.setattr(backends, "missing", lambda name: "no device" if name == "triton" else None)
    with pytest.raises(RuntimeError, match="triton backend is not to be had: no device"), ops.use_backend("triton"):
        pass
