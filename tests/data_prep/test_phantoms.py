"""The generated corpora: reproducible, independent, consistent between image facts and text."""

import csv
import hashlib
import itertools
import json
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from data_prep import phantoms
from m3ae.corpora import phantom_images, phantom_texts
from m3ae.corpora import phantoms as writers

SMALL = ["--train", "9", "--validation", "2", "--test", "3", "--medicat", "6", "--vqa", "12"]
SMALL += ["--px", "64"]
FACT_OF = {word: name for name, words in phantom_texts.ATTRIBUTES.items() for word in words}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    out = tmp_path_factory.mktemp("phantoms") / "one"
    assert phantoms.main(["--out", str(out), *SMALL, "--workers", "1"]) == 0
    return out


@pytest.fixture(scope="module")
def many_facts():
    """The facts of 6,000 images, none of them drawn."""
    return [phantom_texts.draw_facts(phantom_texts.generator(0, "roco", i, 0)) for i in range(6000)]


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def facts_in(text):
    """Facts stated by a text, from its words alone; two words of one fact are an error."""
    found = [(FACT_OF[word], word) for word in re.findall(r"\w+", text.lower()) if word in FACT_OF]
    assert len(dict(found)) == len(found), text
    return dict(found)


def test_same_bytes_for_any_number_of_workers(corpus, tmp_path):
    phantoms.main(["--out", str(tmp_path / "two"), *SMALL, "--workers", "2"])
    assert digests(tmp_path / "two") == digests(corpus)


def test_another_seed_changes_images_and_texts(corpus, tmp_path):
    phantoms.main(["--out", str(tmp_path / "a"), *SMALL, "--seed", "1", "--layouts", "roco"])
    for name in ("captions.txt", "images/ROCO_00001.jpg"):
        path = f"roco/train/radiology/{name}"
        assert (tmp_path / "a" / path).read_bytes() != (corpus / path).read_bytes()


def test_an_interrupted_run_is_continued_to_the_same_bytes(corpus, tmp_path, monkeypatch):
    out = tmp_path / "a"
    wanted = digests(corpus)
    drawn = []
    real = writers.draw_image

    def stop_at_fifth(*arguments):
        if len(drawn) == 5:
            raise KeyboardInterrupt
        drawn.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(writers, "draw_image", stop_at_fifth)
    assert phantoms.main(["--out", str(out), *SMALL, "--workers", "1"]) == 130
    assert not json.loads((out / "phantoms.json").read_text())["complete"]
    monkeypatch.setattr(writers, "draw_image", real)
    assert phantoms.main(["--out", str(out), *SMALL, "--workers", "1"]) == 0
    assert digests(out) == wanted


def test_complete_corpus_is_left_alone(corpus, capsys):
    before = {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}
    assert phantoms.main(["--out", str(corpus), *SMALL]) == 0
    assert "complete" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}


@pytest.mark.parametrize("change", [["--seed", "5"], ["--px", "96"], ["--layouts", "roco"]])
def test_other_options_are_refused(corpus, capsys, change):
    assert phantoms.main(["--out", str(corpus), *SMALL, *change]) == 2
    message = capsys.readouterr().err
    assert str(corpus) in message and change[0].strip("-") in message
    assert len(message.splitlines()) == 1


def test_a_corpus_that_is_not_phantoms_is_refused(tmp_path, capsys):
    (tmp_path / "roco").mkdir()
    assert phantoms.main(["--out", str(tmp_path), *SMALL]) == 2
    assert "not written by phantoms.py" in capsys.readouterr().err
    assert list((tmp_path / "roco").iterdir()) == []


@pytest.mark.parametrize("bad", [["--px", "0"], ["--train", "0"], ["--layouts", "slake"]])
def test_impossible_options_are_refused(tmp_path, bad):
    with pytest.raises(SystemExit):
        phantoms.main(["--out", str(tmp_path / "a"), *bad])
    assert not (tmp_path / "a").exists()


def test_a_word_belongs_to_one_fact():
    words = [word for words in phantom_texts.ATTRIBUTES.values() for word in words]
    assert len(words) == len(set(words))
    assert all(re.fullmatch("[a-z]+|[0-9]+", word) for word in words)


def test_facts_are_independent_and_uniform(many_facts):
    for name, words in phantom_texts.ATTRIBUTES.items():
        if name in ("age", "presence"):
            continue
        counts = Counter(facts[name] for facts in many_facts if name in facts)
        expected = sum(counts.values()) / len(words)
        assert all(abs(counts[word] - expected) < 5 * expected**0.5 for word in words), name
    share = sum("kind" in facts for facts in many_facts) / len(many_facts)
    assert share == pytest.approx(phantom_texts.PRESENT, abs=0.02)
    for first, second in itertools.combinations(phantom_texts.COARSE + phantom_texts.FINE, 2):
        pairs = Counter((f[first], f[second]) for f in many_facts if {first, second} <= f.keys())
        table = np.array(
            [
                [pairs[a, b] for b in phantom_texts.ATTRIBUTES[second]]
                for a in phantom_texts.ATTRIBUTES[first]
            ]
        )
        expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
        freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
        chi_square = ((table - expected) ** 2 / expected).sum()
        assert chi_square < freedom + 5 * (2 * freedom) ** 0.5, (first, second)


