"""Both encoders against transformers' own, on random weights, and from files of each family."""

import re

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from m3ae.config import ImageEncoderConfig, TextEncoderConfig
from m3ae.models.image_encoder import ImageEncoder, resize_positions
from m3ae.models.m3ae import initialise
from m3ae.models.pretrained import load_image_encoder, load_text_encoder
from m3ae.models.text_encoder import TextEncoder
from tests.recipe import golden_state, tiny_config

WIDTH, HEADS, HIDDEN, VOCAB, PX, PATCH = 16, 2, 24, 60, 32, 8
COMMON = {
    "hidden_size": WIDTH,
    "num_attention_heads": HEADS,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": 3,
}
IMAGE = COMMON | {"image_size": PX, "patch_size": PATCH}


def stirred(model: torch.nn.Module) -> torch.nn.Module:
    """Random weights that leave no bias at 0 and no LayerNorm weight at 1."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw))
    return model.eval()


def to_folder(model: torch.nn.Module, tmp_path) -> str:
    model.save_pretrained(tmp_path / "saved")
    return str(tmp_path / "saved")


# ------------------------------------------------------------------------------ texts

TEXT = {"vocab_size": VOCAB, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
ROBERTA = transformers.RobertaConfig(
    **COMMON,
    **TEXT,
    max_position_embeddings=22,
    type_vocab_size=1,
    pad_token_id=1,
    layer_norm_eps=1e-5,
)
BERT = transformers.BertConfig(
    **COMMON,
    **TEXT,
    max_position_embeddings=20,
    type_vocab_size=2,
    pad_token_id=0,
    layer_norm_eps=1e-12,
)


def text_encoder(kind: str, **changes) -> TextEncoder:
    config = ROBERTA if kind == "roberta" else BERT
    sizes = {
        "weights": None,
        "kind": kind,
        "vocab_size": VOCAB,
        "type_vocab_size": config.type_vocab_size,
        "width": WIDTH,
        "depth": 3,
        "heads": HEADS,
        "mlp_width": HIDDEN,
        "max_positions": config.max_position_embeddings,
        "layer_norm_eps": config.layer_norm_eps,
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "pad_id": config.pad_token_id,
    }
    return TextEncoder(TextEncoderConfig(**(sizes | changes))).eval()


TEXT_MODELS = {
    "RobertaModel": ("roberta", ROBERTA),
    "RobertaForMaskedLM": ("roberta", ROBERTA),
    "BertModel": ("bert", BERT),
    "BertForMaskedLM": ("bert", BERT),
    "BertForPreTraining": ("bert", BERT),
}


@torch.no_grad()
@pytest.mark.parametrize("name", TEXT_MODELS)
def test_text_encoder_equals_transformers(name, tmp_path):
    """Positions off by one, another eps, a swapped query and key, padding attended to."""
    kind, config = TEXT_MODELS[name]
    theirs, ours = stirred(getattr(transformers, name)(config)), text_encoder(kind)
    load_text_encoder(ours, to_folder(theirs, tmp_path))
    keep = torch.arange(12) < torch.tensor([12, 7, 3])[:, None]
    ids = torch.randint(4, VOCAB, (3, 12), generator=torch.Generator().manual_seed(3))
    ids = ids.where(keep, ours.pad_id)
    base = theirs.base_model
    wanted = base(input_ids=ids, attention_mask=keep.long()).last_hidden_state
    torch.testing.assert_close(ours(ids, keep), wanted, rtol=1e-5, atol=2e-6)  # padding included


@torch.no_grad()
def test_old_layer_norm_names(tmp_path):
    """Old TensorFlow conversions call LayerNorm's weight and bias gamma and beta."""
    theirs = stirred(transformers.BertForMaskedLM(BERT))
    ours, other = text_encoder("bert"), text_encoder("bert")
    load_text_encoder(ours, to_folder(theirs, tmp_path))
    state = load_file(tmp_path / "saved" / "model.safetensors")
    for new, old in (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")):
        state = {key.replace(new, old): tensor for key, tensor in state.items()}
    state["bert.embeddings.position_ids"] = torch.arange(20)[None]  # older files hold it
    torch.save(state, tmp_path / "pytorch_model.bin")
    load_text_encoder(other, str(tmp_path))
    for (key, one), two in zip(ours.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(one, two), key


@torch.no_grad()
def test_text_encoder_may_be_shallower(tmp_path):
    """The first `depth` blocks are the ones to keep, the rest dropped without an error."""
    theirs, ours = stirred(transformers.RobertaModel(ROBERTA)), text_encoder("roberta", depth=2)
    load_text_encoder(ours, to_folder(theirs, tmp_path))
    ids, keep = torch.randint(4, VOCAB, (2, 9)), torch.ones(2, 9, dtype=torch.bool)
    wanted = theirs(input_ids=ids, output_hidden_states=True).hidden_states[2]
    torch.testing.assert_close(ours(ids, keep), wanted, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 32}, r"word_embedding\.weight is \(60, 16\) in the file, \(60, 32\)"),
        ({"vocab_size": 61}, "word_embedding"),
        ({"depth": 4}, r"lacks blocks\.3\."),
        ({"type_vocab_size": 2}, "type_embedding"),
        ({"max_positions": 30}, "position_embedding"),
    ],
)
def test_text_sizes_must_agree(changes, message, tmp_path):
    """Weights of another size that load partly, silently."""
    folder = to_folder(transformers.RobertaModel(ROBERTA), tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        load_text_encoder(text_encoder("roberta", **changes), folder)
    assert folder in str(error.value) and "\n" not in str(error.value)


def test_text_family_must_agree(tmp_path):
    """RoBERTa weights read with BERT's positions: no error, just worse results."""
    folder = to_folder(transformers.RobertaForMaskedLM(ROBERTA), tmp_path)
    with pytest.raises(ValueError, match=r"roberta.*text_encoder\.kind is 'bert'"):
        load_text_encoder(text_encoder("bert", type_vocab_size=1, max_positions=22), folder)


# ------------------------------------------------------------------------------ images


def image_encoder(kind: str, image_px: int = PX, **changes) -> ImageEncoder:
    sizes = {
        "weights": None,
        "kind": kind,
        "image_px": image_px,
        "patch_px": PATCH,
        "width": WIDTH,
        "depth": 3,
        "heads": HEADS,
        "mlp_ratio": HIDDEN / WIDTH,
        "layer_norm_eps": 1e-5,
        "activation": "quick_gelu" if kind == "clip" else "gelu",
    }
    return ImageEncoder(ImageEncoderConfig(**(sizes | changes))).eval()


def images(px: int = PX) -> torch.Tensor:
    return torch.randn(2, 3, px, px, generator=torch.Generator().manual_seed(1))


def clip_vision(depth: int = 3) -> transformers.CLIPVisionConfig:
    return transformers.CLIPVisionConfig(**(IMAGE | {"num_hidden_layers": depth}))


def clip_model() -> transformers.CLIPModel:
    text = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 2, **COMMON}
    return transformers.CLIPModel(
        transformers.CLIPConfig(
            vision_config=clip_vision().to_dict(), text_config=text, projection_dim=8
        )
    )


