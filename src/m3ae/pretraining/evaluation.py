"""Does the model use both modalities? Held-out measures with three arms.

own = the pair as it is; other = with another pair's image (MLM) or text (MIM); none = the mean
image, or the empty text. Another's misleads, so own against none is the honest gain. Masks and
pairings are fixed. Intervals: 95 % bootstrap over images, all texts of an image together.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from m3ae.config import EvalConfig
from m3ae.data.datasets import EvalBatches, Pairs, Sample
from m3ae.data.masking import NOT_SCORED
from m3ae.data.sampler import SUBSET, keyed
from m3ae.data.texts import encode
from m3ae.models import M3AE
from m3ae.training.distributed import Processes
from m3ae.training.engine import autocast, evaluating, to_device

ARMS = ("own", "other", "none")
RESAMPLES = 2000
Batch = dict[str, Tensor]
Arrays = dict[str, np.ndarray]


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
    images: np.ndarray,
    statistic: Callable[[Callable[[np.ndarray], np.ndarray]], np.ndarray],
    seed: int,
) -> dict[str, float]:
    """Value and 95 % interval of a statistic over resamples of images.

    images (S,) = image of each row. `statistic` gets a function that turns a row array (S,) into
    its total under every resample (R,), the first being the data as they are.
    """
    names, rows = np.unique(images, return_inverse=True)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
    weights = np.concatenate([np.ones((1, len(names))), draws])

    def total(values: np.ndarray) -> np.ndarray:
        return weights @ np.bincount(rows, weights=values, minlength=len(names))

    values = statistic(total)
    low, high = np.nanquantile(values[1:], [0.025, 0.975])
    return {"value": float(values[0]), "low": float(low), "high": float(high)}


def ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Element by element; nan where a resample has nothing to divide by."""
    return np.divide(top, bottom, out=np.full(len(top), np.nan), where=bottom > 0)


