"""Visual question answering as multi-label classification (paper section 3.2).

Letters: `Q` questions, `A` answers.
"""

import torch.nn.functional as F
from torch import Tensor


def vqa_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy, mean over questions and answers, times A.

    logits (Q, A), targets float (Q, A) in 0-1 -> scalar.
    """
    mean = F.binary_cross_entropy_with_logits(logits.float(), targets.float())
    return mean * logits.shape[-1]
