"""Thin sources: a file, standard input, a Unix socket. MQTT is in ``mqtt.py``."""

from __future__ import annotations

import hashlib
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal

from clients.agent.intake.intake import Intake, IntakeReport
from clients.agent.intake.lines import BLOCK_BYTES, LARGEST_LINE, Tape
from clients.agent.intake.parse import CsvParser, JsonParser
from clients.agent.intake.spec import IntakeSpec
from clients.agent.store.store import Store
from fleet.errors import DataError, InputError, StorageError

__all__ = ["Form", "check_sense", "connections", "form_of", "ingest_file", "ingest_stream"]

Form = Literal["csv", "jsonl"]
SUFFIXES: dict[str, Form] = {".csv": "csv", ".tsv": "csv", ".txt": "csv", ".jsonl": "jsonl"}
SUFFIXES |= {".ndjson": "jsonl", ".json": "jsonl"}
NONSENSE_LINES = 1000  # lines without a sample, more than those with one, end an intake


def form_of(path: Path) -> Form:
    """Tell a file's form by its name.

    Raises:
        InputError: ``form-unknown``.
    """
    form = SUFFIXES.get(path.suffix.lower())
    if form is None:
        known = ", ".join(sorted(SUFFIXES))
        raise InputError(
            "form-unknown",
            f"{path.name} does not tell its form; known endings: {known}",
            "Name it: --as csv or --as jsonl",
        )
    return form


def ingest_file(
    path: Path,
    form: Form,
    spec: IntakeSpec,
    store: Store,
    person: str,
    *,
    block_bytes: int = BLOCK_BYTES,
) -> IntakeReport:
    """Take in a file, or what it has grown by since the last time.

    The file is known by its first two lines, so a copy under another name adds nothing either. A
    last line without an end is left for the next time: it may still be written.

    Args:
        path: The file.
        form: CSV with a header, or JSON lines.
        spec: Units, rate and window.
        store: Where windows go.
        person: Who wears the sensor.
        block_bytes: How much is read, and kept, at a time.

    Raises:
        DataError: ``source-unreadable``, ``source-empty``, ``source-changed``, ``columns-missing``
            or ``line-too-long``.
        StorageError: The store refused; what it acknowledged stays.
    """
    try:
        with open(path, "rb") as file:
            source = _fingerprint(file, path)
            file.seek(0)
            tape = Tape(file, str(path), block_bytes)
            return _ingest(tape, form, Intake(spec, store, person, source, path.name), last=False)
    except OSError as error:
        raise DataError(
            "source-unreadable", f"{path} cannot be read: {error.strerror or error}"
        ) from error


def ingest_stream(
    stream: BinaryIO, form: Form, spec: IntakeSpec, store: Store, person: str, source: str
) -> IntakeReport:
    """Take in a stream to its end, e.g. standard input or a connection.

    Args:
        stream: Binary.
        form: CSV with a header, or JSON lines.
        spec: Units, rate and window.
        store: Where windows go.
        person: Who wears the sensor.
        source: Names the stream; a later one of that name continues its last segment where the
            times allow.

    Raises:
        DataError: See :func:`ingest_file`.
        StorageError: The store refused; what it acknowledged stays.
    """
    return _ingest(Tape(stream, source), form, Intake(spec, store, person, source), last=True)


@contextmanager
def connections(path: Path, idle_s: float) -> Iterator[Iterator[BinaryIO]]:
    """Listen on a Unix socket that only this user may use; lend one connection after another.

    Args:
        path: The socket; a stale one is replaced.
        idle_s: A silence of this length ends a connection, and the wait for one.

    Raises:
        InputError: ``socket-taken`` when something else is there.
        StorageError: ``socket-refused``.
    """
    _clear(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            listener.bind(str(path))
            path.chmod(0o600)
            listener.listen(1)
        except OSError as error:
            raise StorageError(
                "socket-refused", f"no socket can be made at {path}: {error.strerror or error}"
            ) from error
        listener.settimeout(idle_s)
        yield _accepted(listener, idle_s)
    finally:
        listener.close()
        path.unlink(missing_ok=True)


def _accepted(listener: socket.socket, idle_s: float) -> Iterator[BinaryIO]:
    while True:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            return
        connection.settimeout(idle_s)
        with connection, connection.makefile("rb") as stream:
            yield stream


def _clear(path: Path) -> None:
    """Remove a socket that nobody listens on any more."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISSOCK(mode):
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        finally:
            probe.close()
    raise InputError("socket-taken", f"{path} is in use, or no socket", "Choose another --socket.")


def _ingest(tape: Tape, form: Form, intake: Intake, *, last: bool) -> IntakeReport:
    """Take in what a tape holds; ``last`` for a stream, which has no position to come back to."""
    place: tuple[int, bytes] = (0, b"")
    read_any = False
    try:
        parse = _parser(tape, form, intake.spec)
        if intake.position is not None and intake.position.offset:
            tape.skip(intake.position)
        for block in tape.blocks(last_line=last):
            place, read_any = (0, b"") if last else (block.offset, block.prefix), True
            intake.take(parse(block.lines), *place)
            check_sense(intake.report(), tape.name, NONSENSE_LINES)
    except TimeoutError:
        pass  # a connection that fell silent has ended
    if read_any:
        check_sense(intake.report(), tape.name, 1)
        intake.take(JsonParser(intake.spec)(()), *place, last=True)
    return intake.report()


def _parser(tape: Tape, form: Form, spec: IntakeSpec) -> CsvParser | JsonParser:
    return CsvParser(spec, tape.line(), tape.name) if form == "csv" else JsonParser(spec)


def check_sense(report: IntakeReport, name: str, enough: int) -> None:
    """Stop where most lines hold no sample: it is the wrong form, not a bad line here or there.

    Args:
        report: What was read.
        name: Of the source, for messages.
        enough: As many lines without a sample are no accident.

    Raises:
        DataError: ``source-unreadable``.
    """
    if report.malformed >= enough and report.malformed > report.samples:
        raise DataError(
            "source-unreadable",
            f"{name}: {report.malformed} lines hold no sample, {report.samples} do",
            "Is the form right? See: fleet-device ingest --help",
        )


def _fingerprint(file: BinaryIO, path: Path) -> str:
    """Name a file by its first two lines: growing or copying it changes neither."""
    lines = [file.readline(LARGEST_LINE + 1) for _ in range(2)]
    whole = b"".join(line for line in lines if line.endswith(b"\n"))
    if not lines[0]:
        raise DataError("source-empty", f"{path} is empty", "Is the sensor writing to it?")
    return hashlib.sha256(whole).hexdigest()[:16]
