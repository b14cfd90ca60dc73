"""Reference checkpoints and our own files: every tensor has its place, nothing is executed."""

import json
import os
import pickle
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from m3ae.config import load_config
from m3ae.models import M3AE, build_model
from m3ae.models.layers import sincos_2d
from m3ae.models.pretrained import convert_reference, read_checkpoint, read_weights
from tests.recipe import GOLDEN, ROOT, golden_model, golden_state, tiny_config

DROPPED = {
    "vision_encoder.positional_embedding",
    "vision_encoder.token_embedding.weight",
    "vision_encoder.ln_final.weight",
    "vision_encoder.ln_final.bias",
    "language_encoder.pooler.dense.weight",
    "language_encoder.pooler.dense.bias",
    "language_encoder.embeddings.position_ids",
    "mim_head.decoder_pos_embed",
}


def base_state() -> dict[str, torch.Tensor]:
    """The published base model's 728 tensors, without memory but for the fixed table."""
    state = {}
    for pattern, entry in json.loads((GOLDEN / "reference_base.json").read_text())[
        "key_patterns"
    ].items():
        for i in range(entry["count"]):
            shape = entry["example_shape"]
            state[pattern.replace("{i}", str(i))] = torch.empty(shape, device="meta")
    state["mim_head.decoder_pos_embed"] = sincos_2d(384, 18)[None]
    return state


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# ------------------------------------------------------------------------------ reference


def test_base_layout():
    """A tensor of the published checkpoint without a place, or of ours without a source."""
    record = json.loads((GOLDEN / "reference_base.json").read_text())
    state = base_state()
    assert len(state) == record["state_dict_tensors"] == 728
    converted = convert_reference(state)
    config = load_config(ROOT / "configs/pretrain/m3ae.yaml")  # names hub ids, and reads none
    with torch.device("meta"):
        model = M3AE(config.model)
    ours = model.state_dict()
    assert {k: t.shape for k, t in converted.items()} == {k: t.shape for k, t in ours.items()}
    model.load_state_dict(converted, strict=True, assign=True)
    dropped = sum(state[key].numel() for key in DROPPED if not key.endswith("position_ids"))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters + dropped == record["total_parameters"]


def test_exactly_the_unused_tensors_are_dropped():
    """A rule so wide that it swallows a tensor that matters."""
    state = base_state()
    for key in state:
        kept = convert_reference({key: state[key]})
        assert (not kept) == (key in DROPPED), key
    sources = [state[key].numel() for key in state if key not in DROPPED]
    kept = convert_reference(state).values()  # no two sources for one tensor
    assert sum(sources) == sum(tensor.numel() for tensor in kept)


def test_checkpoint_wrapper_and_heads():
    """A whole checkpoint taken for a state dict, or fine-tuned heads lost."""
    state = golden_state(heads=True)
    wrapped = convert_reference({"state_dict": state, "epoch": 3, "callbacks": {}})
    assert same(wrapped, convert_reference(state))
    for head in ("vqa_head", "cls_head"):
        ours = {key.removeprefix(head): t for key, t in wrapped.items() if key.startswith(head)}
        assert set(ours) == {f".{i}.{kind}" for i in (0, 1, 3) for kind in ("weight", "bias")}
        assert all(torch.equal(ours[key], state[head + key]) for key in ours)
    irtr = {"irtr_head.weight": torch.ones(1, 8), "irtr_head.bias": torch.ones(1)}
    irtr = convert_reference(irtr)
    assert set(irtr) == {"retrieval_head.weight", "retrieval_head.bias"}


@pytest.mark.parametrize(
    "key",
    [
        "vision_encoder.visual.proj2",
        "language_encoder.embeddings.extra",
        "module.itm_head.fc.bias",
        "multi_modal_vision_layers.0.adapter.weight",
        "xvqa_head.0.weight",
        "itm_head.fc.bias2",
    ],
)
def test_unknown_tensor(key):
    """A model with parts of its own converts as if it had none."""
    with pytest.raises(ValueError, match=f"no place for {key}"):
        convert_reference(golden_state() | {key: torch.zeros(2)})


