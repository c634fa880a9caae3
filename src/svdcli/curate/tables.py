"""Tables: folders of Parquet parts, a row a key. Rows <-> Parquet, and nothing of what they mean.

Parts are only ever added, each with its rows in the order of their keys, and rows that are there already are left
out; so the same rows make the same bytes, however often the writing was killed and begun again. Only taking rows out
rewrites parts, and only those that hold them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from svdcli.errors import InputError, MachineError
from svdcli.io.files import atomic_path

TABLES, SCORES, PARTS = "tables", "scores", "part-*.parquet"
PART_ROWS = 100_000
"""rows of a part at most"""

R = TypeVar("R")


def table_folder(folder: Path, name: str) -> Path:
    """The folder of table `sources`, `clips` or `scores/NAME` within a curation folder."""
    return folder / TABLES / name


# ---- rows


def to_row(value: Any) -> dict[str, Any]:
    """A row of `curate.rows` by column, as JSON and Parquet hold it: a fraction as two integers, a tuple as a list."""
    row: dict[str, Any] = {}
    for field in fields(value):
        content = getattr(value, field.name)
        if isinstance(content, Fraction):
            row[f"{field.name}_num"], row[f"{field.name}_den"] = content.numerator, content.denominator
        else:
            row[field.name] = list(content) if isinstance(content, tuple) else content
    return row


def from_row(kind: type[R], row: Mapping[str, Any]) -> R:
    """The inverse of `to_row`; columns that the class does not know are left out. Raises InputError for one missing."""
    values: dict[str, Any] = {}
    hints = get_type_hints(kind)
    for field in fields(kind):  # type: ignore[arg-type]
        try:
            if hints[field.name] is Fraction:
                values[field.name] = Fraction(row[f"{field.name}_num"], row[f"{field.name}_den"])
            else:
                content = row[field.name]
                values[field.name] = tuple(content) if isinstance(content, list) else content
        except KeyError as error:
            raise InputError(
                f"A table of {kind.__name__} has no column {error}.",
                "Run svd curate split again, in a new folder.",
            ) from error
    return kind(**values)


def row_schema(kind: type) -> Any:
    """The pyarrow schema of a class of `curate.rows`."""
    pa = _pyarrow()
    columns = []
    for name, hint in get_type_hints(kind).items():
        if hint is Fraction:
            columns += [(f"{name}_num", pa.int64()), (f"{name}_den", pa.int64())]
        elif get_origin(hint) is tuple:
            columns.append((name, pa.list_(pa.int64())))
        else:
            columns.append((name, _type(pa, str if get_args(hint) else hint)))  # a Literal is text
    return pa.schema(columns)


def scores_schema(columns: Mapping[str, type]) -> Any:
    """The pyarrow schema of an annotator's table: clip, version, its own columns, and why a row is empty."""
    pa = _pyarrow()
    own = [(name, _type(pa, kind)) for name, kind in columns.items()]
    return pa.schema([("clip", pa.string()), ("version", pa.int64()), *own, ("not_computed", pa.string())])


# ---- tables


def append(
    folder: Path, rows: Iterable[Mapping[str, Any]], schema: Any, key: str = "id", part_rows: int = PART_ROWS
) -> list[Path]:
    """Add the rows whose key is new, as new parts; -> those. `rows` come in the order of their keys.

    Rows are taken one part at a time, so that memory does not grow with them.
    """
    pa = _pyarrow()
    folder.mkdir(parents=True, exist_ok=True)
    known = keys(folder, key)
    new = (row for row in rows if row[key] not in known)
    number = 1 + max((_number(part) for part in parts(folder)), default=-1)
    written: list[Path] = []
    while chunk := list(islice(new, part_rows)):
        assert all(a[key] < b[key] for a, b in zip(chunk, chunk[1:], strict=False)), "rows out of order"
        table = pa.Table.from_pylist([_texts(row) for row in chunk], schema=schema)
        written.append(folder / f"part-{number + len(written):05d}.parquet")
        _write(table, written[-1])
    return written


def remove(folder: Path, gone: Collection[str], key: str = "id") -> list[Path]:
    """Take out the rows of those keys; -> the parts that held some, which were rewritten, or deleted when empty."""
    pa = _pyarrow()
    import pyarrow.compute as pc

    touched, wanted = [], pa.array(sorted(gone), pa.string())
    for part in parts(folder) if gone else ():
        stays = pc.invert(pc.is_in(_read(part, [key])[key], value_set=wanted))
        if pc.all(stays).as_py() is not False:
            continue
        table = _read(part).filter(stays)
        if table.num_rows:
            _write(table, part)
        else:
            part.unlink()
        touched.append(part)
    return touched


def parts(folder: Path) -> list[Path]:
    """The parts of a table, in the order that they were added."""
    return sorted(folder.glob(PARTS), key=_number)


def keys(folder: Path, key: str = "id") -> set[str]:
    """All keys of a table."""
    return {value for part in parts(folder) for value in _read(part, [key])[key].to_pylist()}


def read(folder: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a table, or some columns of them, a part at a time. Raises InputError for a damaged part."""
    for part in parts(folder):
        for batch in _read(part, columns).to_batches(max_chunksize=4096):
            yield from batch.to_pylist()


def readable(text: str) -> str:
    r"""A name as Parquet can hold it: bytes that are no UTF-8 are written \xff."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _texts(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: readable(value) if isinstance(value, str) else value for name, value in row.items()}


def _number(part: Path) -> int:
    number = part.stem.removeprefix("part-")
    return int(number) if number.isdigit() else -1


def _read(part: Path, columns: Sequence[str] | None = None) -> Any:
    pa = _pyarrow()
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(part).read(columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"The table's part {part} cannot be read: {error}.", "Remove it, and run svd curate again."
        ) from error


def _write(table: Any, part: Path) -> None:
    import pyarrow.parquet as pq

    with atomic_path(part) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_statistics=True)


def _type(pa: Any, kind: type) -> Any:
    known = {
        str: pa.string(),
        float: pa.float64(),
        int: pa.int64(),
        bool: pa.bool_(),
        list: pa.list_(pa.float32()),
    }
    return known[kind]


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise MachineError(
            "Curation needs pyarrow, which is not installed.", "pip install 'svdcli[curate]'"
        ) from error
    return pyarrow
