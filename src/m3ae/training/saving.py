"""Checkpoints, written in the background from a copy; which of them are kept.

    checkpoints/step-00002000/
        model.safetensors, config.json, tokeniser   what model.save_pretrained writes
        optimizer.pt, rng-0.pt, rng-1.pt, ...        tensors and plain values (weights_only)
        config.yaml                                  the resolved config
        state.json                                   step, processes, format, SHA-256 of the files

The first process alone writes and reads them, so that hosts need not share a disk.
"""

import logging
import tempfile
import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from m3ae.checkpoints import checkpoints, remove_folder, step_of, writing
from m3ae.config import to_yaml
from m3ae.training.checkpoint import VERSION, rng_state
from m3ae.training.engine import Trainer
from m3ae.training.logs import read_log
from m3ae.training.sharding import gathered

log = logging.getLogger(__name__)


class HostCopy:
    """Copies of a tree of tensors on the CPU, each over the one before.

    So the memory is that of one copy, allocated once: a copy into new memory takes several times
    as long.
    """

    def __init__(self) -> None:
        self.buffers: list[Tensor] = []

    def __call__(self, tree: Any) -> Any:
        """The same tree with every tensor copied, valid until the next call."""
        leaves, outline = tree_flatten(tree)
        tensors = [leaf.detach() for leaf in leaves if isinstance(leaf, Tensor)]
        shapes = [(tensor.shape, tensor.dtype) for tensor in tensors]
        if shapes != [(buffer.shape, buffer.dtype) for buffer in self.buffers]:
            pinned = any(tensor.is_cuda for tensor in tensors)
            self.buffers = [
                torch.empty(shape, dtype=dtype, pin_memory=pinned) for shape, dtype in shapes
            ]
        for buffer, tensor in zip(self.buffers, tensors, strict=True):
            buffer.copy_(tensor, non_blocking=True)
        if any(tensor.is_cuda for tensor in tensors):
            torch.cuda.synchronize()
        copies = iter(self.buffers)
        leaves = [next(copies) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return tree_unflatten(leaves, outline)


class Saver:
    """Writes a run's checkpoints while the training goes on, one at a time, and thins them out.

    Kept are the last `train.keep_checkpoints`, those of steps that are multiples of
    `train.keep_every`, and with `train.keep_best` that of the lowest held-out loss in the log.
    """

    def __init__(self, run: Path, trainer: Trainer, config: Any, tokenizer: Any) -> None:
        self.run, self.trainer, self.config = run, trainer, config
        self.tokenizer = tokenizer
        self.copy, self.thread, self.saved = HostCopy(), None, 0
        self.error: OSError | None = None
        self.words: dict[str, bytes] = {}  # the tokeniser's files

    def save(self, step: int) -> None:
        """Begin to write the checkpoint of `step` finished steps; every process must call it.

        Waits for the one before.
        """
        trainer, processes = self.trainer, self.trainer.processes
        states, model = processes.gather(rng_state()), trainer.whole()
        rest = {"optimizer": gathered(trainer.optimizer.state_dict())}
        rest["scaler"] = trainer.scaler.state_dict()
        self.saved = step
        if processes.first:
            self.words = self.words or _files_of(self.tokenizer)
            self.wait()
            # Copied while the next step computes its gradients, which changes none of it.
            trainer.still.acquire()
            given = (step, model.state_dict(), rest, states)
            self.thread = threading.Thread(target=self._copy_and_write, args=given)
            self.thread.start()

    def wait(self) -> None:
        """Until nothing is being written."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None

    def failure(self) -> OSError | None:
        """Why a checkpoint could not be written, naming it and the last whole one; told once."""
        error, self.error = self.error, None
        return error

    def _copy_and_write(self, step: int, weights: Any, rest: Any, states: list[Any]) -> None:
        try:
            weights, rest = self.copy((weights, rest))
        except Exception as error:  # no memory for it
            self.error = OSError(f"the checkpoint of step {step} cannot be copied ({error})")
            return
        finally:
            self.trainer.still.release()
        self._write(step, weights, rest, states)

    def _write(self, step: int, weights: Any, rest: Any, states: list[Any]) -> None:
        final = self.run / "checkpoints" / f"step-{step:08d}"
        state = {"version": VERSION, "step": step, "processes": len(states)}
        try:
            final.parent.mkdir(exist_ok=True)  # but not the run's folder, if somebody deleted it
            with writing(final, **state) as part:
                self.trainer.model.save_pretrained(part, None, weights)
                for name, content in self.words.items():
                    (part / name).write_bytes(content)
                for rank, one in enumerate(states):
                    torch.save(one, part / f"rng-{rank}.pt")
                torch.save(rest, part / "optimizer.pt")
                (part / "config.yaml").write_text(to_yaml(self.config), encoding="utf-8")
            self._thin_out()
        # The libraries that write raise what they like where a disk is full.
        except Exception as error:
            why = " ".join(str(error).split())[:200]
            kept = [path for path in checkpoints(self.run) if path != final]
            last = f"the last one is {kept[-1]}" if kept else "there is none before it"
            self.error = OSError(f"{final}: cannot be written ({why}); {last}")

    def _thin_out(self) -> None:
        train, saved = self.config.train, checkpoints(self.run)
        best = self._best([step_of(folder) for folder in saved])
        for folder in saved[: -train.keep_checkpoints]:
            milestone = train.keep_every and step_of(folder) % train.keep_every == 0
            if not milestone and step_of(folder) != best:
                remove_folder(folder)

    def _best(self, steps: list[int]) -> int | None:
        """Of these the step of the lowest held-out loss."""
        if not getattr(self.config.train, "keep_best", False):  # fine-tuning has best-PROTOCOL
            return None
        losses = {line["step"]: line["loss"] for line in read_log(self.run, "eval")}
        return min((step for step in steps if step in losses), key=losses.get, default=None)


def _files_of(tokenizer: Any) -> dict[str, bytes]:
    """What a tokeniser's `save_pretrained` writes: it must not be in use meanwhile."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
