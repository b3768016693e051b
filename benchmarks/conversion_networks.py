"""Agreement of converted networks of other libraries with their ANNs, trained here on scikit-learn's digits.

    python benchmarks/conversion_networks.py                        # all of them
    python benchmarks/conversion_networks.py regnet_x_400mf efficientnet_b0 --epochs 30 --json networks.json

Each is built with 10 classes and random weights, trained on 1,297 digits of 32x32 pixels, converted with delta coding
(K = 7, T = 4) on 256 of them, and compared with its ANN on the 500 held-out ones. One line a network; `--json FILE`
adds them to what the file has. A network that has learned little is unsure of most images, and agrees with nothing.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor, nn

import snnzoo
from snnzoo.data.digits import Digits
from snnzoo.inference import prepare_for_inference

TORCHVISION = ("mobilenet_v2", "shufflenet_v2_x0_5", "googlenet", "densenet121", "regnet_x_400mf", "efficientnet_b0")
TIMM = ("hrnet_w18_small", "dla34", "seresnet18", "resnet18d")
BATCH_SIZE = 48


def build(name: str) -> nn.Module:
    """The network with 10 classes and random weights."""
    if name in TIMM:
        import timm

        return timm.create_model(name, num_classes=10)  # type: ignore[no-any-return]
    import torchvision

    options = {"aux_logits": False, "init_weights": True} if name == "googlenet" else {}
    return torchvision.models.get_model(name, num_classes=10, **options)  # type: ignore[no-any-return]


def images_of(split: str) -> tuple[Tensor, Tensor]:
    """All images `[N, 3, 32, 32]` of a split, and their labels."""
    data = Digits(split)
    return torch.stack([data[i][0] for i in range(len(data))]), torch.tensor(data.labels)


def train(net: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    """Train with AdamW and one cycle of the learning rate."""
    steps = epochs * (len(images) // BATCH_SIZE)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    net.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images))[: steps // epochs * BATCH_SIZE].split(BATCH_SIZE):
            loss = nn.functional.cross_entropy(net(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    net.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=[*TORCHVISION, *TIMM])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--levels", type=int, default=7)
    parser.add_argument("-T", "--time-steps", type=int, default=4)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    (images, labels), (held_out, truth) = images_of("train"), images_of("test")
    for name in options.networks:
        torch.manual_seed(0)
        net = build(name)
        start = time.perf_counter()
        train(net, images, labels, options.epochs)
        trained, start = time.perf_counter() - start, time.perf_counter()
        snn = snnzoo.convert(net, images[:256], levels=options.levels, time_steps=options.time_steps)
        converted = time.perf_counter() - start
        fast = prepare_for_inference(snn)
        with torch.inference_mode():
            expected = torch.cat([net(x) for x in held_out.split(100)]).argmax(1)
            steps = options.time_steps
            found = torch.cat([fast.final(x.expand(steps, *x.shape)) for x in held_out.split(100)]).argmax(1)
        top1, agreement = (100 * (expected == other).double().mean().item() for other in (truth, found))
        print(
            f"{name:20s} ANN {top1:6.2f} %, agreement {agreement:6.2f} %, {len(snn.sites)} neuron sites, gamma "
            f"{snn.coding.gamma:g}; trained in {trained:.0f} s, converted in {converted:.0f} s",
            flush=True,
        )
        rows[name] = {"epochs": options.epochs, "levels": options.levels, "time_steps": steps}
        rows[name] |= {"ann_top1": top1, "agreement": agreement, "gamma": snn.coding.gamma, "torch": torch.__version__}
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
