"""officerpc users import, for files of any length."""

import asyncio
import codecs
import contextlib
import csv
import fcntl
import functools
import io
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from server.base.errors import Malformed, Unavailable
from server.base.parsing import parse_json
from server.base.printable import from_spreadsheet_cell, spreadsheet_cell
from server.directory.many import MOST
from server.directory.users import NewUser, email_key
from server.postgres.analyze import analyzing
from server.postgres.db import Database, pass_on_cancelling
from server.rpc.dispatch import Dispatcher
from server.tenants.call import RequestContext
from server.tenants.principals import OPERATOR

PASSWORDS = 100
"""Maximum number of rows with a password in one call; hashing one takes some hundredths of a second."""
ERROR = "error"
"""Column or member with the reason in a file of failed rows; import ignores it."""


class TransferError(Exception):
    """Why an import cannot start or continue. The message is shown to the user."""


@dataclass(slots=True)
class Row:
    """One row of a file."""

    number: int
    # Params of createUser; None where the row cannot be read.
    params: dict[str, Any] | None
    # For the file of failed rows: cells, an object, or the line if it is neither.
    given: Any
    problem: str = ""
    # Offset of the next row in the file.
    end: int = 0


@dataclass(slots=True)
class Progress:
    """The progress of an import, stored beside its file until it is finished."""

    # Part of the request ids, which the audit stores: identifies the users that the import created.
    run: str
    instance: str
    size: int
    modified: int
    offset: int = 0
    rows: int = 0
    created: int = 0
    failed: int = 0
    # Length of the file of failed rows.
    failed_bytes: int = 0


