"""`python -m m3ae.predict` from the command line to what it prints, on tiny untrained models."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep import pairs, table
from m3ae import predict, predictor
from m3ae.config import load_config
from m3ae.data.shards import Shards
from m3ae.data.texts import load_tokenizer
from m3ae.downstream.model import Downstream, write_facts
from m3ae.downstream.trained import find_checkpoint, load_trained
from m3ae.models import build_model
from m3ae.scoring.predictions import read_predictions
from tests.data.test_images import gigantic_png
from tests.models.test_weight_files import cached
from tests.recipe import ROOT

SIZES = """
model.image_encoder={weights: null, image_px: 32, patch_px: 16, width: 32, depth: 1, heads: 2}
model.text_encoder={weights: null, kind: bert, vocab_size: 80, type_vocab_size: 2, pad_id: 0}
model.text_encoder={width: 32, depth: 1, heads: 2, mlp_width: 64, max_positions: 40}
model.fusion={width: 32, depth: 2, heads: 2, dropout: 0.1}
model.mim={layer: 1, decoder_width: 32, decoder_depth: 1, decoder_heads: 2}
""".strip().splitlines()
ANSWERS = ["left lung", "no", "two", "yes"]
QUESTIONS = ["Is there a mass?", "Where is it?", "How many are there?"]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """Images, and prepared splits: `vqa`, `classes` (test, 32 px), `jpeg`, `pairs`."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "raw").mkdir()
    rng = np.random.default_rng(0)
    lines, texts = ["image,question,answer,split"], ["image,text,organ,split"]
    for k in range(4):
        shape = (40, 50) if k < 3 else (40, 50, 3)  # the last one is coloured
        array = rng.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(array).save(folder / "raw" / f"{k}.png")
        split = "test" if k > 1 else "train"
        for question, answer in zip(QUESTIONS, ("yes", "left lung", "two"), strict=True):
            lines.append(f"{k}.png,{question},{answer},{split}")
        texts.append(f"{k}.png,a mass in the left lung,{'lung' if k != 2 else ''},{split}")
    (folder / "vqa.csv").write_text("\n".join(lines) + "\n")
    (folder / "texts.csv").write_text("\n".join(texts) + "\n")
    common = ["--raw", str(folder / "raw"), "--workers", "0", "--px", "32"]

    def prepare(script, name: str, csv: str, *more: str) -> None:
        done = script.main(
            [*common, "--table", str(folder / csv), "--out", str(folder / name), *more]
        )
        assert done == 0

    prepare(table, "vqa", "vqa.csv", "--tokenizer", "train:80")
    prepare(table, "jpeg", "vqa.csv", "--encoding", "jpeg")
    prepare(table, "classes", "texts.csv", "--classes", "organ")
    prepare(pairs, "pairs", "texts.csv")
    return folder


@pytest.fixture(scope="session")
def models(corpus) -> Path:
    """vqa/best-paper and best-strict, classes, retrieval/best-strict, pre/checkpoints/step-..."""
    tokenizer = load_tokenizer(corpus / "vqa" / "tokenizer")
    config = load_config(ROOT / "configs/pretrain/m3ae.yaml", SIZES).model

    def save(name: str, task: str, answers: list[str], seed: int, **facts) -> None:
        torch.manual_seed(seed)
        model = Downstream(config, task, len(answers))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)  # so that inputs tell
        folder = corpus / "models" / name
        model.save_pretrained(folder, tokenizer)
        write_facts(
            folder,
            task=task,
            answers=answers,
            text_length=12,
            image_px=32,
            source="own",
            protocol="both",
            **facts,
        )

    known = {"paper": ANSWERS, "strict": ANSWERS[:2]}
    save("vqa/best-paper", "vqa", ANSWERS, 0, field="label", known=known)
    save("vqa/best-strict", "vqa", ANSWERS, 1, field="label", known=known)
    save(
        "classes",
        "classification",
        ["liver", "lung"],
        2,
        field="organ",
        known={"paper": ["liver", "lung"]},
    )
    save(
        "retrieval/best-strict",
        "retrieval",
        [],
        3,
        field="label",
        known={"paper": [], "strict": []},
    )
    pre = corpus / "models" / "pre" / "checkpoints" / "step-00000002"
    build_model(load_config(ROOT / "configs/pretrain/m3ae.yaml", SIZES)).save_pretrained(
        pre, tokenizer
    )
    (pre / "config.yaml").write_text("data: {text_length: 20}\n")
    return corpus / "models"


