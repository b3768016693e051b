"""A pickle gone through on paper: tensors and plain values are made, all else is a stand-in, and nothing is called.

A pickle is a program for a machine with a stack. This one has the same stack, and of the program's calls knows
those by which tensors and NumPy arrays are written. Whatever else a program would call or import
becomes an `Opaque` that says what.
"""

from __future__ import annotations

import io
import mmap
import pickletools
from collections.abc import Callable, Sequence
from typing import IO, Any, BinaryIO, NoReturn, cast

from torch import Tensor

from snnzoo.checkpoints.untrusted.arrays import ARRAY, DTYPE, array_of_buffer, new_array, new_dtype, tensor_of
from snnzoo.checkpoints.untrusted.limits import LEGACY_MAGIC, MAX_NAME, check_name, is_name
from snnzoo.checkpoints.untrusted.objects import Global, Opaque
from snnzoo.checkpoints.untrusted.tensors import DTYPES, STORAGE_DTYPES, Storage, Tensors
from snnzoo.errors import CheckpointError

MAX_OPERATIONS = 1_000_000
_MAX_BITS = 4096  # of a whole number: Python refuses to show those of more than 4300 digits

_DAMAGED = "its pickle is damaged or truncated: get the file again"


class _Limited:
    """A stream that ends after `size` bytes, and does not allocate for a size claimed."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self._stream = stream
        self._left = size

    def read(self, size: int) -> bytes:
        return self._count(self._stream.read(size)) if size <= self._left else _damaged()

    def readline(self) -> bytes:
        return self._count(self._stream.readline(self._left + 1))

    def _count(self, data: bytes) -> bytes:
        self._left -= len(data)
        return data if self._left >= 0 else _damaged()


def read_pickle(stream: IO[bytes], size: int, tensors: Tensors, find: Callable[[Any], Any] | None = None) -> Any:
    """What the pickle that begins at the stream's position is of; the stream is then behind it.

    Args:
        size: it has at most that many bytes; no more are ever allocated at once than that.
        tensors: makes the tensors, which have no data before its `fill`.
        find: what a persistent name stands for; by default storages and classes are named as since 0.1.10.

    Returns:
        Tensors, None, bool, int, float, str, bytes, and dicts, lists and tuples of them; sets as lists; `Opaque` and
        `Global` for other objects, classes and functions. What it holds may hold itself.

    Raises:
        CheckpointError: if it is damaged, too large, or holds tensors of a kind that the zoo has no use for.
    """
    try:
        return _Machine(tensors, find).run(stream, size)
    except CheckpointError:
        raise
    except Exception as error:  # whatever there is to stumble over: an empty stack, a missing memo, a wrong length
        raise CheckpointError(_DAMAGED) from error


def read_plain_pickle(file: BinaryIO, mapped: mmap.mmap) -> Any:
    """What a pickle that torch.save did not write holds, as `read_pickle`: its tensors lie in it."""
    tensors = Tensors(len(mapped))
    content = read_pickle(file, len(mapped), tensors)
    tensors.fill(lambda storage: _damaged())
    return content


class _Machine:
    """The stack and the memo of a pickle.

    Args:
        tensors, find: as `read_pickle`.
        inner: whether the pickle lies in another one.
    """

    def __init__(self, tensors: Tensors, find: Callable[[Any], Any] | None, inner: bool = False) -> None:
        self._tensors, self._inner = tensors, inner
        self._find = find or self._named
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._operations = 0

    def run(self, stream: IO[bytes], size: int) -> Any:
        for operation, argument, _ in pickletools.genops(cast(IO[bytes], _Limited(stream, size))):
            self._spend(1)
            if operation.name in _VALUES:
                self._stack.append(_VALUES[operation.name](argument))
            elif operation.name in _METHODS:
                _METHODS[operation.name](self)
            elif operation.name in _METHODS_OF_ARGUMENT:
                _METHODS_OF_ARGUMENT[operation.name](self, argument)
            elif operation.name not in ("PROTO", "FRAME", "STOP"):
                raise CheckpointError(f"its pickle has a part ({operation.name}) that torch.save never writes: refused")
        return self._stack.pop()

    def _spend(self, operations: int) -> None:
        """Count what takes time. Nothing is ever copied, so that what is there once cannot become much."""
        self._operations += operations
        if self._operations > MAX_OPERATIONS:
            raise CheckpointError("its pickle has too many parts: save the network's state_dict alone")

    # Stack and memo.

    def mark(self) -> None:
        self._marked.append(self._stack)
        self._stack = []

    def pop_mark(self) -> list[Any]:
        items = self._stack
        self._stack = self._marked.pop()
        return items

    def drop_to_mark(self) -> None:
        self.pop_mark()

    def pop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self.pop_mark()

    def duplicate(self) -> None:
        self._stack.append(self._stack[-1])

    def put(self, index: int) -> None:
        if not 0 <= index < 1 << 32:
            _damaged()
        self._memo[index] = self._stack[-1]

    def memoize(self) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    # Containers. A set is a list, so that nothing in it need be hashed.

    def tuple_of(self, size: int) -> None:
        if len(self._stack) < size:
            _damaged()
        self._stack[-size:] = [tuple(self._stack[-size:])]

    def tuple_from_mark(self) -> None:
        items = self.pop_mark()
        self._stack.append(tuple(items))

    def list_from_mark(self) -> None:
        items = self.pop_mark()
        self._stack.append(items)

    def dict_from_mark(self) -> None:
        items = self.pop_mark()
        self._stack.append({})
        self._set(items)

    def append(self) -> None:
        self._extend([self._stack.pop()])

    def appends(self) -> None:
        self._extend(self.pop_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is list:
            target.extend(items)
        elif type(target) is not Opaque:  # whose items nobody asks for
            _damaged()

    def set_item(self) -> None:
        items = self._stack[-2:]
        del self._stack[-2:]
        self._set(items)

    def set_items(self) -> None:
        self._set(self.pop_mark())

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        entries = target.entries if type(target) is Opaque else target
        if type(entries) is not dict:
            _damaged()
        for key, value in zip(items[::2], items[1::2], strict=True):
            array = tensor_of(value, self._tensors.claims) if type(value) is Opaque and value.kind == ARRAY else None
            _put(entries, key, value if array is None else array)

    # Classes and objects.

    def name(self, name: str) -> None:
        self._stack.append(Global(name.replace(" ", ".", 1)))

    def name_from_stack(self) -> None:
        module, name = self._stack[-2:]
        if not type(module) is type(name) is str or len(module) + len(name) > MAX_NAME:
            _damaged()
        self._stack[-2:] = [Global(f"{module}.{name}")]

    def call(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        self._stack.append(self._result(function, arguments))

    def _result(self, function: Any, arguments: Any) -> Any:
        """What the calls that are known make; of others, that they would be made."""
        if type(function) not in (Global, Opaque) or type(arguments) is not tuple:
            _damaged()
        if type(function) is Opaque:
            return Opaque(function.kind, arguments)
        if function.name in _REFUSED:
            raise CheckpointError(f"holds {_REFUSED[function.name]}: {_SAVE_PLAIN}")
        if function.name in _CALLS:
            return _CALLS[function.name](self, *arguments)
        return Opaque(function.name, arguments)

    def new_object(self) -> None:
        arguments, kind = self._stack.pop(), self._stack.pop()
        self._stack.append(_object(kind, arguments))

    def new_object_with_names(self) -> None:
        names, arguments, kind = self._stack.pop(), self._stack.pop(), self._stack.pop()
        self._stack.append(_object(kind, arguments) if type(names) is dict else _damaged())

    def old_object(self) -> None:
        kind, *arguments = self.pop_mark()
        self._stack.append(_object(kind, tuple(arguments)))

    def old_object_named(self, name: str) -> None:
        arguments = self.pop_mark()
        self._stack.append(Opaque(name.replace(" ", ".", 1), tuple(arguments)))

    def build(self) -> None:
        """The state of an object: its attributes, or those and its slots; of a state dict, its modules' versions."""
        state = self._stack.pop()
        target = self._stack[-1]
        if type(target) is Opaque:
            if target.kind in (ARRAY, DTYPE):
                target.attributes = {"state": state}
                return
            parts = state if type(state) is tuple and len(state) == 2 else (state,)
            target.attributes = next((part for part in parts if type(part) is dict and part), {})
        elif type(target) not in (dict, Global) and not isinstance(target, Tensor):
            _damaged()

    # Storages and tensors.

    def persistent(self) -> None:
        self._stack.append(self._find(self._stack.pop()))

    def persistent_named(self, name: str) -> None:
        self._stack.append(self._find(name))

    def _named(self, name: Any) -> Any:
        """`("storage", class, key, device, items)`, before 1.6 with a view `(key, start, items)` of it, or None; or
        `("module", class, file, source)`, a class whose source was kept."""
        match name:
            case ("module", Global() as kind, *_):
                return kind
            case ("storage", Global(name=kind), str(key), _, int(items), *view) if items >= 0:
                dtype = STORAGE_DTYPES.get(kind.rpartition(".")[2])
                if dtype is None:
                    what = _REFUSED.get(kind, f"numbers of a type that the zoo does not know ({kind[:80]!a})")
                    raise CheckpointError(f"holds {what}: {_SAVE_PLAIN}")
                storage = self._tensors.storage(key, dtype, items)
                if any(view):
                    _, start, part = view[0]
                    storage = self._tensors.view(storage, *naturals((start, part)))
                return storage
            case _:
                _damaged()

    def tensor(
        self, storage: Any, offset: Any, shape: Any, stride: Any, grad: Any = False, hooks: Any = None, more: Any = None
    ) -> Tensor:
        if type(storage) is not Storage:
            _damaged()
        if more:
            raise CheckpointError("holds tensors that are conjugated or negated views: save them with .resolve_conj()")
        naturals((offset,))
        return self._tensors.tensor(storage, offset, naturals(shape), naturals(stride))

    def typed_tensor(self, storage: Any, *arguments: Any) -> Tensor:
        """Of a type that has no class of storages: its storage is of bytes, its offset in items of that type."""
        *place, kind = arguments[:6]
        dtype = DTYPES.get(kind.name.removeprefix("torch.")) if type(kind) is Global else None
        if dtype is None or type(storage) is not Storage or storage.start:
            raise CheckpointError(f"holds numbers of a type that the zoo does not know ({kind!r:.80})")
        items = storage.items * storage.dtype.itemsize // dtype.itemsize
        return self.tensor(Storage(storage.key, dtype, items), *place, *arguments[6:])

    def parameter(self, tensor: Any, *_: Any) -> Tensor:
        return tensor if isinstance(tensor, Tensor) else _damaged()

    def tensor_of_class(self, function: Any, _: Any, arguments: Any, *__: Any) -> Any:
        """A tensor with attributes, or of a class of its own, as the plain tensor that it is made from."""
        if type(function) is Global and function.name in _TENSOR_CALLS:
            return self._result(function, arguments)
        raise CheckpointError("holds tensors of a class of their own: save plain ones")

    def storage_in_bytes(self, data: Any) -> Storage:
        """A storage that was pickled by itself: what torch.save wrote of it before 1.6, as bytes in the pickle."""
        if type(data) is not bytes or self._inner:
            _damaged()
        stream, inner = io.BytesIO(data), Tensors(len(data))
        machine = _Machine(inner, None, inner=True)
        machine._operations = self._operations
        magic, _, _, storage, keys = (machine.run(stream, len(data)) for _ in range(5))
        self._spend(machine._operations - self._operations)
        start = stream.tell() + 8  # behind the number of items
        if magic != LEGACY_MAGIC or type(storage) is not Storage or keys != [storage.key] or storage.start:
            _damaged()
        if start + storage.size != len(data):
            _damaged()
        return self._tensors.inline(data[start:], storage.dtype, storage.items)

    def bytes_of_text(self, text: Any, encoding: Any = None) -> Any:
        """Bytes, as protocol 2 has them."""
        return text.encode("latin-1") if encoding == "latin1" and type(text) is str else Opaque("_codecs.encode")

    # Plain values.

    def dict_of(self, pairs: Any = (), *_: Any) -> Any:
        if type(pairs) not in (list, tuple):
            return pairs if type(pairs) is dict else Opaque("a dict of what is no list", (pairs,))
        self._spend(len(pairs))
        made: dict[Any, Any] = {}
        for key, value in pairs:
            _put(made, key, value)
        return made

    def items_of(self, items: Any = (), *_: Any) -> Any:
        return items


