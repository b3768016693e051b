"""Reading an exported program: each operator of torch.export becomes a node of a graph, or an error that names it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from snnzoo.codings.activations import (
    ELU,
    GELU,
    RELU,
    Activation,
    Clamp,
    Hardsigmoid,
    Hardswish,
    LeakyReLU,
    Sigmoid,
    SiLU,
    Tanh,
)
from snnzoo.errors import SnnzooError
from snnzoo.graph.graph import Graph, Node
from snnzoo.graph.operations import BY_ATEN, INPUT

_PASSED = {"dropout", "feature_dropout", "contiguous", "clone", "detach", "alias", "lift_fresh_copy", "dropout_"}
_RESHAPES = {"view", "reshape", "_unsafe_view", "flatten", "unsqueeze", "squeeze", "unflatten"}
_ELEMENTWISE = {"add", "sub", "rsub", "mul", "div"}
ENDINGS: dict[str, Callable[[Tensor], Tensor]] = {  # what is left out behind the logits: ranks stay
    "softmax": lambda logits: logits.softmax(1),
    "log_softmax": lambda logits: logits.log_softmax(1),
    "sigmoid": Tensor.sigmoid,
}
_ADVICE = {
    "softmax": "only at the end of a network, over the classes, can it be left out",
    "log_softmax": "only at the end of a network, over the classes, can it be left out",
    "layer_norm": "networks with LayerNorm cannot be converted: use one with BatchNorm",
    "group_norm": "networks with GroupNorm cannot be converted: use one with BatchNorm",
    "instance_norm": "networks with InstanceNorm cannot be converted: use one with BatchNorm",
    "scaled_dot_product_attention": "attention cannot be converted: use a convolutional network",
    "matmul": "products of two matrices that both depend on the image (attention) cannot be converted",
    "bmm": "products of two matrices that both depend on the image (attention) cannot be converted",
}


class Reader:
    """Reads an exported program node by node.

    Attributes:
        left_out: which of `ENDINGS` the network ends in, which the graph is without; None for none.
    """

    def __init__(self, program: torch.export.ExportedProgram, module: nn.Module) -> None:
        self.program = program
        signature = program.graph_signature
        keys = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        # `network.` is _Logits'; constants are tensors that are neither parameters nor buffers
        self.keys = {name: key.removeprefix("network.") for name, key in keys.items()}
        self.constants = {
            name: program.constants[key] for name, key in signature.inputs_to_lifted_tensor_constants.items()
        }
        self.tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        self.nodes: list[Node] = []
        self.values: dict[fx.Node, str] = {}  # the name of the value of each node that is a signal
        self.modules = dict(module.named_modules())
        self.taken = set(module.state_dict())  # names that no neuron may have
        self.left_out: str | None = None

    def graph(self) -> Graph:
        """Read all of it."""
        (output,) = (node for node in self.program.graph.nodes if node.op == "output")
        ((result,),) = output.args
        ending = self._ending(result)
        others = (node for node in self.program.graph.nodes if node is not ending)
        hopeless = next((node for node in others if _operation(node) in _ADVICE), None)
        if hopeless is not None:  # said of it, not of the first thing around it that does not fit
            raise self._cannot(hopeless)
        user_input = self.program.graph_signature.user_inputs[0]
        for node in self.program.graph.nodes:
            if node.op == "placeholder" and node.name == user_input:
                self.values[node] = INPUT
            elif ending is not None and node is ending:
                self.values[node] = self.values[node.args[0]]  # type: ignore[index]
            elif node.op == "call_function":
                self.read(node)
        name = self.values.get(result)
        if name is None or name == INPUT:
            raise SnnzooError("the network's output does not depend on the image")
        return Graph((), name).with_nodes(self.nodes)

    def _ending(self, result: Any) -> fx.Node | None:
        """The node of `ENDINGS` that gives the output, over the classes; None if another does."""
        while isinstance(result, fx.Node) and _operation(result) in _PASSED:
            result = result.args[0]
        name = _operation(result) if isinstance(result, fx.Node) else ""
        if name not in ENDINGS or len(_shape(result)) != 2 or _bound(result).get("dim", 1) not in (1, -1):
            return None
        self.left_out = name
        return result  # type: ignore[no-any-return]

    def read(self, node: fx.Node) -> None:
        """Add what one node of torch.export does."""
        if not isinstance(node.target, torch._ops.OpOverload):
            self._item(node)
            return
        operation, given = _operation(node), _bound(node)
        if not any(isinstance(a, fx.Node) and a in self.values for a in node.all_input_nodes):
            return  # shapes, constants: what needs them asks for their values
        if operation in ("sym_size", "sym_numel", "size"):
            return
        if operation == "chunk" or operation.startswith("split"):
            return  # their parts are read where they are taken
        if operation in _PASSED:
            self._pass(node)
        elif operation in _RESHAPES:
            self._reshape(node)
        elif operation in ("transpose", "permute", "t", "numpy_T"):
            self._permute(node, given)
        elif operation in _ELEMENTWISE:
            self._elementwise(node, operation, given)
        elif (activation := self._activation(operation, given)) is not None:
            self._add(
                node, "activation", [node.args[0]], {"function": activation.to_dict()}, path=self._site(node, operation)
            )
        elif operation == "cat":
            self._add(node, "cat", given["tensors"], {"dim": self._dimension(node, given["dim"])})
        elif operation in ("slice", "narrow"):
            self._slice(node, given)
        elif operation == "pad" or operation == "constant_pad_nd":
            self._pad(node, given)
        elif operation.startswith("upsample_"):
            self._upsample(node, operation, given)
        else:
            self._row(node, given)
        if is_in_place(node) and node in self.values:
            self.values[node.args[0]] = self.values[node]  # type: ignore[index]

    def _row(self, node: fx.Node, given: dict[str, Any]) -> None:
        """A node that a row of the table describes by the schema's own names."""
        row = BY_ATEN.get(_aten_name(node))
        if row is None:
            raise self._cannot(node)
        if given.get("training") is True:
            raise self._cannot(node, "it runs in training mode: batch statistics cannot be converted")
        first = given["self"] if "self" in given else given["input"]
        parameters = {}
        for role in row.parameters:
            tensor = given.get(role)
            if tensor is not None:
                parameters[role] = self._key(node, tensor)
        settings = {}
        for name, setting in row.settings.items():
            value = given.get(name, setting.default)
            settings[name] = list(value) if isinstance(value, (list, tuple)) else value
            if name in ("kernel_size", "stride", "padding", "dilation", "output_size") and isinstance(
                settings[name], list
            ):
                settings[name] = settings[name] * 2 if len(settings[name]) == 1 else settings[name]
            if name == "dim":
                settings[name] = self._inner_dimensions(node, settings[name])
            if not setting.accepts(settings[name]):
                raise self._cannot(node, f"its {name} is {value}: expected {setting.expected}")
        self._add(node, row.name, [first], settings, parameters)

    def _item(self, node: fx.Node) -> None:
        """One of several outputs: a part of a split, or what alone is used of a batch norm."""
        source, index = node.args[0], node.args[1]
        if not isinstance(source, fx.Node) or not isinstance(source.target, torch._ops.OpOverload):
            return
        if source in self.values:
            if index != 0 and node.users:
                raise self._cannot(source, "more than one of its outputs is used")
            self.values[node] = self.values[source]
            return
        whole = source.args[0]
        if not (isinstance(whole, fx.Node) and whole in self.values):
            return  # of shapes
        dim = self._dimension(source, _bound(source).get("dim", 0))
        assert isinstance(index, int)
        sizes = [int(part.shape[dim]) for part in source.meta["val"]]
        start = sum(sizes[:index])
        self._add(node, "slice", [whole], {"dim": dim, "start": start, "end": start + sizes[index], "step": 1})  # type: ignore[index]

    def _pass(self, node: fx.Node) -> None:
        given = _bound(node)
        if given.get("train") is True:
            raise self._cannot(node, "dropout is on, though the network is in evaluation mode")
        self.values[node] = self.values[node.args[0]]  # type: ignore[index]

    def _reshape(self, node: fx.Node) -> None:
        before, after = _shape(node.args[0]), _shape(node)
        if len(after) == 0 or after[0] != before[0]:
            raise self._cannot(node, "it mixes the images of a batch")
        sizes = list(after[1:])
        kept = 0  # dimensions at the end that stay as they are, so that images of other sizes fit, too
        while kept < min(len(sizes), len(before) - 1) - 1 and sizes[-1 - kept] == before[-1 - kept]:
            kept += 1
        if before[1:] == after[1:]:
            self._pass(node)
            return
        sizes = [int(size) for size in sizes[: len(sizes) - kept]]
        self._add(node, "reshape", [node.args[0]], {"sizes": sizes, "kept": kept})

    def _permute(self, node: fx.Node, given: dict[str, Any]) -> None:
        rank = len(_shape(node.args[0]))
        dims = list(range(rank))
        if "dims" in given:
            dims = [d % rank for d in given["dims"]]
        else:
            first, second = given.get("dim0", 0) % rank, given.get("dim1", 1) % rank
            dims[first], dims[second] = dims[second], dims[first]
        if dims[0] != 0:
            raise self._cannot(node, "it mixes the images of a batch")
        self._add(node, "permute", [node.args[0]], {"dims": dims[1:]})

    def _elementwise(self, node: fx.Node, operation: str, given: dict[str, Any]) -> None:
        first, second, alpha = given["self"], given["other"], float(given.get("alpha", 1) or 1)
        if operation == "rsub":
            first, second, operation = second, first, "sub"
        if given.get("rounding_mode") is not None:
            raise self._cannot(node)
        sign = -1.0 if operation == "sub" else 1.0
        if self._is_signal(first) and self._is_signal(second):
            if operation == "div":
                raise self._cannot(node, "it divides by a signal")
            if operation == "mul":
                self._add(node, "multiply", [first, second])
            else:
                self._add(node, "add", [first, second], {"alpha": sign * alpha})
            return
        if operation in ("mul", "div"):
            self._scaled(node, operation, first, second)
            return
        x, constant, factor, weight = first, second, 1.0, sign * alpha
        if not self._is_signal(first):  # constant - alpha * x
            x, constant, factor, weight = second, first, sign * alpha, 1.0
        if factor != 1:
            x = self._add(node, "scale", [x], {"factor": factor, "inverse": False}, part="_negated")
        if isinstance(constant, fx.Node):
            self._add(node, "shift", [x], {"amount": weight}, {"other": self._key(node, constant)})
        else:
            self._add(node, "shift", [x], {"amount": weight * float(constant)})

    def _scaled(self, node: fx.Node, operation: str, first: Any, second: Any) -> None:
        x, constant = (first, second) if self._is_signal(first) else (second, first)
        inverse = operation == "div"
        if inverse and x is second:
            raise self._cannot(node, "it divides by a signal")
        if isinstance(constant, fx.Node):
            self._add(node, "scale", [x], {"factor": 1.0, "inverse": inverse}, {"other": self._key(node, constant)})
        else:
            factor = 1 / float(constant) if inverse else float(constant)
            self._add(node, "scale", [x], {"factor": factor, "inverse": False})

    def _activation(self, operation: str, given: dict[str, Any]) -> Activation | None:
        """The function of an activation's node, None for any other."""
        if operation == "relu":
            return RELU
        if operation == "relu6":
            return Clamp(0.0, 6.0)
        if operation == "hardtanh":
            return Clamp(float(given.get("min_val", -1)), float(given.get("max_val", 1)))
        if operation in ("clamp", "clamp_min"):
            least, most = given.get("min"), given.get("max")
            if isinstance(least, fx.Node) or isinstance(most, fx.Node) or least is None:
                return None
            if most is None:
                return RELU if float(least) == 0 else None
            return Clamp(float(least), float(most))
        if operation == "leaky_relu":
            return LeakyReLU(float(given.get("negative_slope", 0.01)))
        if operation == "prelu":
            return LeakyReLU(tuple(self._tensor(given["weight"]).flatten().tolist()))
        if operation == "gelu":
            return GELU(str(given.get("approximate", "none")))
        if operation == "elu":
            if given.get("scale", 1) != 1 or given.get("input_scale", 1) != 1:
                return None
            return ELU(float(given.get("alpha", 1)))
        plain_ones = {
            "silu": SiLU,
            "hardswish": Hardswish,
            "sigmoid": Sigmoid,
            "hardsigmoid": Hardsigmoid,
            "tanh": Tanh,
        }
        return plain_ones[operation]() if operation in plain_ones else None

    def _slice(self, node: fx.Node, given: dict[str, Any]) -> None:
        dim = self._dimension(node, given.get("dim", 0), allow_whole_batch=True)
        before, after = _shape(node.args[0]), _shape(node)
        start, step = given.get("start") or 0, given.get("step", 1)
        if dim == 0:
            if before[0] != after[0]:
                raise self._cannot(node, "it mixes the images of a batch")
            self._pass(node)
            return
        size = before[dim]
        start = max(0, start + size) if start < 0 else start
        end = given.get("end")
        end = size if end is None else min(int(end) + size if end < 0 else int(end), 1 << 40)
        if start == 0 and end >= size and step == 1:
            self._pass(node)
            return
        if end >= size:
            end = 1 << 40  # to the end, whatever the size of the image
        self._add(node, "slice", [node.args[0]], {"dim": dim, "start": start, "end": end, "step": step})

    def _pad(self, node: fx.Node, given: dict[str, Any]) -> None:
        if given.get("mode", "constant") != "constant" or (given.get("value") or 0) != 0:
            raise self._cannot(node, "only zeros can be padded")
        pad = [int(size) for size in given["pad"]]
        if len(pad) >= 2 * len(_shape(node)):
            raise self._cannot(node, "it mixes the images of a batch")
        self._add(node, "pad", [node.args[0]], {"pad": pad})

    def _upsample(self, node: fx.Node, operation: str, given: dict[str, Any]) -> None:
        mode = operation.removeprefix("upsample_").removesuffix("2d")
        if mode not in ("nearest", "bilinear") or given.get("align_corners"):
            raise self._cannot(node)
        factors = given.get("scale_factors")
        size = None if factors else [int(s) for s in _shape(node)[2:]]
        factors = [float(f) for f in factors] if factors else None
        self._add(node, "upsample", [node.args[0]], {"size": size, "scale_factor": factors, "mode": mode})

    def _add(
        self,
        node: fx.Node,
        operation: str,
        inputs: Any,
        settings: dict[str, Any] | None = None,
        parameters: dict[str, str] | None = None,
        *,
        path: str | None = None,
        part: str = "",
    ) -> str:
        """Add a node; returns its name."""
        names = tuple(i if isinstance(i, str) else self._signal(node, i) for i in inputs)
        name = f"{node.name}{part}"
        path = _module(node)[0] if path is None else path
        self.nodes.append(Node(name, operation, names, settings or {}, parameters or {}, path))
        self.values[node] = name
        return name

    def _is_signal(self, value: Any) -> bool:
        return isinstance(value, fx.Node) and value in self.values

    def _signal(self, node: fx.Node, value: Any) -> str:
        if not self._is_signal(value):
            raise self._cannot(node, "one of its inputs is a constant")
        return self.values[value]

    def _key(self, node: fx.Node, value: Any) -> str:
        if not isinstance(value, fx.Node) or value.name not in self.keys:
            raise self._cannot(
                node, "it uses a tensor that is no parameter or buffer of the network: register it as a buffer"
            )
        return self.keys[value.name]

    def _tensor(self, value: fx.Node) -> Tensor:
        return self.tensors[self.keys[value.name]]

    def _dimension(self, node: fx.Node, dim: int, *, allow_whole_batch: bool = False) -> int:
        source = node.args[0][0] if isinstance(node.args[0], (list, tuple)) else node.args[0]  # type: ignore[index]
        dim = dim % len(_shape(source))
        if dim == 0 and not allow_whole_batch:
            raise self._cannot(node, "it mixes the images of a batch")
        return dim

    def _inner_dimensions(self, node: fx.Node, dims: Any) -> list[int]:
        rank = len(_shape(node.args[0]))
        dims = sorted(d % rank for d in (dims if dims else range(rank)))
        if 0 in dims:
            raise self._cannot(node, "it mixes the images of a batch")
        return dims

    def _site(self, node: fx.Node, operation: str) -> str:
        """The name of the neuron in an activation's place: its module's, or a new one in the module that calls it."""
        path, _ = _module(node)
        is_its_own = bool(path) and type(self.modules[path]) in _ACTIVATION_MODULES
        base = path if is_its_own else f"{path}.{operation}".lstrip(".")
        name, count = base, 0
        while name in self.taken or (name in self.modules and not (is_its_own and count == 0)):
            count += 1
            name = f"{base}_{count}"
        self.taken.add(name)
        return name

    def _cannot(self, node: fx.Node, reason: str = "") -> SnnzooError:
        operation = _operation(node)
        path, kind = _module(node)
        where = f"{path} ({kind})" if path else "the network itself"
        advice = reason or _ADVICE.get(operation, "")
        ending = f": {advice}" if advice else ": it is none of the operations that a spiking network can do"
        return SnnzooError(f"{where} calls {operation}, which cannot be converted{ending}")


