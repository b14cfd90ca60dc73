"""Attention where a CPU takes another kernel than in fp32."""

import pytest
import torch

from m3ae.models.layers import CrossAttention


@pytest.mark.parametrize("keys", [24, 240])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_on_a_cpu(keys, dtype):
    """Padding attended to, or another scale, in the kernel of short rows or of long ones."""
    torch.manual_seed(0)
    attention = CrossAttention(64, 4)
    source, start = torch.randn(2, keys, 64), torch.randn(2, 5, 64)
    keep = torch.arange(keys) < torch.tensor([[keys], [keys // 3]])
    outputs, gradients = [], []
    for enabled in (False, True):
        x = start.clone().requires_grad_()
        with torch.autocast("cpu", dtype, enabled=enabled):
            y = attention(x, source, keep)
        y.float().square().sum().backward()
        outputs.append(y.detach().float())
        gradients.append(x.grad)
    for exact, half in (outputs, gradients):
        assert (half - exact).norm() < 0.02 * exact.norm()
