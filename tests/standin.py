"""A GPU that is not there: tensors that say they are on cuda:0, and hold values on the CPU.

`with pretended_gpu():` lets PyTorch believe in one device. Every operation is computed on the CPU, and checked:
tensors of both devices do not meet, and while a CUDA graph is recorded nothing waits for the device, copies from or to
it, or launches on another stream. A graph records the operations and replays them, on the memory that they had.
Triton's kernels run in its interpreter, in one block, and their launches count as operations.

What it cannot show: whether kernels compile and are right on a device (tests/test_ops_backends.py does, on a real one),
and anything about speed and memory.
"""

import contextlib
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten
WAITS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default}
INDEXES = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


class Standin(torch.Tensor):
    """Its values are in `held`, on the CPU; PyTorch below Python, whose autograd asks the driver, takes it for such."""

    device, is_cuda = CUDA, True

    @staticmethod
    def __new__(cls, held, requires_grad=False):
        return torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            layout=held.layout, device="cpu", requires_grad=requires_grad,
        )  # fmt: skip

    def __init__(self, held, requires_grad=False):
        self.held = held.detach()

    def __repr__(self):
        return f"Standin({self.held})"

    def __tensor_flatten__(self):
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner, _, size, stride):
        return Standin(inner["held"])

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self, force=False):
        if not force:
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
        return self.cpu().numpy()

    def new_tensor(self, data):
        return torch.tensor(data, dtype=self.dtype).to(CUDA)

    def cpu(self):
        return self.to("cpu")

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return Gpu.now.compute(function, args, kwargs or {})


def to(self, *args, **kwargs):
    """`Tensor.to` of a machine with a GPU."""
    if args and isinstance(args[0], torch.Tensor):
        args = args[0].device, args[0].dtype
    copy = kwargs.pop("copy", False)
    device, dtype, _, memory_format = torch._C._nn._parse_to(*args, **kwargs)
    device, dtype = device or self.device, dtype or self.dtype
    settings = {} if memory_format is None else {"memory_format": memory_format}
    if isinstance(self, Standin) and device.type == "cpu":
        return aten._to_copy.default(self, dtype=dtype, device=device, **settings)
    if device.type == "cuda" and not isinstance(self, Standin):
        Gpu.now.wait("a copy from the host")
        return Standin(torch._C.TensorBase.to(self, dtype, copy=True, **settings))
    return torch._C.TensorBase.to(self, dtype, copy=copy, **settings)


def module_to(self, *args, _to=torch.nn.Module.to, **kwargs):
    """`Module.to`, also to where a tensor is."""
    if args and isinstance(args[0], torch.Tensor):
        args = args[0].device, args[0].dtype
    return _to(self, *args, **kwargs)


def held(x):
    return x.held if isinstance(x, Standin) else x


class Gpu(TorchDispatchMode):
    """Computes, checks and records."""

    now = None

    def __init__(self):
        super().__init__()
        self.stream = self.default_stream = Stream()
        self.graph = None  # that is being recorded
        self.waits = 0  # of the host for the device
        self.fails = None  # called before each operation of a record; it may raise

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return self.compute(function, args, kwargs or {})

    def wait(self, what):
        self.waits += 1
        if self.graph is not None:
            raise RuntimeError(f"operation not permitted when stream is capturing: {what} waits for the device")

    def compute(self, function, args, kwargs):
        leaves = tree_flatten((args, kwargs))[0]
        if not any(isinstance(x, Standin) or (isinstance(x, torch.device) and x.type == "cuda") for x in leaves):
            return function(*args, **kwargs)
        with self:  # in inference mode, composite operations come as they are
            parts = function.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        mine = [x for x in leaves if isinstance(x, Standin)]
        others = [x for x in leaves if isinstance(x, torch.Tensor) and not isinstance(x, Standin)]
        target = kwargs.get("device")
        to_me = torch.device(target).type == "cuda" if target is not None else bool(mine)
        self.check(function, mine, others, target)
        inner_args, inner_kwargs = tree_map(held, (args, kwargs))
        if target is not None:
            inner_kwargs["device"] = torch.device("cpu")
        inner = function(*inner_args, **inner_kwargs)
        if function is aten._to_copy.default and any(inner is held(x) for x in mine + others):
            inner = inner.clone()
        self.record(lambda: function(*inner_args, **inner_kwargs), inner)
        if function is aten.copy_.default and not isinstance(args[0], Standin):
            return args[0]
        if not to_me:
            return inner
        alias = function._schema.returns[0].alias_info
        is_view = alias is not None and not alias.is_write
        # a view of what is no inference tensor is none either
        with torch.inference_mode(torch.is_inference_mode_enabled() and not (is_view and not mine[0].is_inference())):
            out = tree_map_only(torch.Tensor, Standin, inner)
        return return_and_correct_aliasing(function, args, kwargs, out) if mine else out

    def check(self, function, mine, others, target):
        copies = function in (aten._to_copy.default, aten.copy_.default)
        if function in WAITS:
            self.wait(function)
        if copies and (others or (target is not None and torch.device(target).type != "cuda")):
            self.wait(function)
        if function in INDEXES and any(x.dtype == torch.bool for x in mine[1:]):
            self.wait(function)
        strangers = [x for x in others if x.ndim > 0 or function in (aten.stack.default, aten.cat.default)]
        if mine and strangers and not copies and function not in INDEXES:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found cuda:0 and {strangers[0].device}: {function}"
            )

    def record(self, run, inner):
        if self.graph is None:
            return
        if self.fails is not None:
            self.fails()
        if self.stream is not self.graph.stream:
            raise RuntimeError("an operation on a stream that is not being captured")
        self.graph.operations.append((run, tree_flatten(inner)[0]))

    def launch(self, kernel, grid, args, kwargs):
        """A Triton kernel, on what its arguments hold."""
        tensors = [x for x in args if isinstance(x, torch.Tensor)]
        assert all(isinstance(x, Standin) for x in tensors), "a kernel was given memory of the host"
        inner = [held(x) for x in args]
        kernel[grid](*inner, **kwargs)
        self.record(lambda: kernel[grid](*inner, **kwargs), ())


