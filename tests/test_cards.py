"""Model cards: what each run says of its model, and that its lines load and use it."""

import re
import shutil

from PIL import Image

import run_pretrain
from m3ae.checkpoints import last_checkpoint
from tests.end_to_end.conftest import tune  # noqa: F401  (a fixture)


def lines_of(folder) -> str:
    text = (folder / "README.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    return lines


def run_card(folder, tmp_path, monkeypatch) -> dict:
    """Its lines word for word, in a folder where `this folder` and x.png are."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / "this folder", dirs_exist_ok=True)
    Image.new("L", (70, 90), 40).save("x.png")
    found: dict = {}
    exec(lines_of(folder), found)
    return found


def test_pre_trained(small_run, tmp_path, monkeypatch):
    """A card without data, numbers or intervals; lines that do not rank a caption."""
    assert run_pretrain.main(small_run()) == 0
    folder = last_checkpoint(tmp_path / "run")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "for 8 steps of 8 pairs, seed" in card and "Not stated" not in card
    assert re.search(r"\| mlm accuracy \| 0\.\d{3} \[0\.\d{3}, [01]\.\d{3}\] \|", card)
    found = run_card(folder, tmp_path, monkeypatch)
    assert len(lines_of(folder).splitlines()) == 3
    assert len(found["predictor"].rank_captions("x.png", ["a", "b"])) == 2


def test_fine_tuned(tune, tmp_path, monkeypatch):  # noqa: F811
    """A card that names another protocol's numbers, or lines that do not answer."""
    assert tune("protocol=both", "train.epochs=1") == 0
    folders = sorted((tmp_path / "run").glob("**/best-*"))
    assert [folder.name for folder in folders] == ["best-paper", "best-strict"]
    for folder in folders:
        card, rules = (folder / "README.md").read_text(encoding="utf-8"), folder.name[5:]
        assert f"under the protocol {rules}, epoch 1" in card and "Not stated" not in card
        assert f"protocol {rules}" in card and card.count("\n    protocol ") == 1
        assert re.search(r"\n    overall .*\d\.\d\d \[", card)
        found = run_card(folder, tmp_path, monkeypatch)
        assert len(lines_of(folder).splitlines()) == 3
        assert found["predictor"]("x.png", "Is there a mass?")["prediction"]
