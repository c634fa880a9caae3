"""The catalogue: all that a curation folder knows of its clips, as DuckDB views over the Parquet parts of its tables.

What it is: `sources`, `clips` and one view a table of scores, in a connection that lives in memory. What it is not: a
database; nothing is written, no file is locked, and any number of processes may look at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from svdcli.curate.tables import PARTS, SCORES, TABLES, table_folder
from svdcli.errors import InputError, MachineError

SELECTION = "selection.parquet"
"""what `select` decided of every clip: clip, kept, dropped_by, keeper"""

RESOLUTIONS = (240, 360, 480, 720, 1080, 1440, 2160)
"""shortest sides, pixels, that the class `resolution` is named by: the largest that a clip reaches"""
_OF_CLIPS = {
    "seconds": '("end" - start)',
    "side": "least(width, height)",
    "resolution": "CASE "
    + " ".join(f"WHEN least(width, height) >= {side} THEN '{side}p'" for side in reversed(RESOLUTIONS))
    + f" ELSE 'below {RESOLUTIONS[0]}p' END",
}
MICROSECONDS = 'CAST(round(("end" - start) * 1e6) AS BIGINT)'
"""a clip's length: an integer, so that sums are exact"""


@dataclass(frozen=True)
class Column:
    """What an axis reads, found."""

    table: str
    """the table of scores; "" for what the clips' own table says"""
    name: str
    sql: str
    """its value, in its own table: a finite DOUBLE or NULL, or a VARCHAR"""
    kind: Literal["number", "class"]
    version: int = 0
    """of the annotator"""


