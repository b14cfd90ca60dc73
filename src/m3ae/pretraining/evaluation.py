"""Does the model use both modalities? Held-out measures with three arms.

own = the pair as it is; other = with another pair's image (MLM) or text (MIM); none = the mean
image, or the empty text. Another's misleads, so own against none is the honest gain. Masks and
pairings are fixed. Intervals: 95 % bootstrap over images, all texts of an image together.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from m3ae.config import EvalConfig
from m3ae.data.datasets import Assembler, EvalBatches, Pairs, Sample
from m3ae.data.masking import NOT_SCORED
from m3ae.data.sampler import SUBSET, keyed
from m3ae.data.texts import encode
from m3ae.models import M3AE
from m3ae.training.distributed import Processes
from m3ae.training.engine import Arrays, evaluating, join_arrays, to_device
from m3ae.training.precision import autocast

ARMS = ("own", "other", "none")
RESAMPLES = 2000
PROTOCOL = "Held-out pairs, fixed masks and pairings (seed {seed}, {draws} mask draws a text), \
whole words masked. own: the pair as it is; other: with another pair's image or text; none: with \
the mean image or the empty text. Intervals: 95 % bootstrap over images."
Batch = dict[str, Tensor]


@contextmanager
def only(model: M3AE, name: str) -> Iterator[None]:
    """Run the passes of one objective alone."""
    loss_weights = model.loss_weights
    model.loss_weights = {name: loss_weights[name]}
    try:
        yield
    finally:
        model.loss_weights = loss_weights


# ------------------------------------------------------------------------------------- attributes


class Attributes:
    """Words that state an attribute, recognised in texts and among tokens."""

    def __init__(self, words: dict[str, tuple[str, ...]], pairs: Pairs) -> None:
        self.words, self.names = words, list(words)
        self.pairs = pairs
        self._tokens: dict[tuple[int, ...], int] = {}
        for number, name in enumerate(self.names):
            for word in words[name]:
                # Byte-level tokenisers spell a word after a space differently.
                for ids, _ in encode(pairs.tokenizer, [word, " " + word]):
                    self._tokens[tuple(ids)] = number

    def of_tokens(self, sample: Sample) -> np.ndarray:
        """Attribute number of every token (L,), -1 where the word states none."""
        found = np.full(len(sample.ids), -1)
        for word in range(sample.words.max() + 1):
            places = np.flatnonzero(sample.words == word)
            found[places] = self._tokens.get(tuple(sample.ids[places].tolist()), -1)
        return found

    def of_text(self, text: str) -> dict[str, str | None]:
        """The first word of each attribute in a text, None where it states none."""
        said = re.findall(r"[\w-]+", text.lower())
        return {
            name: next((word for word in said if word in words), None)
            for name, words in self.words.items()
        }


# ------------------------------------------------------------------------------------- intervals


def bootstrap(
    images: np.ndarray, values: np.ndarray, counts: np.ndarray, seed: int
) -> dict[str, float]:
    """Sum of values over sum of counts, both (S,), and its 95 % interval over resamples of images.

    images (S,) = image of each row. A resample without anything counted is left out.
    """
    names, rows = np.unique(images, return_inverse=True)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
    weights = np.concatenate([np.ones((1, len(names))), draws])  # first the data as they are
    top, bottom = (weights @ np.bincount(rows, weights=column) for column in (values, counts))
    means = np.divide(top, bottom, out=np.full(len(top), np.nan), where=bottom > 0)
    low, high = np.nanquantile(means[1:], [0.025, 0.975])
    return {"value": float(means[0]), "low": float(low), "high": float(high)}


def arm_table(arrays: Arrays, name: str, sign: int, seed: int) -> dict[str, dict[str, float]]:
    """Each arm's mean and the gains of the own arm, with intervals.

    arrays hold `image`, `count` and `{name}_{arm}` (S,); sign -1 where lower is better.
    """
    images, count = arrays["image"], arrays["count"]
    table = {}
    for arm in ARMS:
        mean = bootstrap(images, arrays[f"{name}_{arm}"], count, seed)
        table[arm] = mean | {"n": int(count.sum())}
    for arm in ("none", "other"):
        gain = sign * (arrays[f"{name}_own"] - arrays[f"{name}_{arm}"])
        label = f"own - {arm}" if sign > 0 else f"{arm} - own"
        table[label] = bootstrap(images, gain, count, seed)
    return table


# ------------------------------------------------------------------------------------- arms


def another(batch: Batch, image_ids: np.ndarray) -> Tensor:
    """For each row the next row with another image (B,); its own if there is none."""
    size = len(image_ids)
    rows = np.arange(size)
    for row in range(size):
        others = (row + 1 + np.arange(size - 1)) % size
        different = others[image_ids[others] != image_ids[row]]
        rows[row] = different[0] if len(different) else row
    return torch.from_numpy(rows).to(batch["text_ids"].device)


def mlm_arms(model: M3AE, batch: Batch, image_ids: np.ndarray) -> dict[str, Tensor]:
    """Which scored tokens each arm gets right: `correct_{arm}` bool (B, M), `targets` (B, M)."""
    image = model.normalise(batch["image"])
    other, none = image[another(batch, image_ids)], torch.zeros_like(image)
    shown, out = {"own": image, "other": other, "none": none}, {}
    for arm, pixels in shown.items():
        outputs = model.outputs(batch | {"image": pixels})
        out["targets"] = outputs.mlm_targets
        out[f"correct_{arm}"] = outputs.mlm_logits.argmax(dim=-1).eq(outputs.mlm_targets)
    return out


def mim_arms(model: M3AE, batch: Batch, image_ids: np.ndarray, special: dict) -> dict[str, Tensor]:
    """MIM loss sums (B,) of each arm, `loss_{arm}`, and `count` (B,)."""
    rows = another(batch, image_ids)
    ids, keep = batch["text_ids"], batch["text_keep"]
    empty_ids = torch.full_like(ids, special["pad"])
    empty_ids[:, 0], empty_ids[:, 1] = special["cls"], special["sep"]
    empty_keep = torch.arange(ids.shape[1], device=ids.device).expand_as(ids) < 2
    texts = {"own": (ids, keep), "other": (ids[rows], keep[rows]), "none": (empty_ids, empty_keep)}
    out = {}
    for arm, (text, real) in texts.items():
        sums = model(batch | {"text_ids": text, "text_keep": real}, per_sample=True)
        out["count"], out[f"loss_{arm}"] = sums["mim_count"], sums["mim_loss"]
    return out


class ThreeArms:
    """The final evaluation of a pre-trained model on held-out pairs."""

    def __init__(
        self, model: M3AE, pairs: Pairs, config: EvalConfig, processes: Processes, precision: str
    ) -> None:
        self.model, self.pairs, self.config = model, pairs, config
        self.processes, self.precision = processes, precision
        self.attributes = Attributes(config.attributes, pairs)
        # Whole words, whatever the training masks: the pieces left of a word would give it away.
        words = replace(model.config.mlm, sampling="whole_word")
        self.masks = replace(model.config, mlm=words)

    def run(self) -> dict:
        """All measures of the active objectives; every process must call it."""
        config = self.config
        size = min(config.final_samples or len(self.pairs), len(self.pairs))
        protocol = PROTOCOL.format(seed=config.seed, draws=config.mask_draws)
        result: dict = {"samples": size, "protocol": protocol, "measures": {}}
        measures = {"mlm": self._mlm, "mim": self._mim, "itm": self._itm}
        with evaluating(self.model):
            for name in self.model.loss_weights:
                with only(self.model, name):
                    measures[name](result)
        return result

    def _batches(self, draw: int, title: str) -> Iterator[tuple[Batch, list[Sample]]]:
        """This process's part of the fixed batches, on the device, with their samples."""
        pairs, config, processes = self.pairs, self.config, self.processes
        most = config.final_samples
        fixed = EvalBatches(pairs, self.masks, config.seed, most, config.batch, draw)
        own_batches = range(processes.rank, len(fixed), processes.count)
        for item in tqdm(own_batches, desc=title, disable=not processes.first, leave=False):
            batch = fixed[item]
            samples = [pairs[int(index)] for index in batch["index"]]
            with autocast(processes.device, self.precision):
                yield to_device(batch, processes.device), samples

    def _mlm(self, result: dict) -> None:
        rows = []
        for draw in range(self.config.mask_draws):
            for batch, samples in self._batches(draw, "masked words, three arms"):
                ids = np.array([sample.image_id for sample in samples])
                arms = {k: v.cpu().numpy() for k, v in mlm_arms(self.model, batch, ids).items()}
                targets = arms.pop("targets")
                scored = targets != NOT_SCORED
                places = batch["mlm_positions"].cpu().numpy()
                if not self.model.share:  # the plain step reads every position
                    places = np.broadcast_to(np.arange(scored.shape[1]), scored.shape)
                stated = np.stack([self.attributes.of_tokens(sample) for sample in samples])
                row = {key: right[scored].astype(float) for key, right in arms.items()}
                row["image"] = np.broadcast_to(ids[:, None], scored.shape)[scored]
                row["target"], row["count"] = targets[scored], np.ones(scored.sum())
                row["attribute"] = np.take_along_axis(stated, places, axis=1)[scored]
                rows.append(row)
        arrays, seed = join_arrays(rows, self.processes), self.config.seed
        result["measures"]["mlm_accuracy"] = arm_table(arrays, "correct", 1, seed)
        names, text_only = self.attributes.names, self.config.text_only
        shown = [number for number, name in enumerate(names) if name not in text_only]
        chosen = np.isin(arrays["attribute"], shown)
        if not chosen.any():
            return  # no masked word states one: there is nothing to measure
        stating = {key: array[chosen] for key, array in arrays.items()}
        result["measures"]["mlm_attribute_accuracy"] = arm_table(stating, "correct", 1, seed)
        result["attributes"] = {}
        for number, name in enumerate(names):
            mine = {key: array[arrays["attribute"] == number] for key, array in arrays.items()}
            if count := len(mine["target"]):
                table = arm_table(mine, "correct", 1, seed)
                most = np.unique(mine["target"], return_counts=True)[1].max()
                entry = {"tag": self._tag(name), "n": count, "majority": float(most) / count}
                entry |= {"gain": table["own - none"], "own_interval": table["own"]}
                result["attributes"][name] = entry | {arm: table[arm]["value"] for arm in ARMS}

    def _tag(self, name: str) -> str:
        tags = {"fine": self.config.fine, "text only": self.config.text_only}
        return next((tag for tag, names in tags.items() if name in names), "")

    def _mim(self, result: dict) -> None:
        rows = []
        for batch, samples in self._batches(0, "removed patches, three arms"):
            ids = np.array([sample.image_id for sample in samples])
            arms = mim_arms(self.model, batch, ids, self.pairs.special)
            arrays = {key: value.double().cpu().numpy() for key, value in arms.items()}
            rows.append({"image": ids} | arrays)
        arrays = join_arrays(rows, self.processes)
        result["measures"]["mim_loss"] = arm_table(arrays, "loss", -1, self.config.seed)

    def _itm(self, result: dict) -> None:
        random = self._batches(0, "matching, random false images")
        result["itm"] = {"random": self._accuracy(random)}
        if hard := self._hard_pairs():
            same = ", ".join(self.config.hard_negative_same)
            rule = "half the texts are shown with an image whose own text states the same "
            rule += f"{same} and differs in another attribute"
            accuracy = self._accuracy(self._hard_batches(hard))
            result["itm"] |= {"hard": accuracy, "hard_rule": rule}

    def _accuracy(self, batches: Iterable[tuple[Batch, list[Sample]]]) -> dict[str, float]:
        rows = []
        for batch, samples in batches:
            right = self.model(batch, per_sample=True)["itm_correct"].double().cpu().numpy()
            rows.append({"image": np.array([s.image_id for s in samples]), "right": right})
        arrays = join_arrays(rows, self.processes)
        ones = np.ones(len(arrays["right"]))
        mean = bootstrap(arrays["image"], arrays["right"], ones, self.config.seed)
        return mean | {"n": len(ones)}

    def _hard_pairs(self) -> list[tuple[int, int]]:
        """(text, image of which pair), in turn a match and a hard false one, fixed once for all."""
        config, pairs = self.config, self.pairs
        if not config.hard_negative_same:
            return []
        fixed = EvalBatches(pairs, self.model.config, config.seed, config.final_samples, 1)
        stated = {i: self.attributes.of_text(pairs.text(i)) for i in fixed.indices.tolist()}
        alike: dict[tuple, list[int]] = {}
        for index, values in stated.items():
            key = tuple(values[name] for name in config.hard_negative_same)
            alike.setdefault(key, []).append(index)
        shown = []
        for members in alike.values():
            for number, index in enumerate(members):
                false = [other for other in members if stated[other] != stated[index]]
                if false:
                    rng = keyed(config.seed, SUBSET, 1, index)
                    shown.append((index, index if number % 2 else int(rng.choice(false))))
        return shown

    def _hard_batches(self, shown: list[tuple[int, int]]) -> Iterator[tuple[Batch, list[Sample]]]:
        """This process's part of such pairs, on the device, with samples that hold these images."""
        config, pairs, processes = self.config, self.pairs, self.processes
        assemble = Assembler(self.model.config, pairs)
        shown = shown[processes.rank :: processes.count]
        starts = range(0, len(shown), config.batch)
        title = "matching, hard false images"
        for start in tqdm(starts, desc=title, disable=not processes.first, leave=False):
            chosen = shown[start : start + config.batch]
            samples = [replace(pairs[text], image=pairs[image].image) for text, image in chosen]
            rngs = [keyed(config.seed, SUBSET, 2, text) for text, _ in chosen]
            batch = assemble(samples, rngs, rngs[:: self.model.config.itm.group])
            batch["itm_match"] = torch.tensor([text == image for text, image in chosen])
            batch["itm_image"] = torch.arange(len(chosen))
            with autocast(processes.device, self.precision):
                yield to_device(batch, processes.device), samples
