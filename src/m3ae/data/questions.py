"""The questions of a prepared split as rows, ready to be scored (`m3ae.scoring.predictions`)."""

from pathlib import Path
from typing import Any

from m3ae.data.shards import Shards

Row = dict[str, Any]


def read_questions(folder: str | Path, field: str = "label") -> list[Row]:
    """Every question of a prepared split: id, image, question, type, and its task fields.

    Without answer types in it, it is a split of classes: `answer` (`labels` where it is a list) is
    then the task field `field`, and rows where that is null are left out, as in fine-tuning.
    Raises ValueError where there are no task fields or not that one.
    """
    shards, rows = Shards(folder), []
    for i in range(len(shards)):
        fields = shards.fields(i)
        image = shards.image_key(int(shards.image_of_text[i]))
        row, key = {"id": shards.text_key(i), "question": shards.text(i), "image": image}, "answer"
        row |= fields
        if "answer_type" in fields:
            row["type"] = fields["answer_type"]
        elif field in fields:
            key = "labels" if isinstance(fields[field], list) else key
            row[key] = fields[field]
        else:
            known = ", ".join(sorted(fields))
            raise ValueError(f"{folder}: no task field {field!r}; give --field, one of {known}")
        if row[key] is not None:
            rows.append(row)
    return rows
