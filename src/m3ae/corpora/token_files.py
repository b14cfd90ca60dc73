"""The file of a split's token ids: written without reading an image, in one piece.

A new tokenizer changes this file and the manifest alone. `m3ae.data.shards` states its form.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from m3ae.corpora.shard_writer import Tensors, write_shard
from m3ae.data import shards
from m3ae.data.manifest import AGAIN, read_manifest
from m3ae.files import replacing

PATTERN = "tokens-*.safetensors"


def ragged_tokens(rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Tensors:
    """(ids, word indices) of each text as the three token tensors."""
    offsets = np.cumsum([0, *(len(ids) for ids, _ in rows)], dtype=np.int64)
    ids = np.array([number for ids, _ in rows for number in ids], dtype=np.int32)
    words = np.array([number for _, words in rows for number in words], dtype=np.int32)
    return {"token_ids": ids, "token_words": words, "token_offsets": offsets}


def describe_tokenizer(tokenizer: Any, name: str) -> dict[str, Any]:
    """A tokenizer's entry in a manifest: name, fingerprint, size (highest id + 1)."""
    from m3ae.data.texts import fingerprint  # transformers takes seconds to import

    size = max(tokenizer.get_vocab().values()) + 1
    return {"name": name, "fingerprint": fingerprint(tokenizer), "size": size}


def write_tokens(
    folder: Path, files: list[dict[str, Any]], tokenizer: Any, facts: dict[str, Any]
) -> tuple[dict[str, Any], Counter[int]]:
    """Write the token ids of the texts of these shards, whose tokenizer `facts` describe.

    Returns the file's entry in the manifest, and how many texts have how many tokens. Raises
    ValueError naming a shard that cannot be read.
    """
    parts: list[Tensors] = []
    total = sum(file["texts"] for file in files)
    with tqdm(desc=f"{folder.stem}: tokens", total=total, unit=" texts") as bar:
        for file in files:
            parts.append(_tokens_of(folder / file["name"], file["texts"], tokenizer))
            bar.update(file["texts"])
    ids, words = (
        np.concatenate([np.zeros(0, np.int32), *(part[name] for part in parts)])
        for name in ("token_ids", "token_words")
    )
    lengths = np.concatenate([np.zeros(0, np.int64), *(np.diff(p["token_offsets"]) for p in parts)])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tensors = {"token_ids": ids, "token_words": words, "token_offsets": offsets}
    path = folder / f"tokens-{facts['fingerprint']}.safetensors"
    metadata = {name: str(facts[name]) for name in ("name", "fingerprint", "size")}
    if Path(metadata["name"]).is_dir():  # where it lies here is no part of the tokens
        metadata["name"] = Path(metadata["name"]).name
    with replacing(path) as temporary:
        written = write_shard(temporary, tensors, metadata)
    return {"name": path.name, **written}, Counter(lengths.tolist())


def _tokens_of(path: Path, texts: int, tokenizer: Any) -> Tensors:
    """The token tensors of the texts of one shard."""
    from m3ae.data.texts import encode

    tensors = shards.map_shard(path)
    try:
        rows = [shards.row_bytes(tensors, "text", row).decode() for row in range(texts)]
    except (ValueError, LookupError) as error:
        raise ValueError(f"{path}: a text cannot be read ({error}); {AGAIN}") from error
    return ragged_tokens(encode(tokenizer, rows))


def find_tokenizer(folder: Path) -> dict[str, Any] | None:
    """The entry of a split's tokenizer by its file of token ids, None where there is no such file.

    Needs no manifest unless there are several such files; of a folder it then knows the last part
    alone. ValueError where the files cannot tell.
    """
    paths = sorted(folder.glob(PATTERN))
    if not paths:
        return None
    if len(paths) > 1:  # data_prep/tokens.py was killed: the manifest says which one counts
        try:
            return read_manifest(folder)["tokenizer"]
        except (ValueError, FileNotFoundError) as error:
            message = f"several {PATTERN}, and no manifest to say which one counts"
            raise ValueError(f"{folder}: {message}; delete all but one") from error
    metadata = shards.read_metadata(paths[0])
    if not metadata.keys() >= {"name", "fingerprint", "size"} or not metadata["size"].isdigit():
        raise ValueError(f"{paths[0]}: does not say which tokenizer it is of; copy it again")
    names = ("name", "fingerprint")
    return {**{name: metadata[name] for name in names}, "size": int(metadata["size"])}
