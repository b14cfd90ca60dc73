"""What makes a run another one, and what does not."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest

import m3ae.data
import m3ae.downstream
import m3ae.models
from data_prep import vqa_rad
from m3ae.data import contents
from m3ae.files import file_sha256
from m3ae.tables import cells
from m3ae.tables.cells import Cell
from m3ae.tables.definition import names, read_table
from m3ae.tables.plan import make_plan
from tests.recipe import ROOT
from tests.tables.conftest import plan

OUT = Path("out")
PRETRAIN = """
base: {root}/configs/pretrain/quickstart.yaml
data: {{train: [{s}/train], valid: [{s}/test], tokenizer: {s}/tokenizer}}
"""
FINETUNE = """
base: {root}/configs/finetune/vqa_rad.yaml
architecture: {folder}/pretrain.yaml
data: {{train: {q}/train, test: {q}/test, tokenizer: {s}/tokenizer}}
"""


@pytest.fixture()
def made(shards, questions, tmp_path):
    """Makes a pre-training, a fine-tuning of it and one without; text is put below the configs."""

    def make(pretrain: str = "", finetune: str = "", seed: int = 0, q=questions, s=shards):
        given = {"root": ROOT, "folder": tmp_path, "q": q, "s": s}
        for name, text, more in (
            ("pretrain", PRETRAIN, pretrain),
            ("finetune", FINETUNE, finetune),
        ):
            base = tmp_path / f"{name}_base.yaml"
            base.write_text(text.format(**given))
            (tmp_path / f"{name}.yaml").write_text(f"base: {base}\n{more}\n")
        first = Cell("pretrain", "p", str(tmp_path / "pretrain.yaml"), (), seed)
        config = str(tmp_path / "finetune.yaml")
        none = (f'architecture_set=["seed={seed}"]',)
        made = (
            first,
            Cell("finetune", "f", config, (), seed, first),
            Cell("finetune", "n", config, none, seed),
        )
        assert not any(cell.lacks for cell in made)
        return tuple(cell.digest for cell in made)

    return make


def changed(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[bool, ...]:
    """Of pre-training, the fine-tuning that starts from it, and the one from scratch."""
    return tuple(a != b for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("pretrain", "finetune", "others"),
    [
        ("optim: {lr: 2.0e-3}", "", (True, True, False)),
        ("model: {mlm: {ratio: 0.3}}", "", (True, True, True)),  # the last: its architecture
        ("model: {share: false}", "", (True, True, False)),
        ("train: {steps: 1251}", "", (True, True, False)),
        ("", "optim: {lr: 2.0e-5}", (False, True, True)),
        ("", "data: {fraction: 0.5}", (False, True, True)),
        ("", "head: {reads: both}", (False, True, True)),
        ("", "eval: {every: 2}", (False, True, True)),  # other epochs can be selected
        ("", "protocol: paper", (False, True, True)),
    ],
)
def test_a_key_that_counts(made, pretrain, finetune, others):
    """A stale number under a changed setting; a run repeated though nothing of it has changed."""
    assert changed(made(), made(pretrain, finetune)) == others


@pytest.mark.parametrize(
    ("pretrain", "finetune"),
    [
        ("# a remark", "# another"),
        ("data: {workers: 3}", "data: {workers: 2}"),
        ("train: {threads: 5, log_every: 3, checkpoint_every: 7, keep_checkpoints: 3}",) * 2,
        ("output: elsewhere", "output: elsewhere"),
        ("model: {compile: true, activation_checkpointing: true}",) * 2,
        ("eval: {every: 77, pictures: 0}", "eval: {samples: 5, top: 1}"),
        ("optim: {lr: 1e-3, betas: [0.90, 0.980]}", "optim: {betas: [0.9, 0.98], lr: 0.000005}"),
        ("seed: 0\nmodel: {itm: {group: 8, weight: 1}, mlm: {ratio: 0.25}}", "task: vqa\nseed: 0"),
    ],
)
def test_what_does_not_count(made, pretrain, finetune):
    """Finished runs of days made again since a comment, the order of keys or workers changed."""
    assert changed(made(), made(pretrain, finetune)) == (False, False, False)


def test_seeds_are_nested(made):
    """Fine-tuning 1 that starts from pre-training 0, or weights of seed 0 under every seed."""
    assert changed(made(), made(seed=1)) == (True, True, True)
    for some in plan_of_small().values():
        for seed, cell in enumerate(some):
            start = json.dumps(cell.overrides) if cell.init is None else f"seed={cell.init.seed}"
            assert cell.seed == cell.resolved.seed == seed and f"seed={seed}" in start


def plan_of_small():
    """The cells of Table 4 at size small, two seeds."""
    here = os.getcwd()
    os.chdir(ROOT)
    try:
        return make_plan([read_table("4")], "small", 2).cells["4"]
    finally:
        os.chdir(here)


def test_a_row_more(made, questions, shards, tmp_path):
    """Numbers of the corpus as it was, after a question was added or an answer corrected."""
    before, tokenizer = made(), tmp_path / "tokenizer"
    raw = shutil.copytree(questions.parent / "raw/vqa_rad", tmp_path / "raw")
    (listed,) = raw.glob("*.json")
    rows = json.loads(listed.read_text())
    train = [row for row in rows if not row["phrase_type"].startswith("test")]
    shutil.copytree(shards / "tokenizer", tokenizer)

    def prepared(some: list[dict], name: str):
        listed.write_text(json.dumps(some))
        words = ["--raw", str(raw), "--out", str(tmp_path / name), "--px", "64", "--workers", "0"]
        assert vqa_rad.main([*words, "--tokenizer", str(tokenizer)]) == 0
        return made(q=tmp_path / name)

    assert changed(before, prepared(rows, "same")) == (False, False, False)
    fewer = [row for row in rows if row is not train[-1]]
    assert changed(before, prepared(fewer, "fewer")) == (False, True, True)
    train[0]["answer"] = "something else"
    assert changed(before, prepared(rows, "other")) == (False, True, True)


def test_where_data_lie_does_not_count(made, shards, questions, tmp_path):
    """All runs made again, or none found, after the data were moved to another disk."""
    before = made()
    q = shutil.copytree(questions, tmp_path / "elsewhere/q")
    s = shutil.copytree(shards, tmp_path / "elsewhere/s")
    assert changed(before, made(q=q, s=s)) == (False, False, False)
    manifest = json.loads((s / "train/manifest.json").read_text())
    manifest["files"][0]["sha256"] = "0" * 64
    (s / "train/manifest.json").write_text(json.dumps(manifest))
    assert changed(before, made(q=q, s=s)) == (True, True, False)
    with open(q / "answers.json", "a") as file:
        file.write("\n")
    contents._folder_digest.cache_clear()  # as in another process
    assert changed(before, made(q=q, s=s)) == (True, True, True)


def test_what_data_are_read_as_counts(made, shards):
    """Numbers of a run that trained on one corpus under the name of one that held it out."""
    train, valid = f"{shards}/train", f"{shards}/test"
    two, one = (
        made(f"data: {{train: [{', '.join(some)}], valid: [{', '.join(rest)}]}}")
        for some, rest in (([train, valid], [train]), ([train], [valid, train]))
    )
    assert changed(two, one) == (True, True, False)


def test_the_sizes_that_a_released_file_is_read_with_count(made, tmp_path):
    """Numbers of a model of three heads under the name of one of eight: the shapes are the same."""
    (tmp_path / "m3ae.ckpt").write_bytes(b"tensors alone")
    init = f"init: {tmp_path / 'm3ae.ckpt'}"
    heads = "model: {image_encoder: {heads: 8}}"
    assert changed(made(finetune=init), made(heads, finetune=init)) == (True, True, True)


@pytest.mark.parametrize(
    ("room", "others"),
    [
        (m3ae.models, (True, True, True)),
        (m3ae.data, (True, True, True)),
        (m3ae.downstream, (False, True, True)),
    ],
)
def test_a_version_that_is_raised(made, monkeypatch, room, others):
    """Numbers of code that is no longer there; pre-training again for a change of fine-tuning."""
    before = made()
    monkeypatch.setattr(room, "VERSION", room.VERSION + 1)
    assert changed(before, made()) == others


def test_every_room_of_a_run_counts():
    """A room that a run's numbers pass through and whose version nobody asks for."""
    for rooms in cells.ROOMS.values():
        assert all(cells.version_of(room) >= 1 for room in rooms)
    assert set(cells.ROOMS["finetune"]) - set(cells.ROOMS["pretrain"]) == {"scoring", "downstream"}


