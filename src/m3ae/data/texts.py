"""Texts: tokenisers, and which tokens are masked for masked language modelling.

Letters: `L` text tokens, special tokens and padding included.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from m3ae.config import TextEncoderConfig
from m3ae.data.masking import NOT_SCORED
from m3ae.files import one_line, read_json_object, read_text
from m3ae.hub import ask_hub

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)

_VOCABULARIES = ("vocab.txt", "vocab.json", "merges.txt", "tokenizer.model", "spiece.model")
SAMPLINGS = ("exact", "whole_word", "reference")

# Fixed strings that any difference in vocabulary, case folding or merging shows up in.
_PROBES = (
    "Axial CT of the chest: 5.6 cm mass.",
    "T2-weighted MRI, naïve FLAIR; x-ray",
    "PHANTOM  a",
)


def load_tokenizer(name_or_folder: str | Path) -> "PreTrainedTokenizerFast":
    """Tokeniser of a hub id or a local folder, an older BERT's of a vocab.txt alone too.

    Raises FileNotFoundError when there is none, ValueError when it is no fast tokeniser, or when
    a folder does not say of which kind its vocabulary is.
    """
    from transformers import AutoTokenizer

    folder = Path(name_or_folder)
    if (folder / "vocab.txt").is_file() and not _says_its_kind(folder):
        return _read_vocabulary(folder)
    if not folder.exists():
        ask_hub()
    try:
        # False: else the library asks the terminal whether to run a tokeniser's own code.
        name, options = str(name_or_folder), {"use_fast": True, "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
    except Exception as error:  # the libraries raise whatever their parsers stumble over
        if _says_its_kind(folder) or not isinstance(error, OSError | ValueError):
            reason = one_line(error)[:300]
            raise ValueError(f"tokeniser {name}: cannot be read ({reason})") from error
        if found := [name for name in _VOCABULARIES if (folder / name).is_file()]:
            lacking = 'no config.json with a "model_type" that transformers knows (e.g. "roberta")'
            wrong = f"holds {', '.join(found)} and {lacking}; write it there"
            raise ValueError(f"tokeniser {name_or_folder}: {wrong}") from error
        reason = "no folder that holds one, and not to be had from the hub; give a local folder"
        raise FileNotFoundError(f"tokeniser {name_or_folder}: {reason}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"{name_or_folder}: only fast tokenisers give word ids; convert it first")
    for role in ("cls_token", "sep_token", "mask_token", "pad_token"):
        if getattr(tokenizer, role) is None:
            raise ValueError(f"{name_or_folder}: the tokeniser has no {role}")
    return tokenizer


def _says_its_kind(folder: Path) -> bool:
    """Whether a folder's files say which tokeniser they are of, as AutoTokenizer needs it."""
    if (folder / "tokenizer.json").is_file():
        return True
    named = {"config.json": "model_type", "tokenizer_config.json": "tokenizer_class"}
    return any(key in _settings(folder / name) for name, key in named.items())


def _settings(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}


def _read_vocabulary(folder: Path) -> "PreTrainedTokenizerFast":
    """BERT's tokeniser over a vocab.txt; if nothing says so, it keeps case where entries have it.

    Raises ValueError where the vocabulary is not BERT's.
    """
    entries = read_text(folder / "vocab.txt").splitlines()
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    if lacking := [token for token in special if token not in entries]:
        wrong = f"no {', '.join(lacking)} in it, so not BERT's; add its tokenizer.json"
        raise ValueError(f"{folder / 'vocab.txt'}: {wrong}")
    lower = _settings(folder / "tokenizer_config.json").get("do_lower_case")
    if lower is None:
        lower = all(entry == entry.lower() for entry in entries if not entry.startswith("["))
        what = (
            "all in lower case, so texts are lowered" if lower else "with capitals, so case is kept"
        )
        log.info("%s: BERT's vocabulary, %s", folder / "vocab.txt", what)
    from transformers import BertTokenizer

    return BertTokenizer.from_pretrained(str(folder), do_lower_case=lower)


def train_wordpiece(texts: Iterable[str], size: int, folder: Path) -> "PreTrainedTokenizerFast":
    """A lower-casing WordPiece of at most `size` entries for `texts`, saved in `folder`.

    Its vocabulary: special tokens, every character (first and later in a word), then the most
    frequent words. The library's own trainer breaks ties at random, so that two preparations of
    one corpus would differ.
    """
    from transformers import PreTrainedTokenizerFast

    roles = ("pad", "unk", "cls", "sep", "mask")
    special = {f"{role}_token": f"[{role.upper()}]" for role in roles}
    normaliser = normalizers.BertNormalizer(lowercase=True)
    splitter = pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text in texts:
        words = splitter.pre_tokenize_str(normaliser.normalize_str(text))
        counts.update(word for word, _ in words)
    letters = sorted({letter for word in counts for letter in word})
    entries = [*special.values(), *letters, *("##" + letter for letter in letters)]
    words = sorted((word for word in counts if len(word) > 1), key=lambda w: (-counts[w], w))
    entries += words[: max(size - len(entries), 0)]
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    core = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = normaliser, splitter
    core.decoder = decoders.WordPiece()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **special)
    tokenizer.save_pretrained(str(folder))
    return tokenizer


