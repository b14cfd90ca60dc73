"""Configs: strict reading, and every file of the repository."""

import dataclasses
import re

import pytest
import yaml
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from m3ae.config import (
    Architecture,
    Config,
    ModelConfig,
    architecture_of,
    default_output,
    load_config,
    to_yaml,
)
from m3ae.downstream.config import load_finetune_config
from m3ae.strict_yaml import build
from tests.recipe import ROOT

FOLDER = ROOT / "configs" / "pretrain"
BASE = FOLDER / "m3ae.yaml"
FILES = sorted(FOLDER.rglob("*.yaml"))
ids = [str(path.relative_to(FOLDER)) for path in FILES]


def flat(config: Config) -> dict[str, object]:
    """Every key of a config as a dotted name."""
    out = {}

    def walk(value, name: str) -> None:
        if dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                walk(getattr(value, field.name), f"{name}.{field.name}".lstrip("."))
        else:
            out[name] = value

    walk(config, "")
    return out


def named_keys(path) -> set[str]:
    """The dotted keys that a YAML file sets itself."""
    names = set()

    def walk(value, name: str) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                walk(item, f"{name}.{key}".lstrip("."))
        else:
            names.add(name)

    walk(yaml.safe_load(path.read_text()), "")
    return names


def write(tmp_path, text: str, name: str = "mine.yaml"):
    path = tmp_path / name
    path.write_text(text)
    return path


def small(tmp_path, text: str):
    """A file on top of the paper's config."""
    return write(tmp_path, f"base: {BASE}\n{text}")


# ------------------------------------------------------------------------------ the files


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_every_config_loads(path, monkeypatch):
    """A config that only fails once the machine is booked; a loader that looks for weights."""
    monkeypatch.setattr("socket.socket", None)
    config = load_config(path)
    assert config.output.startswith("runs/")


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_configs_differ_only_where_they_say(path):
    """An ablation that changes a second thing: through its base, or by a repeated section."""
    text = yaml.safe_load(path.read_text())
    if "base" not in text:
        assert path == BASE
        return
    base, ours = flat(load_config(path.parent / text["base"])), flat(load_config(path))
    different = {key for key in base if base[key] != ours[key]} - {"output"}
    stated = named_keys(path) - {"base"}

    def covered(key: str) -> bool:
        return any(
            key == name or key.startswith(name + ".") or name.startswith(key + ".")
            for name in stated
        )

    assert different and all(covered(key) for key in different)
    if "ablations" in path.parts:
        assert len(stated) <= 2


def test_the_published_values():
    """A paper value changed by accident."""
    config = load_config(BASE)
    model, optim = config.model, config.optim
    image, text, fusion = model.image_encoder, model.text_encoder, model.fusion
    assert (image.image_px, image.patch_px, image.depth, image.heads) == (288, 16, 11, 12)
    assert (text.depth, text.vocab_size, text.max_positions, text.pad_id) == (12, 50265, 514, 1)
    assert (fusion.depth, fusion.heads, fusion.dropout) == (6, 12, 0.1)
    assert fusion.layer_norm_eps == 1e-12
    mlm, mim = model.mlm, model.mim
    assert (mlm.ratio, mim.ratio, mlm.layer, mim.layer) == (0.15, 0.75, -1, 3)
    assert (mim.decoder_width, mim.decoder_depth, mim.decoder_heads) == (384, 4, 6)
    assert (mlm.weight, mim.weight, model.itm.weight) == (1, 1, 1)
    assert (optim.lr, optim.betas, optim.eps, optim.weight_decay) == (1e-5, (0.9, 0.98), 1e-8, 0.01)
    assert (optim.fusion_lr_scale, optim.head_lr_scale, optim.warmup_frac) == (5, 5, 0.1)
    assert (optim.schedule, optim.end_lr_scale, optim.clip_norm) == ("linear", 0, None)
    assert (config.train.steps, config.train.batch_global, config.data.text_length) == (
        100_000,
        256,
        64,
    )


def test_the_published_run():
    """`m3ae_reference.yaml` must be the published run, `m3ae_fast.yaml` only drop dropout."""
    base = flat(load_config(BASE))
    for name, wanted in {
        "m3ae_reference": {"model.mlm.sampling": "reference", "model.itm.negatives": "dataset"},
        "m3ae_fast": {
            "model.text_encoder.attention_dropout": 0.0,
            "model.fusion.attention_dropout": 0.0,
        },
    }.items():
        ours = flat(load_config(FOLDER / f"{name}.yaml"))
        different = {key: ours[key] for key in base if base[key] != ours[key] and key != "output"}
        assert different == wanted


