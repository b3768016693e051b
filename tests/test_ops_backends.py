"""Every implementation of the multi-step operator against the reference, in a table of shapes, dtypes and layouts.

The Triton kernels run on a CUDA device where there is one, else in Triton's interpreter (conftest.py).
"""

import dataclasses
import itertools

import pytest
import torch

from snnzoo import codings, ops, surrogate
from snnzoo.codings import activations
from snnzoo.errors import UsageError
from snnzoo.ops import backends, compiled

DEVICES = {"cpu": "cpu"}
if backends.named("compiled").unavailable() is None:
    DEVICES["compiled"] = "cpu"
if backends.named("triton").unavailable() is None:
    DEVICES["triton"] = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = DEVICES.get("triton") == "cpu"

CODINGS = {
    "if hard": codings.IF(),
    "if hard -0.25": codings.IF(-0.25),
    "if soft": codings.IF(None),
    "if soft half": codings.IF(None, v_init=0.5),
    "lif hard": codings.LIF(0.0, reciprocal_tau=0.3),
    "lif soft": codings.LIF(None, reciprocal_tau=0.3),
    "lif hard no decay": codings.LIF(-0.25, reciprocal_tau=0.6, decay_input=False),
    "plif": codings.LIF(None, reciprocal_tau=torch.tensor(0.4)),
    "signed": codings.Signed(),
    "delta": codings.Delta(3, 0.6),
    "delta ternary": codings.Delta(1, 0.8),
    "delta encoder": codings.Delta(7, 0.5),
    "delta that waits": codings.Delta(3, 0.7, 0.7),
    "differential": codings.Differential(6),
    "differential encoder": codings.Differential(3),
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
    ("sequence", torch.float64),
    ("both", torch.float64),
]
HALF = (torch.float16, torch.bfloat16)
NO_KERNEL = {"compiled": HALF, "triton": (torch.float64,), "cpu": ()}


@pytest.fixture(params=DEVICES)
def backend(request):
    with ops.use_backend(request.param):
        yield request.param


ABSOLUTE = {"delta encoder", "differential encoder"}


def to_device(coding, device):
    if isinstance(getattr(coding, "reciprocal_tau", None), torch.Tensor):
        return codings.LIF(coding.v_reset, reciprocal_tau=coding.reciprocal_tau.to(device))
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
        scaled=True,
        absolute=coding in ABSOLUTE,
    )


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize(("output", "dtype"), OUTPUTS_AND_DTYPES, ids=str)
def test_every_output_and_dtype(backend, coding, dtype, output):
    if dtype in NO_KERNEL[backend]:
        pytest.skip("no kernel")
    device, shape = DEVICES[backend], (6, 2, 3, 5)
    x_seq, residual = (sequence(shape, dtype=dtype, device=device, seed=seed) for seed in (0, 1))
    coding = to_device(CODINGS[coding], device)
    for scaled, theta in itertools.product([False, True], [0.7, per_channel(shape, device)]):
        assert_equal_to_reference(x_seq, coding, v_threshold=theta, residual=residual, scaled=scaled, output=output)
    assert_equal_to_reference(x_seq, coding, v_threshold=0.7, output=output, out_dtype=torch.int8)
    if output != "both":  # that counts and values at once, which is the reference's alone
        assert_equal_to_reference(x_seq, coding, v_threshold=0.7, output=output, out_dtype=torch.int8, scaled=True)


@pytest.mark.parametrize("coding", CODINGS)
def test_state_goes_in_and_out(backend, coding):
    device, shape = DEVICES[backend], (7, 2, 3, 5)
    arguments = {"v_threshold": per_channel(shape, device), "bias": 0.05, "scaled": True}
    arguments["absolute"] = coding in ABSOLUTE
    x_seq, coding = sequence(shape, device=device), to_device(CODINGS[coding], device)
    whole = assert_equal_to_reference(x_seq, coding, **arguments)
    first = assert_equal_to_reference(x_seq[:3], coding, **arguments)
    second = assert_equal_to_reference(x_seq[3:], coding, state=first.state, t=3, **arguments)
    assert torch.equal(torch.cat([first.sequence, second.sequence]), whole.sequence)
    assert all(map(torch.equal, second.state, whole.state))
    assert ops.multi_step_neuron(x_seq, coding, keep_state=False).state == ()


@pytest.mark.parametrize("coding", CODINGS)
def test_a_state_in_half_precision_goes_on_in_single(backend, coding):
    """As that of a network which is made half within a sequence."""
    if torch.float16 in NO_KERNEL[backend]:
        pytest.skip("no kernel")
    device, shape = DEVICES[backend], (5, 2, 3, 5)
    coding, x_seq = to_device(CODINGS[coding], device), sequence(shape, dtype=torch.float16, device=device)
    first = ops.multi_step_neuron(x_seq[:2], coding, v_threshold=0.7)
    halved = tuple(part.half() for part in first.state)
    second = assert_equal_to_reference(x_seq[2:], coding, v_threshold=0.7, state=halved, t=2)
    assert all(part.dtype == torch.float32 for part in second.state)


