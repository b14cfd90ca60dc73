"""The measures of finished runs, from the files that they left; kept in OUT/measured.

What is kept is known by the bytes of all prediction files, the rows trained on, the options and the
scoring's VERSION, so that a second report measures nothing twice.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from m3ae.data.contents import content_of
from m3ae.data.questions import read_questions
from m3ae.files import file_sha256, read_json, write_json
from m3ae.scoring import VERSION
from m3ae.scoring.baselines import blind_baselines
from m3ae.scoring.measures import measure_answers, measure_classes, measure_ranks
from m3ae.scoring.predictions import (
    Row,
    complete,
    read_predictions,
    read_trained_on,
    rows_trained_on,
    training_rows,
)
from m3ae.tables.cells import Cell

# What may be shown, by task of the config.
PARTS = {
    "vqa": ("overall", "open", "closed"),
    "classification": ("accuracy", "macro_f1"),
    "multilabel": (),  # no table has such a column yet
    "retrieval": tuple(f"{way}_r{k}" for way in ("t2i", "i2t") for k in (1, 5, 10)),
}
_COUNTED = ("id", "image", "type", "label", "answer", "prediction", "right")
_UNKNOWN = "rows trained on: not known, taken as those that the protocol allows"


@dataclass(frozen=True)
class Files:
    """What a finished fine-tuning left under a protocol."""

    cell: Cell
    protocol: str
    out: Path

    @cached_property
    def place(self) -> Path:
        """Its folder; paper and strict have one each where they train on other rows."""
        folder = self.cell.folder(self.out)
        return folder / self.protocol if (folder / self.protocol).is_dir() else folder

    @property
    def task(self) -> str:
        """vqa, classification or retrieval."""
        return self.cell.resolved.kind

    def predictions(self, arm: str = "") -> Path:
        """The file of the run's own images, or of an arm."""
        stem = "ranks" if self.task == "retrieval" else "predictions"
        return self.place / f"{stem}-{self.protocol}{arm and f'-{arm}'}.jsonl"

    @cached_property
    def own(self) -> Path:
        """ValueError where a finished run lacks it."""
        path = self.predictions()
        if not path.is_file():
            hint = f"are the protocols of its task those that {self.cell.config} runs?"
            raise ValueError(f"{path}: not there though the run is finished; {hint}")
        return path

    @cached_property
    def arms(self) -> dict[str, Path]:
        """Predictions with another's image and with none."""
        found = {arm: self.predictions(arm) for arm in ("other", "none")}
        return {arm: path for arm, path in found.items() if path.is_file()}

    @property
    def trained_on(self) -> Path | None:
        """The list of the rows trained on, if it is known."""
        path = self.place / "trained_on.txt"
        return path if path.is_file() else None

    def relative(self, path: Path) -> str:
        """A path below OUT as text."""
        return path.relative_to(self.out).as_posix()


