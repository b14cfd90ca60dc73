"""What shapes do not say of an encoder: a config.json that differs is an error."""

import json
import re

import pytest
import torch
import transformers

from m3ae.models.pretrained import load_image_encoder, load_text_encoder
from tests.models.clips import HEADS, PATCH, WIDTH, clip
from tests.models.test_encoders import (
    BERT,
    ROBERTA,
    clip_model,
    image_encoder,
    text_encoder,
    to_folder,
    vit_model,
)
from tests.models.test_weight_files import cached


def edited(folder: str, **changes) -> None:
    """Change a folder's config.json, in the section of its image tower where it has one."""
    with open(f"{folder}/config.json", encoding="utf-8") as file:
        content = json.load(file)
    section = content.get("vision_config", content)
    for name, value in changes.items():
        section[name] = value
        if value is None:
            del section[name]
    with open(f"{folder}/config.json", "w", encoding="utf-8") as file:
        json.dump(content, file)


@pytest.mark.parametrize(
    ("changes", "there", "here"),
    [
        ({"num_attention_heads": 4}, "4", r"2 here \(heads\)"),
        ({"hidden_act": "gelu"}, "'gelu'", r"'quick_gelu' here \(activation\)"),
        ({"layer_norm_eps": 1e-6}, "1e-06", r"1e-05 here \(layer_norm_eps\)"),
        ({"hidden_size": 32}, "32", r"16 here \(width\)"),
        ({"intermediate_size": 32}, "32", r"24 here \(width \* mlp_ratio\)"),
        ({"patch_size": 16}, "16", r"8 here \(patch_px\)"),
        ({"model_type": "vit"}, "'vit'", "'clip' here"),
    ],
)
@pytest.mark.parametrize("form", ["clip", "clip_vision_model"])
def test_an_image_tower_of_other_settings(changes, there, here, form, tmp_path):
    """A CLIP of 4 heads and gelu in 2 heads and quick_gelu: other features, without a word."""
    theirs = clip_model()
    folder = to_folder(theirs, tmp_path)
    if form == "clip_vision_model":
        folder = to_folder(
            transformers.CLIPVisionModel(theirs.config.vision_config), tmp_path / "v"
        )
    load_image_encoder(image_encoder("clip"), folder)
    edited(folder, **changes)
    (name,) = changes
    wrong = rf"config\.json: {name.replace('model_type', 'kind')} is {there} there, {here}"
    with pytest.raises(ValueError, match=wrong) as error:
        load_image_encoder(image_encoder("clip"), folder)
    assert folder in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).endswith("change the config's image_encoder")


def test_all_differences_at_once(tmp_path):
    """A user who mends one setting only to hear of the next."""
    folder = to_folder(clip_model(), tmp_path)
    encoder = image_encoder("clip", heads=4, activation="gelu", layer_norm_eps=1e-6)
    wrong = "num_attention_heads is 2 there, 4 here.*hidden_act is 'quick_gelu'.*layer_norm_eps"
    with pytest.raises(ValueError, match=wrong):
        load_image_encoder(encoder, folder)