def say(*args: object) -> list[str]:
    return [str(arg) for arg in args]


def run(capsys, *args: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = predict.main(say(*args))
    out = capsys.readouterr()
    return code, out.out, out.err


# ------------------------------------------------------------------ one image


def by_hand(models, name: str, corpus, image: int, question: str) -> torch.Tensor:
    """Logits straight from the prepared split and the model, without predict's own steps."""
    split = Shards(corpus / "vqa" / "test")
    tokenizer = load_tokenizer(models / name)
    ids = [
        tokenizer.cls_token_id,
        *tokenizer(question, add_special_tokens=False)["input_ids"],
        tokenizer.sep_token_id,
    ]
    trained = load_trained(models / name)
    pixels = torch.from_numpy(split.image(image, 32))[None]
    with torch.no_grad():
        keep = torch.ones(1, len(ids), dtype=torch.bool)
        pair = trained.model.encode_pair(pixels, torch.tensor([ids]), keep)
        return trained.model.head(pair.pooled)[0]


@pytest.mark.parametrize("image", [0, 1])
def test_one_question_equals_the_prepared_split(corpus, models, capsys, image):
    """Another transform, cut or probability than in training; grey and coloured images."""
    name = "vqa/best-paper"
    code, out, err = run(
        capsys,
        "--model",
        models / name,
        "--image",
        corpus / "raw" / f"{image + 2}.png",
        "--question",
        "Is  there a mass?",
        "--top",
        3,
        "--json",
    )
    assert code == 0, err
    wanted = by_hand(models, name, corpus, image, "Is there a mass?").sigmoid()
    found = json.loads(out)
    order = wanted.argsort(descending=True)[:3].tolist()
    assert [answer for answer, _ in found["top"]] == [ANSWERS[k] for k in order]
    assert [score for _, score in found["top"]] == pytest.approx(wanted[order].tolist(), abs=1e-5)
    assert (found["prediction"], found["score"]) == tuple(found["top"][0])
    assert found["question"] == "Is  there a mass?" and found["image"].endswith(".png")


def test_only_answers_of_the_protocol(corpus, models, capsys):
    """An answer that the strict protocol does not know, or best-paper's weights under strict."""
    image = ["--image", corpus / "raw" / "2.png", "--question", "Where is it?", "--json"]
    code, out, err = run(capsys, "--model", models / "vqa", *image)
    assert code == 0 and "best-strict (vqa, 4 answers, of which 2 may be given" in err
    top = dict(json.loads(out)["top"])
    assert set(top) == set(ANSWERS[:2])
    logits = by_hand(models, "vqa/best-strict", corpus, 0, "Where is it?")
    wanted = dict(zip(ANSWERS, logits.sigmoid().tolist(), strict=True))
    assert top == pytest.approx({name: wanted[name] for name in top}, abs=1e-5)
    code, out, err = run(capsys, "--model", models / "vqa", *image, "--protocol", "paper")
    assert "best-paper" in err and len(json.loads(out)["top"]) == 4
    # The protocol of a checkpoint folder is in its name.
    code, out, err = run(capsys, "--model", models / "vqa" / "best-paper", *image)
    assert len(json.loads(out)["top"]) == 4


def test_several_questions(corpus, models, capsys):
    """Answers in another order than the questions, or those of one question for all."""
    args = ["--model", models / "vqa", "--image", corpus / "raw" / "2.png", "--json", "--batch", 2]
    asked = [word for question in QUESTIONS for word in ("--question", question)]
    _, out, _ = run(capsys, *args, *asked)
    together = [json.loads(line) for line in out.splitlines()]
    assert [row["question"] for row in together] == QUESTIONS
    for row in together:
        alone = json.loads(run(capsys, *args, "--question", row["question"])[1])
        assert alone["prediction"] == row["prediction"]
        assert alone["score"] == pytest.approx(row["score"], abs=2e-6)
    assert len({row["score"] for row in together}) == 3


def test_printed_for_people(corpus, models, capsys):
    """Progress or log lines among the answers, or probabilities that are not per cent."""
    _, out, err = run(
        capsys,
        "--model",
        models / "vqa",
        "--image",
        corpus / "raw" / "2.png",
        "--question",
        "Where is it?",
    )
    lines = out.splitlines()
    assert lines[0] == "question  Where is it?" and lines[1].startswith("answer    ")
    assert len(lines) == 4 and lines[2].split("%")[1].strip() == lines[1].split(maxsplit=1)[1]
    assert "model:" in err and "model:" not in out


def test_classes_are_a_softmax(corpus, models, capsys):
    """Sigmoids of classes, or the wrong order of classes."""
    code, out, _ = run(
        capsys,
        "--model",
        models / "classes",
        "--image",
        corpus / "raw" / "2.png",
        "--text",
        "a mass in the left lung",
        "--json",
    )
    assert code == 0
    top = json.loads(out)["top"]
    assert sum(score for _, score in top) == pytest.approx(1, abs=1e-5) and len(top) == 2


def test_retrieval_gives_match_scores(corpus, models, capsys):
    """A crash where there are no answers, a probability claimed, or texts not ranked."""
    args = [
        "--model",
        models / "retrieval",
        "--image",
        corpus / "raw" / "2.png",
        "--text",
        "a mass",
        "--text",
        "no mass in the left lung",
    ]
    code, out, err = run(capsys, *args)
    assert code == 0 and "a logit, no probability" in out, err
    scores = [float(line.split()[0]) for line in out.splitlines()[:2]]
    assert scores == sorted(scores, reverse=True) and scores[0] != scores[1]
    turned = [*args[:4], *args[6:], *args[4:6]]  # one of the two orders is not that of the scores
    assert run(capsys, *turned)[1] == out
    _, out, _ = run(capsys, *args, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["text"] for row in rows] == ["a mass", "no mass in the left lung"]
    assert sorted((row["score"] for row in rows), reverse=True) == pytest.approx(scores, abs=1e-4)


def test_attention_pictures(corpus, models, tmp_path, capsys):
    """One picture overwritten by the next, or none where a pre-trained model could give one."""
    image = corpus / "raw" / "2.png"
    for model, names in (
        ("vqa", ["a-1.png", "a-2.png"]),
        ("retrieval", ["r-1.png", "r-2.png"]),
        ("pre", ["p-1.png", "p-2.png"]),
    ):
        out = tmp_path / f"{names[0][0]}.png"
        code, _, err = run(
            capsys,
            "--model",
            models / model,
            "--image",
            image,
            "--attention",
            out,
            "--text",
            "a mass",
            "--text",
            "where is it",
            "--layer",
            1,
            "--head",
            2,
        )
        assert code == 0, err
        assert sorted(path.name for path in tmp_path.glob(f"{names[0][0]}*")) == names
        for name in names:
            with Image.open(tmp_path / name) as picture:
                assert picture.format == "PNG" and picture.width > 500
    assert (tmp_path / "a-1.png").read_bytes() != (tmp_path / "a-2.png").read_bytes()


# ------------------------------------------------------------------ a whole split


@pytest.mark.parametrize("data", ["vqa", "jpeg"])
def test_a_whole_split(corpus, models, tmp_path, capsys, data):
    """Rows out of step with their questions, another protocol's answers, an unreadable file."""
    path = tmp_path / "new" / "predictions.jsonl"
    folder = corpus / data / "test"
    code, out, err = run(
        capsys, "--model", models / "vqa", "--data", folder, "--out", path, "--batch", 4, "--top", 2
    )
    assert code == 0 and "6 predictions" in out, err
    whole = ["--out", path.parent / "all.jsonl", "--top", 9, "--all-answers"]
    assert run(capsys, "--model", models / "vqa", "--data", folder, *whole)[0] == 0
    assert len(read_predictions(path.parent / "all.jsonl")[0]["top"]) == len(ANSWERS)
    rows = read_predictions(path)
    split = Shards(folder)
    assert [row["id"] for row in rows] == [split.text_key(i) for i in range(6)]
    assert {row["prediction"] for row in rows} <= set(ANSWERS[:2])
    assert rows[0]["label"] == "yes" and rows[0]["type"] == "closed"
    if data == "jpeg":
        return
    alone = [
        json.loads(
            run(
                capsys,
                "--model",
                models / "vqa",
                "--image",
                corpus / "raw" / row["image"],
                "--question",
                row["question"],
                "--json",
            )[1]
        )
        for row in rows
    ]
    assert [row["prediction"] for row in rows] == [row["prediction"] for row in alone]
    assert [row["score"] for row in rows] == pytest.approx([r["score"] for r in alone], abs=2e-6)


def test_a_split_of_classes(corpus, models, tmp_path, capsys):
    """Rows without a class scored as if they had one."""
    path = tmp_path / "p.jsonl"
    code, _, err = run(
        capsys, "--model", models / "classes", "--data", corpus / "classes/test", "--out", path
    )
    assert code == 0 and "1 rows without organ are left out" in err
    (row,) = read_predictions(path)
    assert row["answer"] == "lung" and row["prediction"] in ("liver", "lung") and "type" not in row


def test_a_question_only_model_sees_no_image(corpus, models, tmp_path, capsys):
    """A picture shown to a model that was trained on the mean image alone."""
    folder = tmp_path / "best-paper"
    shutil.copytree(models / "vqa/best-paper", folder)
    facts = json.loads((folder / "downstream.json").read_text())
    (folder / "downstream.json").write_text(json.dumps(facts | {"image": "none"}))
    asked = ["--question", QUESTIONS[0], "--json"]
    tops = []
    for image in ("2.png", "3.png"):
        code, out, err = run(capsys, "--model", folder, "--image", corpus / "raw" / image, *asked)
        assert code == 0 and "question-only model" in err, err
        tops.append(json.loads(out)["top"])
    assert tops[0] == tops[1]
    path = tmp_path / "p.jsonl"
    assert run(capsys, "--model", folder, "--data", corpus / "vqa/test", "--out", path)[0] == 0
    scores = {row["score"] for row in read_predictions(path) if row["question"] == QUESTIONS[0]}
    assert scores == {tops[0][0][1]}


# ------------------------------------------------------------------ mistakes


def case(*args: str, says: str) -> tuple[tuple[str, ...], str]:
    return args, says


ASK = ("--question", "Is it?")


@pytest.mark.parametrize(
    "args, message",
    [
        case(
            "--model",
            "{m}/pre",
            "--folder",
            "{c}/raw",
            *ASK,
            "--out",
            "{c}/answers.csv",
            says="has no answer head; fine-tune it first",
        ),
        case(
            "--model",
            "{m}/vqa",
            "--image",
            "{c}/vqa.csv",
            *ASK,
            says="vqa.csv: cannot be used as an image: unreadable",
        ),
        case("--model", "{m}/vqa", "--image", "{c}/deep.png", *ASK, says="give --window LOW HIGH"),
        case("--model", "{m}/vqa", "--image", "{c}/gone.png", *ASK, says="no such image"),
        case("--model", "{c}", "--image", "{c}/raw/0.png", *ASK, says="neither a run"),
        case("--model", "{c}/gone", "--image", "{c}/raw/0.png", *ASK, says="gone"),
        case("--model", "{c}/vqa.csv", "--image", "{c}/raw/0.png", *ASK, says="give a run folder"),
        case("--model", "{m}/nofacts", "--image", "{c}/raw/0.png", *ASK, says="no downstream.json"),
        case("--model", "{m}/vqa", "--image", "{c}/raw/0.png", "--question", " ", says="empty"),
        case("--model", "{m}/vqa", "--image", "{c}/raw/0.png", says="belong together"),
        case("--model", "{m}/vqa", says="give one of --image, --table, --folder and --data"),
        case("--model", "{m}/vqa", "--data", "{c}/vqa/test", says="--out belongs to"),
        case("--model", "{m}/vqa", "--image", "{c}/raw/0.png", *ASK, "--out", "x", says="--out"),
        case("--model", "{m}/vqa", "--image", "{c}/raw/0.png", *ASK, "--top", "0", says="--top 0"),
        case(
            "--model",
            "{m}/vqa",
            "--image",
            "{c}/raw/0.png",
            *ASK,
            "--protocol",
            "image_disjoint",
            says="no best epoch under --protocol image_disjoint; it has strict",
        ),
        case(
            "--model",
            "{m}/classes",
            "--image",
            "{c}/raw/0.png",
            *ASK,
            "--protocol",
            "strict",
            says="knows no answers of --protocol strict, only of paper",
        ),
        case(
            "--model",
            "{m}/vqa",
            "--image",
            "{c}/raw/0.png",
            *ASK,
            "--device",
            "nosuch",
            says="--device nosuch",
        ),
        case(
            "--model",
            "{m}/vqa",
            "--image",
            "{c}/raw/0.png",
            *ASK,
            "--attention",
            "{c}/x.png",
            "--layer",
            "7",
            says="layers 1 to 2",
        ),
        case("--model", "{m}/vqa", "--data", "{c}/vqa", "--out", "x", says="no prepared split"),
        case(
            "--model",
            "{m}/vqa",
            "--data",
            "{c}/pairs/test",
            "--out",
            "x",
            says="without answers or classes",
        ),
        case("--model", "{m}/vqa", "--data", "{c}/classes/test", "--out", "x", says="no 'label'"),
        case(
            "--model",
            "{m}/retrieval",
            "--data",
            "{c}/vqa/test",
            "--out",
            "x",
            says="run_finetune.py eval_only=true",
        ),
    ],
)
def test_mistakes(corpus, models, capsys, args, message):
    """A traceback, or a message that does not say what to do."""
    if not (models / "nofacts").exists():
        shutil.copytree(models / "classes", models / "nofacts")
        (models / "nofacts" / "downstream.json").unlink()
        Image.fromarray(np.full((40, 40), 999, np.uint16)).save(corpus / "deep.png")
    filled = [arg.format(m=models, c=corpus) for arg in args]
    code, _, err = run(capsys, *filled)
    assert code == 2 and message in err and err.count("error: ") == 1
    assert not Path("x").exists()


def test_a_hub_id(models, corpus, tmp_path, monkeypatch, capsys):
    """A hub id whose weights are read, its facts and tokeniser only looked for in a folder."""
    folder = cached(tmp_path, monkeypatch)
    shutil.copytree(models / "vqa/best-paper", folder, dirs_exist_ok=True)
    answers = []
    for model in ("someone/model", str(models / "vqa/best-paper")):
        code, out, err = run(
            capsys, "--model", model, "--image", corpus / "raw/0.png", *ASK, "--json"
        )
        assert code == 0, err
        answers.append(json.loads(out))
    assert answers[0]["score"] == answers[1]["score"]


def test_damaged_facts(models, tmp_path, capsys, corpus):
    """Outputs of the head named by another list, or a KeyError."""
    folder = tmp_path / "model"
    shutil.copytree(models / "classes", folder)
    facts = json.loads((folder / "downstream.json").read_text())
    for change, message in (
        ({"answers": ["lung"]}, "cls_head"),
        ({"task": "poetry"}, "no task"),
        ({"answers": []}, "empty answer list"),
        ({"text_length": 99}, "takes 3 to 40 tokens"),
    ):
        (folder / "downstream.json").write_text(json.dumps(facts | change))
        code, _, err = run(capsys, "--model", folder, "--image", corpus / "raw/0.png", *ASK)
        assert code == 2 and message in err


def test_sixteen_bits_with_a_window(corpus, models, capsys):
    """A window that is not used."""
    Image.fromarray(np.arange(1600, dtype=np.uint16).reshape(40, 40)).save(corpus / "ramp.png")
    scores = []
    for high in ("1600", "400"):
        code, out, err = run(
            capsys,
            "--model",
            models / "vqa",
            "--image",
            corpus / "ramp.png",
            *ASK,
            "--window",
            "0",
            high,
            "--json",
        )
        assert code == 0, err
        scores.append(json.loads(out)["score"])
    assert scores[0] != scores[1]


def test_a_gigantic_image_is_refused(tmp_path):
    """Some kB that take all memory, where a line should name the file and the limit."""
    path = tmp_path / "gigantic.png"
    path.write_bytes(gigantic_png())
    with pytest.raises(ValueError, match=r"gigantic.png: cannot be used .* more than 89,478,485"):
        predictor.read_image(path, 32)


def test_an_image_is_turned_upright(tmp_path):
    """--exif of a preparation that predict cannot follow."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.linear_gradient("L").resize((40, 40))
    picture.save(tmp_path / "turned.png", exif=exif)
    upright = np.rot90(predictor.read_image(tmp_path / "turned.png", 40)[0], -1)
    assert np.array_equal(predictor.read_image(tmp_path / "turned.png", 40, exif=True)[0], upright)


def test_long_questions_are_cut_aloud(corpus, models, capsys):
    """Words that the model never sees, without a word."""
    code, _, err = run(
        capsys,
        "--model",
        models / "vqa",
        "--image",
        corpus / "raw/0.png",
        "--question",
        "is there a mass " * 9,
    )
    assert code == 0 and "cut to the first 10 of" in err


def test_runs_of_both_protocols_apart(models, tmp_path):
    """A run with a folder for each protocol, which has no best-* itself, taken for no run."""
    for name in ("paper", "strict"):
        shutil.copytree(models / "vqa" / f"best-{name}", tmp_path / "run" / name / f"best-{name}")
    found = find_checkpoint(tmp_path / "run")
    assert found == tmp_path / "run" / "strict" / "best-strict"
    assert find_checkpoint(tmp_path / "run", "paper").name == "best-paper"


def test_help_as_a_module():
    """An import that works only from the tests, or a help text that argparse cannot format."""
    done = subprocess.run(
        [sys.executable, "-m", "m3ae.predict", "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "--attention" in done.stdout, done.stderr
