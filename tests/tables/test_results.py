"""What finished cells say: which seeds count, orderings, what is missing and why."""

import json

import pytest

from m3ae.data.shards import Shards
from m3ae.tables import measured, results
from m3ae.tables.results import collect
from tests.tables import made_up, recount


@pytest.fixture(scope="module")
def corpora(questions, shards, tmp_path_factory):
    tokenizer = shards / "tokenizer"
    classes = made_up.classes_of(tmp_path_factory.mktemp("classes"), tokenizer)
    return {"q": questions, "c": classes, "s": shards, "t": tokenizer}


@pytest.fixture()
def made(corpora, tmp_path, monkeypatch):
    """A plan whose runs are finished but for a row and a seed, and OUT."""
    monkeypatch.chdir(tmp_path)
    plan = made_up.plan_in(tmp_path, corpora)
    made_up.finish(plan, tmp_path / "out")
    return plan, tmp_path / "out"


def find(result: dict, **wanted: str) -> list[dict]:
    """Cells or claims with these values."""
    entries = result["claims"] if "above" in wanted else result["cells"]
    return [one for one in entries if all(one[key] == value for key, value in wanted.items())]


def test_the_same_bytes_and_no_measure_twice(made, monkeypatch):
    """A report that depends on the clock, the host or the folder, or takes as long each time."""
    plan, out = made
    first = json.dumps(collect(plan, out))
    kept = {path.name: path.read_bytes() for path in (out / "measured").iterdir()}
    for name in ("measure_answers", "measure_classes", "measure_ranks"):
        monkeypatch.setattr(measured, name, None)
    assert json.dumps(collect(plan, out)) == first
    monkeypatch.undo()
    monkeypatch.chdir(out.parent)
    for path in (out / "measured").iterdir():
        path.unlink()
    moved = out.rename(out.with_name("elsewhere"))
    assert json.dumps(collect(plan, moved)) == first
    assert {path.name: path.read_bytes() for path in (moved / "measured").iterdir()} == kept
    assert str(out.parent) not in first


def test_a_changed_prediction_is_measured_again(made):
    """The number of a file that is no longer there."""
    plan, out = made
    before = find(collect(plan, out)["0"], row="whole", column="classes")[0]["parts"]["accuracy"]
    path = plan.cells["0"]["whole", "classes"][0].folder(out) / "predictions-strict.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    made_up.write_jsonl(path, [{**row, "prediction": "no plane"} for row in rows])
    after = find(collect(plan, out)["0"], row="whole", column="classes")[0]["parts"]["accuracy"]
    assert after["values"] == {**before["values"], "0": 0.0} != before["values"]


def test_unfinished_seeds_do_not_count(made):
    """A mean over runs that are under way, or a number of runs that is not said."""
    plan, out = made
    result = collect(plan, out)["0"]
    cell = plan.cells["0"]["half", "questions"][1]
    (cell.folder(out) / "done.json").unlink()
    fewer = collect(plan, out)["0"]
    had, has = (
        find(r, row="half", column="questions", protocol="strict")[0] for r in (result, fewer)
    )
    assert (had["runs"], had["of"], has["runs"]) == (2, 3, 1)
    assert list(had["parts"]["overall"]["values"]) == ["0", "1"]
    own = has["parts"]["overall"]
    assert list(own["values"]) == ["0"] and own["sd"] is None
    assert [one["seed"] for one in has["missing"]] == [1, 2]


def test_a_missing_cell_says_why(made):
    """An empty cell that leaves one guessing."""
    plan, out = made
    failed = plan.cells["0"]["later", "classes"][0].folder(out)
    failed.mkdir(parents=True)
    (failed / "failed.json").write_text('{"code": 1, "line": "ValueError: broken"}')
    result = collect(plan, out)["0"]
    why = {
        (entry["row"], entry["column"], one["seed"]): one["why"]
        for entry in result["cells"]
        for one in entry["missing"]
    }
    assert why["later", "classes", 0] == "it failed (status 1): ValueError: broken"
    assert why["later", "pool", 0] == "its pre-training is not finished: not run"
    assert why["half", "questions", 2] == "its pre-training is not finished: not run"
    assert why["more", "questions", 1] == "data are lacking: data/more/train"
    assert len({place for place in why if place[0] == "half"}) == 3
    (claim,) = find(result, above="later", column="classes")
    assert claim["verdict"] == "not run"
    assert claim["why"] == "later, seed 0: it failed (status 1): ValueError: broken"
    assert [entry["parts"] for entry in find(result, row="later", column="pool")] == [{}]


def test_orderings(made):
    """A verdict of other seeds than the two rows share, or of the wrong sign."""
    plan, out = made
    result = collect(plan, out)["0"]
    (holds,) = find(result, above="whole", column="questions", protocol="strict")
    (not_so,) = find(result, above="none", column="questions", protocol="strict")
    assert (holds["verdict"], not_so["verdict"]) == ("holds", "does not hold")
    assert holds["interval"] == [-end for end in not_so["interval"][::-1]]
    (pair,) = find(result, above="half", column="questions", protocol="strict")
    assert pair["runs"] == 2 and pair["verdict"] == "not shown"
    rows = {
        (row, k): recount.rows_of(plan.cells["0"][row, "questions"][k].folder(out), "strict")
        for row in ("half", "none")
        for k in (0, 1)
    }
    gains = [
        recount.score(rows["half", k], "overall") - recount.score(rows["none", k], "overall")
        for k in (0, 1)
    ]
    assert pair["difference"] == pytest.approx(sum(gains) / 2)
    assert not find(result, above="whole", column="pool")  # it has no such part


