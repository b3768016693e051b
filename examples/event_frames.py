"""Frames of events: digits in front of a sensor that moves, one .npz a recording, as an event camera's are.

About ten seconds of a CPU core: python examples/event_frames.py
"""

# %% Recordings: where the brightness of a pixel rises or falls, the sensor sends an event of that polarity
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import snnzoo
from snnzoo.data.datasets import calibration_images, labelled_data
from snnzoo.data.digits import Digits

torch.manual_seed(0)
PATH = [(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)]  # of the sensor, in pixels: four steps


def record(split, folder, count):
    data = Digits(split)
    for i in range(count):
        image = F.avg_pool2d(data[i][0][:1], 2)  # [1, 16, 16]
        views = torch.stack([image.roll(shift, (1, 2)) for shift in PATH])
        change = views.diff(dim=0)
        frames = torch.cat([change > 0.2, change < -0.2], dim=1).float()  # [T, 2, 16, 16]: on and off
        place = folder / split / str(data.labels[i])
        place.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(place / f"{i}.npz", frames=frames.numpy())


workplace = tempfile.TemporaryDirectory()
folder = Path(workplace.name)
record("train", folder, 1000)
record("test", folder, 200)

# %% An ANN has no time: it learns the mean of the frames
ann = nn.Sequential(
    nn.Conv2d(2, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
    nn.Flatten(), nn.Linear(32 * 16, 10),
)  # fmt: skip
optimizer = torch.optim.AdamW(ann.parameters(), lr=3e-3)
train = labelled_data(str(folder / "train"), None, None, 10)  # each [T, 2, 16, 16]
for epoch in range(4):
    for frames, labels in torch.utils.data.DataLoader(train, batch_size=50, shuffle=True):
        loss = F.cross_entropy(ann(frames.mean(1)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch + 1}: loss of the last batch {loss.item():.3f}")

# %% The spiking network sees them one after the other: an answer after each frame
frames = calibration_images(str(folder / "train"), None, 128).transpose(0, 1)  # [T, N, 2, 16, 16]
snn = snnzoo.convert(ann.eval(), frames, recipe="delta", levels=3, time_steps=4)
result = snnzoo.evaluate(snn, ann, labelled_data(str(folder / "test"), None, None, 10), time_steps=[1, 2, 4])
print(f"ANN on the mean of all frames: top-1 {100 * result.ann['top1']:.1f} %")
for row in result.results:
    print(f"after {row.time_steps} frames: top-1 {100 * row.top1:.1f} %")
workplace.cleanup()