def arm_table(arrays: Arrays, name: str, sign: int, seed: int) -> dict[str, dict[str, float]]:
    """Each arm's mean and the gains of the own arm, with intervals.

    arrays hold `image`, `count` and `{name}_{arm}` (S,); sign -1 where lower is better.
    """
    images, count = arrays["image"], arrays["count"]
    table = {
        arm: bootstrap(
            images, lambda total, a=arm: ratio(total(arrays[f"{name}_{a}"]), total(count)), seed
        )
        | {"n": int(count.sum())}
        for arm in ARMS
    }
    for arm in ("none", "other"):
        gain = sign * (arrays[f"{name}_own"] - arrays[f"{name}_{arm}"])
        label = f"own - {arm}" if sign > 0 else f"{arm} - own"
        table[label] = bootstrap(images, lambda total, g=gain: ratio(total(g), total(count)), seed)
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
    shown = {
        "own": image,
        "other": image[another(batch, image_ids)],
        "none": torch.zeros_like(image),
    }
    out = {}
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
        has = self.model.loss_weights.__contains__
        size = min(self.config.final_samples or len(self.pairs), len(self.pairs))
        result: dict = {"samples": size, "protocol": self._protocol(), "measures": {}}
        with evaluating(self.model):
            if has("mlm"):
                with only(self.model, "mlm"):
                    self._mlm(result)
            if has("mim"):
                with only(self.model, "mim"):
                    self._mim(result)
            if has("itm"):
                with only(self.model, "itm"):
                    self._itm(result)
        return result

    def _protocol(self) -> str:
        draws, seed = self.config.mask_draws, self.config.seed
        return (
            f"Held-out pairs, fixed masks and pairings (seed {seed}, {draws} mask draws a text), "
            "whole words masked. "
            "own: the pair as it is; other: with another pair's image or text; none: with the "
            "mean image or the empty text. Intervals: 95 % bootstrap over images."
        )

    def _batches(self, draw: int, title: str) -> Iterator[tuple[Batch, list[Sample]]]:
        """This process's part of the fixed batches, on the device, with their samples."""
        fixed = EvalBatches(
            self.pairs,
            self.masks,
            self.config.seed,
            self.config.final_samples,
            self.config.batch,
            draw,
        )
        own_batches = range(self.processes.rank, len(fixed), self.processes.count)
        for item in tqdm(own_batches, desc=title, disable=not self.processes.first, leave=False):
            batch = fixed[item]
            samples = [self.pairs[int(index)] for index in batch["index"]]
            with autocast(self.processes.device, self.precision):
                yield to_device(batch, self.processes.device), samples

    def _gather(self, rows: list[Arrays]) -> Arrays:
        """One array a key over the batches of all processes."""
        everything = [row for their_rows in self.processes.gather(rows) for row in their_rows]
        return {key: np.concatenate([row[key] for row in everything]) for key in everything[0]}

    def _mlm(self, result: dict) -> None:
        rows = []
        for draw in range(self.config.mask_draws):
            for batch, samples in self._batches(draw, "masked words, three arms"):
                ids = np.array([sample.image_id for sample in samples])
                arms = {k: v.cpu().numpy() for k, v in mlm_arms(self.model, batch, ids).items()}
                scored = arms["targets"] != NOT_SCORED
                places = batch["mlm_positions"].cpu().numpy()
                if not self.model.share:  # the plain step reads every position
                    places = np.broadcast_to(np.arange(scored.shape[1]), scored.shape)
                stated = np.stack([self.attributes.of_tokens(sample) for sample in samples])
                rows.append(
                    {
                        "image": np.broadcast_to(ids[:, None], scored.shape)[scored],
                        "target": arms["targets"][scored],
                        "attribute": np.take_along_axis(stated, places, axis=1)[scored],
                        "count": np.ones(scored.sum()),
                    }
                    | {f"correct_{a}": arms[f"correct_{a}"][scored].astype(float) for a in ARMS}
                )
        arrays = self._gather(rows)
        seed = self.config.seed
        result["measures"]["mlm_accuracy"] = arm_table(arrays, "correct", 1, seed)
        if not self.attributes.names:
            return
        shown = [i for i, n in enumerate(self.attributes.names) if n not in self.config.text_only]
        chosen = np.isin(arrays["attribute"], shown)
        if not chosen.any():
            return  # no masked word states one: there is nothing to measure
        stating = {key: array[chosen] for key, array in arrays.items()}
        result["measures"]["mlm_attribute_accuracy"] = arm_table(stating, "correct", 1, seed)
        result["attributes"] = {}
        for number, name in enumerate(self.attributes.names):
            mine = {key: array[arrays["attribute"] == number] for key, array in arrays.items()}
            if len(mine["target"]):
                table = arm_table(mine, "correct", 1, seed)
                result["attributes"][name] = {
                    "tag": self._tag(name),
                    "n": len(mine["target"]),
                    "majority": float(np.unique(mine["target"], return_counts=True)[1].max())
                    / len(mine["target"]),
                    "gain": table["own - none"],
                    "own_interval": table["own"],
                } | {arm: table[arm]["value"] for arm in ARMS}

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
        arrays = self._gather(rows)
        result["measures"]["mim_loss"] = arm_table(arrays, "loss", -1, self.config.seed)

    def _itm(self, result: dict) -> None:
        rows = []
        for batch, samples in self._batches(0, "matching, random false images"):
            rows.append(self._matched(batch, samples))
        result["itm"] = {"random": self._accuracy(rows)}
        if self.config.hard_negative_same:
            rows = [self._matched(*pair) for pair in self._hard_batches()]
            result["itm"]["hard"] = self._accuracy(rows)
            same = ", ".join(self.config.hard_negative_same)
            result["itm"]["hard_rule"] = (
                f"half the texts are shown with an image whose own text states the same {same} "
                "and differs in another attribute"
            )

    def _matched(self, batch: Batch, samples: list[Sample]) -> Arrays:
        sums = self.model(batch, per_sample=True)
        images = np.array([sample.image_id for sample in samples])
        return {"image": images, "correct": sums["itm_correct"].double().cpu().numpy()}

    def _accuracy(self, rows: list[Arrays]) -> dict[str, float]:
        arrays = self._gather(rows)
        ones = np.ones(len(arrays["image"]))
        value = bootstrap(
            arrays["image"],
            lambda total: ratio(total(arrays["correct"]), total(ones)),
            self.config.seed,
        )
        return value | {"n": len(ones)}

    def _hard_batches(self) -> Iterator[tuple[Batch, list[Sample]]]:
        """Texts in turn with their own image and with a hard false one, chosen once and for all."""
        config, pairs = self.config, self.pairs
        fixed = EvalBatches(pairs, self.model.config, config.seed, config.final_samples, 1)
        stated = {int(i): self.attributes.of_text(pairs.text(int(i))) for i in fixed.indices}
        alike: dict[tuple, list[int]] = {}
        for index, values in stated.items():
            alike.setdefault(tuple(values[name] for name in config.hard_negative_same), []).append(
                index
            )
        shown = []  # (text, image of which pair), in turn a match and a hard false one
        for members in alike.values():
            for number, index in enumerate(members):
                false = [other for other in members if stated[other] != stated[index]]
                if false:
                    rng = keyed(config.seed, SUBSET, 1, index)
                    shown.append((index, index if number % 2 else int(rng.choice(false))))
        shown = shown[self.processes.rank :: self.processes.count]
        starts = range(0, len(shown), config.batch)
        for start in tqdm(
            starts,
            desc="matching, hard false images",
            leave=False,
            disable=not self.processes.first,
        ):
            chosen = shown[start : start + config.batch]
            samples = [replace(pairs[text], image=pairs[image].image) for text, image in chosen]
            rngs = [keyed(config.seed, SUBSET, 2, text) for text, _ in chosen]
            groups = rngs[:: self.model.config.itm.group]
            batch = fixed.assemble(samples, rngs, groups)
            batch["itm_match"] = torch.tensor([text == image for text, image in chosen])
            batch["itm_image"] = torch.arange(len(chosen))
            with autocast(self.processes.device, self.precision):
                yield to_device(batch, self.processes.device), samples
