"""Convert a trained network to binary spikes at a T that is too small for that, and train it on until it is not.

About ten seconds of a CPU core: python examples/fine_tune_converted.py
"""

# %% An ordinary network, trained on scikit-learn's digits
import torch
from torch import nn
from torch.nn import functional as F

import snnzoo
from snnzoo import functional
from snnzoo.data.digits import Digits

torch.manual_seed(0)
TIME_STEPS = 2


def images_of(split):
    data = Digits(split)
    return F.avg_pool2d(torch.stack([image for image, _ in data]), 2), torch.tensor(data.labels)


def train(logits_of, parameters, epochs, lr):
    optimizer = torch.optim.AdamW(parameters, lr=lr)
    for epoch in range(epochs):
        for batch in torch.randperm(len(train_images)).split(64):
            loss = F.cross_entropy(logits_of(train_images[batch]), train_labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1}: loss of the last batch {loss.item():.3f}")


def block(inputs, outputs, stride):
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


train_images, train_labels = images_of("train")
test_images, test_labels = images_of("test")
ann = nn.Sequential(
    block(3, 16, 1), block(16, 32, 2), block(32, 32, 1), block(32, 64, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    nn.Linear(64, 10),
)  # fmt: skip
train(ann, ann.parameters(), epochs=3, lr=3e-3)
ann.eval()

# %% Converted: the ANN's weights under their own names, integrate-and-fire neurons in place of its activations
snn = snnzoo.convert(ann, train_images[:128], recipe="rate", time_steps=TIME_STEPS)
before = snnzoo.evaluate(snn, ann, (test_images, test_labels), time_steps=[TIME_STEPS])

# %% Trained on, through the neurons' surrogate gradients: the loss is that of the last readout


def spiking_logits(images):
    functional.reset_net(snn)
    return snn(images.expand(TIME_STEPS, *images.shape))[-1]  # [T, N, 10], each the readout after that many steps


train(spiking_logits, snn.parameters(), epochs=2, lr=5e-4)
after = snnzoo.evaluate(snn, ann, (test_images, test_labels), time_steps=[TIME_STEPS])
for name, result in (("converted", before), ("trained on", after)):
    print(
        f"{name}: top-1 {100 * result.results[0].top1:.1f} % at T = {TIME_STEPS}, ANN {100 * result.ann['top1']:.1f} %"
    )
