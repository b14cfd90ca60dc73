"""Exported programs: what the model gives, for other batches and lengths than the example's."""

import json

import pytest
import torch

from m3ae import export as command
from m3ae.downstream.trained import load_trained
from m3ae.models.export import export, export_program, programs_of
from tests.recipe import close, golden_model
from tests.test_predict import corpus, models  # noqa: F401  (fixtures)


def batch(size: int, length: int, px: int, words: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(size)
    keep = torch.rand(size, length, generator=generator) > 0.3
    keep[:, 0] = True
    image = torch.randint(0, 256, (size, 3, px, px), dtype=torch.uint8, generator=generator)
    ids = torch.randint(2, words, (size, length), generator=generator)
    return {"image": image, "text_ids": ids, "text_keep": keep}


def test_programs_equal_the_model(tmp_path):
    """A batch or a length fixed to the example's; dropout, or another layer, in the program."""
    model = golden_model()
    assert programs_of(model) == ["image_encoder", "text_encoder", "pair"]
    paths = export(model, tmp_path)
    image, text, pair = (torch.export.load(path).module() for path in paths)
    for size, length in ((1, 16), (3, 5), (17, 64)):
        given = batch(size, length, 64, 200)
        ids, keep = given["text_ids"], given["text_keep"]
        with torch.no_grad():
            wanted = model.encode_pair(given["image"], ids, keep)
            wanted = wanted.text, wanted.image, wanted.pooled
            for ours, theirs in zip(pair(**given), wanted, strict=True):
                close(ours, theirs, 1e-5, f"pair, batch {size}")
            theirs = model.image_encoder(model.normalise(given["image"]))
            close(image(image=given["image"])[0], theirs, 1e-5, f"image, batch {size}")
            (ours,) = text(text_ids=ids, text_keep=keep)
            close(ours, model.text_encoder(ids, keep), 1e-5, f"text, batch {size}")
    facts = json.loads((tmp_path / "export.json").read_text())
    assert facts["image_px"] == 64 and facts["programs"]["pair"]["outputs"][2] == "pooled"


def test_answers_from_the_command(models, tmp_path, capsys):  # noqa: F811
    """Logits in training mode (there is dropout), of another head, or without their meaning."""
    assert command.main(["--model", str(models / "vqa"), "--out", str(tmp_path)]) == 0
    assert f"{tmp_path}/answers.pt2" in capsys.readouterr().out
    trained = load_trained(models / "vqa")
    program = torch.export.load(tmp_path / "answers.pt2").module()
    for size in (1, 3, 17):
        given = batch(size, 9, 32, 80)
        with torch.no_grad():
            close(program(**given)[0], trained.model.scores(given), 1e-5, f"batch {size}")
    facts = json.loads((tmp_path / "export.json").read_text())
    assert facts["answers"] == trained.facts["answers"] and facts["task"] == "vqa"
    assert facts["known"] == sorted(trained.known)
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
