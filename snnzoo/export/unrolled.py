"""Networks as one graph of plain PyTorch operators, T steps unrolled: torch.export and ONNX."""

from __future__ import annotations

import copy
import io
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snnzoo import ops
from snnzoo._version import __version__
from snnzoo.conversion.converted_file import Conversion
from snnzoo.errors import UsageError
from snnzoo.export.check import Check, Open, Run, answered, write_checked
from snnzoo.functional import reset_net
from snnzoo.graph.network import SpikingNetwork
from snnzoo.models.base import SpikingNet

OPSET = 18


class Unrolled(nn.Module):
    """Images `[N, C, H, W]` to the logits after each of T steps, `[T, N, classes]`, from a fresh state."""

    def __init__(self, net: SpikingNet | SpikingNetwork, time_steps: int) -> None:
        super().__init__()
        self.net, self.time_steps = net, time_steps

    def forward(self, images: Tensor) -> Tensor:
        reset_net(self.net)
        logits = self.net(images.expand(self.time_steps, *images.shape))
        reset_net(self.net)  # nothing of a run is left, as torch.export demands
        return logits


def export_program(
    net: SpikingNet | SpikingNetwork, time_steps: int, input_shape: tuple[int, ...]
) -> torch.export.ExportedProgram:
    """`Unrolled(net, time_steps)` as torch.export sees it, on the CPU in float32, for any number of images.

    A static image passes the stem once, whatever T is.

    Args:
        net: multi-step, of any coding.
        time_steps: T.
        input_shape: of one image, `[C, H, W]`.

    Raises:
        UsageError: for T < 1.
    """
    if time_steps < 1:
        raise UsageError(f"time_steps must be at least 1, got {time_steps}")
    module = Unrolled(copy.deepcopy(net).cpu().float(), time_steps).eval()
    images = torch.zeros(2, *input_shape)  # one image would be taken for a constant
    with torch.no_grad(), ops.use_backend("reference"):
        return torch.export.export(module, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))


def write_pt2(
    net: SpikingNet | SpikingNetwork,
    path: str | Path,
    time_steps: int,
    input_shape: tuple[int, ...],
    *,
    replace: bool = True,
    images: Tensor | None = None,
) -> Check | None:
    """Write `export_program` for `torch.export.load(path).module()`, with the facts of `metadata` as extra files.

    Args:
        images: `[N, C, H, W]`, on which the file is read back and run beside the network; None for no check.

    Returns:
        what the check found, which is in the file's metadata, too.

    Raises:
        UsageError: for T < 1.
        SnnzooError: if the file cannot be written, or does not compute what the network does.
    """
    program = export_program(net, time_steps, input_shape)
    facts = metadata(net, time_steps)

    def content(more: dict[str, str]) -> bytes:
        archive = io.BytesIO()  # torch would insist on the suffix, and has errors of its own for a full disk
        torch.export.save(program, archive, extra_files={**facts, **more})
        return archive.getvalue()

    return write_checked(Path(path), content, _answering(net, open_pt2), net, images, time_steps, replace=replace)


def open_pt2(path: Path) -> Run:
    """Return what runs a file of `write_pt2`."""
    module = torch.export.load(io.BytesIO(path.read_bytes())).module()
    return lambda images: module(images.float())


def write_onnx(
    net: SpikingNet | SpikingNetwork,
    path: str | Path,
    time_steps: int,
    input_shape: tuple[int, ...],
    *,
    replace: bool = True,
    images: Tensor | None = None,
) -> Check | None:
    """Write `export_program` as ONNX, `images [N, C, H, W]` to `logits [T, N, classes]`, metadata included.

    Arguments, result and errors are those of `write_pt2`; the check runs in onnxruntime.
    """
    program = export_program(net, time_steps, input_shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what onnxscript deprecates
        converted: Any = torch.onnx.export(
            program,
            (),
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=["logits"],
            opset_version=OPSET,
        )
    model = converted.model_proto
    _name_batch(model.graph)
    facts = metadata(net, time_steps)

    def content(more: dict[str, str]) -> bytes:
        del model.metadata_props[:]
        for key, value in {**facts, **more}.items():
            model.metadata_props.add(key=key, value=value)
        return model.SerializeToString()  # type: ignore[no-any-return]

    return write_checked(Path(path), content, _answering(net, open_onnx), net, images, time_steps, replace=replace)


def open_onnx(path: Path) -> Run:
    """Return what runs a file of `write_onnx` in onnxruntime, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.float().numpy()})[0])


def _answering(net: SpikingNet | SpikingNetwork, opened: Open) -> Open:
    """What makes a file runnable, and its logits the network's answers."""

    def open_file(path: Path) -> Run:
        run = opened(path)
        return lambda images: answered(net, run(images))

    return open_file


def _name_batch(graph: Any) -> None:
    """Call the number of images "batch", whatever torch.export calls it."""
    symbol = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(rf"\b(\d+\*)?{symbol}\b", r"\1batch", dim.dim_param)


def metadata(net: SpikingNet | SpikingNetwork, time_steps: int) -> dict[str, str]:
    """What a program that runs the graph needs to know: preprocessing and classes as JSON, T, and the source."""
    facts = {"snnzoo": __version__, "model": getattr(net, "model_name", type(net).__name__)}
    facts["time_steps"] = str(time_steps)
    if isinstance(net.conversion, Conversion):
        record = net.conversion.to_metadata()
        facts.update({key: record[key] for key in ("coding", "preprocess", "classes", "source")})
    return facts
