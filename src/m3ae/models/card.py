"""The model card, README.md of a saved folder: what it is, how to load it, what it learned from."""

from torch import nn

NOT_STATED = "Not stated."
_CARD = """---
license: {licence}
library_name: m3ae
tags: [medical, vision-language, masked-autoencoder{tags}]
---
# {title}

M3AE, a multi-modal masked autoencoder (Chen et al., MICCAI 2022), {what}. Images of
{image.image_px} px in patches of {image.patch_px} px, {text.max_positions} positions of text
({text.kind}), {parameters:,} parameters{origin}.

## How to load

```python
{lines}
```

{module} `config.json` says what it is: the model section of its training's configuration, less how
it was computed.{meaning}

## Data and protocol

{data}

## Numbers

{numbers}

## Licence

{licence}. The data that it was trained on have licences of their own.

## Limits

For research; not a medical device. It knows what its training data show, and no more: other
devices, hospitals, languages and questions were not tested. {answers}
"""
_PREDICTOR = """from m3ae.predictor import Predictor
predictor = Predictor.from_pretrained("{name}")
{use}"""
_MODULE = """from {place} import {kind}
model = {kind}.from_pretrained("{name}")"""
_ASK = 'predictor("x.png", "{text}")["prediction"]'
_RANK = 'predictor.rank_captions("x.png", ["a fracture", "no fracture"])'
_TEXTS = {"vqa": "Is there a mass?", "classification": "its text", "multilabel": "its text"}


def card_of(
    model: nn.Module,
    tokenizer: bool,
    *,
    name: str = "this folder",
    title: str = "M3AE",
    licence: str = "apache-2.0",
    origin: str = "",
    data: str = NOT_STATED,
    numbers: str = NOT_STATED,
) -> str:
    """The text of a card; what nobody stated stands there as such.

    `tokenizer`: whether the folder has one, without which nothing but the module can be loaded.
    A head of one's own is named, and has to be imported.
    """
    task, own = getattr(model, "task", None), type(model)
    module = "`M3AE.from_pretrained` of `m3ae.models` gives its encoders and fusion as a module."
    asks = _ASK.format(text=_TEXTS[task]) if task in _TEXTS else _RANK
    if tokenizer and (task or hasattr(model, "itm_head")):
        lines = _PREDICTOR.format(name=name, use=asks)
    else:
        lines = _MODULE.format(place=own.__module__, kind=own.__name__, name=name)
    if task and not own.__module__.startswith("m3ae."):
        lines = f"import {own.__module__}  # whose {own.__name__} is its head\n{lines}"
    answers = "It answers every question, also those that have no answer in the image"
    answers += ", from the list in `downstream.json`." if task in _TEXTS else "."
    if task not in _TEXTS:
        answers = "A match score ranks, it is no probability."
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return _CARD.format(
        licence=licence,
        tags=f", {task}" if task else "",
        title=title,
        what=f"fine-tuned for {task}" if task else "pre-trained",
        image=model.config.image_encoder,
        text=model.config.text_encoder,
        parameters=parameters,
        origin=origin,
        lines=lines,
        module=module,
        meaning=" `downstream.json` says what the outputs of its head mean." if task else "",
        data=data,
        numbers=numbers,
        answers=answers,
    )
