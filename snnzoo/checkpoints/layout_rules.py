"""Key layouts as tables: how each library names the layers of a network, beside torchvision's names.

A rule is a pair of templates for the path of a module, theirs and torchvision's; what follows the path
(`weight`, `running_mean` ...) stays. In a template `{s}` stands for a number, `{s-1}` and `{s+1}` for that number
less and plus one, and `{rest}` for any further path or none. Nothing here imports torch.

>>> Rule("encoder.stages.{s-1}.layers.{b}.shortcut", "layer{s}.{b}.downsample").to_torchvision(
...     "encoder.stages.0.layers.2.shortcut.weight")
'layer1.2.downsample.weight'
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property

from snnzoo.errors import UsageError, suggestion

_SLOT = re.compile(r"\{(\w+)([+-]1)?\}")
_NEURON_KEY = re.compile(r"(^|\.)(downsample_)?sn\d*\.")


@dataclass(frozen=True)
class Rule:
    """A pair of templates for module paths: `theirs` and torchvision's, `ours`; `leaf` limits it to some tensors."""

    theirs: str
    ours: str
    leaf: str = r"\w+"

    def to_torchvision(self, key: str) -> str | None:
        """Return their key as torchvision's, None if the rule is not for it."""
        return _translate(key, self._patterns[0], self.theirs, self.ours)

    def from_torchvision(self, key: str) -> str | None:
        """Return torchvision's key as theirs, None if the rule is not for it."""
        return _translate(key, self._patterns[1], self.ours, self.theirs)

    @cached_property
    def _patterns(self) -> tuple[re.Pattern[str], re.Pattern[str]]:
        return _pattern(self.theirs, self.leaf), _pattern(self.ours, self.leaf)


def _pattern(template: str, leaf: str) -> re.Pattern[str]:
    """The keys of a module that a template is for, its path and one more part."""
    parts = _SLOT.split(template)  # literal, slot, offset, literal, slot, offset, ... literal
    pattern = re.escape(parts[0])
    for name, literal in zip(parts[1::3], parts[3::3], strict=True):
        values = r"(?:\.\w+)*" if name == "rest" else r"\d{1,6}"
        pattern += f"(?P<{name}>{values}){re.escape(literal)}"
    return re.compile(rf"{pattern}\.(?P<leaf>{leaf})", re.ASCII)


def _translate(key: str, pattern: re.Pattern[str], given: str, wanted: str) -> str | None:
    match = pattern.fullmatch(key)
    if match is None:
        return None
    offsets = {name: int(offset or 0) for name, offset in _SLOT.findall(given)}

    def fill(slot: re.Match[str]) -> str:
        name, offset = slot.groups()
        if name == "rest":
            return match["rest"]
        return str(int(match[name]) - offsets[name] + int(offset or 0))

    return f"{_SLOT.sub(fill, wanted)}.{match['leaf']}"


def _same(*paths: str) -> tuple[Rule, ...]:
    return tuple(Rule(path, path) for path in paths)