class Catalogue:
    """`with Catalogue(folder) as catalogue: catalogue.rows("SELECT count(*) FROM clips")`.

    Views: sources, clips, scores_NAME for each table of scores, selection where there is one.
    """

    def __init__(self, folder: Path, memory: str = "", threads: int = 0) -> None:
        """`memory`, such as "2GB", and `threads` bound DuckDB; else it takes what the machine has.

        Raises InputError where the folder holds no clips, MachineError where DuckDB is not installed.
        """
        self.folder = folder
        self.connection = _connect(memory, threads)
        self._view("sources", table_folder(folder, "sources"))
        self._view("clips", table_folder(folder, "clips"))
        self.scores: dict[str, dict[str, str]] = {}
        """the columns of each table of scores, and their SQL types"""
        self.versions: dict[str, list[int]] = {}
        """which versions of its annotator measured the rows of each"""
        for path in sorted((folder / TABLES / SCORES).glob("*")):
            if any(path.glob(PARTS)):
                self._add_scores(path.name, path)
        if (folder / SELECTION).is_file():
            selection = text(str(folder / SELECTION), escape=True)
            self._run(f"CREATE VIEW selection AS SELECT * FROM read_parquet({selection})")

    def __enter__(self) -> Catalogue:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.connection.close()

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query. Raises InputError where a part of a table is damaged, MachineError out of memory."""
        return list(self._run(sql, values).fetchall())

    def row(self, sql: str, values: Sequence[Any] = ()) -> tuple[Any, ...]:
        """The one row of a query."""
        return self.rows(sql, values)[0]

    def records(self, sql: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """All rows of a query, by column."""
        cursor = self._run(sql, values)
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def stream(self, sql: str, batch: int = 1000) -> Iterator[dict[str, Any]]:
        """Rows of a query, by column, so many at a time, so that memory does not grow with them.

        Nothing else may be asked meanwhile.
        """
        cursor = self._run(sql)
        names = [column[0] for column in cursor.description]
        while rows := cursor.fetchmany(batch):
            for row in rows:
                yield dict(zip(names, row, strict=True))

    def register(self, name: str, table: Any) -> None:
        """Make a pyarrow table known under a name."""
        self.connection.register(name, table)

    def make(self, name: str, columns: Mapping[str, list[str]]) -> None:
        """Make a temporary table of texts."""
        import pyarrow as pa

        self.register(
            "made", pa.table({key: pa.array(values, pa.string()) for key, values in columns.items()})
        )
        self.rows(f"CREATE OR REPLACE TEMP TABLE {quoted(name)} AS SELECT * FROM made")
        self.connection.unregister("made")

    def column(self, name: str) -> Column:
        """The score `COLUMN` or `TABLE.COLUMN`, or what the clips' table says, among it seconds, side and resolution.

        Raises InputError where nothing is called so, or several are.
        """
        found = [
            (table, column)
            for table, columns in self.scores.items()
            for column in columns
            if name in (column, f"{table}.{column}")
        ]
        if len(found) > 1:
            either = " or ".join(f"{table}.{column}" for table, column in found)
            raise InputError(f"Several tables have a score {name}.", f"Say {either}.")
        if found:
            table, column = found[0]
            sql, kind = _value(quoted(column), self.scores[table][column])
            return Column(table, column, sql, kind, self._version(table))
        own = {row[0]: row[1] for row in self.rows("DESCRIBE clips")}
        if name in _OF_CLIPS:
            return Column("", name, *_value(_OF_CLIPS[name], "VARCHAR" if name == "resolution" else "DOUBLE"))
        if name in own:
            return Column("", name, *_value(quoted(name), own[name]))
        known = sorted({column for columns in self.scores.values() for column in columns})
        raise InputError(
            f"No clip has a score {name}: it was not computed (there are {', '.join(known) or 'none'}).",
            'Run svd curate annotate with its annotator, or let its filter drop = "nothing".',
        )

    def _version(self, table: str) -> int:
        if len(versions := self.versions[table]) > 1:
            raise InputError(
                f"The scores of {table} were measured by versions {' and '.join(map(str, versions))} of the annotator.",
                "Run svd curate annotate again: it measures the older ones anew.",
            )
        return int(versions[0]) if versions else 0

    def has(self, view: str) -> bool:
        """Whether there is such a view."""
        return bool(self.rows("SELECT 1 FROM duckdb_views() WHERE view_name = ? AND NOT internal", [view]))

    def _view(self, name: str, folder: Path) -> None:
        if not any(folder.glob(PARTS)):
            raise InputError(
                f"{self.folder} holds no {name}.", "Give a curation folder, after svd curate split."
            )
        self._run(f"CREATE VIEW {name} AS SELECT * FROM {_parts(folder)}")

    def _add_scores(self, name: str, folder: Path) -> None:
        view = quoted(f"scores_{name}")
        self._run(f"CREATE VIEW {view} AS SELECT * FROM {_parts(folder)}")
        self.versions[name] = [
            row[0] for row in self.rows(f"SELECT DISTINCT version FROM {view} ORDER BY ALL")
        ]
        described = self.rows(f"DESCRIBE {view}")
        self.scores[name] = {
            row[0]: row[1] for row in described if row[0] not in ("clip", "version", "not_computed")
        }

    def _run(self, sql: str, values: Sequence[Any] = ()) -> Any:
        import duckdb

        try:
            return self.connection.execute(sql, list(values))
        except duckdb.OutOfMemoryException as error:
            raise MachineError(
                f"The tables of {self.folder} need more memory than there is: {_first(error)}.",
                "Close what else runs, or free disk for temporary files.",
            ) from error
        except (duckdb.InvalidInputException, duckdb.IOException, duckdb.BinderException) as error:
            raise InputError(
                f"The tables of {self.folder} cannot be read: {_first(error)}.",
                "Remove the part that it names, and run the stage that wrote it again.",
            ) from error


def quoted(name: str) -> str:
    """A name as SQL holds it."""
    return '"' + name.replace('"', '""') + '"'


def number(value: float) -> str:
    """A number as SQL holds it, to the last bit: a plain literal would be a decimal."""
    return f"CAST('{value!r}' AS DOUBLE)"


def text(value: str, escape: bool = False) -> str:
    """A text as SQL holds it; `escape` takes the meaning from the signs of a glob pattern."""
    if escape:
        value = "".join(f"[{sign}]" if sign in "*?[" else sign for sign in value)
    return "'" + value.replace("'", "''") + "'"


def text_list(texts: Iterable[str]) -> str:
    """Texts as the list of an IN."""
    return "(" + ", ".join(map(text, texts)) + ")"


def _parts(folder: Path) -> str:
    pattern = text(str(folder), escape=True)[:-1] + f"/{PARTS}'"
    return f"read_parquet({pattern}, union_by_name = true, hive_partitioning = false)"


def _value(sql: str, kind: str) -> tuple[str, Literal["number", "class"]]:
    """A column and its SQL type -> its value: of a list of numbers the mean; what is not finite is NULL."""
    if kind in ("VARCHAR", "BOOLEAN"):
        return f"CAST({sql} AS VARCHAR)", "class"
    mean = f"list_avg({sql})" if kind.endswith("[]") else sql
    value = f"CAST({mean} AS DOUBLE)"
    return f"CASE WHEN isfinite({value}) THEN {value} END", "number"


def _first(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".")[:300]


def _connect(memory: str, threads: int) -> Any:
    try:
        import duckdb
    except ImportError as error:
        raise MachineError(
            "Filtering needs duckdb, which is not installed.", "pip install 'svdcli[curate]'"
        ) from error
    import secrets
    import tempfile

    settings: dict[str, Any] = {
        # made only where memory does not do, and removed again
        "temp_directory": str(Path(tempfile.gettempdir()) / f"svd-duckdb-{secrets.token_hex(6)}"),
        "autoinstall_known_extensions": False,  # nothing is fetched
        "preserve_insertion_order": False,
    }
    settings |= {"memory_limit": memory} if memory else {}
    settings |= {"threads": threads} if threads else {}
    return duckdb.connect(":memory:", config=settings)
