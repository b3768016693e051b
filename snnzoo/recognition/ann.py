"""The ANN of any weights: an entry of the manifest, a user's own checkpoint in whatever layout, another library's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from snnzoo.checkpoints import manifest
from snnzoo.checkpoints.layout_rules import Layout, is_neuron_key, layout_named
from snnzoo.data.preprocess import Preprocess, preset
from snnzoo.errors import CheckpointError, UsageError, first_few
from snnzoo.models.factory import build_ann, check_convertible, is_for_small_images, weights_of
from snnzoo.models.registry import list_weights, model_spec, split_tag
from snnzoo.progress import Progress
from snnzoo.recognition.libraries import network_named
from snnzoo.recognition.named import NamedSource

if TYPE_CHECKING:
    from torch import Tensor, nn

    from snnzoo.models.base import SpikingNet
    from snnzoo.models.heads import Description


def load_ann(
    model: str,
    weights: str | Enum | None = None,
    *,
    checkpoint: str | Path | None = None,
    num_classes: int | None = None,
    layout: str | None = None,
    head: Description | None = None,
    manifest_file: Path | None = None,
    progress: Progress | None = None,
    notify: Callable[[str], None] | None = None,
    **options: Any,
) -> nn.Module:
    """Return the ANN of a model with its weights: single-step, in eval mode, a ReLU for each neuron.

    Args:
        model: a model, or `model.weights` such as `"resnet18.digits"`; or a network that another library builds,
            `"torchvision:NAME[.WEIGHTS]"`, `"timm:NAME[.TAG]"` or `"hf:USER/REPO"`, with pretrained weights through
            that library's own download; or `"FILE.py:FUNCTION"`, which runs your own code: yours to trust.
        weights: a weights name of the manifest, or a torchvision `Weights` member; the default if None.
        checkpoint: a file of yours, instead; its key layout and classifier are recognised by names and shapes. For
            a network that is not of the zoo, its keys must be those of the network.
        num_classes: what the checkpoint is expected to have; read off its shapes if None. A function of yours is
            given it as `num_classes`.
        layout: key layout of the checkpoint, instead of detecting it.
        head: description of the checkpoint's classifier (`models.heads`), instead of inferring it.
        manifest_file: more weights, in YAML.
        progress: called with (done, total, description).
        notify: called with a line on each thing that was detected, assumed or left out.
        options: of a model of the zoo, which the checkpoint's shapes do not settle, such as `pool="avg"` of a VGG
            (`create_model`).

    Raises:
        UsageError: for an unknown model, weights, layout or option, and for what does not go together.
        CheckpointError: if the weights cannot be read, or do not fit the model.
        SnnzooError: if weights cannot be fetched, or code of yours fails.

    Example:
        >>> ann = snnzoo.load_ann("resnet20", checkpoint="resnet20.th")
        >>> ann = snnzoo.load_ann("timm:resnet50d.a1_in1k")
    """
    file = None if checkpoint is None else Path(checkpoint)
    return ann_source(model, weights, file, num_classes, layout, head, manifest_file, options).load(progress, notify)


def ann_source(
    name: str,
    weights: str | Enum | None = None,
    checkpoint: Path | None = None,
    num_classes: int | None = None,
    layout: str | None = None,
    head: Description | None = None,
    manifest_file: Path | None = None,
    options: Mapping[str, Any] | None = None,
) -> AnnSource | NamedSource:
    """Return where an ANN's weights come from, after a check of what the arguments of `load_ann` say.

    Raises:
        UsageError: as `load_ann`.
    """
    network = network_named(name, weights)
    if network is None:
        return AnnSource.of(name, weights, checkpoint, num_classes, layout, head, manifest_file, options)
    for option, value in (
        ("--layout", layout), ("head", head), ("--manifest", manifest_file), ("--option", options or None),
    ):  # fmt: skip
        if value is not None:
            raise UsageError(f"{option} is for models of the zoo, not for {name}")
    _check_there(checkpoint)
    return NamedSource(network.name, network, checkpoint, num_classes)


@dataclass(frozen=True)
class AnnSource:
    """Where an ANN's weights come from, checked before anything is read: `of` makes one, `load` reads it.

    Args:
        model: the model's name.
        title: named in errors.
        preprocess: of its images.
        entry: of the manifest; None for a checkpoint.
        checkpoint, layout, num_classes, head, options: as `load_ann`.
    """

    model: str
    title: str
    preprocess: Preprocess
    entry: manifest.WeightsEntry | None = None
    checkpoint: Path | None = None
    layout: str | None = None
    num_classes: int | None = None
    head: Description | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        name: str,
        weights: str | Enum | None = None,
        checkpoint: Path | None = None,
        num_classes: int | None = None,
        layout: str | None = None,
        head: Description | None = None,
        manifest_file: Path | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> AnnSource:
        """Check what the arguments of `load_ann` say, without importing torch or reading weights.

        Raises:
            UsageError: as `load_ann`.
        """
        model, tag = split_tag(name, weights)
        check_convertible(model, with_images=True)
        if layout is not None:
            layout_named(layout)
        if checkpoint is not None:
            if tag is not None:
                raise UsageError(f"give either weights ({tag}) or --checkpoint, not both")
            _check_there(checkpoint)
            settings = preset(model_spec(model).preprocess)
            return cls(model, str(checkpoint), settings, None, checkpoint, layout, num_classes, head, options or {})
        if layout is not None:
            raise UsageError("--layout is for a --checkpoint of yours: weights of the manifest have theirs in it")
        if head is not None or options:
            raise UsageError(f"{'head is' if head is not None else 'options are'} for a checkpoint of yours")
        entry = manifest.find(model, tag or "DEFAULT", list_weights(manifest_file))
        if num_classes not in (None, entry.num_classes):
            raise UsageError(f"weights {entry.tag} have {entry.num_classes} classes: leave --num-classes out")
        return cls(model, entry.tag, entry.preprocess, entry)

    @property
    def by_keys(self) -> bool:
        """Whether nothing but keys and shapes of a checkpoint tells the architecture."""
        return self.entry is None

    @property
    def stem(self) -> str:
        """What files are named by."""
        return self.model

    def check_convertible(self, with_images: bool) -> None:
        """As `models.factory.check_convertible`."""
        check_convertible(self.model, with_images)

    def preprocess_of(self, ann: nn.Module) -> Preprocess:
        """Return how the images of a loaded ANN are prepared: as CIFAR's, if it is made for as small ones."""
        if self.entry is None and is_for_small_images(ann):
            return preset("cifar10")
        return self.preprocess

    @property
    def calibration_source(self) -> str | None:
        """The data that are at hand for these weights: "digits" for those made from them; None for all others."""
        return "digits" if self.entry is not None and self.entry.builder == "digits" else None

    def classes(self, num_classes: int) -> list[str] | None:
        """Return the names of the classes, where the weights are known to be of them."""
        return [str(digit) for digit in range(num_classes)] if self.calibration_source == "digits" else None

    def record(self) -> dict[str, Any]:
        """Return what a converted file says about its weights: name and address, or file name and SHA-256."""
        if self.entry is not None:
            return {"weights": self.entry.tag, "url": self.entry.url or self.entry.source}
        from snnzoo.checkpoints.files import sha256_of

        assert self.checkpoint is not None
        return {"file": self.checkpoint.name, "sha256": sha256_of(self.checkpoint)}

    def load(
        self,
        progress: Progress | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> SpikingNet:
        """Return the ANN; arguments and errors as `load_ann`."""
        notes: list[str] = []
        by_position = False
        if self.entry is not None:
            state_dict = weights_of(self.entry, progress)
        else:
            state_dict, notes, by_position = self._read_checkpoint()
        ann = build_ann(self.model, state_dict, self.title, **self._arguments(state_dict))
        ann.by_position = by_position
        if notify is not None:
            for line in notes:
                notify(line)
        return ann

    def _read_checkpoint(self) -> tuple[dict[str, Tensor], list[str], bool]:
        """The state dict in torchvision's keys, lines for the user, and whether keys were found by position."""
        from snnzoo.checkpoints.files import read_with_metadata
        from snnzoo.recognition.reading import read_layout

        assert self.checkpoint is not None
        content, metadata = read_with_metadata(self.checkpoint)
        if metadata.get("format", "").startswith("snnzoo/"):
            raise CheckpointError(f"{self.title}: has been converted already: snnzoo eval {self.title} --data DIR")
        found = read_layout(content, self.title, self.layout, self.checkpoint)
        neurons = [key for key in found.state_dict if is_neuron_key(key)]
        if (neurons or found.layout.differs) and self.layout is None:
            self._refuse_spiking(found.layout, neurons)
        left_out = [f"left out {first_few(neurons)}: parameters of neurons, calibrated anew"] if neurons else []
        return found.state_dict, [found.summary, *found.notes, *left_out], found.layout.name == "sequential"

    def _refuse_spiking(self, layout: Layout, neurons: list[str]) -> NoReturn:
        """Say what a network of neurons is for, and that its weights are not an ANN's."""
        model = f"sew_{self.model}" if layout.is_sew else self.model
        why = layout.differs or f"it has parameters of neurons ({first_few(neurons)})"
        raise CheckpointError(
            f"{self.title}: is no ANN but a network that was trained as a spiking one: {why}; run it as what it is, "
            f"snnzoo eval {self.title} --model {model} --neuron {'plif' if neurons else 'if'} -T 4 --data DIR, or in "
            f"Python snnzoo.load_snn; or give --layout {layout.name} to convert its weights all the same"
        )

    def _arguments(self, state_dict: dict[str, Tensor]) -> dict[str, Any]:
        """The arguments that build the model for these weights, as far as their shapes settle them."""
        from snnzoo.recognition.head import infer_head
        from snnzoo.recognition.identification import architecture, identify

        if self.head is None:
            infer_head(state_dict)  # for its error, where the classifier is the trouble
        try:
            found, kwargs = identify(state_dict, self.title)
        except CheckpointError:
            if architecture(state_dict).name is None:
                raise
            found, kwargs = self.model, {}  # the comparison of keys will say what is wrong
        if found != self.model:
            raise CheckpointError(
                f"{self.title}: holds the weights of {found}, not {self.model}: snnzoo convert {found} ..."
            )
        if self.head is not None:
            kwargs = {key: value for key, value in kwargs.items() if key != "num_classes"} | {"head": self.head}
        classes = kwargs.get("num_classes", self.num_classes)
        if self.num_classes not in (None, classes):
            raise CheckpointError(
                f"{self.title}: has {classes} classes, not {self.num_classes}: give --num-classes {classes}"
            )
        return {**kwargs, **({} if self.num_classes is None else {"num_classes": self.num_classes}), **self.options}


def _check_there(checkpoint: Path | None) -> None:
    if checkpoint is not None and not checkpoint.is_file():
        raise UsageError(f"--checkpoint {checkpoint}: no such file")