@dataclass(slots=True)
class Import:
    """Creates users from a file, one batch a call, and continues after an interruption.

    FILE.state stores the progress until the import is finished. FILE.failed, with the suffix of FILE, has the
    failed rows and the reasons. It can be corrected and imported; no other import overwrites it.
    """

    database: Database
    dispatcher: Dispatcher
    file: Path
    instance: str
    # Whether it continues an interrupted import.
    resumes: bool = False
    failures: list[dict[str, Any]] = field(default_factory=list)

    @property
    def state_path(self) -> Path:
        """The file with the progress."""
        return self.file.with_name(f"{self.file.name}.state")

    @property
    def failed_path(self) -> Path:
        """The file with the failed rows."""
        return self.file.with_name(f"{self.file.stem}.failed{self.file.suffix}")

    async def run(self, report: Callable[[Progress], None]) -> Progress:
        """Import the rest of the file. Errors of single rows go to failures.

        Args:
            report: called after each batch.

        Raises:
            TransferError: the file cannot be imported, or not now.
            ServiceError: there is no such instance.
        """
        with self.file.open("rb") as source:
            try:
                fcntl.flock(source, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when the process ends
            except OSError as error:
                raise TransferError(f"another process is importing {self.file}") from error
            async with analyzing(self.database):
                return await self._run(source, report)

    async def _run(self, source: BinaryIO, report: Callable[[Progress], None]) -> Progress:
        progress = self._begun(source)
        is_csv = self.file.suffix.lower() == ".csv"
        reader = Reader(source, is_csv=is_csv, offset=progress.offset, number=progress.rows)
        # The last batch may have been committed before the interruption.
        is_doubtful = self.resumes
        self._write_state(progress)
        report(progress)
        with open(  # noqa: ASYNC230
            self.failed_path, "r+b", opener=lambda path, flags: os.open(path, flags | os.O_CREAT, 0o600)
        ) as failed:
            os.fchmod(failed.fileno(), 0o600)  # also if it existed before
            # It may be shorter now: truncating it to more would fill it with NUL characters.
            failed.truncate(min(progress.failed_bytes, failed.seek(0, os.SEEK_END)))
            failed.seek(0, os.SEEK_END)
            for batch in reader.batches():
                created, refused = await self._send_with_retries(batch, progress, is_doubtful)
                is_doubtful = False
                for row, why in refused:
                    if not failed.tell():
                        failed.write(reader.failed_header())
                    failed.write(reader.failed_row(row, why))
                failed.flush()
                os.fsync(failed.fileno())
                progress.failed_bytes = failed.tell()
                progress.offset, progress.rows = batch[-1].end, batch[-1].number
                progress.created += created
                progress.failed += len(refused)
                self._write_state(progress)
                report(progress)
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
            self._refuse_to_overwrite()
            return fresh
        except (TypeError, orjson.JSONDecodeError) as error:
            raise TransferError(f"{self.state_path} cannot be read: remove it to start again") from error
        same = (before.instance, before.size, before.modified) == (fresh.instance, fresh.size, fresh.modified)
        if not same:
            raise TransferError(
                f"an import of {self.file.name} into {before.instance} was interrupted, and the file or the"
                f" instance has changed since: remove {self.state_path} to start again"
            )
        self.resumes = True
        return before

    def _refuse_to_overwrite(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            if self.failed_path.stat().st_size:
                raise TransferError(
                    f"{self.failed_path} has failed rows of an earlier import: import, move or remove that"
                    " file, then run this again"
                )

    def _write_state(self, progress: Progress) -> None:
        # Atomically: the file is never incomplete.
        new = self.state_path.with_name(f"{self.state_path.name}.new")
        with new.open("wb") as stream:
            stream.write(orjson.dumps(progress))
            stream.flush()
            os.fsync(stream.fileno())
        new.replace(self.state_path)

    async def _send_with_retries(
        self, batch: list[Row], progress: Progress, is_doubtful: bool
    ) -> tuple[int, list[tuple[Row, str]]]:
        for pause in (1, 2, 4, 8, 0):
            try:
                return await self._send(batch, progress, is_doubtful)
            except Unavailable as error:
                pass_on_cancelling(error)
                if not pause:
                    raise TransferError(f"{error.message}; run it again to continue") from error
                is_doubtful = True
                await asyncio.sleep(pause)
        raise AssertionError("unreachable")

    async def _send(
        self, batch: list[Row], progress: Progress, is_doubtful: bool
    ) -> tuple[int, list[tuple[Row, str]]]:
        """The number of rows of a batch that are users now, and the failed rows with the reasons.

        Args:
            is_doubtful: the batch may have been sent before, and its answer lost.
        """
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
                created = {_key(row) for row in good if row.number not in bad}
                errors = await self._without_created_before(errors, created, request_id)
            refused += [(row, error["message"]) for row, error in errors]
        refused.sort(key=lambda pair: pair[0].number)
        self.failures += [
            {"row": row.number, "email": (row.params or {}).get("email"), "error": why}
            for row, why in refused
        ][: MOST - len(self.failures)]
        return len(batch) - len(refused), refused

    async def _without_created_before(
        self, errors: list[tuple[Row, dict[str, Any]]], created_now: set[str], request_id: str
    ) -> list[tuple[Row, dict[str, Any]]]:
        """The errors without those of rows that an earlier attempt of the same call created."""
        keys = [_key(row) for row, error in errors if error["code"] == "duplicate_email"]
        target = await self.dispatcher.keys.instance(OPERATOR, self.instance, while_suspended=True)
        async with self.database.connection() as db:
            rows = await db.all(
                "find_created_by", instance_id=target.id, email_keys=keys, request_id=request_id
            )
        created = {row["email_key"] for row in rows} - created_now
        left = []
        for row, error in errors:
            if error["code"] == "duplicate_email" and _key(row) in created:
                created.remove(_key(row))  # only the first row with this e-mail; a second one did fail
            else:
                left.append((row, error))
        return left


def _key(row: Row) -> str:
    return email_key((row.params or {})["email"])


class Reader:
    """The rows of a CSV or JSON lines file, one at a time."""

    def __init__(self, source: BinaryIO, *, is_csv: bool, offset: int, number: int) -> None:
        """
        Args:
            source: at its beginning.
            offset: the end of the last row that was read before; 0 for none.
            number: the number of that row.

        Raises:
            TransferError: a CSV file without a valid header.
        """
        self._source = source
        self._is_csv = is_csv
        self._number = number
        self.header: list[str] = []
        # Only files of failed rows have escaped cells (spreadsheet_cell).
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
                raise TransferError("the header has no column email")
        if offset:
            self._source.seek(offset)

    def batches(self) -> Iterator[list[Row]]:
        """The rows in batches, one for each call."""
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
        # readline, so that tell() is the end of the last line that was read.
        while line := self._source.readline():
            if self._source.tell() == len(line):
                line = line.removeprefix(codecs.BOM_UTF8)
            # surrogateescape keeps invalid bytes for the file of failed rows.
            yield line.decode("utf-8", "surrogateescape")

    def _csv_rows(self) -> Iterator[Row]:
        while True:
            begin = self._source.tell()
            try:
                # A new reader for each row, as a reader stops after an error.
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
        """The header of the file of failed rows."""
        if not self._is_csv:
            return b""
        return _csv_line([*(name for name in self.header if name != ERROR), ERROR])

    def failed_row(self, row: Row, why: str) -> bytes:
        """A row as it was given, with the reason.

        CSV: cells beyond the header are after the reason, invalid UTF-8 is kept, and a row that is not CSV is
        in the first cell. JSON lines: a line that is not an object is in the member line.
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
    """Columns whose CSV cells are JSON (true and false in any case); the others are text."""
    described = NewUser.model_json_schema()["properties"]
    texts = {
        name
        for name, schema in described.items()
        if any(kind.get("type") == "string" for kind in (schema, *schema.get("anyOf", ())))
    }
    return frozenset(described.keys() - texts)


def _cell(name: str, value: str) -> Any:
    if name in _json_cells():
        if value.lower() in ("true", "false"):  # spreadsheets write capitals
            value = value.lower()
        with contextlib.suppress(Malformed):
            return parse_json(value.encode())
    return value


def _is_utf8(text: str) -> bool:
    return text.isascii() or not any("\udc80" <= char <= "\udcff" for char in text)


def _csv_line(cells: list[str]) -> bytes:
    line = io.StringIO(newline="")
    csv.writer(line).writerow(map(spreadsheet_cell, cells))  # its default, CRLF, makes it quote a lone CR too
    return line.getvalue().removesuffix("\r\n").encode("utf-8", "surrogateescape") + b"\n"