@pytest.mark.parametrize(
    "spoil", [lambda t: t.flip(-1), lambda t: t + 1e-3, lambda t: t[:, :-1], lambda t: -t]
)
def test_other_position_table(spoil):
    """A decoder trained with another fixed table, run with ours: silently wrong pixels."""
    table = spoil(golden_state()["mim_head.decoder_pos_embed"])
    with pytest.raises(ValueError, match=r"mim_head\.decoder_pos_embed is not the fixed"):
        convert_reference(golden_state() | {"mim_head.decoder_pos_embed": table})


# ------------------------------------------------------------------------------ pickles

FOREIGN = """
import os
class Callback:
    def __init__(self): self.history = [1, {"a": 2}]
class Options(dict): pass
class Numbers(list): pass
class Names(set): pass
def make(*args): open(os.environ["M3AE_TEST_TRACE"], "a").write("called"); return Callback()
class Trap:
    def __reduce__(self): return make, (1,)
class Shell:
    def __reduce__(self): return os.system, ("touch " + os.environ["M3AE_TEST_TRACE"],)
class Import:
    def __reduce__(self): return __import__, ("m3ae_foreign_side_effect",)
class Evaluate:
    def __reduce__(self): return eval, ("open(__import__('os').environ['M3AE_TEST_TRACE'], 'w')",)
"""


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("importable", [True, False])
def test_foreign_objects_are_never_executed(tmp_path, monkeypatch, zipped, importable):
    """A downloaded checkpoint that runs code, or that cannot be read without its author's code."""
    trace = tmp_path / "trace"
    monkeypatch.setenv("M3AE_TEST_TRACE", str(trace))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "m3ae_foreign.py").write_text(FOREIGN)
    side = f"open({str(trace)!r}, 'w')\n"
    (tmp_path / "m3ae_foreign_side_effect.py").write_text(side)
    import m3ae_foreign as foreign

    state = golden_state()
    state["itm_head.fc.weight"] = torch.nn.Parameter(state["itm_head.fc.weight"])
    content = {
        "state_dict": state,
        "epoch": 7,
        "hyper_parameters": foreign.Options(a=1, b=[foreign.Trap]),
        "callbacks": {
            foreign.Callback: foreign.Callback(),
            "list": foreign.Numbers([1, 2]),
            "set": foreign.Names({1, 2}),
            "plain": {1, 2},
        },
        "traps": [foreign.Trap(), foreign.Shell(), foreign.Import(), foreign.Evaluate()],
    }
    path = tmp_path / "reference.ckpt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    monkeypatch.delitem(sys.modules, "m3ae_foreign")
    if not importable:
        os.remove(tmp_path / "m3ae_foreign.py")
    with pytest.raises(pickle.UnpicklingError):  # why torch's own safe mode is not enough
        torch.load(path, weights_only=True)
    read = read_checkpoint(path)
    assert not trace.exists()
    assert not {"m3ae_foreign", "m3ae_foreign_side_effect"} & sys.modules.keys()
    assert read["epoch"] == 7
    assert same(dict(read["state_dict"]), {key: t.detach() for key, t in state.items()})
    model = M3AE(tiny_config().model)
    model.load_state_dict(convert_reference(read), strict=True)
    assert same(model.state_dict(), golden_model().state_dict())
    assert same(read_weights(path), read["state_dict"])
    assert not trace.exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_checkpoint_dtypes_and_views(dtype, tmp_path):
    """A storage type that the safe reader does not know, shared memory or strides lost."""
    base = torch.arange(12).to(dtype).view(3, 4)
    torch.save({"a": base, "b": base[1:, ::2], "c": base.T}, tmp_path / "x.pt")
    read = read_checkpoint(tmp_path / "x.pt")
    assert same(read, {"a": base, "b": base[1:, ::2], "c": base.T})
    assert read["c"].dtype == dtype


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_checkpoint(share, zipped, tmp_path):
    """A download that stopped: the error must name the file, on one line."""
    path = tmp_path / "cut.ckpt"
    torch.save({"state_dict": golden_state()}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"cut\.ckpt is no PyTorch checkpoint, or is cut") as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)


