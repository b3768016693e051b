"""What a pickle of `torch.save` would build, found out without building it.

`torch.load(weights_only=True)` runs no code of others, but still makes what a pickle asks for: a tensor of more
elements than the file has, a set with a tensor iterated over, a key that takes years to hash. So a pickle is first
gone through on paper: only tensors, plain values, the settings of a training script, and the few calls by which
torch.save writes them are let through.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, NoReturn, cast

import torch

from snnzoo.checkpoints.untrusted.limits import MAX_TEXT, Claims, check_name
from snnzoo.errors import CheckpointError

NAMESPACE = "argparse Namespace"  # in which training scripts, torchvision's too, keep their settings
MAX_OPERATIONS = 1_000_000
MAX_DEPTH = 100
MAX_NODES = 2_000_000  # of the tree, what is in it twice counted twice

_DAMAGED = "its pickle is damaged or truncated: get the file again"
_SAVE_ALONE = (
    "and loading those could run any code or fill the memory; save its state_dict alone with "
    "torch.save(net.state_dict(), ...)"
)
_STORAGES = {
    "Float": 4, "Double": 8, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1,
    "Bool": 1, "ComplexFloat": 8, "ComplexDouble": 16,
}  # fmt: skip
ITEM_SIZES = {
    "torch.storage UntypedStorage": 1,
    **{f"{place} {name}Storage": size for place in ("torch", "torch.cuda") for name, size in _STORAGES.items()},
}
_DTYPES = {f"torch {name}": dtype for name, dtype in vars(torch).items() if isinstance(dtype, torch.dtype)}


@dataclass(frozen=True)
class _Global:
    """A class or function, by `module name`; nothing is imported for it."""

    name: str


@dataclass(frozen=True)
class _Made:
    """Something that a call makes, by what it is; nobody looks inside."""

    kind: str


@dataclass(frozen=True)
class _Storage:
    key: str
    items: int
    item_size: int


_TENSOR = _Made("tensor")
_SETTINGS = _Made("settings")


@dataclass
class Outline:
    """What a pickle would build.

    Args:
        value: with stand-ins for tensors.
        storages: the item count and item size of each, by key.
    """

    value: Any = None
    storages: dict[str, tuple[int, int]] = field(default_factory=dict)


class _Limited:
    """A stream that ends after MAX_TEXT bytes, and does not allocate for a size claimed."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._left = MAX_TEXT

    def read(self, size: int) -> bytes:
        return self._count(self._stream.read(size)) if size <= self._left else self._refuse()

    def readline(self) -> bytes:
        return self._count(self._stream.readline(self._left + 1))

    def _count(self, data: bytes) -> bytes:
        self._left -= len(data)
        return data if self._left >= 0 else self._refuse()

    def _refuse(self) -> NoReturn:
        raise CheckpointError(f"its pickle is beyond {MAX_TEXT:,} bytes, or damaged: get the file again")


def outline(stream: IO[bytes], claims: Claims) -> Outline:
    """Go through the pickle that begins at the stream's position, and stop behind it.

    Args:
        claims: counts the tensors.

    Raises:
        CheckpointError: if it is damaged, or would do or build anything but tensors, dicts, lists and plain values.
    """
    try:
        return _Reader(claims).run(stream)
    except CheckpointError:
        raise
    except Exception as error:  # whatever there is to stumble over: an empty stack, a missing memo, a wrong length
        raise CheckpointError(_DAMAGED) from error


