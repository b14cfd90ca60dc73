"""Score a system of your own, in any framework, on a prepared test split.

    python examples/score_own_system.py --train data/phantoms/questions/train \\
        --test data/phantoms/questions/test --out mine.jsonl

Put your system in the place of `answer`: all that is scored is a file with an id and a prediction a
line. This one says yes to what begins like a yes-or-no question, else the most frequent answer.
"""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from m3ae import score
from m3ae.data.questions import read_questions


def answer(question: str, frequent: str) -> str:
    """The system to be scored; it does not look at the image."""
    return "yes" if question.lower().startswith(("is ", "are ", "does ", "do ")) else frequent


def main(argv: Sequence[str] | None = None) -> None:
    """Write the predictions, then print what `python -m m3ae.score` says of them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--train", required=True, help="a prepared split, for blind baselines")
    parser.add_argument("--test", required=True, help="the prepared split to answer")
    parser.add_argument("--out", required=True, type=Path, help="file of predictions")
    args = parser.parse_args(argv)

    labels = Counter(row["label"] for row in read_questions(args.train, "label"))
    frequent = labels.most_common(1)[0][0]
    rows = read_questions(args.test, "label")
    said = [{"id": row["id"], "prediction": answer(row["question"], frequent)} for row in rows]
    args.out.write_text("".join(json.dumps(row) + "\n" for row in said), encoding="utf-8")
    raise SystemExit(score.main([str(args.out), "--data", args.test, "--train", args.train]))


if __name__ == "__main__":
    main()