@torch.no_grad()
@pytest.mark.parametrize("depth", [12, 11])
def test_clip_at_depth(depth, tmp_path):
    """The first blocks instead of the last dropped, or `ln_post` on the CLS token only."""
    theirs = stirred(transformers.CLIPVisionModel(clip_vision(12)))
    ours = image_encoder("clip", depth=depth)
    load_image_encoder(ours, to_folder(theirs, tmp_path))
    hidden = theirs(pixel_values=images(), output_hidden_states=True).hidden_states[depth]
    vision = getattr(theirs, "vision_model", theirs)
    wanted = vision.post_layernorm(hidden)
    torch.testing.assert_close(ours(images()), wanted, rtol=1e-5, atol=5e-6)


def openai_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A CLIPModel's tensors as the original CLIP release names them: one matrix for q, k and v."""
    out = {}
    plain = {
        "embeddings.class_embedding": "class_embedding",
        "embeddings.patch_embedding.weight": "conv1.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
    }
    block = {
        "self_attn.out_proj": "attn.out_proj",
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
    }
    for key, tensor in state.items():
        if not key.startswith("vision_model."):
            continue
        key = key.removeprefix("vision_model.")
        match = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", key)
        if key in plain:
            out[f"visual.{plain[key]}"] = tensor
        elif match and match[2] in block:
            out[f"visual.transformer.resblocks.{match[1]}.{block[match[2]]}.{match[3]}"] = tensor
        elif match and match[2] == "self_attn.q_proj":
            parts = [state[f"vision_model.{key}".replace("q_proj", f"{x}_proj")] for x in "qkv"]
            joined = f"visual.transformer.resblocks.{match[1]}.attn.in_proj_{match[3]}"
            out[joined] = torch.cat(parts)
        elif not match:
            key = key.replace("pre_layrnorm", "ln_pre").replace("post_layernorm", "ln_post")
            out[f"visual.{key}"] = tensor
    text = (
        "positional_embedding",
        "token_embedding.weight",
        "ln_final.weight",
        "text_projection",
        "logit_scale",
        "transformer.resblocks.0.ln_1.weight",
        "visual.proj",
    )
    return out | {key: torch.zeros(2) for key in text}