@pytest.mark.parametrize("name", ["ViTModel", "Dinov2Model"])
def test_a_plain_vit_of_other_settings(name, tmp_path):
    """The same of plain ViTs, whose default eps is 1e-12 or 1e-6, not a CLIP's 1e-5."""
    folder = to_folder(vit_model(name), tmp_path)
    load_image_encoder(image_encoder("vit", mlp_ratio=2), folder)
    for changes, own in (({"layer_norm_eps": 1e-12}, "eps"), ({"heads": 4}, "attention_heads")):
        with pytest.raises(ValueError, match=f"{own} is .* there"):
            load_image_encoder(image_encoder("vit", mlp_ratio=2, **changes), folder)
    edited(folder, layer_norm_eps=None)  # so it is the default of the class
    with pytest.raises(ValueError, match=r"layer_norm_eps is 1e-(12|06) there, 1e-05 here"):
        load_image_encoder(image_encoder("vit", mlp_ratio=2), folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 4}, r"num_attention_heads is 4 there, 2 here \(heads\)"),
        ({"layer_norm_eps": 1e-6}, r"layer_norm_eps is 1e-06 there, 1e-12 here"),
        ({"hidden_act": "relu"}, r"hidden_act is 'relu' there, 'gelu' here \(of every text enc"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"is_decoder": True}, "is_decoder is True there, False here"),
        ({"pad_token_id": 3}, r"pad_token_id is 3 there, 0 here \(pad_id\)"),
        ({"vocab_size": 61}, "vocab_size is 61 there, 60 here"),
        ({"model_type": "roberta"}, "kind is 'roberta' there, 'bert' here"),
    ],
)
def test_a_text_encoder_of_other_settings(changes, message, tmp_path):
    """Heads, eps, activation, or a RoBERTa without its prefix, read as another model."""
    folder = to_folder(transformers.BertModel(BERT), tmp_path)
    load_text_encoder(text_encoder("bert"), folder)
    edited(folder, **changes)
    with pytest.raises(ValueError, match=f"{re.escape(folder)}.*{message}"):
        load_text_encoder(text_encoder("bert"), folder)


def test_roberta_without_its_prefix(tmp_path):
    """A RobertaModel's tensors have BERT's names: only its config.json tells them apart."""
    folder = to_folder(transformers.RobertaModel(ROBERTA), tmp_path)
    sizes = {"type_vocab_size": 1, "max_positions": 22, "layer_norm_eps": 1e-5, "pad_id": 1}
    with pytest.raises(ValueError, match="kind is 'roberta' there, 'bert' here"):
        load_text_encoder(text_encoder("bert", **sizes), folder)


def test_a_hub_id_of_other_settings(tmp_path, monkeypatch):
    """The weights of a hub id read, its config.json never looked for."""
    folder = cached(tmp_path, monkeypatch)
    clip_model().save_pretrained(folder)
    load_image_encoder(image_encoder("clip"), "someone/model")
    with pytest.raises(ValueError, match="num_attention_heads is 2 there, 4 here"):
        load_image_encoder(image_encoder("clip", heads=4), "someone/model")
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"cannot be reached for config\.json"):
        load_image_encoder(image_encoder("clip", heads=4), "someone/model")


def test_what_is_not_said_is_logged(tmp_path, caplog):
    """A folder that does not say its heads, trusted without a word."""
    torch.save(clip().state_dict(), tmp_path / "pytorch_model.bin")
    with caplog.at_level("INFO"):
        load_image_encoder(image_encoder("clip"), str(tmp_path))
    assert "no config.json in it" in caplog.text
    (tmp_path / "config.json").write_text(json.dumps({"hidden_act": "quick_gelu"}))
    with caplog.at_level("INFO"):
        load_image_encoder(image_encoder("clip"), str(tmp_path))
    assert "does not say num_attention_heads, layer_norm_eps" in caplog.text
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        load_image_encoder(image_encoder("clip"), str(tmp_path))


def test_settings_of_open_clip(tmp_path):
    """open_clip's ViT-B-16 has gelu where OpenAI's has quick_gelu, in tensors of equal shapes."""
    torch.save(clip().state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    vision = {"width": WIDTH, "patch_size": PATCH, "layers": 3, "head_width": WIDTH // HEADS}
    path = tmp_path / "open_clip_config.json"
    path.write_text(json.dumps({"model_cfg": {"vision_cfg": vision, "quick_gelu": True}}))
    load_image_encoder(image_encoder("clip"), str(tmp_path))
    path.write_text(json.dumps({"model_cfg": {"vision_cfg": vision}}))
    with pytest.raises(ValueError, match="hidden_act is 'gelu' there, 'quick_gelu' here"):
        load_image_encoder(image_encoder("clip"), str(tmp_path))
    load_image_encoder(image_encoder("clip", activation="gelu"), str(tmp_path))