def test_captions_say_exactly_the_stated_facts(many_facts):
    stated_words, words = 0, 0
    dropped = Counter()
    for index, facts in enumerate(many_facts[:2000]):
        rng = phantom_texts.generator(0, "roco", index, 2)
        caption, stated = phantom_texts.write_caption(facts, rng)
        assert 9 <= len(caption.split()) <= 16
        assert "phantom" in caption.lower()
        assert stated.items() <= facts.items()
        assert facts_in(caption) == stated
        assert not re.search(r"  | ,| \.|,,", caption), caption
        reference = phantom_texts.write_reference(stated, rng, 11)
        assert facts_in(reference) == stated and reference != caption
        stated_words, words = stated_words + len(stated), words + len(caption.split())
        dropped.update(facts.keys() - stated.keys())
    assert 0.45 < stated_words / words < 0.65
    assert set(dropped) == {"number", "level", "sex", "age"}


@pytest.mark.parametrize("fact", phantom_texts.COARSE + phantom_texts.FINE)
def test_each_shown_fact_changes_the_image_and_no_text_fact_does(fact):
    facts = {
        name: phantom_texts.ATTRIBUTES[name][0]
        for name in phantom_texts.COARSE + phantom_texts.FINE
    }
    base = phantom_images.draw_image(facts, 96, np.random.default_rng(3)).astype(float)
    for word in phantom_texts.ATTRIBUTES[fact][1:]:
        other = phantom_images.draw_image(facts | {fact: word}, 96, np.random.default_rng(3))
        assert np.abs(base - other).mean() > 2
    aged = phantom_images.draw_image(
        facts | {"age": "80", "sex": "man"}, 96, np.random.default_rng(3)
    )
    assert np.array_equal(base, aged)


def test_left_is_the_left_of_the_image():
    facts = {name: phantom_texts.ATTRIBUTES[name][0] for name in phantom_texts.COARSE}
    clear = phantom_images.draw_image(facts, 96, np.random.default_rng(0)).astype(float)
    finding = {"kind": "nodule", "level": "upper", "size": "small", "number": "single"}
    for side, half in (("left", np.s_[:48, :48]), ("right", np.s_[:48, 48:])):
        image = phantom_images.draw_image(
            facts | finding | {"side": side}, 96, np.random.default_rng(0)
        )
        changed = image - clear > 60  # brighter: the nodule and the core of its glow
        assert changed[half].sum() > 0.95 * changed.sum() > 0


def test_roco_layout(corpus):
    number, counts = 0, {"train": 9, "validation": 2, "test": 3}
    records = [json.loads(line) for line in (corpus / "records.jsonl").read_text().splitlines()]
    records = {row["file"]: row for row in records if row["layout"] == "roco"}
    for split, count in counts.items():
        folder = corpus / "roco" / split / "radiology"
        files = ("captions", "dlinks", "licences", "keywords", "cuis", "semtypes")
        rows = {name: (folder / f"{name}.txt").read_text().splitlines() for name in files}
        assert rows["licences"].pop(0) == "ROCO_ID,PMC_ID,CC"
        assert all(len(lines) == count for lines in rows.values())
        for row in range(count):
            number += 1
            key, caption = rows["captions"][row].split("\t")
            assert key == f"ROCO_{number:05d}" and caption.startswith(" ")
            with Image.open(folder / "images" / f"{key}.jpg") as image:
                assert image.size == (64, 64) and image.mode == "L"
            _, link, figure = rows["dlinks"][row].split("\t")
            paper = re.search(r"(PMC\d+)\.tar\.gz", link).group(1)
            assert rows["licences"][row] == f"{key},{paper}_{figure},PHANTOM"
            entry = records[f"{key}.jpg"]
            facts = entry["shown"] | entry["text_only"]
            assert facts_in(caption) == {name: facts[name] for name in entry["stated"]}
            words = rows["keywords"][row].split("\t")[2:]
            assert sorted(words) == sorted(facts_in(caption).values())
        assert len(list((folder / "images").iterdir())) == count


def test_roco_references_name_images_of_their_split(tmp_path):
    options = ["--train", "60", "--px", "32", "--layouts", "roco", "--workers", "1"]
    phantoms.main(["--out", str(tmp_path / "a"), *options, "--validation", "1", "--test", "1"])
    rows = (tmp_path / "a/roco_references/roco_train_references.jsonl").read_text().splitlines()
    entries = [json.loads(row) for row in rows]
    licences = (tmp_path / "a/roco/train/radiology/licences.txt").read_text()
    assert 0 < len(entries) < 30
    assert all(f",{entry['roco_image_id']}," in licences for entry in entries)
    assert {type(entry["gorc_references"]) for entry in entries} == {list, type(None)}
    for name in ("val", "test"):
        assert (tmp_path / f"a/roco_references/roco_{name}_references.jsonl").exists()


