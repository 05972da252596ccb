"""Users into and out of an instance, by files as long as may be: officerpc users import and export."""

import asyncio
import codecs
import contextlib
import csv
import fcntl
import functools
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from server.base.errors import Malformed, Unavailable
from server.base.parsing import parse_json
from server.base.printable import from_spreadsheet_cell, spreadsheet_cell
from server.directory.many import MOST
from server.directory.rows import members, quotas
from server.directory.users import NewUser, email_key
from server.postgres.analyze import analyzing
from server.postgres.db import Database, pass_on_cancelling
from server.rpc.dispatch import Dispatcher
from server.tenants.call import RequestContext
from server.tenants.principals import OPERATOR

PASSWORDS = 100
"""Rows with a password in one call, each of which takes a core some hundredths of a second."""
PAGE = 1000
ERROR = "error"
"""Column or member with the reason in a file of failed rows; import takes no notice of it."""


class TransferError(Exception):
    """What keeps an import from beginning or going on; the message is for whoever began it."""


@dataclass(slots=True)
class Row:
    """One row of a file."""

    number: int
    # Params of createUser; None where the row cannot be read.
    params: dict[str, Any] | None
    # What the file of failed rows gets: cells, an object, or the line itself where it is neither.
    given: Any
    problem: str = ""
    # Where the next one begins.
    end: int = 0


@dataclass(slots=True)
class Progress:
    """How far an import is; also what is kept beside its file until it is through."""

    # Names the import in the audit, so that it knows what it has made.
    run: str
    instance: str
    size: int
    modified: int
    offset: int = 0
    rows: int = 0
    created: int = 0
    failed: int = 0
    # Bytes of the file of failed rows.
    failed_bytes: int = 0


