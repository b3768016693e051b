"""Batches that are read ahead, and that are halved when memory runs out (simulated: no GPU is needed)."""

import threading
import time

import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

import snnzoo
from snnzoo.data.loading import batches
from snnzoo.errors import SnnzooError
from snnzoo.evaluation.runner import BatchLimit
from snnzoo.inference import graphs

DATA = TensorDataset(torch.arange(10.0).view(10, 1, 1, 1), torch.arange(10))


class Recorded(Dataset):
    """Notes which samples were read, and in which thread; `broken` cannot be read."""

    def __init__(self, broken=None):
        self.read, self.threads, self.broken = [], set(), broken

    def __len__(self):
        return 12

    def __getitem__(self, index):
        self.read.append(index)
        self.threads.add(threading.get_ident())
        if index == self.broken:
            raise SnnzooError("image 7: cannot read")
        return torch.full((1,), float(index)), index


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("batch_size", [1, 3, 10, 64])
def test_batches_hold_every_sample_in_order(batch_size, workers):
    read = list(batches(DATA, batch_size, workers))
    assert torch.equal(torch.cat([images for images, _ in read]), DATA.tensors[0])
    assert torch.cat([labels for _, labels in read]).tolist() == list(range(10))
    assert {len(labels) for _, labels in read[:-1]} <= {batch_size}


def test_the_next_batch_is_read_while_one_is_used():
    data = Recorded()
    running = batches(data, 4)
    next(running)
    deadline = time.monotonic() + 10
    while len(data.read) < 12 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert data.read == list(range(12))
    assert threading.get_ident() not in data.threads


def test_an_error_comes_as_it_is_when_its_batch_is_due():
    running = batches(Recorded(broken=7), 4)
    next(running)
    with pytest.raises(SnnzooError, match=r"^image 7: cannot read$"):
        next(running)


def test_a_reader_that_is_given_up_reads_no_more():
    before = threading.active_count()
    running = batches(Recorded(), 2, 2)
    next(running)
    running.close()
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.001)
    assert threading.active_count() == before


def small_gpu(fits):
    """A function that doubles its input, on a device that `fits` so many images."""
    sizes = []

    def double(images):
        sizes.append(len(images))
        if len(images) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 2 * images

    return double, sizes


@pytest.mark.parametrize(("fits", "tried"), [(8, [8, 2]), (3, [8, 4, 2, 2, 2, 2, 2]), (1, [8, 4, 2] + [1] * 10)])
def test_a_batch_that_does_not_fit_is_halved_for_good(fits, tried):
    notices = []
    limit, (double, sizes) = BatchLimit(8, notices.append), small_gpu(fits)
    images = DATA.tensors[0]
    assert torch.equal(torch.cat(limit.run(double, images)), 2 * images)
    assert sizes == tried
    assert len(notices) == len([size for size in tried if size > fits])
    limit.run(double, images)
    assert max(sizes[len(tried) :]) <= fits
    assert len(notices) == len([size for size in tried if size > fits])


def test_the_notice_says_what_does_not_fit_and_what_is_done():
    notices = []
    BatchLimit(8, notices.append).run(small_gpu(4)[0], DATA.tensors[0])
    assert notices == ["a batch of 8 images does not fit the GPU's memory: going on with 4"]


def test_one_image_that_does_not_fit_is_an_error_that_says_what_to_do():
    with pytest.raises(SnnzooError, match=r"one image of 6x5 pixels does not fit.*--dtype float16"):
        BatchLimit(2, lambda _: None).run(small_gpu(0)[0], torch.zeros(3, 1, 5, 6))


def test_other_errors_pass():
    def broken(images):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        BatchLimit(2, lambda _: None).run(broken, DATA.tensors[0])


@pytest.fixture
def recorder(monkeypatch):
    """Graphs on a machine without a GPU: what would be recorded is noted, and runs as it is."""
    recorded = []

    def capture(function, x, pool):
        assert pool == "pool"
        if x.numel() > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        recorded.append(tuple(x.shape))
        return lambda x: function(x) + 1  # tells a replay from a run

    monkeypatch.setattr(graphs, "capture", capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    return recorded


def test_each_key_is_recorded_once(recorder):
    cache, x = graphs.GraphCache(), torch.ones(2)
    assert [cache.run(key, torch.neg, x).tolist() for key in "aba"] == [[0, 0]] * 3
    assert recorder == [(2,), (2,)]


def test_the_graph_not_used_for_longest_is_given_up(recorder):
    cache, x = graphs.GraphCache(), torch.ones(2)
    for key in [*range(graphs.GRAPHS_KEPT), 0, "one too many"]:
        cache.run(key, torch.neg, x)
    assert list(cache.functions) == [*range(2, graphs.GRAPHS_KEPT), 0, "one too many"]


def test_without_memory_for_a_graph_the_function_runs_as_it_is(recorder):
    cache, x = graphs.GraphCache(), torch.ones(200)
    assert torch.equal(cache.run("large", torch.neg, x), -x)
    assert recorder == []


def test_a_run_that_does_not_fit_is_the_callers_to_handle(recorder):
    cache = graphs.GraphCache()
    with pytest.raises(torch.OutOfMemoryError):
        cache.run("large", small_gpu(1)[0], torch.ones(2))
    assert not cache.functions


def test_a_network_is_recorded_for_each_shape_of_input_and_runs_by_itself_when_watched(recorder, monkeypatch):
    monkeypatch.setattr(graphs, "capture", lambda function, x, pool: recorder.append(tuple(x.shape)) or function)
    net = snnzoo.create_model("resnet20", num_classes=3).eval()
    plain, fast = snnzoo.prepare_for_inference(net), snnzoo.prepare_for_inference(net)
    fast._graphs = graphs.GraphCache()
    x = torch.randn(4, 3, 8, 8)
    # a static image of 2 x 2 steps, and two different ones, have as many images in memory
    inputs = [x.expand(2, *x.shape), x.unflatten(0, (2, 2)), x.expand(2, *x.shape), x.expand(3, *x.shape)]
    for x_seq in inputs:
        torch.testing.assert_close(fast(x_seq), plain(x_seq))
        torch.testing.assert_close(fast.final(x_seq), plain.final(x_seq))
    assert recorder == [(4, 3, 8, 8)] * 6
    seen = []
    fast(x.expand(5, *x.shape), lambda node, inputs, value: seen.append(node.name))
    assert seen == [node.name for node in fast.network.graph]
    fast.without_graphs()(x.expand(6, *x.shape))
    assert len(recorder) == 6
