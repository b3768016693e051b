"""The C++ kernels: equal to the reference whatever the call, and built only where that can be done."""

import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snnzoo import codings, ops
from snnzoo.codings import activations
from snnzoo.ops import backends, compiled, compiler

needs_compiler = pytest.mark.skipif(backends.named("compiled").unavailable() is not None, reason="no C++ compiler")

CODINGS = st.one_of(
    st.builds(codings.IF, st.sampled_from([None, 0.0, -0.25]), st.sampled_from([0.0, 0.5])),
    st.builds(
        codings.LIF,
        st.sampled_from([None, 0.0, -0.25]),
        reciprocal_tau=st.floats(0.05, 1.0),
        decay_input=st.booleans(),
    ),
    st.builds(codings.Rate),
    st.builds(codings.Signed),
    st.builds(codings.Delta, st.integers(1, 100), st.floats(0.1, 1.0)),
    st.builds(codings.Differential, st.integers(1, 30)),
)
ACTIVATIONS = [
    activations.RELU,
    activations.Clamp(-0.5, 0.75),
    activations.LeakyReLU(0.2),
    activations.Hardswish(),
    activations.Hardsigmoid(),
]


def laid_out(shape, order, dtype, seed):
    """Noise whose dimensions lie in memory in this order."""
    x = torch.randn([shape[d] for d in order], generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return (x * 0.8 + 0.2).permute(*(order.index(d) for d in range(len(order))))


@needs_compiler
@settings(max_examples=60, deadline=None)
@given(data=st.data(), coding=CODINGS, double=st.booleans(), seed=st.integers(0, 99))
def test_every_call_gives_what_the_reference_gives(data, coding, double, seed):
    dtype = torch.float64 if double else torch.float32
    shape = data.draw(st.lists(st.integers(1, 12), min_size=3, max_size=5).map(tuple))
    order = data.draw(st.permutations(range(len(shape))))
    x_seq, channels = laid_out(shape, order, dtype, seed), shape[2]
    arguments = {"t": data.draw(st.integers(0, 9)), "scaled": data.draw(st.booleans()), "counts_events": True}
    if coding.any_activation:
        arguments |= {"activation": data.draw(st.sampled_from(ACTIVATIONS)), "absolute": data.draw(st.booleans())}
    if data.draw(st.booleans()):
        arguments |= {"v_threshold": torch.rand(channels) + 0.2, "bias": torch.randn(channels) * 0.1}
    if data.draw(st.booleans()):
        arguments["residual"] = laid_out(shape, data.draw(st.permutations(range(len(shape)))), dtype, seed + 1)
    if data.draw(st.booleans()):
        arguments["state"] = tuple(torch.randn(shape[1:], dtype=dtype) for _ in coding.state)
    with ops.use_backend("reference"):
        expected = ops.multi_step_neuron(x_seq, coding, output="both", **arguments)
    with ops.use_backend("compiled"):
        actual = ops.multi_step_neuron(x_seq, coding, output="both", **arguments)
    for one, other in zip((*actual[:2], *actual.state), (*expected[:2], *expected.state), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(actual.events, (expected.sequence != 0).sum((1, 2)))


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("layout", [(0, 1, 2, 3, 4), (0, 1, 3, 4, 2)], ids=["contiguous", "channels_last"])
def test_threads_share_the_tiles_and_add_up_their_counts(threads, layout):
    x_seq = laid_out((3, 5, 7, 41, 29), list(layout), torch.float32, 0)
    coding, arguments = codings.Delta(3, 0.6), {"v_threshold": torch.linspace(0.2, 0.9, 7), "counts_events": True}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with ops.use_backend("compiled"):
            actual = ops.multi_step_neuron(x_seq, coding, **arguments)
    finally:
        torch.set_num_threads(before)
    with ops.use_backend("reference"):
        expected = ops.multi_step_neuron(x_seq, coding, **arguments)
    assert torch.equal(actual.sequence, expected.sequence)
    assert torch.equal(actual.events, expected.events)


@needs_compiler
def test_a_compiled_network_sees_an_operator_and_a_fake_tensor_is_left_alone():
    x_seq, coding = torch.randn(4, 2, 3, 5), codings.Delta(3, 0.5)
    with ops.use_backend("compiled"):
        run = torch.compile(lambda x: ops.multi_step_neuron(x * 2, coding).sequence, fullgraph=True, backend="eager")
        assert torch.equal(run(x_seq), ops.multi_step_neuron(x_seq * 2, coding).sequence)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = mode.from_tensor(x_seq)
        assert ops.multi_step_neuron(fake, codings.IF()).sequence.shape == x_seq.shape


@pytest.mark.parametrize(("compiler_named", "message"), [("/nonexistent/c++", "does not run"), ("false", "fails")])
def test_where_nothing_can_be_built_a_warning_says_why(monkeypatch, tmp_path, compiler_named, message):
    monkeypatch.setenv("CXX", shutil.which(compiler_named) or compiler_named)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.warns(UserWarning, match=f"neurons run without their CPU kernels.*{message}"):
        assert compiler.load.__wrapped__(compiled.SOURCE, "-DSNNZOO_DTYPE=float") is None
    assert not list(tmp_path.rglob("*.so"))


def test_without_kernels_the_next_implementation_takes_the_call(monkeypatch):
    monkeypatch.setattr(compiled, "_library", lambda dtype: None)
    x_seq, coding = torch.randn(4, 2, 3), codings.Delta()
    call = (x_seq, coding, ops.spec.Arguments(1.0, 0.0, None, None, 0, "sequence", False, torch.float32, True), False)
    assert backends.choose(*call).name == "cpu"
    with pytest.raises(RuntimeError, match="compiled backend is unavailable"), ops.use_backend("compiled"):
        pass


@needs_compiler
def test_a_library_is_built_once_and_a_broken_one_does_not_stay(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = tmp_path / "answer.cpp"
    source.write_text('extern "C" int answer() { return 42; }')
    assert compiler.load.__wrapped__(source).answer() == 42
    (built,) = (tmp_path / "snnzoo").iterdir()
    facts = built.stat()
    assert compiler.load.__wrapped__(source).answer() == 42
    assert built.stat().st_mtime_ns == facts.st_mtime_ns
    source.write_text("no C++")
    with pytest.warns(UserWarning, match="error"):
        assert compiler.load.__wrapped__(source) is None
    assert list((tmp_path / "snnzoo").iterdir()) == [built]