@dataclass(slots=True)
class Import:
    """Creates users from a file, a batch in a call, and goes on where it was interrupted.

    Beside the file there are, while it runs or waits to go on, FILE.state, and if rows failed FILE.failed
    with its own suffix, which holds those rows and why, and can be imported once they are mended. No other
    import writes over that file.
    """

    database: Database
    dispatcher: Dispatcher
    file: Path
    instance: str
    # Whether it goes on with what was begun before.
    resumes: bool = False
    failures: list[dict[str, Any]] = field(default_factory=list)

    @property
    def state_path(self) -> Path:
        """Where it is written down how far this is."""
        return self.file.with_name(f"{self.file.name}.state")

    @property
    def failed_path(self) -> Path:
        """Where the rows are that failed."""
        return self.file.with_name(f"{self.file.stem}.failed{self.file.suffix}")

    async def run(self, tell: Callable[[Progress], None]) -> Progress:
        """Import what is not imported yet.

        Args:
            tell: called after each batch.

        Raises:
            TransferError: the file cannot be imported, or not now. What is wrong with single rows is in
                failures.
            ServiceError: there is no such instance.
        """
        with self.file.open("rb") as source:
            try:
                fcntl.flock(source, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with this process, however it ends
            except OSError as error:
                raise TransferError(f"{self.file} is being imported already") from error
            async with analyzing(self.database):
                return await self._run(source, tell)

    async def _run(self, source: BinaryIO, tell: Callable[[Progress], None]) -> Progress:
        progress = self._begun(source)
        reader = Reader(source, is_csv=self.file.suffix.lower() == ".csv")
        reader.go_to(progress.offset, progress.rows)
        # What was sent last may have been done before the interruption.
        is_doubtful = self.resumes
        self._write_state(progress)
        tell(progress)
        with open(  # noqa: ASYNC230
            self.failed_path, "r+b", opener=lambda path, flags: os.open(path, flags | os.O_CREAT, 0o600)
        ) as failed:
            os.fchmod(failed.fileno(), 0o600)  # whoever made it
            # No further than it goes, should somebody have taken what was in it.
            failed.truncate(min(progress.failed_bytes, failed.seek(0, os.SEEK_END)))
            failed.seek(0, os.SEEK_END)
            for batch in reader.batches():
                made, refused = await self._patiently(batch, progress, is_doubtful)
                is_doubtful = False
                for row, why in refused:
                    if not failed.tell():
                        failed.write(reader.failed_header())
                    failed.write(reader.failed_row(row, why))
                failed.flush()
                os.fsync(failed.fileno())
                progress.failed_bytes = failed.tell()
                progress.offset, progress.rows = batch[-1].end, batch[-1].number
                progress.created += made
                progress.failed += len(refused)
                self._write_state(progress)
                tell(progress)
        if not progress.failed:
            self.failed_path.unlink()
        self.state_path.unlink()
        return progress

    def _begun(self, source: BinaryIO) -> Progress:
        status = os.fstat(source.fileno())
        fresh = Progress(secrets.token_hex(8), self.instance, status.st_size, status.st_mtime_ns)
        try:
            before = Progress(**orjson.loads(self.state_path.read_bytes()))
        except FileNotFoundError:
            self._refuse_to_write_over()
            return fresh
        except (TypeError, orjson.JSONDecodeError) as error:
            raise TransferError(f"{self.state_path} cannot be read: remove it to begin anew") from error
        same = (before.instance, before.size, before.modified) == (fresh.instance, fresh.size, fresh.modified)
        if not same:
            raise TransferError(
                f"an import of {self.file.name} into {before.instance} was interrupted, and the file or the"
                f" instance is another now: remove {self.state_path} to begin anew"
            )
        self.resumes = True
        return before

    def _refuse_to_write_over(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            if self.failed_path.stat().st_size:
                raise TransferError(
                    f"{self.failed_path} holds rows that failed in an import before: import them from there,"
                    " or move that file away or remove it, and run this again"
                )

    def _write_state(self, progress: Progress) -> None:
        # Whole or not at all: a state that was cut off would be no state.
        aside = self.state_path.with_name(f"{self.state_path.name}.new")
        with aside.open("wb") as stream:
            stream.write(orjson.dumps(progress))
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(self.state_path)

    async def _patiently(
        self, batch: list[Row], progress: Progress, is_doubtful: bool
    ) -> tuple[int, list[tuple[Row, str]]]:
        for pause in (1, 2, 4, 8, 0):
            try:
                return await self._send(batch, progress, is_doubtful)
            except Unavailable as error:
                pass_on_cancelling(error)
                if not pause:
                    raise TransferError(f"{error.message}; run it again to go on") from error
                is_doubtful = True
                await asyncio.sleep(pause)
        raise AssertionError("unreachable")

    async def _send(
        self, batch: list[Row], progress: Progress, is_doubtful: bool
    ) -> tuple[int, list[tuple[Row, str]]]:
        """How many rows of a batch are users now, and which failed and why."""
        good = [row for row in batch if row.params is not None]
        refused = [(row, row.problem) for row in batch if row.params is None]
        if good:
            request_id = f"import-{progress.run}-{progress.rows}"
            params = {"instance": self.instance, "mode": "each", "users": [row.params for row in good]}
            answer = await self.dispatcher.call(OPERATOR, "createUsers", params, RequestContext(request_id))
            errors = [
                (row, item["error"])
                for row, item in zip(good, answer["results"], strict=True)
                if item["error"] is not None
            ]
            if is_doubtful:
                bad = {row.number for row, _ in errors}
                made = {_key(row) for row in good if row.number not in bad}
                errors = await self._not_made_before(errors, made, request_id)
            refused += [(row, error["message"]) for row, error in errors]
        refused.sort(key=lambda pair: pair[0].number)
        self.failures += [
            {"row": row.number, "email": (row.params or {}).get("email"), "error": why}
            for row, why in refused
        ][: MOST - len(self.failures)]
        return len(batch) - len(refused), refused

    async def _not_made_before(
        self, errors: list[tuple[Row, dict[str, Any]]], made_now: set[str], request_id: str
    ) -> list[tuple[Row, dict[str, Any]]]:
        """Without the rows whose e-mails are taken because the same call had made them, unheard."""
        keys = [_key(row) for row, error in errors if error["code"] == "duplicate_email"]
        target = await self.dispatcher.keys.instance(OPERATOR, self.instance, while_suspended=True)
        async with self.database.connection() as db:
            rows = await db.all(
                "find_created_by", instance_id=target.id, email_keys=keys, request_id=request_id
            )
        made = {row["email_key"] for row in rows} - made_now
        left = []
        for row, error in errors:
            if error["code"] == "duplicate_email" and _key(row) in made:
                made.remove(_key(row))  # the first row with this e-mail; another one did fail
            else:
                left.append((row, error))
        return left


def _key(row: Row) -> str:
    return email_key((row.params or {})["email"])


class Reader:
    """The rows of a CSV or JSON lines file, one at a time."""

    def __init__(self, source: BinaryIO, *, is_csv: bool) -> None:
        """
        Args:
            source: at its beginning.

        Raises:
            TransferError: a CSV file without a header.
        """
        self._source = source
        self._is_csv = is_csv
        self._number = 0
        self.header: list[str] = []
        # Cells are escaped (spreadsheet_cell) in files of failed rows, and in no other file.
        self._is_of_failed = False
        if is_csv:
            try:
                self.header = next(csv.reader(self._lines()), [])
            except csv.Error as error:
                raise TransferError("the header cannot be read as CSV in UTF-8") from error
            if not all(map(_is_utf8, self.header)):
                raise TransferError("the header cannot be read as CSV in UTF-8")
            self._is_of_failed = ERROR in self.header
            self.header = self._texts(self.header)
            if "email" not in self.header:
                raise TransferError("the header names no column email")

    def go_to(self, offset: int, number: int) -> None:
        """Go on after a row.

        Args:
            offset: its end; 0 for the first row.
            number: its number.
        """
        if offset:
            self._source.seek(offset)
        self._number = number

    def batches(self) -> Iterator[list[Row]]:
        """Rows for one call each."""
        batch: list[Row] = []
        passwords = 0
        for row in self._csv_rows() if self._is_csv else self._json_rows():
            batch.append(row)
            passwords += bool(row.params and row.params.get("password"))
            if len(batch) == MOST or passwords == PASSWORDS:
                yield batch
                batch, passwords = [], 0
        if batch:
            yield batch

    def _lines(self) -> Iterator[str]:
        # One at a time, so that the place in the file is that of what was read.
        while line := self._source.readline():
            if self._source.tell() == len(line):
                line = line.removeprefix(codecs.BOM_UTF8)
            # What is not UTF-8 is kept, byte by byte, for the file of failed rows.
            yield line.decode("utf-8", "surrogateescape")

    def _csv_rows(self) -> Iterator[Row]:
        while True:
            begin = self._source.tell()
            try:
                # A reader of its own for each row: after an error it would read no further.
                cells = next(csv.reader(self._lines()), None)
            except csv.Error:
                self._number += 1
                end = self._source.tell()
                self._source.seek(begin)
                text = self._source.read(end - begin).decode("utf-8", "surrogateescape").rstrip("\r\n")
                yield Row(self._number, None, self._texts([text]), "is not CSV", end)
                continue
            if cells is None:
                return
            if not cells:
                continue
            self._number += 1
            cells = self._texts(cells)
            row = Row(self._number, None, cells, end=self._source.tell())
            self._read_cells(row, cells)
            yield row

    def _texts(self, cells: list[str]) -> list[str]:
        return list(map(from_spreadsheet_cell, cells)) if self._is_of_failed else cells

    def _read_cells(self, row: Row, cells: list[str]) -> None:
        if not all(map(_is_utf8, cells)):
            row.problem = "is not UTF-8"
            return
        if len(cells) > len(self.header):
            row.problem = f"has {len(cells)} cells, and the header {len(self.header)}"
            return
        pairs = zip(self.header, cells, strict=False)
        row.params = {name: _cell(name, cell) for name, cell in pairs if cell and name not in ("", ERROR)}
        if any("\0" in cell for cell in cells):
            row.params, row.problem = None, "holds a NUL character"

    def _json_rows(self) -> Iterator[Row]:
        while line := self._source.readline():
            if not line.strip():
                continue
            self._number += 1
            row = Row(self._number, None, line, end=self._source.tell())
            try:
                parsed = parse_json(line)
            except Malformed as error:
                row.problem = error.message
            else:
                if isinstance(parsed, dict):
                    row.given = parsed
                    row.params = {name: value for name, value in parsed.items() if name != ERROR}
                else:
                    row.problem = "not a JSON object"
            yield row

    def failed_header(self) -> bytes:
        """The beginning of a file of failed rows."""
        if not self._is_csv:
            return b""
        return _csv_line([*(name for name in self.header if name != ERROR), ERROR])

    def failed_row(self, row: Row, why: str) -> bytes:
        """A row as it was, with the reason.

        Of CSV, cells beyond the header stand behind the reason, bytes that are not UTF-8 stay what they were,
        and what is no CSV is in the first cell. Of JSON lines, what is no object is a text, line.
        """
        if self._is_csv:
            cells, width = row.given, len(self.header)
            padded = cells[:width] + [""] * (width - len(cells))
            kept = [cell for name, cell in zip(self.header, padded, strict=True) if name != ERROR]
            return _csv_line([*kept, why, *cells[width:]])
        if not isinstance(row.given, dict):
            row.given = {"line": row.given.decode(errors="backslashreplace").rstrip("\n")}
        return orjson.dumps(row.given | {ERROR: why}) + b"\n"


@functools.cache
def _json_cells() -> frozenset[str]:
    """The members of a user that are no text.

    CSV knows text alone: booleans (in any case), numbers, lists and objects are written as JSON there.
    """
    described = NewUser.model_json_schema()["properties"]
    texts = {
        name
        for name, schema in described.items()
        if any(kind.get("type") == "string" for kind in (schema, *schema.get("anyOf", ())))
    }
    return frozenset(described.keys() - texts)


def _cell(name: str, value: str) -> Any:
    if name in _json_cells():
        if value.lower() in ("true", "false"):  # as spreadsheets write them
            value = value.lower()
        with contextlib.suppress(Malformed):
            return parse_json(value.encode())
    return value


def _is_utf8(text: str) -> bool:
    return text.isascii() or not any("\udc80" <= char <= "\udcff" for char in text)


class _Line:
    """What csv writes a row into."""

    text = ""

    def write(self, text: str) -> None:
        self.text += text


def _csv_line(cells: list[str]) -> bytes:
    line = _Line()
    csv.writer(line).writerow(map(spreadsheet_cell, cells))  # what ends lines is quoted, a lone CR too
    return line.text.removesuffix("\r\n").encode("utf-8", "surrogateescape") + b"\n"


async def exported_users(database: Database, instance_id: int) -> AsyncIterator[list[bytes]]:
    """The living users of an instance as JSON lines, a page at a time, in the order of their ids.

    Each page begins after the last one of the page before, so that no page costs more than the first, memory
    holds no more than one, and who is renamed in between is neither left out nor there twice.
    """
    after = 0
    while True:
        async with database.connection() as db:
            rows = await db.all("export_users", instance_id=instance_id, after=after, row_limit=PAGE)
        lines = []
        for row in rows:
            after = row["id"]
            lines.append(orjson.dumps(_params(row)) + b"\n")
        if lines:
            yield lines
        if len(rows) < PAGE:
            return


def _params(row: Mapping[str, Any]) -> dict[str, Any]:
    """What createUser takes to make a user again.

    Without stored pictures, whose addresses last no longer than the user, and without profile fields, which
    createUser does not take.
    """
    stored = {member: row[column] for member, column in members().items() if member in NewUser.model_fields}
    avatar = "" if row["avatar"].startswith("/") else row["avatar"]
    return {"email": row["email"], **stored, "avatar": avatar, "quotas": quotas(row)}