_ACTIVATION_MODULES = tuple(
    kind for kind in vars(nn.modules.activation).values() if isinstance(kind, type) and issubclass(kind, nn.Module)
)


def _module(node: fx.Node) -> tuple[str, str]:
    """Path and class name of the module that calls a node."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path, kind = stack[-1] if stack else ("", "")
    path = path.partition("@")[0].removeprefix("network").removeprefix(".")
    return path, kind.rpartition(".")[2] if isinstance(kind, str) else kind.__name__


def _operation(node: fx.Node) -> str:
    """The name of the operator, the same in place: `relu` of `aten::relu_`."""
    schema = getattr(node.target, "_schema", None)
    name = getattr(node.target, "__name__", str(node.target)) if schema is None else schema.name
    return str(name).rpartition("::")[2].removesuffix("_")


def _aten_name(node: fx.Node) -> str:
    target: Any = node.target
    return f"{_operation(node)}.{target._overloadname}"


def _bound(node: fx.Node) -> dict[str, Any]:
    """The arguments by the names of the operator's schema, defaults filled in."""
    target: Any = node.target
    given = {}
    for place, argument in enumerate(target._schema.arguments):
        if place < len(node.args):
            given[argument.name] = node.args[place]
        elif argument.name in node.kwargs:
            given[argument.name] = node.kwargs[argument.name]
        elif argument.has_default_value():
            given[argument.name] = argument.default_value
    return given


def _shape(node: Any) -> torch.Size:
    return node.meta["val"].shape


def is_in_place(node: fx.Node) -> bool:
    """Whether a node changes its first argument in memory."""
    return (
        node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
    )