def test_other_files(tmp_path, monkeypatch):
    """Text, a bare list, an empty folder, no file: each says what is wrong with which file."""
    (tmp_path / "notes.txt").write_text("not a checkpoint\n" * 20)
    with pytest.raises(ValueError, match=r"notes\.txt is no PyTorch checkpoint"):
        read_weights(tmp_path / "notes.txt")
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list\.pt: expected a dictionary of tensors, got list"):
        read_weights(tmp_path / "list.pt")
    (tmp_path / "cut.safetensors").write_bytes(b"\x08\0\0")
    with pytest.raises(ValueError, match=r"cut\.safetensors is no safetensors file"):
        read_weights(tmp_path / "cut.safetensors")
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileNotFoundError, match=r"folder holds neither model\.safetensors nor"):
        read_weights(tmp_path / "folder")
    for missing in (tmp_path / "none.pt", "./none", "some/where/else"):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            read_weights(missing)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="no local folder, and the hub cannot be reached"):
        read_weights("nobody/nothing-of-this-name")


def test_cached_weights_in_either_format(tmp_path, monkeypatch):
    """Offline, a repository cached with pytorch_model.bin only is taken for unreachable."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model.bin")

    def download(source: str, name: str) -> str:
        if name == "pytorch_model.bin":
            return str(tmp_path / name)
        raise LocalEntryNotFoundError("not in the cache")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert torch.equal(read_weights("nobody/cached")["a"], torch.ones(2))


# ------------------------------------------------------------------------------ our own files


# As written for `tiny_config` before the switches were taken out of it.
OLD_CONFIG = """{"format": "m3ae", "version": 1, "model": {
"share": true, "compile": true, "activation_checkpointing": true,
"image_encoder": {"weights": null, "kind": "clip", "image_px": 64, "patch_px": 16, "width": 128,
 "depth": 2, "heads": 2, "mlp_ratio": 4.0, "activation": "quick_gelu", "layer_norm_eps": 1e-05},
"text_encoder": {"weights": null, "kind": "roberta", "vocab_size": 200, "type_vocab_size": 1,
 "width": 96, "depth": 3, "heads": 4, "mlp_width": 384, "max_positions": 66,
 "layer_norm_eps": 1e-05, "dropout": 0.0, "attention_dropout": 0.0, "pad_id": 1},
"fusion": {"width": 96, "depth": 4, "heads": 4, "mlp_ratio": 4.0, "dropout": 0.0,
 "attention_dropout": 0.0, "layer_norm_eps": 1e-12},
"mlm": {"weight": 1.0, "ratio": 0.15, "sampling": "exact", "layer": -1, "decoder": "mlp",
 "decoder_width": 48, "decoder_depth": 2, "decoder_heads": 3},
"mim": {"weight": 1.0, "ratio": 0.75, "layer": 2, "decoder": "transformer", "decoder_width": 48,
 "decoder_depth": 2, "decoder_heads": 3, "normalise_target": true},
"itm": {"weight": 1.0, "negatives": "in_batch", "group": 2}}}
"""


@pytest.fixture
def saved(tmp_path):
    golden_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_round_trip(saved):
    """A weight rounded, a config value lost, a buffer that is not rebuilt."""
    model = M3AE.from_pretrained(saved)
    assert model.config == golden_model().config
    assert same(model.state_dict(), golden_model().state_dict())
    buffers = dict(model.named_buffers())
    assert same(buffers, dict(golden_model().named_buffers())) and buffers
    assert sorted(os.listdir(saved)) == ["README.md", "config.json", "model.safetensors"]
    card = (saved / "README.md").read_text()
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in card
    again = saved.parent / "again"
    model.save_pretrained(again)
    for name in os.listdir(saved):
        assert (again / name).read_bytes() == (saved / name).read_bytes(), name


def test_round_trip_of_an_ablation(tmp_path):
    """Without a head, or with other decoders, the folder does not load again."""
    config = tiny_config("model.itm.weight=0", "model.mim.decoder=mlp", "model.mlm.layer=2")
    model = build_model(config)
    model.save_pretrained(tmp_path)
    again = M3AE.from_pretrained(str(tmp_path))
    assert again.config == model.config and same(again.state_dict(), model.state_dict())


def test_switches_are_no_part_of_a_model(tmp_path):
    """How a run was computed saved with its model, or an older folder that says it refused."""
    model = build_model(tiny_config("model.activation_checkpointing=true", "model.share=false"))
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert list(written["model"]) == "image_encoder text_encoder fusion mlm mim itm".split()
    (tmp_path / "config.json").write_text(OLD_CONFIG)
    again = M3AE.from_pretrained(tmp_path)
    assert again.config == model.config and again.share
    assert same(again.state_dict(), model.state_dict())


def test_a_folder_of_before_there_was_one_product(saved):
    """Queries, keys and values of an older folder lost, or joined in another order."""

    def take_apart(state):
        for name in [name for name in state if "key_value" in name]:
            path, _, kind = name.rpartition(".")
            path, _, parts = path.rpartition(".")
            parts = parts.split("_")
            pieces = state.pop(name).chunk(len(parts))
            state |= {
                f"{path}.{part}.{kind}": piece.clone()
                for part, piece in zip(parts, pieces, strict=True)
            }

    edited(saved, take_apart)
    assert "fusion.text_layers.0.cross_attention.key.weight" in load_file(
        saved / "model.safetensors"
    )
    assert same(M3AE.from_pretrained(saved).state_dict(), golden_model().state_dict())
    edited(saved, lambda state: state.pop("text_encoder.blocks.0.attention.key.bias"))
    with pytest.raises(
        ValueError, match=r"lacks text_encoder\.blocks\.0\.attention\.query_key_val"
    ):
        M3AE.from_pretrained(saved)


def test_tokenizer_is_saved(tmp_path):
    """A model folder whose texts nobody can tokenise."""
    from m3ae.data.texts import fingerprint, load_tokenizer, train_wordpiece

    tokenizer = train_wordpiece(["axial ct of the chest"] * 5, 60, tmp_path / "tokenizer")
    golden_model().save_pretrained(tmp_path / "model", tokenizer)
    assert fingerprint(load_tokenizer(tmp_path / "model")) == fingerprint(tokenizer)
    assert same(M3AE.from_pretrained(tmp_path / "model").state_dict(), golden_model().state_dict())


def edited(folder, change) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("itm_head.classes.bias"), r"lacks itm_head\.classes\.bias"),
        (lambda s: s.update(extra=torch.zeros(1)), "has no place for extra"),
        (
            lambda s: s.update({"itm_head.classes.bias": torch.zeros(3)}),
            r"itm_head\.classes\.bias is \(3,\) in the file, \(2,\) by the config",
        ),
    ],
)
def test_wrong_tensors(saved, change, message):
    """Weights that load partly, silently, or with an error of many lines."""
    edited(saved, change)
    with pytest.raises(ValueError, match=message) as error:
        M3AE.from_pretrained(saved)
    assert str(saved) in str(error.value) and "\n" not in str(error.value)


def test_damaged_folders(saved):
    """A copy that stopped, or a folder of another program: which file, and what is wrong."""
    weights, config = saved / "model.safetensors", saved / "config.json"
    content = weights.read_bytes()
    weights.write_bytes(content[:-10])
    with pytest.raises(ValueError, match=r"model\.safetensors is no safetensors file, or is cut"):
        M3AE.from_pretrained(saved)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors does not exist"):
        M3AE.from_pretrained(saved)
    weights.write_bytes(content)
    good = config.read_text()
    for text, message in (
        (good.replace('"version": 1', '"version": 2'), "version 2; expected 'm3ae', 1"),
        (good.replace('"m3ae"', '"bert"'), "format 'bert'"),
        (good[:-20], r"config\.json is not valid JSON"),
        (good.replace('"fusion"', '"fusoin"'), "unknown key fusoin; did you mean fusion"),
    ):
        config.write_text(text)
        with pytest.raises(ValueError, match=message):
            M3AE.from_pretrained(saved)
    config.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        M3AE.from_pretrained(saved)
    with pytest.raises(
        FileNotFoundError, match=r"model\.safetensors is a file: python -m m3ae\.conv"
    ):
        M3AE.from_pretrained(weights)