@pytest.mark.parametrize(
    "ends, verdict",
    [
        ([0.01, 0.2], "holds"),
        ([-0.2, -0.01], "does not hold"),
        ([-0.1, 0.2], "not shown"),
        ([0.0, 0.0], "not shown"),
        (None, "not shown"),
    ],
)
def test_verdicts(ends, verdict):
    """An ordering that is said to hold where it is not shown."""
    assert results._verdict(ends)[0] == verdict


def test_few_images_have_no_interval(made):
    """An interval over fewer than 20 images (the pool has 16)."""
    plan, out = made
    (entry,) = find(collect(plan, out)["0"], row="whole", column="pool")
    assert entry["parts"]["t2i_r1"]["images"] == 16
    assert all(figures["interval"] is None for figures in entry["parts"].values())


def test_intervals_by_another_bootstrap(made):
    """An interval of other rows, of the wrong level, or not over images."""
    plan, out = made
    for cell in plan.cells["0"]["whole", "questions"][1:]:
        (cell.folder(out) / "done.json").unlink()
    one, many = (
        find(collect(plan, out)["0"], row=row, column="questions", protocol="paper")[0]
        for row in ("whole", "none")
    )
    runs = {
        row: [
            recount.rows_of(cell.folder(out), "paper")
            for cell in plan.cells["0"][row, "questions"][:count]
        ]
        for row, count in (("whole", 1), ("none", 3))
    }
    low, high = recount.bootstrap(runs["whole"], "overall")
    ends = one["parts"]["overall"]["interval"]
    # Ours is widened for 20 images, by a tenth.
    assert ends == [pytest.approx(low, abs=0.035), pytest.approx(high, abs=0.035)]
    low, high = recount.bootstrap(runs["none"], "overall")
    ends = many["parts"]["overall"]["interval"]
    assert ends[0] < many["parts"]["overall"]["mean"] < ends[1]
    assert ends[1] - ends[0] > 0.5 * (high - low)


def test_other_questions_than_the_published_number(corpora, tmp_path, monkeypatch):
    """451 questions beside 44, in one column."""
    monkeypatch.chdir(tmp_path)
    n = len(Shards(corpora["q"] / "test"))
    plan = made_up.plan_in(tmp_path, corpora, **{f"questions: {n}": "questions: 451"})
    made_up.finish(plan, tmp_path / "out")
    wrong = f"whole .nobody 2022, table 0. counts 451 questions, our rows {n}"
    with pytest.raises(ValueError, match=wrong):
        collect(plan, tmp_path / "out")


def test_published_numbers(made):
    """The paper's number beside another row's, or inside an interval that it is not in."""
    plan, out = made
    result = collect(plan, out)["0"]
    ours, other, elsewhere = result["published"]
    (entry,) = find(result, row="whole", column="questions", protocol="paper")
    own = entry["parts"]["overall"]
    assert ours["values"] == {"overall": 0.603, "open": 0.005}
    assert ours["compared"]["overall"]["difference"] == own["mean"] - 0.603
    inside = own["interval"][0] <= 0.603 <= own["interval"][1]
    assert ours["compared"]["overall"]["inside"] is inside
    assert ours["compared"]["open"]["inside"] is None  # no interval: fewer than 20 images
    assert other["values"] == {"accuracy": 0.792} and other["compared"] == {}
    assert elsewhere["shown"] is False


def test_what_is_unknown_is_refused(corpora, tmp_path, monkeypatch):
    """A part that is misspelt, and a run without the protocol that its task is shown under."""
    monkeypatch.chdir(tmp_path)
    plan = made_up.plan_in(tmp_path, corpora, **{"overall: 60.3": "overal: 60.3"})
    with pytest.raises(ValueError, match="'overal' is none of vqa's: overall, open, closed"):
        collect(plan, tmp_path / "out")
    plan = made_up.plan_in(tmp_path, corpora)
    made_up.finish(plan, tmp_path / "out")
    folder = plan.cells["0"]["none", "questions"][0].folder(tmp_path / "out")
    (folder / "strict/predictions-strict.jsonl").unlink()
    with pytest.raises(ValueError, match="not there though the run is finished; are the protocols"):
        collect(plan, tmp_path / "out")


def test_configs_and_steps(made):
    """A row whose difference from the others is not said, or steps of pre-training alone."""
    plan, out = made
    result = collect(plan, out)["0"]
    assert result["rows"]["half"]["config"] == [
        "model.itm.weight: 1.0 -> 0.0",
        "model.mlm.weight: 1.0 -> 0.0",
    ]
    assert result["rows"]["whole"]["config"] == [] and result["rows"]["none"]["config"] is None
    cells = {row: plan.cells["0"][row, "questions"][0] for row in ("none", "whole")}
    for row, cell in cells.items():
        (steps,) = {
            json.dumps(entry["steps"]) for entry in find(result, row=row, column="questions")
        }
        before = cell.init.steps if cell.init else 0
        assert json.loads(steps) == {"pretraining": [before], "finetuning": [cell.steps]}
        assert cell.steps > 0 and (before > 0) is (row == "whole")
