"""How much a file may unpack to; of Arrow and Parquet it is known before they are unpacked.

A page of zeros, a word that stands once and is meant a billion times, a column of nothing with
2⁶⁰ rows: a few KB can ask for terabytes. Sizes here are bytes; a value counts as 8 at least, what a
place in a list of Python's takes.
"""

from __future__ import annotations

import struct
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lora_lab.errors import TaskError

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa

_ALWAYS_UNPACKED = 2**30
_MOST_RATIO = 100
_VALUE = 8
_BATCH = 2**30
_ENCODINGS = {"PLAIN", "RLE", "BIT_PACKED", "PLAIN_DICTIONARY", "RLE_DICTIONARY"}


def most_unpacked(size: int) -> int:
    """Return how many bytes texts of so many may unpack to."""
    return max(_ALWAYS_UNPACKED, _MOST_RATIO * size)


def bomb(source: object) -> TaskError:
    """Return the error of a file that holds more than it can be asked for."""
    return TaskError(
        f"{source} unpacks to more than {_MOST_RATIO} times its size, as no text does; unpack it "
        "yourself if you trust it"
    )


def unpack_parquet(file: IO[bytes], source: str, most: int) -> pa.Table:
    """Return a Parquet file's table; words that stand once and are meant often stay so.

    Args:
        file: a whole one.
        source: for the error.
        most: bytes.

    Raises:
        TaskError: it unpacks to more.
    """
    import pyarrow as pa

    reader, _, longest = _open_parquet(file, source, most)
    if not longest:
        return reader.read()
    batches, size = [], 0
    for batch in reader.iter_batches(batch_size=_batch_of(longest)):
        size += batch.nbytes
        if size > most:
            raise bomb(source)
        batches.append(batch)
    return pa.Table.from_batches(batches, reader.schema_arrow)


def check_parquet(file: IO[bytes], source: str, most: int) -> None:
    """Refuse a Parquet file of which the texts, each written out, take more bytes.

    It is gone through a part at a time; see `unpack_parquet`.
    """
    reader, texts, longest = _open_parquet(file, source, most)
    size = 0
    for batch in reader.iter_batches(batch_size=_batch_of(longest), columns=texts) if texts else ():
        size += sum(map(_written_size, batch.columns))
        if size > most:
            raise bomb(source)


def _open_parquet(file: IO[bytes], source: str, most: int) -> tuple[Any, list[str], int]:
    """Return a reader, the columns of texts, and the most bytes of those that share beginnings.

    Such texts name what they have in common with the one before, which may be all of it.
    """
    from pyarrow import parquet, types

    plain = parquet.ParquetFile(file)
    found = plain.metadata
    columns, groups = range(found.num_columns), range(found.num_row_groups)
    chunks = [found.row_group(i).column(j) for i in groups for j in columns]
    fixed = {column.path: column.length for column in map(found.schema.column, columns)}
    values = sum(c.num_values * max(_VALUE, fixed[c.path_in_schema]) for c in chunks)
    if values + sum(c.total_uncompressed_size for c in chunks) > most:
        raise bomb(source)
    texts = [c for c in chunks if c.physical_type == "BYTE_ARRAY"]
    fronts = [c for c in texts if not set(c.encodings) <= _ENCODINGS]
    words = {c.path_in_schema for c in texts} - {c.path_in_schema for c in fronts}
    # Categories are such words already, and in an order that is lost if they are asked for.
    words -= {f.name for f in plain.schema_arrow if types.is_dictionary(f.type)}
    reader = parquet.ParquetFile(file, read_dictionary=sorted(words))
    longest = max([c.total_uncompressed_size for c in fronts], default=0)
    return reader, sorted({c.path_in_schema for c in texts}), longest