# -------------------------------------------------------------------------------------- plans


def test_a_pretraining_is_one_cell_for_all_that_start_from_it(bench):
    """Days of pre-training done once a column, a table or a name instead of once."""
    text = (bench / "configs/tables/t.yaml").read_text()
    more = "  same: {title: same, pretrain: [nothing]}\n"
    more += "  path: {title: path, pretrain: configs/pretrain/tiny.yaml}\n"
    (bench / "configs/tables/u.yaml").write_text(text + more)
    nothing = "base: ../tiny.yaml\nmodel: {mlm: {weight: 1.0}}\n"  # what it is already
    (bench / "configs/pretrain/ablations/nothing.yaml").write_text(nothing)
    made = make_plan([read_table("t"), read_table("u")], "tiny", 2)
    pretrainings = [cell for cell in made.all if cell.kind == "pretrain"]
    assert [(cell.name, cell.seed) for cell in pretrainings] == [
        *(("tiny-tiny", 0), ("tiny-half", 0)),
        *(("tiny-tiny", 1), ("tiny-half", 1)),
    ]
    assert len(made.all) == 4 + 3 * 2 * 2
    whole = [made.cells["u"][row, "a"] for row in ("whole", "same", "path")]
    assert whole[0] == whole[1] == whole[2] == made.cells["t"]["whole", "a"]
    assert [cell.kind for cell in made.all[:8]] == ["pretrain"] * 2 + ["finetune"] * 6