class Stream:
    """One of the device's; `waited_for` are those that it has let go first."""

    def __init__(self, device=None):
        assert device is None or torch.device(device) == CUDA
        self.device, self.waited_for = CUDA, []

    def wait_stream(self, other):
        self.waited_for.append(other)


@contextlib.contextmanager
def on_stream(stream):
    before, Gpu.now.stream = Gpu.now.stream, stream
    try:
        yield
    finally:
        Gpu.now.stream = before


class Graph:
    """What `torch.cuda.CUDAGraph` does."""

    def __init__(self):
        self.operations, self.stream, self.pool = [], None, None

    def replay(self):
        for run, before in self.operations:
            for old, new in zip(before, tree_flatten(run())[0], strict=False):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Recording:
    """What `torch.cuda.graph` does: if the record fails, its stream stays the current one."""

    pools_that_failed: list = []  # noqa: RUF012 - one device

    def __init__(self, graph, pool=None, stream=None):
        assert stream is not None, "PyTorch's default stream is of the device of the process's first record"
        assert pool not in self.pools_that_failed, "the pool of a failed record"
        self.graph, self.pool, self.graph.stream = graph, pool, stream

    def __enter__(self):
        self.before, Gpu.now.stream = Gpu.now.stream, self.graph.stream
        Gpu.now.graph = self.graph

    def __exit__(self, kind, error, trace):
        Gpu.now.graph = None
        if error is not None:
            self.pools_that_failed.append(self.pool)
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture") from error
        Gpu.now.stream = self.before


class Launcher:
    """A kernel of `triton_kernels` that takes stand-ins."""

    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        def launch(*args, **kwargs):
            if any(isinstance(x, Standin) for x in args):
                Gpu.now.launch(self.kernel, grid, args, kwargs)
            else:
                self.kernel[grid](*args, **kwargs)

        return launch


@contextlib.contextmanager
def pretended_gpu():
    """Let there be one CUDA device. Yields the `Gpu`."""
    from snnzoo.ops import triton_kernels, triton_launch, triton_pointwise

    assert triton_launch.INTERPRETED
    gpu = Gpu()
    cuda = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda *_: "pretended",
        "device": lambda device: contextlib.nullcontext(),
        "synchronize": lambda *_: gpu.wait("synchronize"),
        "empty_cache": lambda: gpu.wait("empty_cache"),
        "Stream": Stream,
        "stream": on_stream,
        "current_stream": lambda *_: gpu.stream,
        "CUDAGraph": Graph,
        "graph": Recording,
        "graph_pool_handle": lambda: object(),
        "memory_allocated": lambda *_: 0,
        "max_memory_allocated": lambda *_: 0,
        "reset_peak_memory_stats": lambda *_: None,
    }
    with contextlib.ExitStack() as stack:
        for name, replacement in cuda.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, replacement))
        stack.enter_context(mock.patch.object(torch.Tensor, "to", to))
        stack.enter_context(mock.patch.object(torch.nn.Module, "to", module_to))
        stack.enter_context(mock.patch.object(torch.Tensor, "pin_memory", lambda self, *_: self))
        stack.enter_context(mock.patch.object(Recording, "pools_that_failed", []))
        stack.enter_context(mock.patch.object(triton_launch, "_block", lambda order, _: 1 << order.numel.bit_length()))
        for module, name in (
            (triton_kernels, "forward_kernel"),
            (triton_kernels, "backward_kernel"),
            (triton_pointwise, "pointwise_kernel"),
        ):
            stack.enter_context(mock.patch.object(module, name, Launcher(getattr(module, name))))
        stack.enter_context(mock.patch.object(Gpu, "now", gpu))
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # a parameter that moves is a new one
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, False)
        with gpu:
            yield gpu
