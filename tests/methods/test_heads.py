from __future__ import annotations

import torch
from torch import nn

from methods.heads import SimCLRProjectionHead


def test_default_head_is_that_of_the_paper_for_a_resnet50():
    head = SimCLRProjectionHead()
    assert [type(layer) for layer in head] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d]
    assert [tuple(p.shape) for p in head.parameters() if p.dim() == 2] == [(2048, 2048), (128, 2048)]
    assert all(layer.bias is None for layer in head if isinstance(layer, nn.Linear))


def test_batch_norm_after_the_last_layer_standardises_the_projection():
    z = SimCLRProjectionHead(16, 16, 8)(3 + 5 * torch.randn(256, 16))
    torch.testing.assert_close(z.mean(0), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std(0, correction=0), torch.ones(8), atol=1e-3, rtol=0)


def test_more_layers_and_no_batch_norm():
    head = SimCLRProjectionHead(16, 32, 8, num_layers=3, batch_norm=False)
    assert [type(layer) for layer in head] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert all(layer.bias is not None for layer in head if isinstance(layer, nn.Linear))
    assert head(torch.randn(4, 16)).shape == (4, 8)
