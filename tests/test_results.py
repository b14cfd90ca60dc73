"""docs/results: the tables that rest on predictions are those that the kept files give."""

import pytest

from benchmarks import results


def test_every_table_has_its_place():
    """A table of the script that no page shows, or a page whose marks were edited away."""
    for name, (page, _) in results.TABLES.items():
        text = (results.PAGES / page).read_text(encoding="utf-8")
        assert results.replaced(text, name, ["| x |"]) != text


@pytest.mark.parametrize("name", ["vqa_rad_strict", "strict_cost"])
def test_tables_are_those_of_the_kept_files(name):
    """A figure edited by hand, or a change of the statistics that left the pages behind."""
    page, make = results.TABLES[name]
    text = (results.PAGES / page).read_text(encoding="utf-8")
    assert results.replaced(text, name, make()) == text


def test_a_page_without_the_mark_is_named():
    """A table written to nowhere."""
    with pytest.raises(ValueError, match="table vqa_rad_strict"):
        results.replaced("no mark here", "vqa_rad_strict", [])