# ------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # unknown keys, the nearest named
        ("sede: 1", "unknown key sede; did you mean seed?"),
        ("model: {mlm: {rati: 0.2}}", "unknown key model.mlm.rati; did you mean model.mlm.ratio?"),
        ("optim: {qqq: 1}", "unknown key optim.qqq; valid: lr, "),
        # mistyped values
        ("seed: 1.5", "seed: expected int, got 1.5"),
        ("seed: true", "seed: expected int, got True"),
        ("seed: '1'", "seed: expected int, got '1'"),
        ("optim: {lr: fast}", "optim.lr: expected float, got 'fast'"),
        ("optim: {lr: true}", "optim.lr: expected float, got True"),
        ("optim: {lr: null}", "optim.lr: expected float, got None"),
        ("model: {share: yes}", "model.share: expected bool, got 'yes'"),
        ("model: {share: no}", "model.share: expected bool, got 'no'"),
        ("model: {share: on}", "model.share: expected bool, got 'on'"),
        ("model: {share: True}", "model.share: expected bool, got 'True'"),
        ("model: {share: 1}", "model.share: expected bool, got 1"),
        ("model: {mlm: 3}", "model.mlm.: expected a section, got 3"),
        ("data: {train: data/roco}", "data.train: expected a list, got 'data/roco'"),
        ("data: {train: [1]}", "data.train[0]: expected str, got 1"),
        ("data: {exclude: list.tsv}", "data.exclude: expected a list, got 'list.tsv'"),
        ("optim: {betas: [0.9, x]}", "optim.betas[1]: expected float, got 'x'"),
        ("eval: {attributes: [a]}", "eval.attributes: expected a mapping, got ['a']"),
        (
            "model: {mlm: {sampling: exactly}}",
            "model.mlm.sampling: 'exactly' is not one of exact, whole_word, reference",
        ),
        ("model: {mim: {decoder: [mlp]}}", "model.mim.decoder: ['mlp'] is not one of mlp"),
        # values that cannot work
        ("model: {mlm: {ratio: 0}}", "model.mlm.ratio: 0.0 is not in (0, 1)"),
        ("model: {mim: {layer: 7}}", "model.mim.layer: 7 is neither -1 nor in 0..fusion.depth (6)"),
        ("model: {mim: {weight: -1}}", "model.mim.weight: -1.0 is negative"),
        (
            "model: {mlm: {weight: 0}, mim: {weight: 0}, itm: {weight: 0}}",
            "mlm.weight, mim.weight and itm.weight are all 0",
        ),
        ("model: {itm: {group: 5}}", "model.itm.group: 5 does not divide train.batch_per_process"),
        ("train: {batch_per_process: 33}", "train.batch_global: 256 is no multiple of"),
        ("train: {steps: 0}", "train.steps: 0 is below 1"),
        ("eval: {batch: 0}", "eval.batch: 0 is below 1"),
        ("eval: {mask_draws: 0}", "eval.mask_draws: 0 is below 1"),
        ("data: {train: []}", "data.train: no folder given"),
        ("data: {train_weights: [1.0]}", "data.train_weights: 1 numbers for 2 folders"),
        ("optim: {betas: [0.9]}", "optim.betas: expected two numbers"),
        # not a config at all
        ("seed: 1\nseed: 2", "mine.yaml, line 3: duplicate key 'seed'"),
        ("model: {mlm: {ratio: 0.1, ratio: 0.2}}", "duplicate key 'ratio'"),
        ("a: b: c", "mine.yaml: not valid YAML"),
        ("model: [", "mine.yaml: not valid YAML"),
        ("seed: \x01", "mine.yaml: not valid YAML"),
        ("? [seed]\n: 1", "mine.yaml, line 2: key ['seed'] is no word"),
        ("model: {1: 2}", "line 2: key 1 is no word"),
    ],
)
def test_refused(text, message, tmp_path):
    """A typo that trains for a week: every refusal names the key, on one line."""
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load_config(small(tmp_path, text))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("number", ["-2", ".nan", ".inf"])
@pytest.mark.parametrize(
    ("load", "name"),
    [(load_config, "pretrain/m3ae"), (load_finetune_config, "finetune/finetune")],
)
def test_every_number_has_a_range(load, name, number):
    """A number that ends a run after an hour, in a traceback, or never: no workers, -1 dropout."""
    path = ROOT / f"configs/{name}.yaml"
    seen = 0
    for key, value in flat(load(path)).items():
        nothing = value is None and key.endswith(("clip_norm", "threads"))
        numbers = isinstance(value, tuple) and all(isinstance(x, float) for x in value)
        if isinstance(value, bool) or not (isinstance(value, int | float) or nothing or numbers):
            continue
        given = f"[{number}, {number}]" if numbers and value else number
        with pytest.raises(ValueError, match=f"^{re.escape(key)}"):
            load(path, [f"{key}={given}"])
        seen += 1
    assert seen > 25


