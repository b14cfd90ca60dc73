"""Weights as code bases and the hub hold them: wrapped, beside other towers, under other heads."""

import re

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from m3ae.models.pretrained import load_image_encoder, load_text_encoder
from tests.models.clips import DEPTH, WIDTH, clip, picture
from tests.models.test_encoders import (
    BERT,
    IMAGE,
    ROBERTA,
    VOCAB,
    image_encoder,
    stirred,
    text_encoder,
    timm_names,
    to_folder,
    vit_model,
)

OPTIMISER = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4}]}


def features(kind: str, source: str, **changes) -> Tensor:
    encoder = image_encoder(kind, **changes)
    load_image_encoder(encoder, source)
    return encoder(picture())


def equal(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=5e-6)


# ------------------------------------------------------------------------------ CLIPs


@torch.no_grad()
@pytest.mark.parametrize("text", ["", "text."])
def test_training_checkpoint_of_open_clip(text, tmp_path, caplog):
    """`module.` kept, its text tower taken for the image tower, or refused under `text.`."""
    theirs, state = clip(), {}
    for key, tensor in theirs.state_dict().items():
        tower = "" if key.startswith(("visual.", "logit_scale")) else text
        state[f"module.{tower}{key}"] = tensor
    block = {key: x for key, x in state.items() if "transformer.resblocks.0." in key}
    for number in range(1, 3 * DEPTH):  # the text tower is the deeper one
        for key, tensor in block.items():
            if "visual" not in key:
                state[key.replace("resblocks.0", f"resblocks.{number}")] = tensor
    state |= {f"module.{text}attn_mask": torch.zeros(2)} if text else {}
    state["module.logit_bias"] = torch.zeros(())
    content = {"epoch": 5, "name": "run", "state_dict": state, "optimizer": OPTIMISER}
    torch.save(content, tmp_path / "epoch_5.pt")
    with caplog.at_level("INFO"):
        equal(features("clip", str(tmp_path / "epoch_5.pt")), theirs(picture()))
    assert "read state_dict, not optimizer" in caplog.text
    named = "proj, text" if text else "proj, text_projection, token_embedding, transformer"
    assert re.search(rf"dropped .*logit_bias, .*{named}", caplog.text)


@torch.no_grad()
def test_biomed_clip(tmp_path, caplog):
    """The vision tower of timm's names below `visual.trunk.` refused, or its text tower."""
    vision, text = vit_model("ViTModel"), stirred(transformers.BertModel(BERT))
    state = timm_names(load_file(f"{to_folder(vision, tmp_path)}/model.safetensors"))
    state = {f"visual.trunk.{key}": x for key, x in state.items() if not key.startswith("head")}
    state |= {f"text.transformer.{key}": x for key, x in text.state_dict().items()}
    state |= {"visual.head.proj.weight": torch.ones(8, WIDTH), "logit_scale": torch.ones(())}
    state |= {"text.proj.0.weight": torch.ones(8, WIDTH)}
    torch.save(state, tmp_path / "open_clip_pytorch_model.bin")
    with caplog.at_level("INFO"):
        ours = features("vit", str(tmp_path), mlp_ratio=2)
    equal(ours, vision(pixel_values=picture()).last_hidden_state)
    assert "dropped logit_scale, text, visual.head" in caplog.text
    same_text(text_encoder("bert"), str(tmp_path), text)


def same_text(ours: torch.nn.Module, source: str, theirs: torch.nn.Module) -> None:
    """Loaded from a file, an encoder of ours gives the features of transformers' own."""
    load_text_encoder(ours, source)
    ids = torch.randint(4, VOCAB, (2, 9), generator=torch.Generator().manual_seed(3))
    wanted = theirs.base_model(input_ids=ids).last_hidden_state
    equal(ours(ids, torch.ones(2, 9, dtype=torch.bool)), wanted)


# ------------------------------------------------------------------------------ plain ViTs


