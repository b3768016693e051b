"""Train a spiking ResNet-20 from nothing, by surrogate gradients, on scikit-learn's digits.

Under a minute of a CPU core: python examples/train_spiking_resnet.py
"""

# %% The digits, 16x16 pixels in three channels
import torch
from torch.nn import functional as F

import snnzoo
from snnzoo import functional, neuron, surrogate
from snnzoo.data.digits import Digits

torch.manual_seed(0)
TIME_STEPS, EPOCHS, BATCH_SIZE = 4, 5, 32


def images_of(split):
    data = Digits(split)
    return F.avg_pool2d(torch.stack([image for image, _ in data]), 2), torch.tensor(data.labels)


train_images, train_labels = images_of("train")
test_images, test_labels = images_of("test")

# %% The network: layer-by-layer, [T, N, 3, 16, 16] -> [T, N, 10]; its keys are torchvision's.
# At a threshold of 1 so many layers fall silent, and nothing is learnt in the first epochs.
net = snnzoo.create_model(
    "resnet20",
    neuron=lambda: neuron.IFNode(
        v_threshold=0.5, surrogate_function=surrogate.ATan(), detach_reset=True, step_mode="m"
    ),
)
print(f"{sum(p.numel() for p in net.parameters()):,} parameters, T = {TIME_STEPS}")


def logits_of(images):
    functional.reset_net(net)  # potentials of the batch before
    x_seq = images.expand(TIME_STEPS, *images.shape)  # the same image at each step, without a copy
    return net(x_seq).mean(0)


# %% Training is that of any network
steps = EPOCHS * (len(train_images) // BATCH_SIZE)
optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3, weight_decay=0.01)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
for epoch in range(EPOCHS):
    net.train()
    order = torch.randperm(len(train_images))
    for batch in order.split(BATCH_SIZE)[: steps // EPOCHS]:
        loss = F.cross_entropy(logits_of(train_images[batch]), train_labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    print(f"epoch {epoch + 1}: loss of the last batch {loss.item():.3f}")

# %% Accuracy after each number of steps, events and energy, in the network's fast form
result = snnzoo.evaluate(net.eval(), None, (test_images, test_labels), time_steps=[1, 2, 4])
for row in result.results:
    print(
        f"T = {row.time_steps}: top-1 {100 * row.top1:.1f} %, {row.events_per_neuron_step:.3f} spikes a neuron and step"
    )