def test_missing_keys(tmp_path):
    """Defaults hidden in code: without `base:` every key must stand in the file."""
    with pytest.raises(ValueError, match=r"missing key seed, .*put `base:` at the top"):
        load_config(write(tmp_path, "output: null"))
    content = yaml.safe_load(BASE.read_text())
    del content["model"]["mlm"]["ratio"]
    with pytest.raises(ValueError, match=r"missing key model\.mlm\.ratio:"):
        load_config(write(tmp_path, yaml.safe_dump(content)))
    with pytest.raises(FileNotFoundError, match=r"none\.yaml does not exist"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(FileNotFoundError, match=r"gone\.yaml does not exist"):
        load_config(write(tmp_path, "base: gone.yaml"))
    with pytest.raises(ValueError, match="base: expected the name of a file, got 3"):
        load_config(write(tmp_path, "base: 3"))
    with pytest.raises(ValueError, match="expected keys and values, got list"):
        load_config(write(tmp_path, "[1, 2]"))


def test_a_chain_of_bases(tmp_path):
    """The lower file winning over the upper, or a circle that never ends."""
    write(tmp_path, f"base: {BASE}\nseed: 1\nmodel: {{mlm: {{ratio: 0.3}}}}", "one.yaml")
    text = "base: one.yaml\nmodel: {mlm: {layer: 2}}\noptim: {lr: 2e-4}"
    path = write(tmp_path, text, "two.yaml")
    config = load_config(path)
    assert (config.seed, config.model.mlm.ratio, config.model.mlm.layer) == (1, 0.3, 2)
    assert config.optim.lr == 2e-4 and config.model.mim == load_config(BASE).model.mim
    write(tmp_path, "base: two.yaml", "one.yaml")
    with pytest.raises(ValueError, match="`base:` leads back to this file"):
        load_config(path)


# ------------------------------------------------------------------------------ values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E-5", 1e-5),
        ("1.0e-5", 1e-5),
        ("2", 2.0),
        ("+.5", 0.5),
        ("3.", 3.0),
        ("1_0.5", None),
        (".", None),
        ("1e", None),
        ("e-5", None),
    ],
)
def test_numbers(text, value, tmp_path):
    """YAML 1.1 reads 1e-5 as a word."""
    if value is None:
        with pytest.raises(ValueError, match=r"optim\.lr: expected float"):
            load_config(small(tmp_path, f"optim: {{lr: {text}}}"))
        return
    with pytest.raises(ValueError, match=f"optim\\.lr: -{value} is negative"):  # a sign is read
        load_config(BASE, [f"optim.lr=-{text.removeprefix('+')}"])
    for config in (
        load_config(small(tmp_path, f"optim: {{lr: {text}}}")),
        load_config(BASE, [f"optim.lr={text}"]),
    ):
        assert config.optim.lr == value and isinstance(config.optim.lr, float)


def test_words_stay_words(tmp_path):
    """A folder or tokeniser called `no` or `on` read as false or true."""
    for word in ("no", "on", "Yes", "off", "True"):
        config = load_config(small(tmp_path, f"data: {{tokenizer: {word}, train: [{word}]}}"))
        assert config.data.tokenizer == word and config.data.train == (word,)


