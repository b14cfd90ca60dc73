"""Features of a frozen model, and a linear probe on them.

    python examples/probe.py --model runs/quickstart \\
        --train data/phantoms/questions/train --test data/phantoms/questions/test

What can be read off the features by a linear rule, and what the most frequent label alone gives.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from m3ae.data.questions import read_questions
from m3ae.downstream.features import extract
from m3ae.downstream.trained import load_trained


def main(argv: Sequence[str] | None = None) -> None:
    """Print the accuracy of the probe and of the most frequent label."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True, type=Path, help="a run or a folder")
    parser.add_argument("--train", required=True, help="a prepared split with labels")
    parser.add_argument("--test", required=True, help="another one")
    parser.add_argument("--field", default="label", help="what is predicted")
    args = parser.parse_args(argv)

    model, data = load_trained(args.model), {}
    for name in ("train", "test"):
        folder = getattr(args, name)
        features, keys = extract(model, folder, "pair", "cls", batch=32, precision="fp32")
        label = {row["id"]: row[args.field] for row in read_questions(folder, args.field)}
        known = np.array([key in label for key in keys])
        data[name] = features[known], [label[key] for key in keys if key in label]
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    probe.fit(*data["train"])
    most = Counter(data["train"][1]).most_common(1)[0][0]
    labels = data["test"][1]
    print(f"{len(labels)} test rows: linear probe {probe.score(*data['test']):.3f}", end=", ")
    print(f"the most frequent label ({most}) {np.mean([x == most for x in labels]):.3f}")


if __name__ == "__main__":
    main()
