"""Order of the training samples: a pure function of the seed, whatever the number of processes.

Step s takes positions [s G, (s + 1) G) of the epochs' permutations laid end to end (G = global
batch): a batch may straddle two epochs; nothing is dropped or repeated. Process r of R takes the
r-th contiguous slice of a step, cut into its micro-batches. So resuming needs the step number only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# First word of every random key, so that no two uses share a generator.
ORDER, SAMPLE, GROUP, SUBSET, DROPOUT = range(5)


def keyed(seed: int, use: int, *key: int) -> np.random.Generator:
    """The generator of one use (ORDER, SAMPLE, ...) and one place (epoch, position, sample id)."""
    return np.random.default_rng([seed, use, *key])


class Order:
    """Which sample stands at each position.

    `sizes` are the corpora's sample counts. With `weights`, a position draws its corpus in these
    proportions and a sample of it, with replacement: then an epoch is only a count.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float] | None, seed: int) -> None:
        self.starts = np.cumsum([0, *sizes])
        self.samples, self.seed = int(self.starts[-1]), seed
        if not self.samples:
            raise ValueError("no training samples in the folders of data.train")
        self.weights = None
        if weights is not None:
            if min(weights) < 0 or sum(weights) <= 0:
                raise ValueError(f"data.train_weights: {list(weights)} are no proportions")
            self.weights = np.array(weights) / sum(weights)
        self._epochs: dict[int, np.ndarray] = {}

    def __getitem__(self, position: int) -> int:
        """Sample at a position, numbered through all corpora."""
        if self.weights is not None:
            rng = keyed(self.seed, ORDER, position)
            corpus = rng.choice(len(self.weights), p=self.weights)
            return int(rng.integers(self.starts[corpus], self.starts[corpus + 1]))
        epoch, place = divmod(position, self.samples)
        if epoch not in self._epochs:
            self._epochs.pop(epoch - 2, None)  # a batch straddles two epochs at most in a row
            self._epochs[epoch] = keyed(self.seed, ORDER, epoch).permutation(self.samples)
        return int(self._epochs[epoch][place])


@dataclass(frozen=True)
class Plan:
    """The arithmetic of a run, in one place: batches, accumulation, epochs."""

    samples: int
    steps: int
    batch_global: int
    batch_per_process: int
    processes: int

    def __post_init__(self) -> None:
        if self.batch_global % (self.batch_per_process * self.processes):
            sizes = f"{self.batch_per_process} x {self.processes}"
            wrong = f"no multiple of train.batch_per_process x processes = {sizes}"
            raise ValueError(f"train.batch_global: {self.batch_global} is {wrong}")

    @property
    def accumulation(self) -> int:
        """Micro-batches a process computes each step."""
        return self.batch_global // (self.batch_per_process * self.processes)

    @property
    def epochs(self) -> float:
        """Passes over the data in the whole run."""
        return self.steps * self.batch_global / self.samples

    def positions(self, step: int, rank: int, micro: int) -> range:
        """Positions of micro-batch `micro` of process `rank` at a step."""
        share = self.batch_global // self.processes
        start = step * self.batch_global + rank * share + micro * self.batch_per_process
        return range(start, start + self.batch_per_process)
