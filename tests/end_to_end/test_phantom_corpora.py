"""The phantoms go through the same scripts as the real corpora."""

from data_prep import medicat, phantoms, roco, verify
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
