"""Real data and a real network without a network: scikit-learn's digits, and a ResNet-18 trained on them.

1,797 handwritten digits of 8x8 pixels (Alpaydin & Kaynak 1998, UCI), as RGB images. 1,297 are for
training and calibration, 500 are held out.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from snnzoo.data.preprocess import PRESETS
from snnzoo.errors import SnnzooError
from snnzoo.progress import Progress

HELD_OUT = 500
EPOCHS = 5
BATCH_SIZE = 48


class Digits(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """The digits as a dataset of (image `[3, 32, 32]`, label).

    Args:
        split: "train" (1,297 images) or "test" (500).
        transform: from an RGB image to a tensor; that of the preset "digits" if None.

    Raises:
        SnnzooError: if scikit-learn is not installed.
    """

    classes = tuple("0123456789")

    def __init__(self, split: str, transform: Callable[[Image.Image], Tensor] | None = None) -> None:
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise SnnzooError("digits need scikit-learn: pip install 'snnzoo[demo]'") from None
        images, labels = load_digits(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(images))
        chosen = order[:-HELD_OUT] if split == "train" else order[-HELD_OUT:]
        self.images = (images[chosen].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        self.labels = labels[chosen].tolist()
        self.transform = transform or PRESETS["digits"].transform()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self.images[index]).convert("RGB")
        return self.transform(image), self.labels[index]


def train_resnet18(*, epochs: int = EPOCHS, seed: int = 0, progress: Progress | None = None) -> dict[str, Tensor]:
    """Train torchvision's resnet18 on the digits; under a minute on two CPU cores.

    Args:
        progress: called with (done, total, description) after each batch.

    Returns:
        its state dict.
    """
    from torchvision.models import resnet18

    data = Digits("train")
    images = torch.stack([data[i][0] for i in range(len(data))])
    labels = torch.tensor(data.labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = resnet18(num_classes=10)
        batches_per_epoch = len(images) // BATCH_SIZE
        steps = epochs * batches_per_epoch
        optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
        net.train()
        for step in range(steps):
            if step % batches_per_epoch == 0:
                order = torch.randperm(len(images))
            first = step % batches_per_epoch * BATCH_SIZE
            batch = order[first : first + BATCH_SIZE]
            loss = nn.functional.cross_entropy(net(_shift(images[batch])), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if progress:
                progress(step + 1, steps, "training resnet18 on digits")
    return net.state_dict()


def _shift(images: Tensor, by: int = 2) -> Tensor:
    """Augment: move a batch by up to `by` pixels; the edge is background."""
    shift = torch.randint(-by, by + 1, (2,)).tolist()
    return images.roll(shift, dims=(2, 3))