def _text_of_python2(text: str) -> str:
    data = text.encode("latin-1")  # as pickletools has read it
    try:
        return data.decode()
    except UnicodeDecodeError:
        return text


def _number(value: int) -> Any:
    return value if value.bit_length() <= _MAX_BITS else Opaque("builtins.int")


_VALUES: dict[str, Callable[[Any], Any]] = {
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_TUPLE": lambda _: (),
    "EMPTY_LIST": lambda _: [],
    "EMPTY_SET": lambda _: [],
    "EMPTY_DICT": lambda _: {},
    **dict.fromkeys(("INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1", "LONG4"), _number),
    **dict.fromkeys(("FLOAT", "BINFLOAT"), float),
    **dict.fromkeys(("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), str),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), _text_of_python2),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"), bytes),
}
_METHODS: dict[str, Callable[[_Machine], None]] = {
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.drop_to_mark,
    "DUP": _Machine.duplicate,
    "MEMOIZE": _Machine.memoize,
    "TUPLE1": lambda machine: machine.tuple_of(1),
    "TUPLE2": lambda machine: machine.tuple_of(2),
    "TUPLE3": lambda machine: machine.tuple_of(3),
    "TUPLE": _Machine.tuple_from_mark,
    "LIST": _Machine.list_from_mark,
    "FROZENSET": _Machine.list_from_mark,
    "DICT": _Machine.dict_from_mark,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "ADDITEMS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "STACK_GLOBAL": _Machine.name_from_stack,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.new_object,
    "NEWOBJ_EX": _Machine.new_object_with_names,
    "OBJ": _Machine.old_object,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
}
_METHODS_OF_ARGUMENT: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    "GLOBAL": _Machine.name,
    "INST": _Machine.old_object_named,
    "PERSID": _Machine.persistent_named,
}
_TENSOR_CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _Machine.tensor,
    "torch._utils._rebuild_tensor_v2": _Machine.tensor,
    "torch._utils._rebuild_tensor_v3": _Machine.typed_tensor,
    "torch._utils._rebuild_parameter": _Machine.parameter,
    "torch._utils._rebuild_parameter_with_state": _Machine.parameter,
}
_CALLS: dict[str, Callable[..., Any]] = {
    **_TENSOR_CALLS,
    "torch._tensor._rebuild_from_type": _Machine.tensor_of_class,
    "torch._tensor._rebuild_from_type_v2": _Machine.tensor_of_class,
    "torch.storage._load_from_bytes": _Machine.storage_in_bytes,
    "_codecs.encode": _Machine.bytes_of_text,
    "numpy.dtype": lambda _, *arguments: new_dtype(*arguments),
    **dict.fromkeys((f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")),
                    lambda _, *arguments: new_array(*arguments)),
    **dict.fromkeys((f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")),
                    lambda _, *arguments: array_of_buffer(*arguments)),
    "torch.Size": _Machine.items_of,
    "collections.OrderedDict": _Machine.dict_of,
    "collections.Counter": _Machine.dict_of,
    **dict.fromkeys((f"{module}.{kind}" for module in ("builtins", "__builtin__") for kind in ("set", "frozenset")),
                    _Machine.items_of),
}  # fmt: skip
_SAVE_PLAIN = "save plain ones, {k: v.detach().clone() for k, v in ...}"
_REFUSED = {
    **dict.fromkeys((f"torch.{kind}Storage" for kind in ("QInt8", "QUInt8", "QInt32")), "quantized tensors"),
    "torch._utils._rebuild_qtensor": "quantized tensors",
    "torch._utils._rebuild_sparse_tensor": "sparse tensors",
    "torch._utils._rebuild_sparse_csr_tensor": "sparse tensors",
    "torch._utils._rebuild_nested_tensor": "nested tensors",
    "torch._utils._rebuild_meta_tensor_no_storage": "tensors without data (meta)",
    "torch._utils._rebuild_wrapper_subclass": "tensors of a class of their own",
    "torch._utils._rebuild_device_tensor_from_numpy": "tensors of a device that keeps its own (XLA)",
    "torch._utils._rebuild_xla_tensor": "tensors of a device that keeps its own (XLA)",
}


def _damaged() -> NoReturn:
    raise CheckpointError(_DAMAGED)


def _object(kind: Any, arguments: Any) -> Opaque:
    if type(kind) is not Global or type(arguments) is not tuple:
        _damaged()
    return Opaque(kind.name, arguments)


def _put(entries: dict[Any, Any], key: Any, value: Any) -> None:
    """Into a dict: keys that hash at once, and never by the thousand to the same number; others become opaque."""
    if type(key) is str and not is_name(key):
        if isinstance(value, Tensor):
            check_name(key)
        key = Opaque("a text that is no name")
    elif type(key) is int and abs(key) >= 1 << 60:
        key = Opaque("builtins.int")
    elif not (key is None or type(key) in (str, bytes, bool, int, float, Global, Opaque)):
        key = Opaque(type(key).__name__)
    entries[key] = value


def naturals(value: Any) -> Sequence[int]:
    """Return the whole numbers from 0 that a list or tuple is of; a CheckpointError if it is not."""
    valid = type(value) in (list, tuple) and all(type(item) is int and item >= 0 for item in value)
    return value if valid else _damaged()
