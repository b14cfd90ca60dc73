"""The phantoms go through the same scripts as the real corpora."""

import json

from data_prep import medicat, phantoms, roco, table, verify
from m3ae.data.shards import Shards


def test_phantoms_pass_through_the_preparation_scripts(tmp_path):
    """Catches a phantom layout that is not the real one, as the scripts read it."""
    raw = tmp_path / "raw"
    sizes = ["--train", "40", "--validation", "4", "--test", "6", "--medicat", "30", "--px", "64"]
    layouts = ["--layouts", "roco", "medicat", "--workers", "1"]
    assert phantoms.main(["--out", str(raw), *sizes, *layouts]) == 0
    common = ["--px", "64", "--workers", "0"]
    roco_out, medicat_out = tmp_path / "roco", tmp_path / "medicat"
    references = ["--references", str(raw / "roco_references"), "--tokenizer", "train:300"]
    made = ["--raw", str(raw / "roco"), "--out", str(roco_out), *references, *common]
    assert roco.main(made) == 0
    tokenizer = ["--tokenizer", str(roco_out / "tokenizer"), "--held-out", "5"]
    release = ["--raw", str(raw / "medicat" / "release"), "--out", str(medicat_out)]
    assert medicat.main([*release, *tokenizer, *common]) == 0
    train = Shards(roco_out / "train")
    assert train.num_images == 40 < len(train), "no inline reference was joined"
    assert all("phantom" in train.text(i).lower() for i in range(len(train)))
    others = Shards(medicat_out / "train")
    assert others.num_images < len(others)
    assert Shards(medicat_out / "valid").num_images == Shards(medicat_out / "test").num_images == 5
    assert verify.main([str(roco_out / "train"), str(medicat_out / "train")]) == 0


def test_tables_of_phantoms_pass_through_table(tmp_path, shards):
    """Catches a table whose columns, empty cells or splits table.py does not take."""
    raw = tmp_path / "raw"
    options = ["--layouts", "tables", "--tables", "30", "--px", "64", "--workers", "1"]
    assert phantoms.main(["--out", str(raw), *options]) == 0
    common = ["--raw", str(raw / "tables/images"), "--px", "64", "--workers", "0"]
    common += ["--tokenizer", str(shards / "tokenizer")]
    columns = ["modality", "plane", "region", "kind"]
    for name, more in (("questions", []), ("classes", ["--classes", ",".join(columns)])):
        made = ["--table", str(raw / f"tables/{name}.csv"), "--out", str(tmp_path / name)]
        assert table.main([*made, *common, *more]) == 0
        counts = [Shards(tmp_path / name / split) for split in ("train", "valid", "test")]
        assert [split.num_images for split in counts] == [21, 3, 6]
        assert [len(split) for split in counts] == (
            [105, 15, 30] if name == "questions" else [21, 3, 6]
        )
    classes = json.loads((tmp_path / "classes/classes.json").read_text())
    assert [*classes] == columns and classes["plane"]["paper"] == ["axial", "coronal", "sagittal"]
