"""Classification of an image-text pair (paper section 3.2).

Letters: `Q` pairs, `C` classes.
"""

import torch.nn.functional as F
from torch import Tensor


def classification_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropy of each pair: logits (Q, C), classes int64 (Q,) -> (Q,).

    A class of -1 is unknown and costs 0.
    """
    return F.cross_entropy(logits.float(), classes, ignore_index=-1, reduction="none")