@torch.no_grad()
@pytest.mark.parametrize("form", ["model", "projection", "whole", "openai", "openai-bare"])
def test_clip_files(form, tmp_path):
    """A prefix not taken off, a text tower that is in the way, q, k and v split wrongly."""
    whole = stirred(clip_model())
    vision = {key: x for key, x in whole.state_dict().items() if key.startswith("vision_model.")}
    source = tmp_path / "clip.safetensors"
    if form == "whole":
        source = to_folder(whole, tmp_path)
    elif form == "model":  # as transformers 5 writes CLIPVisionModel: no prefix
        save_file({key.removeprefix("vision_model."): x for key, x in vision.items()}, source)
    elif form == "projection":
        save_file(vision | {"visual_projection.weight": torch.zeros(2, 2)}, source)
    else:
        state = openai_names(whole.state_dict())
        if form == "openai-bare":
            state = {k.removeprefix("visual."): x for k, x in state.items() if "visual." in k}
        save_file(state, source)
    ours = image_encoder("clip")
    load_image_encoder(ours, str(source))
    hidden = whole.vision_model(pixel_values=images()).last_hidden_state
    wanted = whole.vision_model.post_layernorm(hidden)
    torch.testing.assert_close(ours(images()), wanted, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("name", ["class_embedding", "position_embedding.weight"])
def test_a_clip_file_without_a_part(name, tmp_path):
    """A KeyError with a traceback where a file lacks what is reshaped on loading."""
    state = {key: x for key, x in clip_model().vision_model.state_dict().items() if name not in key}
    save_file(state, tmp_path / "clip.safetensors")
    with pytest.raises(ValueError, match=r"clip\.safetensors: lacks (class|position)_"):
        load_image_encoder(image_encoder("clip"), str(tmp_path / "clip.safetensors"))


def timm_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of transformers' ViT or DINOv2 file as timm names them: one q, k and v."""
    table = [
        (r"embeddings\.cls_token", "cls_token"),
        (r"embeddings\.position_embeddings", "pos_embed"),
        (r"embeddings\.mask_token", "mask_token"),
        (r"layernorm\.(\w+)", r"norm.\1"),
        (r"embeddings\.patch_embeddings\.projection\.(\w+)", r"patch_embed.proj.\1"),
        (r"encoder\.layer\.(\d+)\.(?:layernorm_before|norm1)\.(\w+)", r"blocks.\1.norm1.\2"),
        (r"encoder\.layer\.(\d+)\.(?:layernorm_after|norm2)\.(\w+)", r"blocks.\1.norm2.\2"),
        (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(\w+)", r"blocks.\1.attn.proj.\2"),
        (
            r"encoder\.layer\.(\d+)\.(?:intermediate\.dense|mlp\.fc1)\.(\w+)",
            r"blocks.\1.mlp.fc1.\2",
        ),
        (r"encoder\.layer\.(\d+)\.(?:output\.dense|mlp\.fc2)\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
        (r"encoder\.layer\.(\d+)\.layer_scale(\d)\.lambda1", r"blocks.\1.ls\2.gamma"),
    ]
    out = {}
    for key, tensor in state.items():
        for pattern, name in table:
            if match := re.fullmatch(pattern, key):
                out[match.expand(name)] = tensor
        if match := re.fullmatch(r"encoder\.layer\.(\d+)\.(.*)query\.(\w+)", key):
            parts = [state[key.replace("query", name)] for name in ("query", "key", "value")]
            out[f"blocks.{match[1]}.attn.qkv.{match[3]}"] = torch.cat(parts)
    return out | {"head.weight": torch.zeros(5, WIDTH), "head.bias": torch.zeros(5)}


def vit_model(name: str) -> torch.nn.Module:
    if name.startswith("Dinov2"):
        sizes = {key: value for key, value in IMAGE.items() if key != "intermediate_size"}
        config = transformers.Dinov2Config(**sizes, mlp_ratio=2, layer_norm_eps=1e-5)
    else:
        config = transformers.ViTConfig(**(IMAGE | {"intermediate_size": 32}), layer_norm_eps=1e-5)
    return stirred(getattr(transformers, name)(config))


VIT_MODELS = (
    "ViTModel",
    "ViTForImageClassification",
    "Dinov2Model",
    "Dinov2ForImageClassification",
)


@torch.no_grad()
@pytest.mark.parametrize("form", ["folder", "memory", "timm"])
@pytest.mark.parametrize("name", VIT_MODELS)
def test_plain_vit(name, form, tmp_path):
    """Layer scale lost on loading, another eps or activation, a pre-norm where ViT has none."""
    theirs = vit_model(name)
    source = folder = to_folder(theirs, tmp_path)
    if form == "memory":  # transformers 5 renames in memory; torch.save(state_dict) keeps that
        source = str(tmp_path / "state.pt")
        torch.save(theirs.state_dict(), source)
    elif form == "timm":
        state = load_file(f"{folder}/model.safetensors")
        state = {re.sub(r"^(vit|dinov2)\.", "", key): x for key, x in state.items()}
        source = str(tmp_path / "timm.safetensors")
        save_file(timm_names(state), source)
    ours = image_encoder("vit", mlp_ratio=2)
    load_image_encoder(ours, source)
    base = theirs.base_model
    wanted = base(pixel_values=images()).last_hidden_state
    torch.testing.assert_close(ours(images()), wanted, rtol=1e-5, atol=5e-6)


@torch.no_grad()
def test_layer_scale_is_folded(tmp_path):
    """The test above with every scale near 1 would not see it: here it is far from 1."""
    theirs = vit_model("Dinov2Model")
    for name, parameter in theirs.named_parameters():
        if "lambda1" in name:
            parameter.copy_(torch.linspace(-2, 2, WIDTH))
    ours = image_encoder("vit", mlp_ratio=2)
    load_image_encoder(ours, to_folder(theirs, tmp_path))
    wanted = theirs(pixel_values=images()).last_hidden_state
    torch.testing.assert_close(ours(images()), wanted, rtol=1e-5, atol=5e-6)


@torch.no_grad()
def test_positions_are_resized_on_loading(tmp_path):
    """Another image size refuses the file, or reads the table in another order."""
    theirs = stirred(transformers.CLIPVisionModel(clip_vision()))
    folder = to_folder(theirs, tmp_path)
    ours, larger = image_encoder("clip"), image_encoder("clip", image_px=48)
    load_image_encoder(ours, folder)
    load_image_encoder(larger, folder)
    assert torch.equal(larger.position_embedding, resize_positions(ours.position_embedding, 6))
    wanted = theirs(
        pixel_values=images(48), interpolate_pos_encoding=True, output_hidden_states=True
    ).hidden_states[-1]
    vision = getattr(theirs, "vision_model", theirs)
    torch.testing.assert_close(
        larger(images(48)), vision.post_layernorm(wanted), rtol=1e-5, atol=5e-6
    )


def test_resizing_a_table():
    """A table that is no square, a smooth ramp that does not stay one, a moved CLS row."""
    table = torch.randn(1 + 16, 4)
    assert resize_positions(table, 4) is table
    larger = resize_positions(table, 7)
    assert larger.shape == (50, 4) and torch.equal(larger[0], table[0])
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    ramp = torch.stack([rows.flatten(), columns.flatten()], dim=1)
    ramp = resize_positions(torch.cat([torch.zeros(1, 2), ramp]), 8)[1:].view(8, 8, 2)
    assert (ramp[1:, :, 0] > ramp[:-1, :, 0]).all() and (ramp[:, 1:, 1] > ramp[:, :-1, 1]).all()
    torch.testing.assert_close(ramp[..., 0], ramp[..., 1].T)
    with pytest.raises(ValueError, match="18 rows"):
        resize_positions(torch.randn(18, 4), 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 32}, "class_token is"),
        ({"patch_px": 16}, r"patch_embedding\.weight is \(16, 3, 8, 8\) in the file"),
        ({"depth": 4}, r"lacks blocks\.3\."),
        ({"mlp_ratio": 4}, "feed_forward"),
    ],
)
def test_image_sizes_must_agree(changes, message, tmp_path):
    """Weights of another size that load partly, silently."""
    folder = to_folder(transformers.CLIPVisionModel(clip_vision()), tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        load_image_encoder(image_encoder("clip", **changes), folder)
    assert folder in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["clip", "vit"])
