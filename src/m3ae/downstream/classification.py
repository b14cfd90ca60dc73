"""Classification of an image-text pair (paper section 3.2).

Letters: `Q` pairs, `C` classes.
"""

import torch.nn.functional as F
from torch import Tensor


def classification_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropy, mean over pairs: logits (Q, C), classes int64 (Q,) -> scalar."""
    return F.cross_entropy(logits.float(), classes)