@pytest.mark.parametrize("coding", ["if soft", "signed", "delta", "differential", "delta encoder"])
def test_an_input_that_is_no_number_is_not_taken_for_one(backend, coding):
    values = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.4])
    x_seq = torch.full((3, 1, 4), 0.1)
    x_seq[1, 0] = values
    arguments = {"coding": CODINGS[coding], "absolute": coding in ABSOLUTE, "scaled": True}
    actual = ops.multi_step_neuron(x_seq.to(DEVICES[backend]), **arguments)
    with ops.use_backend("reference"):
        expected = ops.multi_step_neuron(x_seq, **arguments)
    for one, other in zip((actual.sequence, *actual.state), (expected.sequence, *expected.state), strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=0, atol=0, equal_nan=True)
    if "delta" in coding:
        assert actual.sequence[1, 0, 0].isnan()


@pytest.mark.parametrize("coding", ["if soft", "signed", "delta", "differential encoder"])
@pytest.mark.parametrize("alias", ["x_seq", "residual"])
@pytest.mark.parametrize("layouts", list(itertools.product(["contiguous", "channels_last"], repeat=2)), ids=str)
def test_the_sequence_may_overwrite_its_inputs(backend, coding, alias, layouts):
    device, shape = DEVICES[backend], (4, 2, 5, 3, 3)
    absolute, coding = coding in ABSOLUTE, to_device(CODINGS[coding], device)
    inputs = {
        "absolute": absolute,
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
    assert_equal_to_reference(sequence((time_steps, 1, 3, 5), device=device), CODINGS[coding], scaled=True)


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
    arguments = {"v_threshold": per_channel((5, 2, 3, 7), "cuda"), "scaled": True}
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
    assert_equal_to_reference(sequence(shape, device=device), codings.IF(), residual=residual)
    assert_equal_to_reference(torch.empty(3, 0, 4, device=device), codings.IF(), output="both")


def gradients(x_seq, coding, weights, **arguments):
    leaves = {"x_seq": x_seq, **{k: arguments[k] for k in ("residual", "state") if k in arguments}}
    leaves = {k: (v[0] if k == "state" else v).detach().clone().requires_grad_() for k, v in leaves.items()}
    if isinstance(getattr(coding, "reciprocal_tau", None), torch.Tensor):
        leaves["tau"] = coding.reciprocal_tau.detach().clone().requires_grad_()
        coding = codings.LIF(
            coding.v_reset, coding.v_init, coding.surrogate, coding.detach_reset,
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
    common = (v_reset, 0.0, function, detach_reset)
    if kind == "if":
        return codings.IF(*common)
    tau = 0.3 if kind == "lif" else torch.tensor(0.3, dtype=dtype)
    return codings.LIF(*common, reciprocal_tau=tau, decay_input=kind != "plif no decay")


def assert_gradients_close(case, shape, dtype, device, **arguments):
    coding = to_device(coding_with_gradient(*case, dtype), device)
    x_seq, residual, *weights = (sequence(shape, device=device, seed=seed).to(dtype) for seed in range(5))
    weights = (weights[0], weights[1][0], weights[2][0])
    arguments = {"residual": residual * 0.3, "state": (residual[0] * 0.5,), "scaled": True, **arguments}
    actual = gradients(x_seq, coding, weights, **arguments)
    with ops.use_backend("reference"):
        expected = gradients(x_seq, coding, weights, **arguments)
    tolerance = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], **tolerance)


@pytest.mark.parametrize("case", GRADIENTS, ids=str)
def test_gradients_equal_those_of_the_reference(backend, case):
    device, shape = DEVICES[backend], (5, 2, 3, 5)
    dtype = torch.float32 if backend == "triton" else torch.float64
    theta = per_channel(shape, device).to(dtype)
    assert_gradients_close(case, shape, dtype, device, v_threshold=theta, bias=0.1)