def test_a_finished_run_is_found_under_another_rows_name(bench):
    """A table whose row has another name repeats what a table before it has run."""
    first = plan().cells["t"]["whole", "a"][0]
    other = dataclasses.replace(first, name="tiny-mine--a")
    assert other.digest == first.digest and other.folder(OUT) != first.folder(OUT)
    first.folder(OUT).mkdir(parents=True)
    assert other.folder(OUT) == first.folder(OUT)
    seed = dataclasses.replace(first, seed=1)
    assert seed.folder(OUT) != first.folder(OUT)


def test_as_many_steps_in_all(shards, questions, tmp_path, bench):
    """A control that trains less, or much longer, than pre-training and fine-tuning together."""
    given = {"root": ROOT, "folder": tmp_path, "q": questions, "s": shards}
    (bench / "configs/pretrain/tiny.yaml").write_text(PRETRAIN.format(**given))
    (bench / "configs/finetune/tiny.yaml").write_text(FINETUNE.format(**given))
    text = (bench / "configs/tables/t.yaml").read_text()
    longer = "  longer: {title: longer, pretrain: null, steps: all}\n"
    (bench / "configs/tables/t.yaml").write_text(text + longer)
    (bench / "configs/tables/tasks.yaml").write_text(
        "a: {title: A, config: configs/finetune/tiny.yaml, protocols: [strict], parts: [overall]}\n"
        "b:\n  title: B\n  config: configs/finetune/tiny.yaml\n  protocols: [strict]\n"
        "  parts: [overall]\n  set: [data.fraction=0.2, train.batch_global=8, eval.every=5]\n"
    )
    found = make_plan(
        [read_table("t")],
        "tiny",
        2,
        ["train.steps=77"],
        ["train.epochs=50", "train.checkpoint_every=10"],
    ).cells["t"]
    for column in ("a", "b"):
        for seed in range(2):
            whole, none, longer = (found[row, column][seed] for row in ("whole", "none", "longer"))
            epoch = whole.steps // 50
            assert none.steps == whole.steps == 50 * epoch
            assert 0 <= longer.steps - (whole.init.steps + whole.steps) < epoch
            assert longer.digest != none.digest
            epochs = longer.steps // epoch
            assert f"train.epochs={epochs}" in longer.command(OUT)
            assert longer.config_of_run(OUT).train == longer.resolved.train
            # No fewer evaluations and checkpoints than the other control's, nor twice as many.
            for key in ("eval.every", "train.checkpoint_every"):
                section, name = key.split(".")
                ours, theirs = (getattr(getattr(c.resolved, section), name) for c in (longer, none))
                assert 50 // theirs <= epochs // ours < 2 * (50 // theirs)