def test_medicat_layout(corpus):
    release = corpus / "medicat" / "release"
    (file,) = release.glob("*.jsonl")
    assert file.name == "s2_full_figures_oa_nonroco_combined_medical_top4_public.jsonl"
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(entries) == 6
    for entry in entries:
        assert (release / "figures" / f"{entry['pdf_hash']}_{entry['fig_uri']}").exists()
        assert set(entry) == {
            "pdf_hash",
            "fig_key",
            "fig_uri",
            "s2_caption",
            "s2orc_caption",
            "s2orc_references",
            "radiology",
            "scope",
            "predicted_type",
            "oa_info",
        }
        for text in entry["s2orc_references"] or []:
            caption = re.sub(r"Figure \d+", "", entry["s2_caption"])
            assert facts_in(re.sub(r"Figure \d+", "", text)) == facts_in(caption)


def test_vqa_rad_layout_and_answers(corpus):
    folder = corpus / "vqa_rad"
    rows = json.loads((folder / "VQA_RAD Dataset Public.json").read_text())
    assert {row["phrase_type"] for row in rows} == {
        "freeform",
        "para",
        "test_freeform",
        "test_para",
    }
    assert 6 < len(rows) / 12 < 8
    assert 0 < sum(row["question_frame"] != "NULL" for row in rows) < len(rows)
    records = [json.loads(line) for line in (corpus / "records.jsonl").read_text().splitlines()]
    shown = {row["file"]: row["shown"] for row in records if row["layout"] == "vqa_rad"}
    for row in rows:
        assert (folder / "VQA_RAD Image Folder" / row["image_name"]).exists()
        facts = shown[row["image_name"]]
        if row["answer_type"] == "OPEN":
            assert set(row["answer"].split()) <= set(facts.values())
        else:
            (asked,) = facts_in(row["question"]).values()
            assert row["answer"] == ("Yes" if asked in facts.values() else "No")
    linked = {}
    for row in rows:
        linked.setdefault(row["qid_linked_id"], []).append(row)
    for twins in linked.values():  # a question and its re-phrasing never fall apart
        assert len({(t["answer"], t["phrase_type"].startswith("test_")) for t in twins}) == 1


def test_closed_questions_are_balanced_by_what_they_ask(many_facts):
    answers = {}
    for index, facts in enumerate(many_facts[:3000]):
        for item in phantom_texts.ask(facts, phantom_texts.generator(0, "vqa_rad", index, 2)):
            if item["answer_type"] == "CLOSED":
                (name,) = facts_in(item["question"])
                answers.setdefault(name, []).append(item["answer"] == "Yes")
    for name, said in answers.items():
        expected = {"kind": 0.45, "presence": 0.36}.get(name, 0.5)
        assert np.mean(said) == pytest.approx(expected, abs=0.08), name


def test_nobody_may_mistake_them_for_patients(corpus):
    for layout in phantom_texts.BY_DEFAULT:
        assert "not patients" in (corpus / layout / "NOTICE").read_text()


def test_attributes_file_lists_the_vocabulary(corpus):
    listed = json.loads((corpus / "attributes.json").read_text())
    groups = [listed.pop(group) for group in ("coarse", "fine", "text_only")]
    assert {name: tuple(words) for name, words in listed.items()} == phantom_texts.ATTRIBUTES
    assert {name for group in groups for name in group} == set(listed) - {"presence"}


def test_tables_are_of_the_same_images_split_by_image(tmp_path):
    """Questions and classes that contradict each other, or an image in two splits."""
    options = ["--layouts", "tables", "--tables", "40", "--px", "32", "--workers", "1"]
    assert phantoms.main(["--out", str(tmp_path), *options]) == 0
    folder = tmp_path / "tables"
    read = {}
    for name in ("questions", "classes"):
        with (folder / f"{name}.csv").open(newline="") as file:
            read[name] = list(csv.DictReader(file))
        splits = {row["image"]: row["split"] for row in read[name]}
        assert [*splits.values()] == ["train"] * 28 + ["valid"] * 4 + ["test"] * 8
        assert all(splits[row["image"]] == row["split"] for row in read[name])
    assert sorted(splits) == sorted(path.name for path in (folder / "images").iterdir())
    assert {row["text"] for row in read["classes"]} == {"A phantom image."}
    shown = {row["image"]: row for row in read["classes"]}
    assert {bool(row["kind"]) for row in shown.values()} == {True, False}
    assert len(read["questions"]) == 5 * 40
    for row in read["questions"]:
        fact = {"MODALITY": "modality", "PLANE": "plane", "ORGAN": "region"}.get(
            row["question_type"]
        )
        if fact and row["type"] == "open":
            assert row["answer"] == shown[row["image"]][fact]
        if fact and row["type"] == "closed":
            (asked,) = facts_in(row["question"]).values()
            assert row["answer"] == ("Yes" if asked == shown[row["image"]][fact] else "No")
    assert "not patients" in (folder / "NOTICE").read_text()


def test_a_corpus_without_tables_knows_nothing_of_them(corpus):
    """A corpus of an earlier version refused, or made again, for an option that is not its own."""
    assert not (corpus / "tables").exists()
    assert "tables" not in json.loads((corpus / "phantoms.json").read_text())["options"]
