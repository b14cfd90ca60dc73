"""Image-text retrieval by fused scores (paper section 3.2; reference, fact 14).

Letters: `B` images, `F` false texts an image.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def retrieval_loss(scores: Tensor) -> Tensor:
    """Softmax cross-entropy over an image's texts, the true one at column 0.

    scores (B, 1+F) -> scalar, mean over images.
    """
    true = torch.zeros(len(scores), dtype=torch.int64, device=scores.device)
    return F.cross_entropy(scores.float(), true)
