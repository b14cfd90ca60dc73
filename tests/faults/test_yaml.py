"""YAML that should do harm, or is none: nothing runs, one line, little memory."""

import pytest

from m3ae import strict_yaml
from m3ae.config import load_config
from m3ae.downstream.config import load_finetune_config
from tests.faults.offered import refused, some

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{k + 1}: &a{k + 1} [{', '.join([f'*a{k}'] * 10)}]\n" for k in range(12)
)
KINDS = {
    "apply": "a: !!python/object/apply:os.system ['touch {sentinel}']",
    "new": "a: !!python/object/new:subprocess.Popen [['touch', '{sentinel}']]",
    "name": "a: !!python/name:os.system",
    "module": "a: !!python/module:os",
    "own": "a: !command 'touch {sentinel}'",
    "tuple": "a: !!python/tuple [1]",
    "laughs": LAUGHS,
    "merged": "a: &a {{b: 1}}\n" + "".join(f"c{k}: {{<<: *a}}\n" for k in range(3)) + "x: [",
    "itself": "a: &a [*a]",
    "itself_in_a_mapping": "a: &a {{b: *a}}",
    "nested": "a: " + "[" * 50_000,
    "nested_blocks": "".join(" " * k + "a:\n" for k in range(1200)),
    "digits": "a: " + "9" * 100_000,
    "date": "a: 2001-99-99",
    "set": "a: !!set {{? [1]}}",
    "null_byte": "a: \0",
    "two": "a: 1\n---\nb: 2",
    "list": "[1, 2]",
    "text": "\x7fELF",
    "anchor": "*nobody",
    "tab": "a:\n\t- b",
}


@pytest.mark.parametrize("kind", some(KINDS))
def test_hostile_files(kind, tmp_path):
    """A tag that makes an object, aliases that make billions, brackets that end the stack."""
    path, sentinel = tmp_path / "hostile.yaml", tmp_path / "executed"
    text = KINDS[kind].replace("{{", "{").replace("}}", "}").replace("{sentinel}", str(sentinel))
    path.write_text(text)
    for read in (strict_yaml.read, load_config, load_finetune_config):
        refused(lambda read=read: read(path), path.name)
    assert not sentinel.exists()


def test_aliases_of_few_values_are_read(tmp_path):
    """The limit met by a file as people write it."""
    path = tmp_path / "plain.yaml"
    path.write_text("a: &a [1, 2]\nb: *a\n")
    assert strict_yaml.read(path) == {"a": [1, 2], "b": [1, 2]}
