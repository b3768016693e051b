"""Convert a module of your own: any operations of the table in docs/extending.md, whatever its forward looks like.

A few seconds on a CPU: python examples/convert_your_module.py
"""

# %% A network with squeeze-and-excitation, functional activations and one that is shared
import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import snnzoo

torch.manual_seed(0)


class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.act = nn.SiLU()
        self.head = nn.Linear(16, 10)

    def forward(self, x):  # [N, 3, H, W]
        x = self.act(self.norm(self.stem(x)))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        x = x + self.act(self.conv(x * gate))
        return self.head(F.max_pool2d(x, 2).mean((2, 3)))


ann = Mine().eval()
images = torch.rand(64, 3, 16, 16)  # yours: a few hundred of those that it was trained on, preprocessed

# %% Converted without training; delta's neurons follow any activation
snn = snnzoo.convert(ann, images, recipe="delta", levels=7, time_steps=4, check_fit=False)  # yours is trained
for layer in snn.conversion.layers:
    print(f"{layer['site']:<12} {layer['channels']:>3} channels, error {layer['error']:.1e}")

# %% Its logits come close to the ANN's step by step
with torch.inference_mode():
    expected = ann(images)
    logits = snn(images.expand(4, *images.shape))  # [T, N, 10]
distances = [(step - expected).norm() / expected.std().item() / len(images) for step in logits]
print("distance to the ANN's logits after each step:", ", ".join(f"{distance:.4f}" for distance in distances))

# %% One file, from which it is rebuilt without this class
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "mine-snn.safetensors")
    snnzoo.save(snn, path)
    fast = snnzoo.prepare_for_inference(snnzoo.load(path))
    agreement = (fast.final(images.expand(4, *images.shape)).argmax(1) == expected.argmax(1)).double().mean().item()
print(f"loaded, in its fast form: the ANN's class on {100 * agreement:.0f} % of the images")
