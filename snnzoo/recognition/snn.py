"""A network that was trained as a spiking one, of a checkpoint: SpikingJelly's, or that of SEW-ResNet's release."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from snnzoo.checkpoints.layout_rules import is_neuron_key, layout_named
from snnzoo.data.folders import is_frames, list_samples
from snnzoo.data.preprocess import Preprocess, preset
from snnzoo.errors import CheckpointError, UsageError, first_few
from snnzoo.models.factory import build, load_ann_weights, neuron_factory
from snnzoo.models.registry import MODELS, model_spec

if TYPE_CHECKING:
    from torch import Tensor

    from snnzoo.models.base import NeuronFactory, SpikingNet

_SEW = "sew_"


def load_snn(
    checkpoint: str | Path,
    model: str,
    neuron: str | NeuronFactory = "if",
    *,
    connect: str | None = None,
    layout: str | None = None,
    notify: Callable[[str], None] = lambda message: None,
) -> SpikingNet:
    """Return a trained spiking network, multi-step and in eval mode, with the parameters of its neurons.

    Max pools are behind neurons, as in the networks that SpikingJelly trains; each step has logits of its own, and
    their mean is the answer.

    Args:
        checkpoint: the file; its key layout is recognised, and classes and channels are read off its shapes.
        model: the model's name, such as "sew_resnet18".
        neuron: "if", "lif", "plif", or a callable that makes a neuron with the settings it was trained with.
        connect: "ADD", "AND" or "IAND" of SEW ResNets; "ADD" if None.
        layout: key layout, instead of detecting it.
        notify: called with a line on each thing that was detected or assumed.

    Raises:
        UsageError: for an unknown model, neuron, layout or `connect`.
        CheckpointError: if the weights or the neurons' parameters cannot be read, or do not fit.

    Example:
        >>> net = snnzoo.load_snn("sew18.pth", "sew_resnet18", neuron="plif")
        >>> snnzoo.evaluate(net, None, (images, labels), time_steps=[4])
    """
    file = Path(checkpoint)
    check_arguments(model, neuron, connect, layout)
    if not file.is_file():
        raise UsageError(f"{file}: no such file")
    from snnzoo.checkpoints.files import read_checkpoint
    from snnzoo.recognition.identification import identify
    from snnzoo.recognition.reading import read_layout

    found = read_layout(read_checkpoint(file), str(file), layout)
    state_dict = found.state_dict
    name, kwargs = identify(state_dict, str(file))
    is_sew = found.layout.is_sew
    if name != model.removeprefix(_SEW) or (is_sew and not model.startswith(_SEW)):
        held = _SEW + name if is_sew and _SEW + name in MODELS else name
        raise CheckpointError(f"{file}: holds the weights of {held}, not {model}: give --model {held}")
    if model.startswith(_SEW):
        kwargs["connect"] = connect or "ADD"
    elif model_spec(model).network in ("ResNet", "VGG"):
        kwargs["pool_first"] = False
    net = build(model, neuron, **kwargs)
    _check_neurons(net.state_dict(), state_dict, str(file))
    load_ann_weights(net, state_dict, str(file))
    for line in (found.summary, *found.notes):
        notify(line)
    return net.eval()


@dataclass(frozen=True)
class TrainedNetwork:
    """What is known of a trained spiking network beside its weights, for commands."""

    model: str
    neuron: str
    preprocess: Preprocess | None
    classes: list[str] | None = None

    @classmethod
    def of(cls, net: SpikingNet, neuron: str, data: str) -> TrainedNetwork:
        """Return what is known of `net`: it takes images as its model does, or frames if those are in `data`."""
        frames = data != "digits" and is_frames(list_samples(Path(data))[0])
        return cls(net.model_name, neuron, None if frames else preset(model_spec(net.model_name).preprocess))


def check_arguments(model: str, neuron: str | NeuronFactory, connect: str | None, layout: str | None) -> None:
    """Check those of `load_snn` that need no file.

    Raises:
        UsageError: as `load_snn`.
    """
    model_spec(model)
    if isinstance(neuron, str):
        neuron_factory(neuron)
    if connect is not None and not model.startswith(_SEW):
        raise UsageError(f"--connect is for SEW ResNets, not for {model}")
    if layout is not None:
        layout_named(layout)


def _check_neurons(expected: dict[str, Tensor], given: dict[str, Tensor], source: str) -> None:
    """Neurons' parameters are weights like others here: none may be left out or left as they are."""
    own, theirs = ({key for key in keys if is_neuron_key(key)} for keys in (expected, given))
    theirs = {key for key in theirs if "surrogate_function." not in key}
    if theirs - own:
        raise CheckpointError(
            f"{source}: holds parameters of neurons ({first_few(sorted(theirs - own))}) that these neurons have not: "
            f"give --neuron plif"
        )
    if own - theirs:
        raise CheckpointError(
            f"{source}: lacks the parameters of its neurons ({first_few(sorted(own - theirs))}): these are of another "
            f"kind, give --neuron if or lif"
        )
    wrong = [key for key in own if expected[key].shape != given[key].shape]
    if wrong:
        raise CheckpointError(f"{source}: parameters of neurons have another shape: {first_few(sorted(wrong))}")