@pytest.mark.parametrize(
    ("time_steps", "layout"), [(1, "contiguous"), (3, "channels_last"), (16, "static"), (34, "contiguous")]
)
def test_gradients_of_any_number_of_steps_in_any_layout(backend, time_steps, layout):
    device, shape = DEVICES[backend], (time_steps, 2, 3, 3, 3)
    for seed, coding in enumerate((codings.LIF(None, reciprocal_tau=0.4), codings.IF())):
        results = []
        for name in (backend, "reference"):
            with ops.use_backend(name):
                x_seq = sequence(shape, layout, device=device, seed=seed).detach().requires_grad_()
                spikes = ops.multi_step_neuron(x_seq, coding, v_threshold=0.8).sequence
                weights = sequence(shape, device=device, seed=9)
                results.append(torch.autograd.grad((spikes * weights).sum(), x_seq)[0])
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_half_precision_gradients_have_the_dtype_of_their_inputs(backend):
    if torch.float16 in NO_KERNEL[backend]:
        pytest.skip("no kernel")
    device, shape = DEVICES[backend], (4, 2, 3, 5)
    x_seq, residual = (
        sequence(shape, dtype=torch.float16, device=device, seed=seed).requires_grad_() for seed in (0, 1)
    )
    ops.multi_step_neuron(x_seq, codings.IF(), residual=residual).sequence.sum().backward()
    assert x_seq.grad.dtype == residual.grad.dtype == torch.float16
    with ops.use_backend("reference"):
        wide = x_seq.detach().float().requires_grad_()
        ops.multi_step_neuron(wide, codings.IF(), residual=residual.detach().float()).sequence.sum().backward()
    torch.testing.assert_close(x_seq.grad.float(), wide.grad, rtol=1e-2, atol=1e-3)


def test_an_unavailable_implementation_says_why(monkeypatch):
    absent = dataclasses.replace(backends.named("triton"), unavailable=lambda: "no device")
    monkeypatch.setattr(backends, "BACKENDS", (absent,))
    with pytest.raises(RuntimeError, match="triton backend is unavailable: no device"), ops.use_backend("triton"):
        pass


KERNELS_OF_ACTIVATIONS = {"cpu": activations.Activation, "compiled": compiled.ACTIVATIONS, "triton": activations.Clamp}
ACTIVATIONS = [
    activations.Clamp(0.0, 0.75),
    activations.Clamp(-1.0, 1.0),
    activations.LeakyReLU(0.25),
    activations.SiLU(),
    activations.Hardswish(),
    activations.Sigmoid(),
    activations.Hardsigmoid(),
    activations.GELU(),
    activations.GELU("tanh"),
    activations.ELU(0.5),
]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("coding", ["delta", "differential encoder"])
def test_every_activation_gives_the_spikes_of_the_reference(backend, coding, activation):
    if not isinstance(activation, KERNELS_OF_ACTIVATIONS[backend]):
        pytest.skip("no kernel")
    device, shape = DEVICES[backend], (6, 2, 3, 8)
    arguments = {"v_threshold": per_channel(shape, device), "bias": 0.1, "activation": activation, "scaled": True}
    x_seq = sequence(shape, device=device)
    assert_equal_to_reference(x_seq, CODINGS[coding], absolute=coding in ABSOLUTE, **arguments)


class Halved(codings.Delta):
    """A subclass with another equation: no fast path may take it for its parent."""

    def step(self, x, state, theta, t, activation):
        return super().step(x / 2, state, theta, t, activation)


class Leak(codings.LIF):
    def charged(self, v, x):
        return 0.5 * v + x


class Flat(surrogate.SurrogateFunctionBase):
    """A surrogate that no kernel knows."""

    @staticmethod
    def gradient_function(x, alpha):
        return torch.full_like(x, alpha)


@pytest.mark.parametrize("coding", [Halved(), Leak()], ids=["delta", "lif"])
def test_a_subclass_never_runs_the_equation_of_its_parent(coding):
    x_seq = sequence((4, 2, 3))
    actual = ops.multi_step_neuron(x_seq, coding).sequence
    with ops.use_backend("reference"):
        assert torch.equal(actual, ops.multi_step_neuron(x_seq, coding).sequence)
    parent = type(coding).__mro__[1]
    assert not torch.equal(actual, ops.multi_step_neuron(x_seq, parent()).sequence)
    for name in DEVICES:
        with (
            ops.use_backend(name),
            pytest.raises(RuntimeError, match=rf"{name} backend .* coding {type(coding).__name__}"),
        ):
            ops.multi_step_neuron(x_seq.to(DEVICES[name]), coding)


def test_a_surrogate_without_a_kernel_has_its_own_gradient(backend):
    x_seq = sequence((1, 2, 3), device=DEVICES[backend]).requires_grad_()
    coding = codings.IF(surrogate=Flat(0.3))
    if backend == "triton":
        with pytest.raises(RuntimeError, match="gradients of the surrogate Flat"):
            ops.multi_step_neuron(x_seq, coding)
        return
    ops.multi_step_neuron(x_seq, coding).sequence.sum().backward()
    torch.testing.assert_close(x_seq.grad, torch.full_like(x_seq, 0.3))