@torch.no_grad()
@pytest.mark.parametrize("form", ["folder", "released"])
def test_masked_autoencoder(form, tmp_path, caplog):
    """MAE's `{"model": ...}` ends in a KeyError, or its decoder in the way of its encoder."""
    sizes = {
        "decoder_hidden_size": 8,
        "decoder_num_hidden_layers": 1,
        "decoder_intermediate_size": 8,
    }
    sizes |= {"decoder_num_attention_heads": 2, "mask_ratio": 0.0, "layer_norm_eps": 1e-5}
    config = transformers.ViTMAEConfig(**(IMAGE | {"intermediate_size": 32}), **sizes)
    theirs = stirred(transformers.ViTMAEForPreTraining(config))
    source = to_folder(theirs, tmp_path)
    if form == "released":
        state = load_file(f"{source}/model.safetensors")
        state = timm_names({key.removeprefix("vit."): x for key, x in state.items()})
        state = {key: x for key, x in state.items() if not key.startswith("head.")}
        state |= {"mask_token": torch.zeros(1, 1, 8), "decoder_pos_embed": torch.zeros(1, 17, 8)}
        state |= {f"decoder_{k}": torch.ones(8) for k in ("embed.weight", "norm.bias", "pred.bias")}
        state |= {"decoder_blocks.0.norm1.weight": torch.ones(8)}
        source = str(tmp_path / "mae_pretrain_vit.pth")
        torch.save({"model": state}, source)
    with caplog.at_level("INFO"):
        ours = features("vit", source, mlp_ratio=2)
    noise = torch.arange(16.0).expand(2, 16)  # the order of the patches as it is
    equal(ours, theirs.vit(pixel_values=picture(), noise=noise).last_hidden_state)
    assert re.search("dropped .*decoder", caplog.text)


@torch.no_grad()
@pytest.mark.parametrize("form", ["folder", "heads", "released"])
def test_distillation_token(form, tmp_path, caplog):
    """DeiT's second token refused, or its position taken for the first patch's."""
    config = transformers.DeiTConfig(**(IMAGE | {"intermediate_size": 32}), layer_norm_eps=1e-5)
    name = "DeiTForImageClassificationWithTeacher" if form == "heads" else "DeiTModel"
    theirs = stirred(getattr(transformers, name)(config))
    source = to_folder(theirs, tmp_path)
    base = theirs.base_model
    if form == "released":
        state = load_file(f"{source}/model.safetensors")
        token = state["embeddings.distillation_token"]
        state = timm_names(state) | {"dist_token": token, "head_dist.weight": torch.zeros(5, WIDTH)}
        source = str(tmp_path / "deit_distilled.pth")
        torch.save({"model": state}, source)
    with caplog.at_level("INFO"):
        ours = features("vit", source, mlp_ratio=2)
    assert re.search("dropped .*distillation_token", caplog.text)
    # The same weights as a ViT, which has neither the token nor its position.
    sizes = IMAGE | {"intermediate_size": 32, "layer_norm_eps": 1e-5}
    plain = transformers.ViTModel(transformers.ViTConfig(**sizes)).eval()
    state = {key: x for key, x in base.state_dict().items() if "distillation" not in key}
    positions = state["embeddings.position_embeddings"]
    state["embeddings.position_embeddings"] = torch.cat([positions[:, :1], positions[:, 2:]], 1)
    state = {key: x for key, x in state.items() if not key.startswith("pooler")}
    plain.load_state_dict(plain.state_dict() | state)
    equal(ours, plain(pixel_values=picture()).last_hidden_state)


@torch.no_grad()
def test_training_checkpoint_of_dino(tmp_path, caplog):
    """The student taken for the teacher, or `backbone.` refused."""
    theirs = vit_model("ViTModel")
    state = timm_names(load_file(f"{to_folder(theirs, tmp_path)}/model.safetensors"))
    state = {f"backbone.{key}": x for key, x in state.items() if not key.startswith("head")}
    state["head.mlp.0.weight"] = torch.zeros(4, WIDTH)
    student = {f"module.{key}": x + 1 for key, x in state.items()}
    torch.save({"student": student, "teacher": state, "epoch": 9}, tmp_path / "checkpoint.pth")
    with caplog.at_level("INFO"):
        ours = features("vit", str(tmp_path / "checkpoint.pth"), mlp_ratio=2)
    equal(ours, theirs(pixel_values=picture()).last_hidden_state)
    assert "read teacher, not student" in caplog.text and "dropped head" in caplog.text


