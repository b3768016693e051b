"""How well BN statistics tell a right network from a wrong one: the figures that the limits of `snnzoo.fit` rest on.

    python benchmarks/fit.py --networks trained --data cifar10/train --resnet20 resnet20-12fca82f.th

Trains small networks of torchvision and the zoo on the digits and on a part of CIFAR-10 in ImageFolder layout, where
`trained` does not hold them yet, fine-tunes some with frozen BN, and prints a table for each question: what right
networks give, what is said or refused of wrong ones, and which answers are found that keys leave open.
"""

from __future__ import annotations

import argparse
import copy
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import get_model

import snnzoo
from snnzoo.conversion import capture_ann
from snnzoo.data.datasets import Digits, ImageFiles, limited
from snnzoo.data.folders import check_class_folders, list_samples
from snnzoo.data.preprocess import NORMALISATIONS, PRESETS, Preprocess
from snnzoo.fit.check import DOUBTFUL, IMAGES, MISFIT, beyond
from snnzoo.fit.search import best_fit
from snnzoo.fit.statistics import measure_fit
from snnzoo.fit.variants import ROWS, Subject, prepared_anew

CIFAR_IMAGES = 6000
TRAINED = {  # name, data and epochs
    "resnet18": ("digits", 5),
    "resnet50": ("digits", 5),
    "vgg11_bn": ("digits", 5),
    "mobilenet_v2": ("digits", 8),
    "shufflenet_v2_x0_5": ("digits", 10),
    "densenet121": ("digits", 4),
    "resnet20": ("cifar", 6),
}


@dataclass(frozen=True)
class Network:
    name: str
    module: nn.Module
    images: Tensor
    preprocess: Preprocess
    of_zoo: bool

    @cached_property
    def subject(self) -> Subject:
        ann = capture_ann(self.module, self.images[:2])
        return Subject(ann.graph, ann.tensors(), self.images, self.preprocess)


def build(name: str) -> nn.Module:
    if name in ("resnet20", "vgg11_bn"):
        options = {"hidden_features": 256} if name == "vgg11_bn" else {}
        return snnzoo.create_model(name, neuron=nn.ReLU, step_mode="s", num_classes=10, **options)
    return get_model(name, num_classes=10)


def read(data: str, folder: str) -> tuple[Tensor, Tensor, Preprocess]:
    """Images, labels and their preprocessing."""
    if data == "digits":
        samples, preprocess = Digits("train"), PRESETS["digits"]
    else:
        preprocess, classes = PRESETS["cifar10"], check_class_folders(Path(folder))
        files = list_samples(Path(folder))
        labels = [classes.index(file.parent.name) for file in files]
        samples = limited(ImageFiles(files, labels, preprocess), CIFAR_IMAGES)
    images, labels = zip(*(samples[i] for i in range(len(samples))), strict=True)
    return torch.stack(images), torch.tensor(labels), preprocess