def check_tokenizer(tokenizer: Any, text: TextEncoderConfig, text_length: int) -> None:
    """Raise ValueError when a tokeniser or the texts' length does not fit the text encoder."""
    if len(tokenizer) > text.vocab_size:
        size = f"{text.vocab_size} is too small for the tokeniser's {len(tokenizer)} entries"
        raise ValueError(f"model.text_encoder.vocab_size: {size}")
    if (pad := tokenizer.pad_token_id) != text.pad_id:
        raise ValueError(f"model.text_encoder.pad_id: {text.pad_id}, the tokeniser pads with {pad}")
    if text_length > (most := most_tokens(text)):
        limit = f"{most}, which model.text_encoder.max_positions leaves"
        raise ValueError(f"data.text_length: {text_length} is more than {limit}")


def most_tokens(text: TextEncoderConfig) -> int:
    """The longest text that an encoder takes; RoBERTa's positions begin after the padding's."""
    return text.max_positions - (text.pad_id + 1 if text.kind == "roberta" else 0)


def fingerprint(tokenizer: "PreTrainedTokenizerFast") -> str:
    """Sixteen hex digits that change with the vocabulary, special ids or splitting rules."""
    facts = {
        "vocab": sorted(tokenizer.get_vocab().items()),
        "special": special_ids(tokenizer),
        "probes": [ids for ids, _ in encode(tokenizer, list(_PROBES))],
    }
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def special_ids(tokenizer: "PreTrainedTokenizerFast") -> dict[str, int]:
    """Ids of the four special tokens a model input needs."""
    roles = ("cls", "sep", "mask", "pad")
    return {role: getattr(tokenizer, f"{role}_token_id") for role in roles}


def encode(tokenizer: Any, texts: list[str]) -> list[tuple[list[int], list[int]]]:
    """Token ids and the word index of each token, without special tokens and without truncation."""
    if not texts:
        return []
    # verbose=False: lengths beyond the model's limit are cut by `assemble`, not an accident here.
    out = tokenizer(texts, add_special_tokens=False, truncation=False, verbose=False)
    return [(ids, list(map(int, out.word_ids(k)))) for k, ids in enumerate(out["input_ids"])]


def assemble(
    ids: Sequence[int], words: Sequence[int], length: int, special: dict[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Add the special tokens to what `encode` gave, cut and pad to `length`.

    Returns token ids (L,) int64 and word indices (L,) int64: -1 at special tokens and padding.
    """
    kept = min(len(ids), length - 2)
    out_ids = np.full(length, special["pad"], dtype=np.int64)
    out_words = np.full(length, -1, dtype=np.int64)
    out_ids[0], out_ids[kept + 1] = special["cls"], special["sep"]
    out_ids[1 : kept + 1] = ids[:kept]
    out_words[1 : kept + 1] = words[:kept]
    return out_ids, out_words


def mlm_scored(
    words: np.ndarray, ratio: float, sampling: str, rng: np.random.Generator
) -> np.ndarray:
    """Which tokens are scored: bool (L,), from the word indices (L,) of `assemble`.

    exact: max(1, round(ratio x real tokens)) real tokens, uniformly. whole_word: whole words in
    random order until that many tokens are reached. reference: max(1, round(ratio x L)) positions
    over the padded length, specials and padding then cancelled, so a short text may get none
    (the published sampling, a flaw kept for comparison).
    """
    length, real = len(words), np.flatnonzero(words >= 0)
    scored = np.zeros(length, dtype=bool)
    if sampling == "reference":
        drawn = rng.permutation(length)[: max(1, round(ratio * length))]
        scored[drawn] = True
        scored &= words >= 0
    elif sampling == "exact":
        count = min(len(real), max(1, round(ratio * len(real))))
        scored[rng.permutation(real)[:count]] = True
    elif sampling == "whole_word":
        budget = max(1, round(ratio * len(real)))
        for word in rng.permutation(np.unique(words[real])):
            if scored.sum() >= budget:
                break
            scored |= words == word
    else:
        raise ValueError(f"mlm.sampling: {sampling!r} is not one of {', '.join(SAMPLINGS)}")
    return scored


def mask_tokens(
    ids: np.ndarray, scored: np.ndarray, mask: int, ordinary: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """BERT's 80/10/10: of the scored tokens 80 % become the mask, 10 % another word, 10 % stay.

    ids (L,), scored bool (L,), ordinary (V',): the ids of all but special tokens.
    Returns masked ids (L,) and labels (L,), -100 where not scored.
    """
    draw = rng.random(len(ids))
    words = ordinary[rng.integers(0, len(ordinary), len(ids))]
    masked = np.where(scored & (draw < 0.8), mask, ids)
    masked = np.where(scored & (draw >= 0.8) & (draw < 0.9), words, masked)
    return masked, np.where(scored, ids, NOT_SCORED)


def max_scored(length: int, ratio: float, sampling: str) -> int | None:
    """The most tokens `mlm_scored` can score in a text of `length`; None when words set it."""
    if sampling == "whole_word":
        return None
    return max(1, round(ratio * (length if sampling == "reference" else length - 2)))


def ordinary_ids(tokenizer: "PreTrainedTokenizerFast") -> np.ndarray:
    """Every id of the vocabulary that is no special token, int64 (V',)."""
    special = set(tokenizer.all_special_ids)
    ids = sorted(index for index in tokenizer.get_vocab().values() if index not in special)
    return np.array(ids, dtype=np.int64)
