"""Networks with parameters and statistics that no initialisation has."""

from __future__ import annotations

import torch
from torch import nn


def lived_in(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and batch-norm statistic a value that no initialisation has."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.running_mean.normal_(generator=generator)
                module.running_var.uniform_(0.3, 2.0, generator=generator)
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network
