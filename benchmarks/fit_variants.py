"""How often the right variant of a network is found by what fits its images best: the rows of `snnzoo.fit.variants`.

    python benchmarks/fit_variants.py --networks variants --data cifar10/train

Trains a small ResNet as each answer to each question has it, on the digits or a part of CIFAR-10 in ImageFolder layout,
and keeps it in `variants`. Then each answer that the question arises from is taken first, as if keys had been read so,
and the search is run on 32 images that the network was not trained on: it finds the right answer, leaves what was
taken first and names the right one as a tie, leaves it without a word, or takes a third one. Where the right one is
taken first, it should stay.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fit import read, train
from torch import Tensor, nn
from torch.nn import functional as F

from snnzoo.conversion import capture_ann
from snnzoo.fit.search import IMAGES, best_fit
from snnzoo.fit.variants import ROWS, Row, Subject
from snnzoo.graph.run import run_graph
from snnzoo.models import heads
from snnzoo.models.cifar_resnet import CifarResNet

WIDTHS = 16, 32, 64, 128
TRAINED_ON = {"digits": (1200, 4), "cifar": (3000, 3)}  # images and epochs


@dataclass(frozen=True)
class Variant:
    """A ResNet of four stages of one block each."""

    stem: tuple[int, int, bool] = (7, 2, True)  # kernel, stride, max pool
    bottleneck: bool = False
    stride_in_1x1: bool = False
    zeros: tuple[bool, bool] | None = None  # shortcuts without weights: zeros on both sides, pixels averaged
    dilated: tuple[int, ...] = ()  # stages
    anti_aliased: bool = False
    activation: Callable[[Tensor], Tensor] = F.relu
    head: Callable[[Tensor], Tensor] | None = None  # before a BN of the classifier; of a network of the zoo
    eps: float = 1e-5

    @property
    def name(self) -> str:
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        return "-".join(getattr(value, "__name__", str(value)) for value in values).replace(" ", "")


class Block(nn.Module):
    def __init__(self, of: Variant, stage: int, channels: int, width: int) -> None:
        super().__init__()
        self.of, self.stage, norm = of, stage, lambda n: nn.BatchNorm2d(n, of.eps)
        out = width * (2 if of.bottleneck else 1)
        dilated = stage in of.dilated
        stride = 1 if stage == 1 or dilated else 2
        self.halves = of.anti_aliased and stride == 2
        own = 1 if self.halves else stride
        first, second = (own, 1) if of.stride_in_1x1 else (1, own)
        if of.bottleneck:
            self.conv1 = nn.Conv2d(channels, width, 1, first, bias=False)
            self.conv2 = nn.Conv2d(width, width, 3, second, 1, bias=False)
            self.conv3, self.bn3 = nn.Conv2d(width, out, 1, bias=False), norm(out)
        else:
            self.conv1 = nn.Conv2d(channels, width, 3, own, 1, bias=False)
            before = 1 + sum(s < stage for s in of.dilated)  # torchvision's: a stage's first convolution is behind
            by = 2 * before if dilated else 1
            self.conv2 = nn.Conv2d(width, width, 3, 1, by, by, bias=False)
            if dilated and before > 1:
                self.conv1 = nn.Conv2d(channels, width, 3, 1, before, before, bias=False)
        self.bn1, self.bn2 = norm(width), norm(width)
        self.downsample = None
        if channels != out and of.zeros is None:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), norm(out))

    def shortcut(self, x: Tensor, y: Tensor) -> Tensor:
        if self.downsample is not None:
            return self.downsample(x)
        if x.shape == y.shape:
            return x
        both, averaged = self.of.zeros or (True, False)
        x = (F.avg_pool2d(x, 2) if averaged else x[:, :, ::2, ::2]) if x.shape[2] != y.shape[2] else x
        zeros = y.shape[1] - x.shape[1]
        return F.pad(x, (0, 0, 0, 0, zeros // 2 if both else 0, zeros - (zeros // 2 if both else 0)))

    def forward(self, x: Tensor) -> Tensor:
        f = self.of.activation
        y = f(self.bn1(self.conv1(x)))
        if self.of.bottleneck:
            y = f(self.bn2(self.conv2(y)))
            y = self.bn3(self.conv3(F.avg_pool2d(y, 2) if self.halves else y))
        else:
            y = self.bn2(self.conv2(F.avg_pool2d(y, 2) if self.halves else y))
        return f(y + self.shortcut(x, y))


class Small(nn.Module):
    def __init__(self, of: Variant) -> None:
        super().__init__()
        kernel, stride, pooled = of.stem
        self.of = of
        self.conv1 = nn.Conv2d(3, WIDTHS[0], kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0], of.eps)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if pooled else nn.Identity()
        channels = WIDTHS[0]
        for stage, width in enumerate(WIDTHS, 1):
            block = Block(of, stage, channels, width)
            setattr(self, f"layer{stage}", nn.Sequential(block))
            channels = width * (2 if of.bottleneck else 1)
        self.fc = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.of.activation(self.bn1(self.conv1(x)))
        if self.of.anti_aliased and self.of.stem[2]:
            x = F.avg_pool2d(x, 2)
        else:
            x = self.maxpool(x)
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.fc(x.mean((2, 3)))


def build(of: Variant) -> nn.Module:
    if of.head is None:
        return Small(of)
    head = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.BatchNorm1d(64), nn.Linear(64, 10))
    net = CifarResNet(1, neuron=nn.ReLU, step_mode="s", num_classes=10, head=heads.describe(head))
    net.fc[1] = Function(of.head)
    return net


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.01)


def leakier(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.1)


def as_it_is(x: Tensor) -> Tensor:
    return x


SMALL = {"stem": (3, 1, False)}  # for small images, so that later stages have pixels left
QUESTIONS: dict[str, list[dict[str, Any]]] = {
    "stem": [{"stem": (kernel, stride, pool)} for kernel in (3, 7) for stride in (1, 2) for pool in (False, True)],
    "stride of bottlenecks": [{**SMALL, "bottleneck": True, "stride_in_1x1": first} for first in (False, True)],
    "shortcut": [{**SMALL, "zeros": (both, mean)} for both in (True, False) for mean in (False, True)],
    "dilation": [{**SMALL, "dilated": stages} for stages in ((), (4,), (3, 4))],
    "anti-aliasing": [{"stem": (kernel, 1, True), "anti_aliased": aa} for kernel in (3, 7) for aa in (False, True)],
    "activation": [{**SMALL, "activation": f} for f in (F.relu, F.relu6, leaky, leakier)],
    "activation in the head": [{**SMALL, "head": f} for f in (F.relu, as_it_is, leaky, torch.tanh)],
    "eps": [{**SMALL, "eps": eps} for eps in (1e-5, 1e-3)],
}


def trained(variant: Variant, file: Path, images: Tensor, labels: Tensor, epochs: int) -> nn.Module:
    torch.manual_seed(0)
    net = build(variant)
    if file.exists():
        net.load_state_dict(torch.load(file))
        return net.eval()
    train(net, images, labels, epochs)
    with torch.inference_mode():
        right = (net(images[:500]).argmax(1) == labels[:500]).float().mean()
    print(f"trained {file.stem}: {right:.0%} of its own images", flush=True)
    torch.save(net.state_dict(), file)
    return net


def subject_of(state: dict[str, Tensor], variant: Variant, images: Tensor) -> Subject:
    """The network that weights are, read as a variant."""
    net = build(variant)
    net.load_state_dict(state)
    ann = capture_ann(net.eval(), images[:2])
    return Subject(ann.graph, ann.tensors(), images)


def same(one: Subject, other: Subject) -> bool:
    """Whether two subjects give the same logits on their images."""
    logits = [run_graph(subject.graph, subject.tensors, subject.images[:8]) for subject in (one, other)]
    return bool(torch.allclose(*logits, rtol=1e-4, atol=1e-4))


def outcome(row: Row, first: Subject, right: Subject) -> str | None:
    """What becomes of what is taken first; None if the question, with this answer, does not arise from it."""
    answers = row.answers(first)
    if not any(same(answer, right) for answer in answers.values()):
        return None
    found, decisions = best_fit(first, [row])
    if same(found, right):
        return "right"
    if not decisions or decisions[0].changed:
        return "another" if decisions else "silent"
    return "tie" if any(same(answers[name], right) for name in decisions[0].ties) else "silent"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=Path, required=True, help="folder that trained networks are kept in")
    parser.add_argument("--data", required=True, help="train folder of CIFAR-10 in ImageFolder layout")
    parser.add_argument("--on", nargs="+", choices=TRAINED_ON, default=list(TRAINED_ON))
    options = parser.parse_args()
    options.networks.mkdir(exist_ok=True)
    rows = {row.name: row for row in ROWS}
    counts: dict[str, Counter[str]] = {name: Counter() for name in QUESTIONS}
    for of in options.on:
        images, labels, _ = read(of, options.data)
        count, epochs = TRAINED_ON[of]
        for question, answers in QUESTIONS.items():
            variants = [dataclasses.replace(Variant(), **answer) for answer in answers]
            for variant in variants:
                net = trained(
                    variant, options.networks / f"{of}-{variant.name}.pth", images[:count], labels[:count], epochs
                )
                held_out = images[count : count + IMAGES]
                right = subject_of(net.state_dict(), variant, held_out)
                counts[question]["networks"] += 1
                for other in variants:
                    if other.stem[0] != variant.stem[0]:
                        continue
                    first = subject_of(net.state_dict(), other, held_out)
                    result = outcome(rows[question], first, right)
                    if result is not None:
                        kind = "right first" if other == variant else "wrong first"
                        counts[question].update([kind, f"{kind}: {result}"])
    results = [f"wrong first: {result}" for result in ("right", "tie", "silent", "another")]
    columns = ("networks", "right first", "right first: right", "wrong first", *results)
    print("\n| open | networks | right first | kept | wrong first | found | a tie, said | left | a third |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for question, count in counts.items():
        print(f"| {question} | {' | '.join(str(count[column]) for column in columns)} |")


if __name__ == "__main__":
    main()
