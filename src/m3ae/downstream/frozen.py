"""What frozen encoders give, computed once for a split instead of at every step.

Each process of a host computes its share, and all read one copy.

Letters: `B` pairs, `L` text tokens, `S` image tokens, `W` an encoder's width, `M` the width of the
pooled features of an image. Of tokens, and of pooled features, only what the head reads is kept.
"""

import logging
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from m3ae.data.datasets import stack_images
from m3ae.downstream.config import FinetuneConfig
from m3ae.downstream.data import Questions, Splits, collate
from m3ae.downstream.model import Downstream
from m3ae.models.heads import EncoderHead
from m3ae.models.m3ae import Batch
from m3ae.training.distributed import Processes
from m3ae.training.engine import evaluating, to_device
from m3ae.training.precision import DTYPES, autocast

log = logging.getLogger(__name__)


class FrozenFeatures:
    """What frozen encoders give for the rows of a split, on the CPU, by its key in a batch.

    Tokens are kept in the run's precision: fusion begins with a linear layer, which reads nothing
    finer under autocast. Pooled features are float32.
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
        self.text: Batch = {}  # (rows, L, W), (rows, W)
        self.image: Batch = {}  # (images, S, W), (images, M)
        self.mean: Batch = {}  # (1, S, W), (1, M), of the mean image
        pairs, device = questions.pairs, processes.device

        def encode_texts(rows: np.ndarray) -> Batch:
            texts = to_device(pairs.texts(rows), device)
            return model.encode_text(texts["text_ids"], texts["text_keep"])

        def encode_images(images: np.ndarray) -> Batch:
            pixels = stack_images([pairs.image(int(image)) for image in images])
            return model.encode_image(pixels.to(device))

        def stored(name: str, tensor: Tensor) -> Tensor:
            return tensor.to("cpu", DTYPES[precision if name.endswith("features") else "fp32"])

        def encode(name: str, numbers: np.ndarray, encoder: Callable) -> Batch:
            # The processes of a host take turns, but for the one mean image.
            turns = len(numbers) > 1
            own = numbers[processes.local_rank :: processes.local_count] if turns else numbers
            parts, size = [], config.eval.batch
            starts = range(0, len(own), size)
            with evaluating(model), autocast(device, precision):
                for start in tqdm(starts, desc=name, unit="batch", disable=not processes.first):
                    some = own[start : start + size]
                    parts.append({key: stored(key, x) for key, x in encoder(some).items()})
            names = parts[0] if parts else ()
            whole = {key: torch.cat([part[key] for part in parts]) for key in names}
            whole = processes.on_host(whole, len(numbers)) if turns else whole
            size = sum(tensor.nbytes for tensor in whole.values()) / 2**20
            log.info("%s: %s encoded once, %.0f MiB", questions.folder, name, size)
            return whole

        if "text_encoder" in model.frozen:
            self.text = encode(f"{len(self.rows)} texts", self.rows, encode_texts)
        if "image_encoder" in model.frozen:
            mean = torch.zeros(1, 3, pairs.image_px, pairs.image_px, device=device)
            self.mean = encode("the mean image", np.zeros(1), lambda _: model.encode_image(mean))
            if config.data.augmentation == "none" and config.data.image == "own":
                self.image = encode(f"{len(self.images)} images", self.images, encode_images)

    def of(self, rows: list[int], shown: list[int] | None, length: int) -> dict[str, Tensor]:
        """What a batch of these rows of the shards holds more, its texts cut to `length` tokens.

        `text_features` (B, length, W), `text_pooled` (B, W) and, of the images of the rows `shown`
        or of the mean image where that is None, `image_features` (B, S, W), `image_pooled` (B, M):
        where they are known and the head reads them.
        """
        places = np.searchsorted(self.rows, rows)
        found = {key: tensor[places] for key, tensor in self.text.items()}
        if "text_features" in found:
            found["text_features"] = found["text_features"][:, :length]
        if shown is None:
            return found | {
                key: mean.expand(len(rows), *mean.shape[1:]) for key, mean in self.mean.items()
            }
        places = np.searchsorted(self.images, self.image_of_text[shown])
        return found | {key: tensor[places] for key, tensor in self.image.items()}


def encode_frozen(
    model: Downstream, splits: Splits, config: FinetuneConfig, processes: Processes, precision: str
) -> None:
    """Give every split the features of the encoders that `train.freeze` names.

    Not for retrieval, which draws its texts; there they are computed at every step.
    """
    frozen = {"text_encoder", "image_encoder"} & set(model.frozen)
    if frozen and type(model).scores is not Downstream.scores:
        log.info("%s reads batches itself: frozen encoders run at every step", config.task)
        return
    if not frozen or config.kind == "retrieval":
        return
    for questions in splits.values():
        questions.features = FrozenFeatures(model, questions, config, processes, precision).of


def standardise_head(
    model: Downstream,
    questions: Questions,
    config: FinetuneConfig,
    processes: Processes,
    precision: str,
) -> None:
    """Give a head of pooled features the means and scales of the rows that it will be trained on.

    Every distinct text and image (with `data.image: none` the mean image) counts once, images
    without augmentation. Encoders that train are read as they begin: the figures are not updated,
    as they are part of the checkpoint. To be called once, before the first step.
    """
    if not isinstance(model.head, EncoderHead):
        return
    rows, size = questions.rows, config.eval.batch
    said = [questions.shards.text(int(row)) for row in rows]
    distinct, first = (
        np.unique(of, return_index=True)[1] for of in (said, questions.shards.image_of_text[rows])
    )
    own = config.data.image == "own"

    def encode_texts(batch: Batch) -> Batch:
        return model.encode_text(batch["text_ids"], batch["text_keep"])

    def encode_images(batch: Batch) -> Batch:
        return model.encode_image(batch["image"])

    def pooled(rows: np.ndarray, shown: bool, name: str, encoder: Callable) -> Tensor:
        parts = []
        for start in range(0, len(rows), size):
            some = rows[start : start + size].tolist()
            batch = to_device(collate(questions, some, some if shown else None), processes.device)
            parts.append(batch[name] if name in batch else encoder(batch)[name])
        return torch.cat(parts)

    with evaluating(model), autocast(processes.device, precision):
        texts = pooled(rows[distinct], False, "text_pooled", encode_texts)
        images = rows[first] if own else rows[:1]
        images = pooled(images, own, "image_pooled", encode_images)
    model.head.standardise(texts, images)
    log.info("head standardised over %d texts and %d images", len(texts), len(images))
