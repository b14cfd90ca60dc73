"""What frozen encoders give, computed once for a split instead of at every step.

Letters: `B` pairs, `L` text tokens, `S` image tokens, `W` an encoder's width.
"""

import logging
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from m3ae.data.datasets import stack_images
from m3ae.downstream.config import FinetuneConfig
from m3ae.downstream.data import Questions, Splits
from m3ae.downstream.model import Downstream
from m3ae.training.distributed import Processes
from m3ae.training.engine import DTYPES, autocast, evaluating, to_device

log = logging.getLogger(__name__)


class FrozenFeatures:
    """Outputs of frozen encoders for the rows of a split, on the CPU.

    They are kept in the run's precision: fusion begins with a linear layer, which reads nothing
    finer under autocast.
    """

    def __init__(
        self,
        model: Downstream,
        questions: Questions,
        config: FinetuneConfig,
        processes: Processes,
        precision: str,
    ) -> None:
        self.rows = questions.rows
        self.image_of_text = questions.shards.image_of_text
        self.images = np.unique(self.image_of_text[self.rows])
        self.text: Tensor | None = None  # (rows, L, W)
        self.image: Tensor | None = None  # (images, S, W)
        self.mean: Tensor | None = None  # (1, S, W), of the mean image
        pairs, device = questions.pairs, processes.device

        def encode_texts(rows: np.ndarray) -> Tensor:
            texts = to_device(pairs.texts(rows), device)
            return model.text_encoder(texts["text_ids"], texts["text_keep"])

        def encode_images(images: np.ndarray) -> Tensor:
            pixels = stack_images([pairs.image(int(image)) for image in images])
            return model.image_encoder(model.normalise(pixels.to(device)))

        def encode(name: str, numbers: np.ndarray, encoder: Callable) -> Tensor:
            parts, size = [], config.eval.batch
            starts = range(0, len(numbers), size)
            with evaluating(model), autocast(device, precision):
                for start in tqdm(starts, desc=name, unit="batch", disable=not processes.first):
                    some = numbers[start : start + size]
                    parts.append(encoder(some).to("cpu", DTYPES[precision]))
            whole = torch.cat(parts)
            log.info("%s: %s encoded once, %.0f MiB", questions.folder, name, whole.nbytes / 2**20)
            return whole

        if "text_encoder" in model.frozen:
            self.text = encode(f"{len(self.rows)} texts", self.rows, encode_texts)
        if "image_encoder" in model.frozen:
            mean = torch.zeros(1, 3, pairs.image_px, pairs.image_px, device=device)
            self.mean = encode("the mean image", np.zeros(1), lambda _: model.image_encoder(mean))
            if config.data.augmentation == "none" and config.data.image == "own":
                self.image = encode(f"{len(self.images)} images", self.images, encode_images)

    def of(self, rows: list[int], shown: list[int] | None, length: int) -> dict[str, Tensor]:
        """What a batch of these rows of the shards holds more, its texts cut to `length` tokens.

        `text_features` (B, length, W) and, of the images of the rows `shown` or of the mean image
        where that is None, `image_features` (B, S, W): where they are known.
        """
        found = {}
        if self.text is not None:
            found["text_features"] = self.text[np.searchsorted(self.rows, rows), :length]
        if shown is None and self.mean is not None:
            found["image_features"] = self.mean.expand(len(rows), -1, -1)
        if shown is not None and self.image is not None:
            places = np.searchsorted(self.images, self.image_of_text[shown])
            found["image_features"] = self.image[places]
        return found


def encode_frozen(
    model: Downstream, splits: Splits, config: FinetuneConfig, processes: Processes, precision: str
) -> None:
    """Give every split the features of the encoders that `train.freeze` names.

    Not for retrieval, which draws its texts; there they are computed at every step.
    """
    if not {"text_encoder", "image_encoder"} & set(model.frozen) or config.task == "retrieval":
        return
    for questions in splits.values():
        questions.features = FrozenFeatures(model, questions, config, processes, precision).of
