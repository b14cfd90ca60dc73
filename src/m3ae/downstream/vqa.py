"""Visual question answering as multi-label classification (paper section 3.2).

Letters: `Q` questions, `A` answers.
"""

import torch.nn.functional as F
from torch import Tensor


def vqa_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of each question, summed over answers.

    logits (Q, A), targets float (Q, A) in 0-1 -> (Q,). Its mean over questions is the reference's
    loss: the mean over questions and answers, times A.
    """
    loss = F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none")
    return loss.sum(dim=-1)
