"""A parquet file whose row group holds more than 2 GiB of images (`make test-long`)."""

import pyarrow
from pyarrow import parquet

from m3ae.corpora import stored
from m3ae.corpora.stored import InParquet


def test_a_group_of_structs_beyond_two_gib(tmp_path):
    """A row group that no column of structs can hold at once: read anew for every picture."""
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    schema, picture = pyarrow.schema([("image", kind)]), bytes(2**26)
    with parquet.ParquetWriter(tmp_path / "a.parquet", schema, compression="zstd") as writer:
        writer.write_table(
            pyarrow.table(
                {
                    "image": pyarrow.chunked_array(
                        [
                            pyarrow.array([{"bytes": picture + b"%d" % k, "path": ""}], kind)
                            for k in range(34)
                        ]
                    )
                }
            ),
            row_group_size=34,
        )
    assert parquet.ParquetFile(tmp_path / "a.parquet").num_row_groups == 1
    stored._image_column.cache_clear()
    for row in (0, 1, 33):
        image = InParquet(tmp_path / "a.parquet", 0, row, "image").read_bytes()
        assert image[2**26 :] == b"%d" % row
    stored._image_column.cache_clear()