@dataclass
class Measures:
    """Measures runs, each set of files once."""

    out: Path
    samples: int = 10_000
    _digests: dict[Path, str] = field(default_factory=dict)
    _train: dict[tuple[str, str], list[Row]] = field(default_factory=dict)
    _blind: dict[tuple[Any, ...], tuple[dict[str, list[str]], list[str]]] = field(
        default_factory=dict
    )  # answers by baseline, and notes

    def measure(self, runs: Sequence[Files], against: Sequence[Files] = ()) -> dict[str, Any]:
        """{"parts": {part: figures}, "notes"} of runs, a file a seed, of one cell and protocol.

        figures: mean, sd, interval, values by run, questions, images, and `sides`: for each arm and
        blind baseline, or for `against`, mean, sd, interval, difference, difference_interval, p.
        """
        task, protocol = runs[0].task, runs[0].protocol
        identity: dict[str, Any] = {"task": task, "protocol": protocol, "samples": self.samples}
        identity |= {"scoring": VERSION, "own": [self._digest(one.own) for one in runs]}
        if against:
            identity["against"] = [self._digest(one.own) for one in against]
        elif task != "retrieval":
            identity["arms"] = [
                {arm: self._digest(path) for arm, path in one.arms.items()} for one in runs
            ]
            identity["train"] = [self._training(one) for one in runs]
        text = json.dumps(identity, sort_keys=True)
        path = self.out / "measured" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
        if path.is_file():
            return read_json(path)
        found = self._measure(runs, against)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, found)
        return found

    def _measure(self, runs: Sequence[Files], against: Sequence[Files]) -> dict[str, Any]:
        task, protocol, notes = runs[0].task, runs[0].protocol, {}
        own = [_read(one.own) for one in runs]
        options: dict[str, Any] = {"samples": self.samples}
        if against:
            options["against"] = [_read(one.own) for one in against]
        if task == "retrieval":
            measured = measure_ranks(own, **options)
        else:
            if not against:
                options["arms"], notes = self._arms(runs, own)
            options = {
                key: value if key == "samples" else _slim_sides(value)
                for key, value in options.items()
            }
            function = measure_answers if task == "vqa" else measure_classes
            measured = function([_slim(rows) for rows in own], protocol, **options)
        found = {}
        for part in PARTS[task]:
            entry = _entry(measured, part)
            found[part] = _figures(entry)
            sides = entry.get("arms", {}) | ({"against": entry["against"]} if against else {})
            found[part]["sides"] = {name: _figures(side) for name, side in sides.items()}
        if task == "classification":
            overall = found["accuracy"]
            found["macro_f1"] |= {key: overall[key] for key in ("questions", "images")}
        return {"parts": found, "notes": list(notes)}

    def _arms(
        self, runs: Sequence[Files], own: list[list[Row]]
    ) -> tuple[dict[str, list[list[Row]]], dict[str, None]]:
        """Rows of arms and of blind baselines, a list a run, and notes."""
        arms = {arm: [_read(one.predictions(arm)) for one in runs] for arm in runs[0].arms}
        notes: dict[str, None] = {}
        for one, rows in zip(runs, own, strict=True):
            said, more = self._blind_answers(one, rows)
            notes |= dict.fromkeys([] if one.trained_on else [_UNKNOWN]) | dict.fromkeys(more)
            for name, answers in said.items():
                filled = [{**row, "prediction": a} for row, a in zip(rows, answers, strict=True)]
                for row in filled:
                    row.pop("right", None)
                arms.setdefault(f"blind {name}", []).append(filled)
        return arms, notes

    def _blind_answers(self, one: Files, rows: list[Row]) -> tuple[dict[str, list[str]], list[str]]:
        """Answers of each blind baseline from the rows that a run trained on."""
        asked = [(row["id"], row.get("question"), row.get("question_type")) for row in rows]
        key = (*self._training(one), tuple(asked))
        if key not in self._blind:
            data = one.cell.resolved.data
            if (split := (data.train, data.field)) not in self._train:
                self._train[split] = read_questions(*split)
            train = self._train[split]
            if one.trained_on is None:
                chosen = training_rows(train, one.protocol)
            else:
                ids = read_trained_on(one.trained_on)
                chosen = rows_trained_on(train, ids, str(one.trained_on))
            found, notes = blind_baselines(chosen, rows)
            said = {name: [row["prediction"] for row in some] for name, some in found.items()}
            self._blind[key] = said, notes
        return self._blind[key]

    def _training(self, one: Files) -> tuple[str | None, ...]:
        """What says which rows a run trained on."""
        data = one.cell.resolved.data
        listed = self._digest(one.trained_on) if one.trained_on else one.protocol
        return content_of(data.train), data.field, listed

    def _digest(self, path: Path) -> str:
        if path not in self._digests:
            self._digests[path] = file_sha256(path)
        return self._digests[path]


def _read(path: Path) -> list[Row]:
    return complete(read_predictions(path), str(path))


def _slim(rows: list[Row]) -> list[Row]:
    """Rows without question types and strata, which no table shows."""
    return [{key: row[key] for key in _COUNTED if key in row} for row in rows]


def _slim_sides(sides: Any) -> Any:
    if isinstance(sides, dict):
        return {name: [_slim(rows) for rows in some] for name, some in sides.items()}
    return [_slim(rows) for rows in sides]


def _entry(measured: dict[str, Any], part: str) -> dict[str, Any]:
    """The entry of a part in what `measures` gives."""
    way, _, recall = part.partition("_")
    if recall.startswith("r") and way in ("t2i", "i2t"):
        return measured.get(way, {}).get(recall, {})
    return measured.get("overall" if part == "accuracy" else part, {})


def _figures(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry with one name for what is called accuracy or value."""
    one, several = ("value", "values") if "value" in entry else ("accuracy", "accuracies")
    mean = entry.get(one)
    found = {"mean": mean, "sd": entry.get("sd"), "interval": entry.get("interval")}
    found["values"] = entry.get(several, [] if mean is None else [mean])
    more = ("difference", "difference_interval", "p", "questions", "images")
    return found | {key: entry[key] for key in more if key in entry}