class _Reader:
    """The machine of a pickle, with stand-ins for all that it would call."""

    def __init__(self, claims: Claims) -> None:
        self._claims = claims
        self._outline = Outline()
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self, stream: IO[bytes]) -> Outline:
        for count, (operation, argument, _) in enumerate(pickletools.genops(cast(IO[bytes], _Limited(stream)))):
            if count >= MAX_OPERATIONS:
                raise CheckpointError("its pickle has too many parts: save the network's state_dict alone")
            self._step(operation.name, argument)
        self._outline.value = self._stack.pop()
        _check_tree(self._outline.value)
        return self._outline

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"):
            stack.append(argument)
        elif name == "BINUNICODE":
            stack.append(_text(argument.encode(errors="surrogatepass")))
        elif name == "SHORT_BINSTRING":  # of Python 2
            stack.append(_text(argument.encode("latin-1")))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name in _TUPLES:
            size = _TUPLES[name]
            stack[-size:] = [tuple(stack[-size:])] if len(stack) >= size else _damaged()
        elif name == "GLOBAL":
            stack.append(_known_global(argument))
        elif name in _METHODS:
            _METHODS[name](self)
        elif name not in ("PROTO", "STOP"):
            raise CheckpointError(
                f"refused, because its pickle has a part ({name}) that no state dict of torch.save has, {_SAVE_ALONE} "
                "and its default pickle_protocol"
            )

    def _mark(self) -> None:
        self._marked.append(self._stack)
        self._stack = []

    def _pop_mark(self) -> list[Any]:
        items = self._stack
        self._stack = self._marked.pop()
        return items

    def _tuple(self) -> None:
        items = self._pop_mark()
        self._stack.append(tuple(items))

    def _append(self) -> None:
        self._extend([self._stack.pop()])

    def _appends(self) -> None:
        self._extend(self._pop_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            _damaged()
        target.extend(items)

    def _set_item(self) -> None:
        key, value = self._stack[-2:]
        del self._stack[-2:]
        self._set([key, value])

    def _set_items(self) -> None:
        self._set(self._pop_mark())

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not dict:
            _damaged()
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def _new_object(self) -> None:
        """Without a call: only the settings of training scripts are let through."""
        arguments, kind = self._stack.pop(), self._stack.pop()
        if kind != _Global(NAMESPACE) or arguments != ():
            raise CheckpointError(f"refused, because it makes objects beyond tensors, {_SAVE_ALONE}")
        self._stack.append(_SETTINGS)

    def _build(self) -> None:
        """The state of a state dict, the versions of its modules; or of settings."""
        state = self._stack.pop()
        target = self._stack[-1]
        if type(state) is dict and target is _SETTINGS and all(type(key) is str for key in state):
            _check_tree(state)
        elif type(target) is not dict or type(state) is not dict or set(state) - {"_metadata"}:
            raise CheckpointError(f"refused, because it holds objects with a state, {_SAVE_ALONE}")

    def _call(self) -> None:
        arguments = self._stack.pop()
        function = self._stack.pop()
        call = _CALLS.get(function.name) if type(function) is _Global else None
        if call is None or type(arguments) is not tuple:
            raise CheckpointError(f"refused, because it makes a call beyond those of tensors, {_SAVE_ALONE}")
        self._stack.append(call(self, *arguments))

    def _persistent(self) -> None:
        self._stack.append(self._storage(self._stack.pop()))

    def _storage(self, name: Any) -> _Storage:
        """`("storage", class, key, device, items)`, before 1.6 with a view `(key, offset, items)` of it, or None."""
        if type(name) is not tuple or name[:1] != ("storage",):
            raise CheckpointError(f"refused, because it holds whole modules, {_SAVE_ALONE}")
        _, kind, key, device, items, *view = name
        if not (type(kind) is _Global and type(key) is type(device) is str and type(items) is int and items >= 0):
            _damaged()
        item_size = ITEM_SIZES[kind.name]
        if self._outline.storages.setdefault(key, (items, item_size)) != (items, item_size):
            raise CheckpointError(f"its storage {key!a} has two sizes: get the file again")
        if any(view):
            view_key, offset, part = view[0]
            if type(view_key) is not str or sum(_naturals((offset, part))) > items:
                raise CheckpointError(f"a view of its storage {key!a} is larger than that: get the file again")
            items = part
        return _Storage(key, items, item_size)

    # The calls. Each raises where torch would, so that an argument too many is damage.

    def _ordered_dict(self, pairs: Any = ()) -> dict[Any, Any]:
        return {_key(key): value for key, value in _sequence(pairs)}

    def _counter(self, counts: Any) -> dict[Any, Any]:
        return counts if type(counts) is dict else _damaged()

    def _set_of(self, items: Any) -> _Made:
        for item in _sequence(items):
            _key(item)
        return _Made("set")

    def _size(self, shape: Any) -> _Made:
        _naturals(shape)
        return _Made("size")

    def _device(self, name: Any, index: Any = 0) -> _Made:
        return _Made("device") if type(name) is str and type(index) is int else _damaged()

    def _complex(self, real: Any, imaginary: Any) -> _Made:
        return _Made("complex") if type(real) is type(imaginary) is float else _damaged()

    def _bytes(self, text: Any, encoding: Any) -> _Made:
        return _Made("bytes") if type(text) is str and encoding in ("latin1", "latin-1") else _damaged()

    def _bytearray(self, *arguments: Any) -> _Made:
        return self._bytes(*arguments) if arguments and arguments != (_Made("bytes"),) else _Made("bytes")

    def _tensor(
        self, storage: Any, offset: Any, shape: Any, stride: Any, grad: Any = False, hooks: Any = None
    ) -> _Made:
        if type(storage) is not _Storage or type(grad) is not bool or hooks:
            _damaged()
        _check_extent(storage.items, offset, shape, stride)
        self._claims.add(shape, storage.item_size)
        return _TENSOR

    def _tensor_v3(self, storage: Any, offset: Any, shape: Any, stride: Any, grad: Any, hooks: Any, kind: Any) -> _Made:
        """Of a type that has no storage class: the storage is of bytes, the rest in items of that type."""
        item_size = _DTYPES[kind.name].itemsize
        items = storage.items * storage.item_size // item_size
        return self._tensor(_Storage(storage.key, items, item_size), offset, shape, stride, grad, hooks)

    def _parameter(self, tensor: Any, grad: Any, hooks: Any) -> _Made:
        return _TENSOR if tensor == _TENSOR and type(grad) is bool and not hooks else _damaged()


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_METHODS: dict[str, Callable[[_Reader], None]] = {
    "MARK": _Reader._mark,
    "TUPLE": _Reader._tuple,
    "APPEND": _Reader._append,
    "APPENDS": _Reader._appends,
    "SETITEM": _Reader._set_item,
    "SETITEMS": _Reader._set_items,
    "BINPERSID": _Reader._persistent,
    "NEWOBJ": _Reader._new_object,
    "BUILD": _Reader._build,
    "REDUCE": _Reader._call,
}
_CALLS: dict[str, Callable[..., Any]] = {
    "collections OrderedDict": _Reader._ordered_dict,
    "collections Counter": _Reader._counter,
    "__builtin__ set": _Reader._set_of,
    "builtins set": _Reader._set_of,
    "__builtin__ complex": _Reader._complex,
    "builtins complex": _Reader._complex,
    "__builtin__ bytearray": _Reader._bytearray,
    "builtins bytearray": _Reader._bytearray,
    "_codecs encode": _Reader._bytes,
    "torch Size": _Reader._size,
    "torch device": _Reader._device,
    "torch._utils _rebuild_tensor": _Reader._tensor,
    "torch._utils _rebuild_tensor_v2": _Reader._tensor,
    "torch._utils _rebuild_tensor_v3": _Reader._tensor_v3,
    "torch._utils _rebuild_parameter": _Reader._parameter,
}
_REFUSED = {
    "torch._utils _rebuild_qtensor": "quantized tensors",
    "torch._utils _rebuild_sparse_tensor": "sparse tensors",
    "torch._utils _rebuild_nested_tensor": "nested tensors",
    "torch._utils _rebuild_meta_tensor_no_storage": "tensors without data (meta)",
    "torch._utils _rebuild_wrapper_subclass": "tensors of another class",
    "torch._utils _rebuild_parameter_with_state": "parameters with attributes",
    "torch._tensor _rebuild_from_type_v2": "tensors of another class",
}


def _damaged() -> NoReturn:
    raise CheckpointError(_DAMAGED)


def _known_global(name: str) -> _Global:
    if name in _REFUSED:
        raise CheckpointError(f"holds {_REFUSED[name]}: save plain ones, {{k: v.detach().clone() for k, v in ...}}")
    if name not in _CALLS and name not in ITEM_SIZES and name not in _DTYPES and name != NAMESPACE:
        shown = ".".join(name[:80].split(" "))
        raise CheckpointError(f"refused, because it holds pickled objects ({shown!a}), {_SAVE_ALONE}")
    return _Global(name)


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise CheckpointError(f"holds text that is not UTF-8 ({data[:40]!r}): save it again") from None


def _key(key: Any) -> Any:
    """A key of a dict: of those that hash at once, and never by the thousand to the same number."""
    if type(key) is str:
        check_name(key)
    elif not (key is None or type(key) in (bool, float) or (type(key) is int and abs(key) < 1 << 60)):
        raise CheckpointError("refused, because a dict in it has keys beyond text and numbers: save a state_dict alone")
    return key


def _sequence(value: Any) -> Sequence[Any]:
    return value if type(value) in (list, tuple) else _damaged()


def _naturals(value: Any) -> Sequence[int]:
    return value if all(type(item) is int and item >= 0 for item in _sequence(value)) else _damaged()


def _check_extent(items: int, offset: Any, shape: Any, stride: Any) -> None:
    """Whether a tensor lies inside its storage of `items`."""
    _naturals((offset,))
    steps = [(size - 1) * step for size, step in zip(_naturals(shape), _naturals(stride), strict=True)]
    if 0 not in shape and offset + sum(steps) >= items:
        raise CheckpointError(f"a tensor of shape {list(shape)} is larger than its storage: get the file again")


def _check_tree(value: Any) -> None:
    """Whether it can be walked through: not deep, and not large by having the same thing in it again and again."""
    nodes, level = 0, [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for branch in level:
            if type(branch) in (dict, list, tuple):
                nodes += len(branch)
                if nodes > MAX_NODES:
                    raise CheckpointError("has too many parts: save the network's state_dict alone")
                below.extend(branch.values() if type(branch) is dict else branch)
        if not below:
            return
        level = below
    raise CheckpointError(f"its dicts and lists are nested more than {MAX_DEPTH} deep: save the state_dict alone")