def _batch_of(longest: int) -> int:
    """Return how many rows of texts of at most so many bytes make a batch."""
    return max(1, min(2**16, _BATCH // max(1, longest)))


def unpack_messages(file: IO[bytes], source: str, most: int) -> pa.Table:
    """Return the table of a stream of Arrow's; see `unpack_parquet`."""
    from pyarrow import ipc

    start = file.tell()
    check_messages(file, source, most)
    file.seek(start)
    table = ipc.open_stream(file).read_all()
    table.validate(full=True)  # or what is read leads outside of it
    return table


def check_messages(file: Any, source: str, most: int) -> None:
    """Refuse a stream of Arrow's, or a mapped one, of which the batches take more bytes."""
    from pyarrow import ipc

    size = 0
    for message in ipc.MessageReader.open_stream(file):
        if message.type != "schema":
            size += _batch_size(message)
        if size > most:
            raise bomb(source)


def check_column(column: pa.ChunkedArray, source: str, most: int) -> None:
    """Refuse a column of which Python's values take more than `most` bytes."""
    if sum(map(_written_size, column.chunks)) > most:
        raise bomb(source)


def _batch_size(message: pa.Message) -> int:
    """Return the bytes of a batch's buffers and values, by its header (Arrow's Message.fbs)."""
    data = memoryview(message.metadata)
    header = _Fields(data, _at(data, 0, "I")).table(2)
    if message.type == "dictionary":
        header = header.table(1)
    size = sum(_VALUE * _at(data, place, "q") for place in header.pairs(1))
    for place in header.pairs(2):
        start, length = _at(data, place, "q"), _at(data, place + 8, "q")
        packed = header.place(3) is not None and length > 0
        size += max(length, _at(memoryview(message.body), start, "q") if packed else 0)
    return size


class _Fields(NamedTuple):
    """A table of FlatBuffers: where its fields stand, by their numbers."""

    data: memoryview
    start: int

    def place(self, number: int) -> int | None:
        """Return where a field stands; None where it is left out."""
        known = self.start - _at(self.data, self.start, "i")
        slot = 4 + 2 * number
        offset = _at(self.data, known + slot, "H") if slot < _at(self.data, known, "H") else 0
        return self.start + offset if offset else None

    def table(self, number: int) -> _Fields:
        """Return the table that a field names."""
        place = self.place(number)
        if place is None:
            raise ValueError("a message has no header")
        return _Fields(self.data, place + _at(self.data, place, "I"))

    def pairs(self, number: int) -> range:
        """Return where the pairs of int64 stand that a field names."""
        place = self.place(number)
        if place is None:
            return range(0)
        first = place + _at(self.data, place, "I")
        return range(first + 4, first + 4 + 16 * _at(self.data, first, "I"), 16)


def _at(data: memoryview, place: int, kind: str) -> int:
    if place < 0:
        raise ValueError("a message's header leads outside of it")
    number: int = struct.unpack_from("<" + kind, data, place)[0]
    return number


def _written_size(values: pa.Array) -> int:
    """Return the bytes of an array's values in Python, none of them shared."""
    import pyarrow as pa

    size = _VALUE * len(values)
    if _is_text(values):
        return size + int(_lengths(values).sum())
    if isinstance(values, pa.DictionaryArray):
        words, used = values.dictionary, values.indices.drop_null().to_numpy()
        if _is_text(words):
            return size + int(_lengths(words)[used].sum())
        return size + len(values) * _written_size(words)
    if isinstance(values, pa.ExtensionArray):
        return _written_size(values.storage)
    if isinstance(values, pa.MapArray):
        return size + _written_size(values.keys) + _written_size(values.items)
    if isinstance(values, (pa.ListArray, pa.LargeListArray, pa.FixedSizeListArray)):
        return size + _written_size(values.flatten())
    if isinstance(values, pa.StructArray):
        return size + sum(map(_written_size, _fields(values)))
    if isinstance(values, pa.UnionArray):  # each value may be all of them
        return size + len(values) * sum(map(_written_size, _fields(values)))
    if pa.types.is_nested(values.type):  # runs, or views of lists
        return size + len(values) * _written_size(values.values)
    return max(size, values.nbytes)


def _fields(values: pa.Array) -> list[pa.Array]:
    return [values.field(i) for i in range(values.type.num_fields)]


def _is_text(values: pa.Array) -> bool:
    kind = str(values.type)
    return kind.removeprefix("large_").removesuffix("_view") in ("string", "binary")


def _lengths(texts: pa.Array) -> npt.NDArray[np.int64]:
    """Return the bytes of each text; a gap may have some too."""
    large, view = str(texts.type).startswith("large"), str(texts.type).endswith("view")
    raw = texts.buffers()[1]
    if raw is None or not len(texts):
        return np.zeros(len(texts), np.int64)
    numbers = np.frombuffer(raw, np.int64 if large else np.int32)
    if view:  # of 16 bytes; the length comes first
        return numbers[::4][texts.offset :][: len(texts)].astype(np.int64)
    ends = numbers[texts.offset :][: len(texts) + 1].astype(np.int64)
    return ends[1:] - ends[:-1]
