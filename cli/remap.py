"""`snnzoo remap`: a checkpoint in another key layout."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from snnzoo.checkpoints.layout_rules import is_neuron_key, layout_named, writable_layout
from snnzoo.checkpoints.output import atomic_output, check_outputs
from snnzoo.cli import common
from snnzoo.errors import UsageError, first_few

if TYPE_CHECKING:
    from torch import Tensor

_SUFFIXES = (".safetensors", ".pth", ".pt", ".th", ".bin", ".ckpt")


def remap(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="A .pt, .pth, .th, .bin, .ckpt, .safetensors or .index.json file.", exists=True
        ),
    ],
    to: Annotated[str, typer.Option(metavar="LAYOUT", help="torchvision, timm, huggingface, mmpretrain ...")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="File to write, .safetensors or .pth.")],
    layout: common.LayoutOption = None,
    force: common.ForceOption = False,
    quiet: common.QuietOption = False,
    debug: common.DebugOption = False,
) -> None:
    """Rename the tensors of a checkpoint to another layout; their values stay bit for bit.

    \b
    Examples:
      snnzoo remap resnet20.th --to torchvision -o resnet20.safetensors
      snnzoo remap resnet50.pth --to huggingface -o pytorch_model.bin
    """
    writable_layout(to)
    if layout is not None:
        layout_named(layout)
    if output.suffix not in _SUFFIXES:
        raise UsageError(f"-o {output}: unknown suffix {output.suffix!r}, expected one of {', '.join(_SUFFIXES)}")
    check_outputs({"-o": output}, [file], force=force)

    from snnzoo.checkpoints.files import read_checkpoint
    from snnzoo.checkpoints.layouts import from_torchvision
    from snnzoo.recognition import read_layout

    found = read_layout(read_checkpoint(file), str(file), layout, file)
    notes = list(found.notes)
    state_dict = found.state_dict
    neurons = [key for key in state_dict if is_neuron_key(key) and writable_layout(to).from_torchvision(key) is None]
    if neurons:
        notes.append(f"left out {first_few(neurons)}: layout {to} has no neurons")
        state_dict = {key: value for key, value in state_dict.items() if key not in set(neurons)}
    renamed = from_torchvision(state_dict, to, str(file))
    _write(output, renamed, force)
    for line in (found.summary, *notes):
        common.say(line, quiet)
    common.say(f"wrote {output}: {len(renamed)} tensors in layout {to}", quiet)


def _write(output: Path, state_dict: dict[str, Tensor], replace: bool) -> None:
    if output.suffix == ".safetensors":
        from snnzoo.checkpoints.files import write_safetensors

        write_safetensors(output, state_dict, {"format": "pt"}, replace=replace)
        return
    import torch

    with atomic_output(output, replace=replace) as temporary:
        try:
            torch.save(state_dict, temporary)
        except RuntimeError as error:  # its writer has no other for a full disk
            raise OSError("torch.save could not write all of it: is the disk full?") from error