def test_a_backend_that_is_asked_for_raises_where_it_does_not_take_the_call():
    with ops.use_backend("cpu"), pytest.raises(RuntimeError, match=r"cpu backend does not take .* tensors on meta"):
        ops.multi_step_neuron(torch.empty(2, 3, device="meta"), codings.IF())
    prelu = activations.LeakyReLU(torch.tensor([0.1, 0.2, 0.3]))
    with ops.use_backend("cpu"), pytest.raises(RuntimeError, match="differs from channel to channel"):
        ops.multi_step_neuron(torch.rand(2, 2, 3), codings.Delta(), activation=prelu)
    if "triton" in DEVICES:
        x_seq = sequence((2, 2, 3), dtype=torch.float64, device=DEVICES["triton"])
        with ops.use_backend("triton"), pytest.raises(RuntimeError, match=r"triton backend .* float64"):
            ops.multi_step_neuron(x_seq, codings.IF())


def test_codings_that_stand_for_the_relu_alone_refuse_other_functions():
    for coding in (codings.IF(), codings.Signed()):
        ops.multi_step_neuron(torch.rand(2, 2), coding, activation=activations.Clamp(0.0, 6.0))
        with pytest.raises(UsageError, match="--recipe delta"):
            ops.multi_step_neuron(torch.rand(2, 2), coding, activation=activations.SiLU())


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize(("shape", "layout"), [case for case in SHAPES_AND_LAYOUTS if len(case[0]) > 2], ids=str)
def test_events_are_the_outputs_that_are_not_0_at_each_step_and_position(backend, coding, layout, shape):
    x_seq = sequence(shape, layout, device=DEVICES[backend])
    coding = to_device(CODINGS[coding], DEVICES[backend])
    for out_dtype in (None, torch.int8):
        result = ops.multi_step_neuron(x_seq, coding, v_threshold=0.4, counts_events=True, out_dtype=out_dtype)
        assert torch.equal(result.events, (result.sequence != 0).sum((1, 2)))
        assert result.events.shape == (shape[0], *shape[3:])
        assert result.events.dtype == torch.int64


def test_events_of_a_sum_are_an_error():
    with pytest.raises(ValueError, match="events are counted of sequences"):
        ops.multi_step_neuron(torch.rand(2, 3, 4), codings.IF(), output="sum", counts_events=True)


@pytest.mark.parametrize("name", [name for name in CODINGS if CODINGS[name].state])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_state_may_be_overwritten_by_the_one_after_it(backend, name, layout):
    device = "cuda" if backend == "triton" and not INTERPRETED else "cpu"
    coding = to_device(CODINGS[name], device)
    x_seq = sequence((6, 2, 5, 3, 3), layout, device=device)
    first = ops.multi_step_neuron(x_seq[:3], coding)
    want = ops.multi_step_neuron(x_seq[3:], coding, state=first.state, t=3)
    places = [part.data_ptr() for part in first.state]
    found = ops.multi_step_neuron(x_seq[3:], coding, state=first.state, t=3, reuse_state=True)
    assert torch.equal(found.sequence, want.sequence)
    assert all(map(torch.equal, found.state, want.state))
    assert [part.data_ptr() for part in found.state] == places


@pytest.mark.parametrize("name", [name for name in CODINGS if CODINGS[name].state])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_some_images_of_a_larger_state_go_on_as_if_it_were_theirs_alone(backend, name, layout):
    device = "cuda" if backend == "triton" and not INTERPRETED else "cpu"
    coding = to_device(CODINGS[name], device)
    x_seq = sequence((5, 6, 5, 11, 13), layout, device=device)  # an image ends within a tile of the compiled kernel
    rows, others = torch.tensor([1, 4, 5], device=device), [0, 2, 3]
    first = ops.multi_step_neuron(x_seq[:3], coding, v_threshold=0.3)
    x_of_some = torch.stack([ops.spec.select(step, rows) for step in x_seq[3:]])
    theirs = tuple(ops.spec.select(part, rows) for part in first.state)
    want = ops.multi_step_neuron(x_of_some, coding, v_threshold=0.3, state=theirs, t=3)
    before = [part.clone() for part in first.state]
    found = ops.multi_step_neuron(x_of_some, coding, v_threshold=0.3, state=first.state, t=3, rows=rows)
    assert torch.equal(found.sequence, want.sequence)
    assert (found.state is first.state) == (backend == "compiled")  # where they are, or in new memory
    for part, after, old in zip(found.state, want.state, before, strict=True):
        assert torch.equal(part[rows] if found.state is first.state else part, after)
        if found.state is first.state:
            assert torch.equal(part[others], old[others])


def test_rows_that_do_not_fit_the_state_are_an_error():
    state = ops.multi_step_neuron(torch.rand(1, 6, 3), codings.Signed()).state
    for rows in (None, torch.tensor([0, 1])):
        with pytest.raises(ValueError, match="the state of Signed is v, c"):
            ops.multi_step_neuron(torch.rand(1, 3, 3), codings.Signed(), state=state, rows=rows)
