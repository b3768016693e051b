"""Batches that are read ahead, and that are halved when memory runs out (simulated: no GPU is needed)."""

import threading
import time

import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from snnzoo.data.loading import batches
from snnzoo.errors import SnnzooError
from snnzoo.evaluation.runner import BatchLimit

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


@pytest.mark.parametrize("message", [
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "Triton Error [CUDA]: out of memory",
    "CUDA error: out of memory",
])  # fmt: skip
def test_whoever_runs_out_of_memory_the_batch_is_halved_once_memory_is_freed(message):
    freed, sizes = [], []

    def double(images):
        sizes.append(len(images))
        if not freed:
            raise RuntimeError(message)
        return 2 * images

    images = DATA.tensors[0]
    results = BatchLimit(8, lambda _: None, lambda: freed.append(len(sizes))).run(double, images)
    assert torch.equal(torch.cat(results), 2 * images)
    assert (freed, sizes[:2]) == ([1], [8, 4])


def test_other_errors_pass():
    def broken(images):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        BatchLimit(2, lambda _: None).run(broken, DATA.tensors[0])