def test_overrides():
    """Overrides through another parser than the file, or in the wrong order."""
    config = load_config(
        BASE,
        [
            "model.mlm.ratio=0.3",
            "model.share=false",
            "data.train=[a, b]",
            "seed=1",
            "seed=2",
            "model.text_encoder.weights=null",
            "model.mim={layer: -1, decoder: mlp}",
            "data.tokenizer=a=b",
        ],
    )
    assert config.model.mlm.ratio == 0.3 and config.model.share is False and config.seed == 2
    assert config.data.train == ("a", "b") and config.model.text_encoder.weights is None
    assert (config.model.mim.layer, config.model.mim.decoder, config.model.mim.ratio) == (
        -1,
        "mlp",
        0.75,
    )
    assert config.data.tokenizer == "a=b"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "override 'seed' is not of the form key=value"),
        ("sede=1", "unknown key sede; did you mean seed?"),
        ("model.mlm.ratoi=0.1", "did you mean model.mlm.ratio?"),
        ("seed=1.5", "seed: expected int"),
        ("seed=", "seed: expected int, got None"),
        ("seed.x=1", "seed: expected int"),
        ("model.share=yes", "model.share: expected bool"),
        ("model.mlm={ratio: 1, ratio: 2}", "override model.mlm, line 1: duplicate key 'ratio'"),
        ("data.train=[a", "override data.train: not valid YAML"),
    ],
)
def test_refused_overrides(override, message):
    """A typo on the command line that changes nothing."""
    with pytest.raises(ValueError, match=re.escape(message)):
        load_config(BASE, [override])


def test_exclusion_lists(tmp_path):
    """A run that continues with another list: the key must reach the saved config."""
    assert load_config(BASE).data.exclude is None
    config = load_config(BASE, ["data.exclude=[a.tsv, b.tsv]"])
    assert config.data.exclude == ("a.tsv", "b.tsv")
    assert load_config(write(tmp_path, to_yaml(config))) == config


def test_output_folder(tmp_path):
    """Two configs of one name writing into one run folder."""
    assert load_config(BASE).output == "runs/pretrain/m3ae"
    nested = FOLDER / "ablations" / "k0.yaml"
    assert default_output(nested) == "runs/pretrain/ablations/k0"
    assert load_config(small(tmp_path, "seed: 1")).output == "runs/mine"
    assert load_config(BASE, ["output=elsewhere/run"]).output == "elsewhere/run"


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_round_trip(path, tmp_path):
    """A run's saved config that reads back as another: resuming would refuse, or change it."""
    config = load_config(path, ["optim.clip_norm=1e-7", "eval.attributes={modality: [ct, 'no']}"])
    again = load_config(write(tmp_path, to_yaml(config)))
    assert again == config and to_yaml(again) == to_yaml(config)


TEMPLATE = load_config(BASE)
PRINTABLE = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1, max_size=12)
WORDS = ["ct", "no", "1e5", "1_0", "null", "~", "é", "a: b", "#", "2020-01-01", "=", "1:30"]


@settings(max_examples=30, phases=[Phase.explicit, Phase.generate])
@given(
    st.floats(1e-30, 1e30),
    st.integers(0, 2**31),
    PRINTABLE,
    st.booleans(),
    st.lists(st.sampled_from(WORDS), min_size=1),
)
@example(1e-5, 0, "no", True, WORDS)
def test_round_trip_of_any_value(tmp_path_factory, lr, seed, name, share, folders):
    """A float, a name or a list that YAML reads back as something else."""
    base = TEMPLATE
    config = dataclasses.replace(
        base,
        seed=seed,
        optim=dataclasses.replace(base.optim, lr=lr),
        model=dataclasses.replace(base.model, share=share),
        data=dataclasses.replace(base.data, tokenizer=name, train=tuple(folders)),
    )
    path = tmp_path_factory.mktemp("round") / "x.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(path) == config


def test_switches_leave_the_architecture():
    """A switch of the run in what a saved model is, or one that changes what it is."""
    config = load_config(BASE, ["model.share=false", "model.compile=true"])
    assert architecture_of(config.model) == architecture_of(load_config(BASE).model)
    assert type(architecture_of(config.model)) is Architecture


def test_frozen_and_build():
    """A config changed while it runs; a checkpoint's section read less strictly than a file."""
    config = load_config(BASE)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.model.mlm.ratio = 0.5
    section = dataclasses.asdict(config.model)
    assert build(ModelConfig, section) == config.model
    with pytest.raises(ValueError, match="unknown key extra"):
        build(ModelConfig, section | {"extra": 1})
    with pytest.raises(ValueError, match="missing key mlm"):
        build(ModelConfig, {key: x for key, x in section.items() if key != "mlm"})


@pytest.mark.parametrize("key", ["seed", "optim.lr", "train.steps"])
def test_numbers_too_large_for_a_float(key):
    """An OverflowError of four hundred digits."""
    with pytest.raises(ValueError, match=key):
        load_config(ROOT / "configs/pretrain/m3ae.yaml", [f"{key}={'9' * 400}"])