def train(net: nn.Module, images: Tensor, labels: Tensor, epochs: int, *, frozen: bool = False) -> nn.Module:
    """AdamW with a one-cycle schedule and shifts; with `frozen`, BN stays in evaluation mode."""
    torch.manual_seed(0)
    net.train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and frozen:
            module.eval()
    batches = len(images) // 48
    rate = 1e-3 if frozen else 2e-3
    optimizer = torch.optim.AdamW(net.parameters(), rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * batches)
    for _ in range(epochs):
        for batch in torch.randperm(len(images))[: batches * 48].view(batches, 48):
            moved = images[batch].roll(torch.randint(-2, 3, (2,)).tolist(), (2, 3))
            loss = F.cross_entropy(net(moved), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def networks(folder: Path, data: dict[str, tuple[Tensor, Tensor, Preprocess]], resnet20: str | None) -> list[Network]:
    found = []
    if resnet20:
        images, _, preprocess = data["cifar"]
        real = snnzoo.load_ann("resnet20", checkpoint=resnet20)
        found.append(Network("resnet20, published", real, images, preprocess, True))
    for name, (of, epochs) in TRAINED.items():
        torch.manual_seed(0)
        images, labels, preprocess = data[of]
        file, net = folder / f"{name}-{of}.pth", build(name)
        if file.exists():
            net.load_state_dict(torch.load(file))
        else:
            print(f"training {name} on {of}", flush=True)
            torch.save(train(net, images, labels, epochs).state_dict(), file)
        of_zoo = name in ("resnet18", "resnet50", "vgg11_bn", "resnet20")
        found.append(Network(f"{name}, {of}", net.eval(), images, preprocess, of_zoo))
    return found


def divergence(subject: Subject, images: Tensor) -> float:
    fit = measure_fit(subject.graph, subject.tensors, images)
    assert fit is not None
    return fit.mean


def verdict(value: float, images: int) -> str:
    return "refused" if beyond(MISFIT, value, images) else "said" if beyond(DOUBTFUL, value, images) else "passed"


def right(found: list[Network]) -> None:
    """A false alarm is whatever is not passed."""
    print(
        "\n| right network | 8 images | 16 | 32 | 64 | other 64 | false alarms |\n|---|---:|---:|---:|---:|---:|---:|"
    )
    total = 0
    for network in found:
        subject, values = network.subject, []
        for images in (*(network.images[:n] for n in (8, 16, 32, 64)), network.images[64:128]):
            values.append((divergence(subject, images), len(images)))
        alarms = sum(verdict(*value) != "passed" for value in values)
        total += alarms
        print(f"| {network.name} | {' | '.join(f'{value:.3f}' for value, _ in values)} | {alarms} |", flush=True)
    print(f"{total} false alarms in {5 * len(found)} checks")


def wrong_images(network: Network) -> Iterator[tuple[str, Tensor]]:
    images, own = network.images[:IMAGES], network.preprocess
    for name, (mean, std) in NORMALISATIONS.items():
        other = Preprocess(own.resize, own.crop, mean, std)
        if (mean, std) != (own.mean, own.std):
            yield f"normalisation: {name}", prepared_anew(images, own, other)
    yield (
        "order BGR",
        prepared_anew(images, own, Preprocess(own.resize, own.crop, own.mean[::-1], own.std[::-1], order="BGR")),
    )
    yield "twice the size", F.interpolate(images, scale_factor=2, mode="bilinear")
    yield "noise", torch.randn(images.shape, generator=torch.Generator().manual_seed(0))


def wrong(found: list[Network], other_data: Callable[[Network], Tensor]) -> None:
    verdicts: dict[str, list[float]] = {}
    for network in found:
        subject = network.subject
        for name, images in (*wrong_images(network), ("images of another set", other_data(network)[:IMAGES])):
            verdicts.setdefault(name, []).append(divergence(subject, images))
        for row in ROWS:
            if row.of_images:
                continue
            few = Subject(subject.graph, subject.tensors, network.images[:IMAGES])
            for name, answer in list(row.answers(few).items())[1:]:
                verdicts.setdefault(f"{row.name}: {name}", []).append(divergence(answer, answer.images))
    print("\n| wrong | networks | least | most | passed | said | refused |\n|---|---:|---:|---:|---:|---:|---:|")
    for name, values in verdicts.items():
        counts = Counter(verdict(value, IMAGES) for value in values)
        kinds = " | ".join(str(counts[kind]) for kind in ("passed", "said", "refused"))
        print(f"| {name} | {len(values)} | {min(values):.3f} | {max(values):.3g} | {kinds} |")


def same(one: Subject, other: Subject) -> bool:
    return (one.graph, one.preprocess) == (other.graph, other.preprocess)


def answers(found: list[Network], other_data: Callable[[Network], Tensor]) -> None:
    """Each wrong answer is taken first: is the right one found, and left alone where it is taken first?"""
    print("\n| open | wrong first | right found | a tie | another | right first | changed | other data | changed |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for row in ROWS:
        outcomes: Counter[str] = Counter()
        for network in found:
            if not (network.of_zoo or row.of_images):
                continue
            own = network.subject
            for start in range(0, 3 * IMAGES, IMAGES):
                subject = Subject(own.graph, own.tensors, own.images[start : start + IMAGES], own.preprocess)
                alternatives = list(row.answers(subject).values())
                if len(alternatives) < 2:
                    continue
                outcomes["right first"] += 1
                outcomes["changed"] += not same(best_fit(subject, [row])[0], subject)
                for other in alternatives[1:] if start == 0 else ():
                    outcomes["wrong first"] += 1
                    kept, decisions = best_fit(other, [row])
                    outcomes[
                        "found" if same(kept, subject) else "another" if decisions and decisions[0].changed else "tie"
                    ] += 1
            subject = Subject(own.graph, own.tensors, other_data(network), own.preprocess)
            if len(row.answers(subject)) > 1:
                outcomes["other data"] += 1
                outcomes["bent"] += not same(best_fit(subject, [row])[0], subject)
        columns = ("wrong first", "found", "tie", "another", "right first", "changed", "other data", "bent")
        print(f"| {row.name} | {' | '.join(str(outcomes[column]) for column in columns)} |", flush=True)


def frozen(found: list[Network], data: dict[str, tuple[Tensor, Tensor, Preprocess]]) -> None:
    print("\n| fine-tuned with frozen BN | on | divergence | |\n|---|---|---:|---|")
    digits, digit_labels, _ = data["digits"]
    images, labels, preprocess = data["cifar"]
    half = prepared_anew(images, preprocess, PRESETS["digits"])
    few = labels < 2
    tasks = {
        "digits": (prepared_anew(digits, PRESETS["digits"], preprocess), digit_labels, 3),
        "two classes of CIFAR-10": (images[few], labels[few], 3),
        "CIFAR-10 of mean and std 0.5": (half[:2000], labels[:2000], 2),
    }
    for network in found:
        if network.preprocess != preprocess:
            continue
        for name, (x, y, epochs) in tasks.items():
            tuned = train(copy.deepcopy(network.module), x, y, epochs, frozen=True)
            value = divergence(Network("", tuned, x, preprocess, True).subject, x[-IMAGES:])
            print(f"| {network.name} | {name} | {value:.3f} | {verdict(value, IMAGES)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=Path, required=True, help="folder that trained networks are kept in")
    parser.add_argument("--data", required=True, help="train folder of CIFAR-10 in ImageFolder layout")
    parser.add_argument("--resnet20", help="a published checkpoint of resnet20, mean and std of ImageNet")
    arguments = parser.parse_args()
    arguments.networks.mkdir(exist_ok=True)
    data = {of: read(of, arguments.data) for of in ("digits", "cifar")}
    found = networks(arguments.networks, data, arguments.resnet20)
    right(found)
    other_data = partial(_of_the_other_set, data=data)
    wrong(found, other_data)
    answers(found, other_data)
    frozen(found, data)


def _of_the_other_set(network: Network, data: dict[str, tuple[Tensor, Tensor, Preprocess]]) -> Tensor:
    other = data["digits" if network.preprocess == PRESETS["cifar10"] else "cifar"]
    return prepared_anew(other[0][:IMAGES], other[2], network.preprocess)


if __name__ == "__main__":
    main()
