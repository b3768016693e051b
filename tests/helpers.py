"""What several tests need."""

import torch
from torch import nn


def shake_batch_norm(net, seed=0):
    """Random BN statistics and affine parameters, so that no term is left out by being 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            for tensor in (module.bias, module.running_mean):
                tensor.data.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
    return net
