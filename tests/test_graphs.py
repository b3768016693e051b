"""CUDA graphs, on a stand-in for a GPU (`standin`), which runs and replays what they record."""

import warnings

import pytest
import torch
from torch import nn

import snnzoo
from helpers import shake_batch_norm
from snnzoo.errors import UsageError
from snnzoo.inference import graphs
from snnzoo.models.cifar_resnet import CifarResNet
from snnzoo.ops import use_backend
from standin import Standin


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    ann = shake_batch_norm(CifarResNet(1, neuron=nn.ReLU, num_classes=3)).eval()
    return snnzoo.convert(ann, torch.rand(8, 3, 8, 8), gamma=0.5, time_steps=2)


def ones(*shape):
    return torch.ones(*shape, device="cuda")


# -- The stand-in itself -----------------------------------------------------------------------------------------------


def test_tensors_of_two_devices_do_not_meet(gpu):
    x = torch.rand(3).to("cuda")
    assert (type(x), x.device, x.is_cuda) == (Standin, torch.device("cuda:0"), True)
    assert torch.equal((x + ones(3)).cpu(), x.cpu() + 1)
    with pytest.raises(RuntimeError, match=r"found cuda:0 and cpu"):
        x + torch.rand(3)


@pytest.mark.parametrize("wait", [
    lambda x: x.sum().item(), lambda x: x.cpu(), lambda x: x.nonzero(), lambda x: x[x > 0], lambda x: bool(x.any()),
    lambda x: x + torch.ones(3).to("cuda"), lambda x: torch.cuda.synchronize(),
])  # fmt: skip
def test_what_waits_for_the_device_cannot_be_recorded(gpu, wait):
    wait(ones(3))
    with pytest.raises(RuntimeError, match="previous error during capture") as caught:
        graphs.capture(lambda x: (gpu.graph and wait(x), x + 1)[1], ones(3))
    assert "waits for the device" in str(caught.value.__cause__)


# -- Records and replays -----------------------------------------------------------------------------------------------


def test_a_replay_computes_anew(gpu):
    replay = graphs.capture(lambda x: (x * 2).cumsum(0), ones(3))
    for values in ([1.0, 2.0, 3.0], [4.0, 0.0, -1.0]):
        x = torch.tensor(values)
        assert torch.equal(replay(x.to("cuda")).cpu(), (x * 2).cumsum(0))


def test_a_record_is_on_a_stream_of_its_own_that_has_waited(gpu):
    streams = []
    graphs.capture(lambda x: (streams.append(gpu.stream), x + 1)[1], ones(3))
    assert len(streams) == graphs.WARM_UP_RUNS + 1
    assert len(set(streams)) == 1
    assert streams[0].waited_for == [gpu.default_stream]
    assert gpu.stream is gpu.default_stream
    assert gpu.default_stream.waited_for == [streams[0]]


def test_graphs_of_a_cache_share_one_stream_and_caches_do_not(gpu):
    streams = []
    caches = graphs.GraphCache(), graphs.GraphCache()
    for cache in caches:
        for key in "ab":
            cache.run(key, lambda x: (gpu.graph and streams.append(gpu.stream), x + 1)[1], ones(3))
    first, second, third, fourth = (stream for stream in streams)
    assert first is second
    assert third is fourth
    assert first is not third


def test_each_key_is_recorded_once(gpu):
    cache, runs = graphs.GraphCache(), []
    for key in "abab":
        assert cache.run(key, lambda x: (runs.append(gpu.graph), -x)[1], ones(2)).tolist() == [-1, -1]
    assert len([graph for graph in runs if graph is not None]) == 2


def test_the_graph_not_used_for_longest_is_given_up(gpu):
    cache = graphs.GraphCache()
    for key in [*range(graphs.GRAPHS_KEPT), 0, "one too many"]:
        cache.run(key, torch.neg, ones(2))
    assert list(cache.functions) == [*range(2, graphs.GRAPHS_KEPT), 0, "one too many"]


def raises(error):
    def fail():
        raise error

    return fail


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: unknown error"), ValueError()]
)
def test_what_cannot_be_recorded_runs_as_it_is_with_a_warning(gpu, error):
    cache, x = graphs.GraphCache(), ones(3)
    cache.run("before", torch.neg, x)
    gpu.fails = raises(error)
    with pytest.warns(UserWarning, match="no CUDA graph could be recorded"):
        assert cache.run("fails", torch.neg, x).tolist() == [-1] * 3
    assert gpu.stream is gpu.default_stream
    gpu.fails = None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache.run("fails", torch.neg, 2 * x).tolist() == [-2] * 3  # does not try again
        assert cache.run("before", torch.neg, 2 * x).tolist() == [-2] * 3
        cache.run("after", torch.neg, x)  # on a new pool: the stand-in lets no other be used


def test_a_run_that_does_not_fit_is_the_callers_to_handle(gpu):
    def too_large(x):
        raise torch.OutOfMemoryError("CUDA out of memory")

    cache = graphs.GraphCache()
    with pytest.raises(torch.OutOfMemoryError):
        cache.run("large", too_large, ones(2))
    assert not cache.functions


@pytest.mark.parametrize(("on", "deterministic"), [(True, False), (False, False), (True, True)])
def test_cudnn_measures_its_algorithms_while_warming_up_unless_told_not_to(gpu, monkeypatch, on, deterministic):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", deterministic)
    seen = []
    cache = graphs.GraphCache(cudnn_benchmark=on)
    cache.run("a", lambda x: (seen.append(torch.backends.cudnn.benchmark), -x)[1], ones(2))
    warm = on and not deterministic
    assert seen == [False, *[warm] * graphs.WARM_UP_RUNS, False]
    assert torch.backends.cudnn.benchmark is False


# -- Networks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_replayed_network_gives_the_logits_of_a_launched_one_for_every_input(gpu, net, dtype):
    fast = snnzoo.prepare_for_inference(net, dtype=dtype, device="cuda")
    eager, plain = fast.without_graphs(), snnzoo.prepare_for_inference(net, dtype=dtype)
    for seed in range(2):
        x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        x_seq = x.expand(2, *x.shape)
        logits = fast(x_seq)
        assert torch.equal(logits, eager(x_seq))
        if dtype == torch.float32:
            torch.testing.assert_close(logits.cpu(), plain(x_seq), rtol=1e-5, atol=1e-5)
    assert len(fast._graphs.functions) == 1


def test_a_network_is_recorded_for_each_shape_backend_and_readout_and_runs_by_itself_when_watched(gpu, net):
    fast = snnzoo.prepare_for_inference(net, device="cuda")
    x = torch.rand(4, 3, 8, 8)
    # a static image of 2 x 2 steps, and two different ones, have as many images in memory
    with use_backend("reference"):
        for x_seq in (x.expand(2, *x.shape), x.unflatten(0, (2, 2)), x.expand(2, *x.shape)):
            logits = fast(x_seq)
            torch.testing.assert_close(fast.final(x_seq), logits[-1])
    assert len(fast._graphs.functions) == 4
    torch.testing.assert_close(fast(x_seq).cpu(), logits.cpu())
    assert len(fast._graphs.functions) == 5
    seen = []
    fast(x.expand(1, *x.shape), lambda node, inputs, value: seen.append(node.name))
    assert seen == [node.name for node in fast.network.graph]
    assert len(fast._graphs.functions) == 5
    fast.forget_graphs()
    assert not fast._graphs.functions


def test_integer_weights_are_refused(gpu, net):
    with pytest.raises(UsageError, match="integer weights run on a CPU"):
        snnzoo.prepare_for_inference(net, dtype=torch.int8, device="cuda")