def _prefixed(prefix: str, rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    return tuple(Rule(prefix + rule.theirs, rule.ours) for rule in rules)


BODY = _same(
    "conv1",
    "bn1",
    "layer{s}.{b}.conv{i}",
    "layer{s}.{b}.bn{i}",
    "layer{s}.{b}.downsample.{i}",
)
CLASSIFIER = _same("fc{rest}")
VGG = (
    Rule("features.{i}", "features.{i}.sn", leaf="w"),  # a neuron of SpikingJelly in nn.Sequential
    Rule("classifier.{i}", "classifier.{i}.sn", leaf="w"),
    *_same("features.{i}", "classifier.{i}"),
)
NEURONS = (
    Rule("sn{i}.module{rest}", "sn{i}{rest}"),
    Rule("layer{s}.{b}.sn{i}.module{rest}", "layer{s}.{b}.sn{i}{rest}"),
    *_same("sn{i}{rest}", "layer{s}.{b}.sn{i}{rest}", "features.{i}.sn{rest}", "classifier.{i}.sn{rest}"),
)


@dataclass(frozen=True)
class Layout:
    """One way to name the tensors of a ResNet.

    Args:
        name: as `--layout` and `--to` take it.
        description: whose layout it is.
        rules: the first one that is for a key translates it, in either direction.
        writable: whether a checkpoint can be written in it.
        assumes: what cannot be seen in the keys and is taken for granted, if anything.
        differs: how its networks compute something else than torchvision's with the same weights, if they do.
    """

    name: str
    description: str
    rules: tuple[Rule, ...] = field(repr=False)
    writable: bool = True
    assumes: str | None = None
    differs: str | None = None

    @property
    def is_sew(self) -> bool:
        """Whether it is of networks that join spikes with spikes."""
        return self.differs is not None

    def to_torchvision(self, key: str) -> str | None:
        """Return torchvision's name for `key`, None if the layout has no such key."""
        return next((name for rule in self.rules if (name := rule.to_torchvision(key)) is not None), None)

    def from_torchvision(self, key: str) -> str | None:
        """Return the layout's name for torchvision's `key`, None if it has none."""
        return next((name for rule in self.rules if (name := rule.from_torchvision(key)) is not None), None)


_HF_BLOCK = "encoder.stages.{s-1}.layers.{b}"
_HF_BODY = (
    Rule("embedder.embedder.convolution", "conv1"),
    Rule("embedder.embedder.normalization", "bn1"),
    Rule(f"{_HF_BLOCK}.layer.{{i-1}}.convolution", "layer{s}.{b}.conv{i}"),
    Rule(f"{_HF_BLOCK}.layer.{{i-1}}.normalization", "layer{s}.{b}.bn{i}"),
    Rule(f"{_HF_BLOCK}.shortcut.convolution", "layer{s}.{b}.downsample.0"),
    Rule(f"{_HF_BLOCK}.shortcut.normalization", "layer{s}.{b}.downsample.1"),
)
_CONTAINER = (  # the first of two rules for a module is how it is written
    *_same("conv1", "bn1"),
    Rule("conv1.0", "conv1"),
    Rule("conv1.1", "bn1"),
    Rule("bn1.0", "bn1"),
    Rule("layer{s}.{b}.conv{i}.0", "layer{s}.{b}.conv{i}"),
    Rule("layer{s}.{b}.conv{i}.1", "layer{s}.{b}.bn{i}"),
    Rule("layer{s}.{b}.conv{i}.module.0", "layer{s}.{b}.conv{i}"),
    Rule("layer{s}.{b}.conv{i}.module.1", "layer{s}.{b}.bn{i}"),
    Rule("layer{s}.{b}.bn{i}.0", "layer{s}.{b}.bn{i}"),
    Rule("layer{s}.{b}.downsample.0.{i}", "layer{s}.{b}.downsample.{i}"),
    Rule("layer{s}.{b}.downsample.{i}.0", "layer{s}.{b}.downsample.{i}"),
    *_same("layer{s}.{b}.downsample.{i}"),
    Rule("fc.0{rest}", "fc{rest}"),
    *_same("fc{rest}"),
)

_HEADS = (
    *(Rule(name, "fc") for name in ("head", "classifier", "fc", "linear", "last_linear")),
    *(Rule(f"{name}.{{i}}{{rest}}", "fc.{i}{rest}") for name in ("head", "classifier", "fc")),
)

_SEW_DIFFERS = "SEW blocks join the shortcut after the last neuron, those of an ANN before it"
_SEW_RELEASE = (
    *_same("conv1", "bn1"),
    Rule("layer{s}.{b}.conv{i}.module.0", "layer{s}.{b}.conv{i}"),
    Rule("layer{s}.{b}.conv{i}.module.1", "layer{s}.{b}.bn{i}"),
    Rule("layer{s}.{b}.downsample.0.module.{i}", "layer{s}.{b}.downsample.{i}"),
    Rule("layer{s}.{b}.downsample.1{rest}", "layer{s}.{b}.downsample_sn{rest}"),
    *CLASSIFIER,
    *NEURONS,
)

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout("torchvision", "torchvision ResNets and VGGs, and the names of this zoo", BODY + CLASSIFIER + VGG),
        Layout("timm", "timm ResNets that are torchvision's too; the same names", BODY + CLASSIFIER),
        Layout(
            "huggingface",
            "Hugging Face transformers, ResNetForImageClassification",
            (*_prefixed("resnet.", _HF_BODY), Rule("classifier.1", "fc"), *_HF_BODY),
            assumes="downsample_in_bottleneck and downsample_in_first_stage are false in config.json, the default",
        ),
        Layout(
            "mmpretrain",
            "MMPretrain (MMClassification) ResNets",
            (*_prefixed("backbone.", BODY), Rule("head.fc{rest}", "fc{rest}")),
            assumes="style is 'pytorch' in the config, the default",
        ),
        Layout(
            "backbone",
            "torchvision's names, often after `backbone.`, and the classifier as head, classifier or last_linear",
            (*_prefixed("backbone.", BODY), *_HEADS, *BODY),
        ),
        Layout(
            "akamaster",
            "akamaster's and kuangliu's CIFAR ResNets",
            (
                Rule("linear{rest}", "fc{rest}"),
                Rule("layer{s}.{b}.shortcut.{i}", "layer{s}.{b}.downsample.{i}"),
                *BODY,
            ),
        ),
        Layout(
            "weiaicunzai",
            "weiaicunzai's CIFAR-100 ResNets, such as conv2_x.0.residual_function.0.weight",
            (
                Rule("conv1.0", "conv1"),
                Rule("conv1.1", "bn1"),
                *(
                    Rule(f"conv{{s+1}}_x.{{b}}.residual_function.{place + kind}", f"layer{{s}}.{{b}}.{name}{i}")
                    for i, place in ((1, 0), (2, 3), (3, 6))
                    for kind, name in ((0, "conv"), (1, "bn"))
                ),
                Rule("conv{s+1}_x.{b}.shortcut.{i}", "layer{s}.{b}.downsample.{i}"),
                *CLASSIFIER,
            ),
        ),
        Layout(
            "vgg",
            "VGGs whose classifier is one Linear layer, as kuangliu's; the zoo's names, too",
            (*VGG, *_same("classifier")),
            writable=False,
        ),
        Layout(
            "spikingjelly",
            "SpikingJelly's spiking_resnet, neurons' own parameters included",
            (*BODY, *CLASSIFIER, *VGG, *NEURONS),
        ),
        Layout(
            "sew_resnet",
            "SpikingJelly's sew_resnet",
            (*_same("layer{s}.{b}.downsample_sn{rest}"), *BODY, *CLASSIFIER, *NEURONS),
            differs=_SEW_DIFFERS,
        ),
        Layout(
            "sew_release",
            "the release of SEW-ResNet, such as layer1.0.conv1.module.0.weight",
            _SEW_RELEASE,
            differs=_SEW_DIFFERS,
        ),
        Layout(
            "container",
            "layers inside SeqToANNContainer, such as layer1.0.conv1.0.weight",
            (*_CONTAINER, *NEURONS),
        ),
        Layout(
            "sequential",
            "networks inside nn.Sequential, layers known by their order and shapes",
            (),
            writable=False,
        ),
        Layout(
            "dataparallel",
            "torchvision's names after `module.`, as DataParallel and DDP save them",
            (*_prefixed("module.", BODY + CLASSIFIER + VGG), *BODY, *CLASSIFIER, *VGG),
        ),
        Layout(
            "compiled",
            "torchvision's names after `_orig_mod.`, as torch.compile saves them",
            (*_prefixed("_orig_mod.", BODY + CLASSIFIER + VGG), *BODY, *CLASSIFIER, *VGG),
        ),
    )
}