@pytest.mark.parametrize("kind", ["clip", "vit"])
def test_a_file_of_something_else(kind, tmp_path):
    """A ResNet, or a text encoder, that ends in a list of lacking tensors or in a KeyError."""
    save_file({"layer1.0.conv1.weight": torch.zeros(2)}, tmp_path / "resnet.safetensors")
    with pytest.raises(ValueError, match=r"resnet\.safetensors: no weights of this kind: layer1"):
        load_image_encoder(image_encoder(kind), str(tmp_path / "resnet.safetensors"))
    with pytest.raises(ValueError, match=r"resnet\.safetensors: no weights of this kind: layer1"):
        load_text_encoder(text_encoder("bert"), str(tmp_path / "resnet.safetensors"))


def test_a_stranger_beside_an_image_tower(tmp_path):
    """A model with another part of its own (a Q-Former, an adapter) loads as if it had none."""
    state = clip().state_dict() | {"qformer.layer.weight": torch.zeros(2)}
    torch.save(state, tmp_path / "blip.pt")
    with pytest.raises(ValueError, match=r"blip\.pt: beside the encoder stand qformer"):
        load_image_encoder(image_encoder("clip"), str(tmp_path / "blip.pt"))


# ------------------------------------------------------------------------------ text encoders

HEADS = {
    "BertForSequenceClassification": (BERT, "classifier"),
    "BertForTokenClassification": (BERT, "classifier"),
    "BertForQuestionAnswering": (BERT, "qa_outputs"),
    "BertForMaskedLM": (BERT, "cls"),
    "RobertaForSequenceClassification": (ROBERTA, "classifier"),
    "RobertaForMultipleChoice": (ROBERTA, "classifier"),
}


@torch.no_grad()
@pytest.mark.parametrize("name", HEADS)
def test_a_text_encoder_under_a_head(name, tmp_path, caplog):
    """A fine-tuned BERT refused for its head, or a head that goes without a word."""
    config, head = HEADS[name]
    theirs = stirred(getattr(transformers, name)(config))
    kind = "roberta" if config is ROBERTA else "bert"
    with caplog.at_level("INFO"):
        same_text(text_encoder(kind), to_folder(theirs, tmp_path), theirs)
    assert re.search(rf"dropped (\w+, )*{head}", caplog.text)


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["bert.", ""])
def test_a_text_encoder_beside_a_projection(prefix, tmp_path, caplog):
    """Radiology BERTs, trained against images, refused for their projection."""
    theirs = stirred(transformers.BertModel(BERT))
    state = {f"{prefix}{key}": tensor for key, tensor in theirs.state_dict().items()}
    state["cls_projection_head.dense_to_hidden.weight"] = torch.zeros(8, WIDTH)
    state["cls.predictions.bias"] = torch.zeros(VOCAB)
    save_file(state, tmp_path / "model.safetensors")
    with caplog.at_level("INFO"):
        same_text(text_encoder("bert"), str(tmp_path), theirs)
    assert re.search("dropped .*cls, cls_projection_head", caplog.text)


@pytest.mark.parametrize("extra", ["bert.adapter.weight", "bert.encoder.layer.0.adapter.weight"])
def test_a_text_encoder_with_parts_of_its_own(extra, tmp_path):
    """Adapters inside an encoder dropped as if they were a head beside it."""
    state = {f"bert.{key}": x for key, x in transformers.BertModel(BERT).state_dict().items()}
    save_file(state | {extra: torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"no place for .*adapter\.weight"):
        load_text_encoder(text_encoder("bert"), str(tmp_path))
