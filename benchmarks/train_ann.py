"""Train an ANN on CIFAR-10 in ImageFolder layout, for the conversion benchmarks. Resumes where it was stopped.

    python benchmarks/train_ann.py resnet18 --data cifar10 --size 64 --epochs 3 -o resnet18-cifar10.pth
    python benchmarks/train_ann.py resnet56 --data cifar10 --size 32 --epochs 10 -o resnet56-cifar10.pth
    python benchmarks/train_ann.py resnet56 --grow resnet20-12fca82f.th --data cifar10 --epochs 2 --lr 0.02 -o grown.pth

Standard augmentation (4-pixel shifts, flips), SGD with a one-cycle schedule; channels last on CPUs with AVX-512, and
bfloat16 where they have it. `--grow` begins with a trained network of the same widths and fewer blocks: those that it
lacks begin as the identity, so that it needs few epochs (Chen et al., *Net2Net*, ICLR 2016).
The result is a plain state dict in torchvision's keys; its input is normalised with ImageNet's mean and std.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import snnzoo
from snnzoo.data.preprocess import PRESETS

SHALLOWER = {"resnet56": "resnet20"}  # of the same widths


def read_images(folder: Path) -> tuple[Tensor, Tensor]:
    """All images as uint8 `[N, 3, 32, 32]`, and their labels; cached beside the folder."""
    cache = folder.with_suffix(".cache.pt")
    if cache.exists():
        images, labels = torch.load(cache)
        return images, labels
    data = torchvision.datasets.ImageFolder(folder, torchvision.transforms.PILToTensor())
    images = torch.stack([data[i][0] for i in range(len(data))])
    torch.save((images, torch.tensor(data.targets)), cache)
    return images, torch.tensor(data.targets)


def prepare(images: Tensor, size: int) -> Tensor:
    """uint8 to a normalised float input of `size` pixels."""
    preset = PRESETS["cifar10"]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preset.mean, preset.std))
    x = (images / 255 - mean) / std
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False) if size != images.shape[-1] else x


def augment(images: Tensor) -> Tensor:
    """Shift by up to 4 pixels and flip, each image on its own."""
    n, _, height, width = images.shape
    padded = F.pad(images, (4, 4, 4, 4))
    dy, dx = torch.randint(0, 9, (2, n, 1))
    rows, columns = dy + torch.arange(height), dx + torch.arange(width)
    columns = torch.where(torch.rand(n, 1) < 0.5, columns, columns.flip(1))
    return padded.permute(0, 2, 3, 1)[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]].permute(
        0, 3, 1, 2
    )


def grow(net: nn.Module, shallower: nn.Module) -> None:
    """Give a CIFAR ResNet the weights of one with fewer blocks; those that it lacks pass on what they are given."""
    known = shallower.state_dict()
    net.load_state_dict(known, strict=False)
    for name, module in net.named_modules():
        if name.endswith("bn2") and f"{name}.weight" not in known:
            nn.init.zeros_(module.weight)  # type: ignore[arg-type]


def accuracy(net: nn.Module, images: Tensor, labels: Tensor, size: int) -> float:
    """Top-1 in percent."""
    net.eval()
    with torch.inference_mode():
        hits = sum(
            (net(prepare(x, size)).argmax(1) == y).sum().item()
            for x, y in zip(images.split(200), labels.split(200), strict=True)
        )
    return 100 * hits / len(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--grow", type=Path, help="weights of a shallower network to begin with")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()

    torch.manual_seed(0)
    images, labels = read_images(args.data / "train")
    test_images, test_labels = read_images(args.data / "test")
    net = snnzoo.create_model(args.model, neuron=nn.ReLU, num_classes=10, step_mode="s")
    if args.grow:
        grow(net, snnzoo.load_ann(SHALLOWER[args.model], checkpoint=args.grow))
    half = torch.cpu._is_avx512_bf16_supported()
    layout = torch.channels_last if "AVX512" in torch.backends.cpu.get_cpu_capability() else torch.contiguous_format
    net = net.to(memory_format=layout)
    optimizer = torch.optim.SGD(net.parameters(), lr=args.lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    batches = len(images) // args.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.lr, total_steps=args.epochs * batches, pct_start=0.25
    )
    progress = args.output.with_suffix(".resume.pt")
    first = 0
    if progress.exists():
        state = torch.load(progress)
        first = state["epoch"]
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
    for epoch in range(first, args.epochs):
        torch.manual_seed(epoch)
        net.train()
        start, total = time.time(), 0.0
        order = torch.randperm(len(images))[: batches * args.batch_size].split(args.batch_size)
        for i, batch in enumerate(order, start=1):
            x = prepare(augment(images[batch]), args.size).contiguous(memory_format=layout)
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                logits = net(x)
            loss = F.cross_entropy(logits.float(), labels[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
            if i % 50 == 0:
                print(f"epoch {epoch} {i}/{batches} loss {total / i:.3f} {time.time() - start:.0f} s", flush=True)
        state = {"epoch": epoch + 1, "net": net.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save({**state, "schedule": schedule.state_dict()}, progress)
        torch.save(net.state_dict(), args.output)
        print(f"epoch {epoch}: test top-1 {accuracy(net, test_images, test_labels, args.size):.2f} %", flush=True)


if __name__ == "__main__":
    main()