# What shows that a network is no torchvision ResNet: a part of its keys, and what that is.
FOREIGN: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), reason)
    for pattern, reason in (
        (r"(^|\.)(conv1\.[3-9]\d*|stem\.\d+)\.weight$", "a stem of several convolutions (ResNet-C, -D, -S, -T)"),
        (r"(^|\.)stem\.conv\d*\.", "a stem and stages of another family (ResNetV2, RegNet, ByobNet)"),
        (r"layer\d+\.\d+\.(se|se_module|attn|eca|cbam|ca|sa)\.", "attention or squeeze-and-excitation in its blocks"),
        (r"layer\d+\.\d+\.conv\d\.(conv|paths|attn|fc\d|radix)", "split or selective convolutions (ResNeSt, SKNet)"),
        (r"layer\d+\.\d+\.convs\.\d", "multi-scale blocks (Res2Net)"),
        (r"(^|\.)(projection|prediction)_?head\.|(^|\.)(projector|predictor)\.", "a projection head (self-supervised)"),
        (r"(^|\.)attnpool\.", "attention pooling (CLIP)"),
        (r"^(backbone\.)?res2\.\d+\.", "the names of detectron2, whose networks are for detection"),
        (r"layer\d+\.\d+\.downsample\.2\.weight$", "average-pooled shortcuts (ResNet-D)"),
    )
)


def layout_named(name: str) -> Layout:
    """Return the layout of that name; a UsageError with the names there are if there is none."""
    if name not in LAYOUTS:
        raise UsageError(
            f"unknown layout {name!r}: {suggestion(name, LAYOUTS, 'expected one of ' + ', '.join(LAYOUTS))}"
        )
    return LAYOUTS[name]


def writable_layout(name: str) -> Layout:
    """As `layout_named`; a UsageError if checkpoints cannot be written in it."""
    layout = layout_named(name)
    if not layout.writable:
        names = ", ".join(other for other, value in LAYOUTS.items() if value.writable)
        raise UsageError(f"layout {name!r} can only be read: expected one of {names}")
    return layout


def is_neuron_key(key: str) -> bool:
    """Whether a state_dict key belongs to a neuron (`sn1.w`, `layer1.0.sn2.module.surrogate_function.alpha`)."""
    return _NEURON_KEY.search(key) is not None
