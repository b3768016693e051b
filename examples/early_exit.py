"""Leave early: as many time steps as an image needs.

    python examples/early_exit.py

A network of the digits of scikit-learn (trained at the first use) is converted, and images that are sure leave after
their first steps. The rules for that are chosen on images that the calibration has not seen.
"""

from __future__ import annotations

import torch

import snnzoo
from snnzoo.data.datasets import calibration_images, labelled_data, limited
from snnzoo.data.preprocess import PRESETS

settings = PRESETS["digits"]
ann = snnzoo.load_ann("resnet18", "digits")
images = calibration_images("digits", settings, 64 + 256)
snn = snnzoo.convert(ann, images[:64], "delta", time_steps=4, levels=7, exit_images=images[64:])
exits = snn.conversion.exits
for rule in exits.rules:
    print(f"tolerance {rule.tolerance:g} points: {rule.mean_steps:.2f} steps on average on held-back images")

data = limited(labelled_data("digits", settings, None, 10), 100)
x, labels = torch.stack([data[i][0] for i in range(100)]), torch.tensor([data[i][1] for i in range(100)])
fast = snnzoo.prepare_for_inference(snn)
answers, steps = fast.until_sure(x, exits.rule(2.0))
whole = fast.final(x.expand(4, *x.shape))

top1, top1_of_all = ((logits.argmax(1) == labels).double().mean().item() for logits in (answers, whole))
mean_steps = steps.double().mean().item()
print(f"top-1 {top1:.1%} after {mean_steps:.2f} steps on average, {top1_of_all:.1%} after 4 of every image")
for t in range(1, 5):
    print(f"left after step {t}: {(steps == t).sum().item()} images of 100")
