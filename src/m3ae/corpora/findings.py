"""Findings of a user's own table: several in one column, or a column of 0 and 1 for each."""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from m3ae.corpora.questions import Question, Splits, task_fields
from m3ae.corpora.tables import cell
from m3ae.files import is_unicode

KINDS = ("labels", "questions")
_OPTIONS = ("separator", "as", "template", "no_finding")  # that --findings alone has
_ANSWER = {"1": True, "1.0": True, "true": True, "yes": True}
_ANSWER |= {"0": False, "0.0": False, "false": False, "no": False}
_ANSWER |= {"": None, "-1": None, "-1.0": None}  # not said, or uncertain


def add_findings_options(parser: argparse.ArgumentParser) -> None:
    """The options by which a table's findings are read."""
    add = parser.add_argument
    columns = "findings, instead of answers: one column of several names, or columns of 0 and 1"
    add("--findings", nargs="+", metavar="COLUMN", help=columns)
    add("--separator", metavar="MARK", help="between the names in that one column (default: |)")
    none = "there, the word for none of them, in any case (default: No Finding)"
    add("--no-finding", metavar="NAME", help=none)
    kinds = "labels: one text a row, several classes (default); questions: yes or no, of each"
    add("--as", choices=KINDS, help=kinds)
    words = "of questions, {} is the finding (default: Is there {}?); of labels, the text of rows "
    words += "without one (default: Which findings are there?)"
    add("--template", metavar="TEXT", help=words)


@dataclass(frozen=True)
class Findings:
    """How a table says what an image shows, and what becomes of it."""

    columns: tuple[str, ...]
    separator: str
    no_finding: str
    kind: str  # labels or questions
    template: str

    def read(self, row: Mapping[str, Any]) -> tuple[list[str], list[str]]:
        """The findings of a row, and those of which it says nothing; ValueError as `cell`."""
        if len(self.columns) == 1:
            return self._split(row), []
        said = {column: _answer(row, column) for column in self.columns}
        unknown = [name for name, value in said.items() if value is None]
        if len(unknown) == len(said):
            raise ValueError("no finding is said to be there or not")
        return [name for name, value in said.items() if value], unknown

    def _split(self, row: Mapping[str, Any]) -> list[str]:
        """The names in one cell; a list, as .jsonl and .parquet have them, is taken too."""
        (column,) = self.columns
        value = row.get(column)
        names = value if isinstance(value, list) else cell(row, column).split(self.separator)
        if not all(isinstance(name, str) and is_unicode(name) for name in names):
            raise ValueError(f"{column} holds more than names")
        names = list(dict.fromkeys(filter(None, (" ".join(name.split()) for name in names))))
        found = [name for name in names if name.casefold() != self.no_finding.casefold()]
        if found and len(found) < len(names):
            raise ValueError(f"{self.no_finding!r} beside findings")
        return found

    def make_question(self, row: Mapping[str, Any], name: str, image: str) -> Question:
        """A row as one text with all its findings; `name`: its id. ValueError as `read`."""
        labels, unknown = self.read(row)
        text = "" if self.kind == "questions" else cell(row, "text") or self.template
        fields: dict[str, Any] = {"question_id": name, "labels": labels}
        return Question(image, text, fields | ({"unlabelled": unknown} if unknown else {}))

    def classes(self, splits: Splits) -> list[str]:
        """All findings, in the order of columns or sorted; those alike but for case are named.

        Raises ValueError where there is none, or one column holds 0 and 1.
        """
        every = (question.fields["labels"] for some in splits.values() for question in some)
        found = sorted({name for labels in every for name in labels})
        if len(self.columns) > 1:
            return list(self.columns)
        if set(found) <= {"0", "1"}:
            holds = "holds only 0 and 1; one class is for --classes" if found else "has no finding"
            raise ValueError(f"--findings: column {self.columns[0]!r} {holds}")
        folded = Counter(name.casefold() for name in found)
        if alike := [name for name in found if folded[name.casefold()] > 1]:
            said = ", ".join(alike)
            print(
                f"note: findings that differ by case alone are classes each: {said}",
                file=sys.stderr,
            )
        return found

    def ask(self, rows: Iterable[Question], classes: Sequence[str]) -> list[Question]:
        """A question a finding of every row; none where the row says nothing of it."""
        asked = []
        for row in rows:
            for name in classes:
                if name not in row.fields.get("unlabelled", ()):
                    key = f"{row.fields['question_id']}-{name}"
                    answer = "yes" if name in row.fields["labels"] else "no"
                    fields = task_fields(key, answer, "closed", name)
                    asked.append(Question(row.image, self.template.replace("{}", name), fields))
        return asked


def _answer(row: Mapping[str, Any], column: str) -> bool | None:
    value = row.get(column)
    text = str(value) if isinstance(value, bool) else cell(dict(row), column)
    if text.lower() not in _ANSWER:
        raise ValueError(f"{column} is neither 0 nor 1")
    return _ANSWER[text.lower()]


def read_findings(args: argparse.Namespace) -> Findings | None:
    """What the options say; None without --findings. Raises ValueError where they do not fit."""
    given = {name: getattr(args, name) for name in _OPTIONS if getattr(args, name) is not None}
    if args.findings is None:
        if given:
            raise ValueError(f"--{min(given).replace('_', '-')}: is for --findings alone")
        return None
    columns = tuple(args.findings)
    if len(set(columns)) < len(columns) or {"image", "split", "id", "text"} & set(columns):
        raise ValueError(f"--findings {' '.join(columns)}: not columns of findings, each once")
    if len(columns) > 1 and {"separator", "no_finding"} & set(given):
        raise ValueError("--separator, --no-finding: are for one column of several names")
    kind = given.get("as", KINDS[0])
    default = "Is there {}?" if kind == "questions" else "Which findings are there?"
    template = " ".join(given.get("template", default).split())
    if not template or (kind == "questions") != ("{}" in template):
        raise ValueError(
            f"--template {template!r}: of questions with {{}} in it, of labels without"
        )
    none, separator = given.get("no_finding", "No Finding"), given.get("separator", "|")
    if not separator:
        raise ValueError("--separator: empty")
    return Findings(columns, separator, " ".join(none.split()), kind, template)


def count_findings(splits: Splits, classes: Sequence[str]) -> dict[str, Any]:
    """Of each finding the rows of each split that have it, and those that do not say."""
    counts: dict[str, Any] = {}
    for name in classes:
        counts[name] = {
            split: {
                "yes": sum(name in row.fields["labels"] for row in some),
                "not_said": sum(name in row.fields.get("unlabelled", ()) for row in some),
            }
            for split, some in splits.items()
        }
    return counts


def label_lists(splits: Splits, classes: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """For classes.json: `paper`, all classes, and `train`, those that a training row has."""
    trained = {name for row in splits.get("train", []) for name in row.fields["labels"]}
    return {"labels": {"paper": [*classes], "train": [name for name in classes if name in trained]}}