def test_the_command_is_the_cell(bench):
    """A number under the identity of other settings: the command is not what was hashed."""
    given = ["optim.lr=0.01", "seed=7"], ["optim.lr=0.02", "seed=8", "train.epochs=3"]
    for cell in make_plan([read_table("t")], "tiny", 2, *given).all:
        config = cell.config_of_run(OUT)
        assert config.seed == cell.seed and config.output == str(cell.folder(OUT))
        kept = {"output": cell.resolved.output}
        if cell.kind == "finetune":
            kept["init"] = cell.resolved.init
            assert config.init == (cell.init and str(cell.init.folder(OUT)))
        assert dataclasses.replace(config, **kept) == cell.resolved


def test_what_is_lacking(bench):
    """A cell that starts without its data, or never does since a hub id is taken for a folder."""
    shutil.rmtree("data/other")
    shutil.rmtree("data/pairs/train")
    whole, none = (plan().cells["t"][row, "b"][0] for row in ("whole", "none"))
    assert whole.lacks == ["data/other/test", "data/pairs/train"]
    assert none.lacks == ["data/other/test"] and none.steps is None
    text = [(bench / "configs/pretrain/tiny.yaml"), (bench / "configs/finetune/tiny.yaml")]
    text[0].write_text(text[0].read_text().replace("data/pairs/train", "mine/pairs"))
    weights = (
        "model: {text_encoder: {weights: some/model-v1.5}, image_encoder: {weights: data/vit}}"
    )
    text[0].write_text(f"{text[0].read_text()}\n{weights}")
    whole, none = (plan().cells["t"][row, "a"][0] for row in ("whole", "none"))
    assert whole.lacks == ["mine/pairs", "data/vit"]  # a split is no hub id, weights may be one
    assert none.lacks == ["data/vit"]  # it begins with them


def test_mistakes_are_named(bench):
    """A table of one's own that fails with a traceback, or without saying which row it was."""
    with pytest.raises(ValueError, match="--size smal: none of tiny"):
        make_plan([read_table("t")], "smal", 1)
    with pytest.raises(ValueError, match=r"none of t; or give a \.yaml file"):
        read_table("5")
    (bench / "listed.yaml").write_text("title: t\ncolumns: {tiny: [a]}\nrows: [none, whole]\n")
    with pytest.raises(ValueError, match=r"listed\.yaml: rows: expected a mapping, got"):
        read_table(str(bench / "listed.yaml"))
    for old, new, said in (
        (
            "columns: {tiny: [a, b]}",
            "columns: {tiny: [a, c]}",
            "t: columns: 'c' is none of the tasks a, b",
        ),
        (
            "pretrain: [half]",
            "pretrain: [hlaf]",
            "row half, column a: .*no such ablation; there are half",
        ),
        (
            "title: half,",
            "titel: half,",
            "unknown key rows.half.titel; did you mean rows.half.title?",
        ),
    ):
        text = (bench / "configs/tables/t.yaml").read_text()
        (bench / "mine.yaml").write_text(text.replace(old, new))
        with pytest.raises(ValueError, match=said.replace("t: columns", "columns")):
            make_plan([read_table("mine.yaml")], "tiny", 1)
    with pytest.raises(
        ValueError, match=r"row none, column a: unknown key optim\.rl; did you mean"
    ):
        make_plan([read_table("t")], "tiny", 1, [], ["optim.rl=1"])
    shutil.copy("configs/tables/t.yaml", "t.yaml")
    with pytest.raises(ValueError, match="two have the same name"):
        make_plan([read_table("t"), read_table("t.yaml")], "tiny", 1)
    assert names() == ["t"]


def test_a_changed_file_is_read_again(tmp_path):
    """The digest of a list as it was when the process began."""
    path = tmp_path / "list.txt"
    path.write_text("one")
    before = contents.content_of(str(path))
    path.write_text("one two")
    assert before != contents.content_of(str(path)) == file_sha256(path)
