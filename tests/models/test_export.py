"""Exported programs: what the model gives, for other batches and lengths than the example's."""

import json

import pytest
import torch

from m3ae import export as command
from m3ae.downstream.trained import load_trained
from m3ae.models.export import export_program, programs_of
from tests.recipe import close, golden_model
from tests.test_predict import corpus, models  # noqa: F401  (fixtures)


def batch(size: int, length: int, px: int, words: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(size)
    keep = torch.rand(size, length, generator=generator) > 0.3
    keep[:, 0] = True
    image = torch.randint(0, 256, (size, 3, px, px), dtype=torch.uint8, generator=generator)
    ids = torch.randint(2, words, (size, length), generator=generator)
    return {"image": image, "text_ids": ids, "text_keep": keep}


def compare(programs: dict, model, size: int, length: int, px: int, words: int) -> None:
    given = batch(size, length, px, words)
    image, ids, keep = given["image"], given["text_ids"], given["text_keep"]
    with torch.no_grad():
        wanted = model.encode_pair(image, ids, keep)
        found = programs["pair"](**given)
        for ours, theirs in zip(found, (wanted.text, wanted.image, wanted.pooled), strict=True):
            close(ours, theirs, 1e-5, f"pair, batch {size}")
        if "image_encoder" in programs:
            (ours,) = programs["image_encoder"](image=image)
            close(ours, model.image_encoder(model.normalise(image)), 1e-5, f"image, batch {size}")
            (ours,) = programs["text_encoder"](text_ids=ids, text_keep=keep)
            close(ours, model.text_encoder(ids, keep), 1e-5, f"text, batch {size}")
        if "answers" in programs:
            close(programs["answers"](**given)[0], model.scores(given), 1e-5, f"batch {size}")


def test_a_program_equals_the_model():
    """A batch or a length fixed to the example's; positions of RoBERTa beyond its last one."""
    model = golden_model()
    pair = export_program(model, "pair").module()
    for size, length in ((1, 16), (3, 5), (17, 64)):
        compare({"pair": pair}, model, size, length, 64, 200)


def test_files_from_the_command(models, tmp_path, capsys):  # noqa: F811
    """Programs in training mode (there is dropout), of another head, or without their meaning."""
    assert command.main(["--model", str(models / "vqa"), "--out", str(tmp_path)]) == 0
    names = ["image_encoder", "text_encoder", "pair", "answers"]
    assert capsys.readouterr().out.split() == [f"{tmp_path}/{name}.pt2" for name in names]
    trained = load_trained(models / "vqa")
    programs = {name: torch.export.load(tmp_path / f"{name}.pt2").module() for name in names}
    for size in (1, 3, 17):
        compare(programs, trained.model, size, 9, 32, 80)
    facts = json.loads((tmp_path / "export.json").read_text())
    assert facts["answers"] == trained.facts["answers"] and facts["task"] == "vqa"
    assert facts["known"] == sorted(trained.known) and facts["image_px"] == 32
    assert facts["programs"]["pair"]["outputs"] == ["text", "image", "pooled"]
    assert (tmp_path / "tokenizer.json").is_file()
    assert command.main(["--model", str(tmp_path / "none"), "--out", str(tmp_path)]) == 2


def test_the_mode_is_restored(models):  # noqa: F811
    """A model that is trained on without dropout after it was exported."""
    model = load_trained(models / "pre").model.train()
    export_program(model, "text_encoder")
    assert model.training and model.fusion.training


@pytest.mark.parametrize("name", ["classes", "retrieval"])
def test_programs_of_tasks(models, name):  # noqa: F811
    """Answers of a model that ranks; none of one that answers."""
    names = programs_of(load_trained(models / name).model)
    assert ("answers" in names) == (name == "classes") and "pair" in names