def test_image_family_must_agree(kind, tmp_path):
    """A plain ViT read as a CLIP (or back): its extra or missing tensors must be named."""
    theirs = vit_model("ViTModel") if kind == "clip" else clip_model()
    folder = to_folder(theirs, tmp_path)
    with pytest.raises(ValueError, match=re.escape(folder)) as error:
        load_image_encoder(image_encoder(kind), folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("extra", ["embeddings.register_tokens", "adapter.weight"])
def test_unknown_tensors_are_refused(extra, tmp_path):
    """A model with parts of its own (register tokens, adapters) loads as if it had none."""
    to_folder(vit_model("ViTModel"), tmp_path)
    path = tmp_path / "saved" / "model.safetensors"
    save_file(load_file(path) | {extra: torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=re.escape(extra)):
        load_image_encoder(image_encoder("vit", mlp_ratio=2), str(tmp_path / "saved"))


@torch.no_grad()
def test_kept_patches():
    """Positions added after the choice of patches, kept ones sorted, or CLS dropped."""
    encoder = image_encoder("clip")
    initialise(encoder)
    stirred(encoder)
    order = torch.stack([torch.randperm(16) for _ in range(2)])
    whole, kept = encoder(images(), order), encoder(images(), order[:, :5])
    back = torch.cat(
        [
            whole[:, :1],
            whole[:, 1:].gather(1, order.argsort(dim=1)[:, :, None].expand(-1, -1, WIDTH)),
        ],
        dim=1,
    )
    torch.testing.assert_close(back, encoder(images()), rtol=1e-5, atol=5e-6)
    blank = images().unflatten(2, (4, PATCH)).unflatten(4, (4, PATCH)).clone()
    for row in range(2):
        for patch in order[row, 5:].tolist():  # what was removed cannot matter
            blank[row, :, patch // 4, :, patch % 4] = 9.0
    again = encoder(blank.flatten(4, 5).flatten(2, 3), order[:, :5])
    torch.testing.assert_close(again, kept, rtol=1e-5, atol=5e-6)
    assert kept.shape == (2, 6, WIDTH)


def test_weights_of_the_golden_text_encoder(tmp_path):
    """Files of the text encoder alone are read under the same names as inside a checkpoint."""
    state = {
        key.removeprefix("language_encoder."): value
        for key, value in golden_state().items()
        if key.startswith("language_encoder.")
    }
    save_file(state, tmp_path / "model.safetensors")
    encoder = TextEncoder(tiny_config().model.text_encoder)
    load_text_encoder(encoder, str(tmp_path))
    wanted = state["encoder.layer.2.output.dense.weight"]
    assert torch.equal(encoder.blocks[2].feed_forward.down.weight, wanted)
