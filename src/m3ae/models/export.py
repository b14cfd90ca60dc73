"""Models as `torch.export` programs: files that need torch alone, for any batch and text length.

Letters: `B` pairs, `C` channels, `H` the image's side, `L` text tokens, `D` width, `N` patches.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from m3ae.files import replacing, write_json
from m3ae.models.m3ae import M3AE

INPUTS = {
    "image": "uint8 (B, 3, H, H), pixels 0-255; a grey image three times",
    "text_ids": "int64 (B, L), special tokens and padding included",
    "text_keep": "bool (B, L), true at real tokens",
}


class Images(nn.Module):
    """image uint8 (B, 3, H, H) -> the image encoder's tokens float32 (B, 1+N, D), CLS first."""

    inputs, outputs = ("image",), ("image",)

    def __init__(self, model: M3AE) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        return (self.model.image_encoder(self.model.normalise(image)),)


class Texts(Images):
    """text_ids int64, text_keep bool (B, L) -> the text encoder's tokens float32 (B, L, D)."""

    inputs, outputs = ("text_ids", "text_keep"), ("text",)

    def forward(self, text_ids: Tensor, text_keep: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        return (self.model.text_encoder(text_ids, text_keep),)


class Pairs(Images):
    """Image and text as above -> tokens after fusion and both poolers: text, image, pooled."""

    inputs, outputs = ("image", "text_ids", "text_keep"), ("text", "image", "pooled")

    def forward(self, image: Tensor, text_ids: Tensor, text_keep: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        pair = self.model.encode_pair(image, text_ids, text_keep)
        return pair.text, pair.image, pair.pooled


class Answers(Pairs):
    """Image and text as above -> logits float32 (B, A) of a fine-tuned model's answers or classes.

    For `Downstream` models but those of retrieval.
    """

    outputs = ("logits",)

    def forward(self, image: Tensor, text_ids: Tensor, text_keep: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        batch = {"image": image, "text_ids": text_ids, "text_keep": text_keep}
        return (self.model.scores(batch),)


PROGRAMS = {"image_encoder": Images, "text_encoder": Texts, "pair": Pairs, "answers": Answers}


def programs_of(model: M3AE) -> list[str]:
    """The names in `PROGRAMS` that a model has."""
    task = getattr(model, "task", None)
    fused = getattr(model, "reads", "fusion") != "encoders"
    names = ["image_encoder", "text_encoder", *(["pair"] if fused else [])]
    return names + (["answers"] if task not in (None, "retrieval") else [])


def export_program(model: M3AE, name: str) -> ExportedProgram:
    """One of `PROGRAMS`, in eval mode; batch and text length are dynamic. The mode is restored."""
    side, text = model.config.image_encoder.image_px, model.config.text_encoder
    most = text.max_positions - (text.pad_id + 1 if text.kind == "roberta" else 0)
    length = min(8, most)
    keep = torch.ones(2, length, dtype=torch.bool)
    keep[1, length // 2 :] = False
    example = {
        "image": torch.zeros(2, 3, side, side, dtype=torch.uint8),
        "text_ids": torch.full((2, length), text.vocab_size - 1),
        "text_keep": keep,
    }
    module, training = PROGRAMS[name](model), model.training
    inputs = {key: example[key].to(model.pixel_mean.device) for key in module.inputs}
    sizes = {0: Dim("batch"), 1: Dim("length", min=3, max=most)}
    shapes = {key: {0: sizes[0]} if key == "image" else sizes for key in module.inputs}
    try:
        with torch.no_grad():
            return torch.export.export(module.eval(), (), inputs, dynamic_shapes=shapes)
    finally:
        model.train(training)


def export(
    model: M3AE,
    folder: str | Path,
    about: Mapping[str, object] | None = None,
    onnx: bool = False,
) -> list[Path]:
    """Write every program of a model to `folder` as NAME.pt2, and export.json that says of them.

    `torch.export.load(path).module()(image=..., ...)` runs one. about: more facts for export.json.
    onnx: NAME.onnx beside each, as PyTorch translates it. Raises ImportError without onnxscript.
    """
    folder, written = Path(folder), []
    folder.mkdir(parents=True, exist_ok=True)
    for name in programs_of(model):
        program, path = export_program(model, name), folder / f"{name}.pt2"
        with replacing(path) as temporary, open(temporary, "wb") as file:
            torch.export.save(program, file)
        written.append(path)
        if onnx:
            translated = torch.onnx.export(program, dynamo=True, verbose=False)
            written.append(path.with_suffix(".onnx"))
            translated.save(written[-1])  # weights above 2 GB in a file beside it
    kinds = {name: PROGRAMS[name] for name in programs_of(model)}
    programs = {
        name: {"inputs": {key: INPUTS[key] for key in kind.inputs}, "outputs": list(kind.outputs)}
        for name, kind in kinds.items()
    }
    facts = {"image_px": model.config.image_encoder.image_px, "torch": str(torch.__version__)}
    write_json(folder / "export.json", {**facts, "programs": programs, **(about or {})})
    return written
