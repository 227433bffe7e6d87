"""Votes: which of two samples of one prompt a person preferred, kept in SQLite and never lost once confirmed.

A ranking of several samples is kept as a vote on each of its pairs, stored and taken back together."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from genalign.files.atomic import sync_path
from genalign.files.untrusted import neighbour
from genalign.media.files import write_sample
from genalign.types import GenalignError, Media, UsageError

Choice = Literal["left", "right", "tie", "skip"]
CHOICES: tuple[Choice, ...] = get_args(Choice)
DATABASE, MEDIA_FOLDER = "votes.sqlite", "media"
VERSION = 2  # of the table below; version 1 had no rankings
PATIENCE = 30.0  # seconds that a writer waits for another one
SIDE = ("file", "seed", "model", "sampler", "source")  # the fields of Candidate, and the columns of each side
COLUMNS = [f"{side}_{name} {'INTEGER' if name == 'seed' else 'TEXT'}" for side in ("left", "right") for name in SIDE]
SCHEMA = (
    f"""CREATE TABLE IF NOT EXISTS votes (
  id INTEGER PRIMARY KEY,
  at REAL NOT NULL,
  annotator TEXT NOT NULL,
  choice TEXT NOT NULL CHECK (choice IN {CHOICES}),
  seconds REAL,
  prompt TEXT NOT NULL,
  facts TEXT NOT NULL,
  pair TEXT NOT NULL,
  {", ".join(COLUMNS)},
  ranking TEXT,
  UNIQUE (annotator, pair, at)
)""",
    "CREATE INDEX IF NOT EXISTS by_pair ON votes (pair)",
    "CREATE INDEX IF NOT EXISTS by_annotator ON votes (annotator, id)",
    f"PRAGMA user_version={VERSION}",
)
GIVEN = "coalesce(ranking, id)"  # what was given at once: a pair, or all pairs of a ranking


@dataclass(frozen=True)
class Candidate:
    """One of the two samples. file: its name in the folder of media, made of its content.

    seed, model, sampler: the sample's seed and the digests of what drew it, None where that is not known. source: the
    run whose adapter drew it, "" for a base.
    """

    file: str
    seed: int | None = None
    model: str | None = None
    sampler: str | None = None
    source: str = ""


@dataclass(frozen=True)
class Vote:
    """One row. seconds: how long it was on screen, None of an imported vote. at: seconds since 1970.

    ranking: what the votes of one ranking have in common, "" of a pair that was judged by itself.
    """

    prompt: str
    left: Candidate
    right: Candidate
    choice: Choice
    annotator: str
    seconds: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    at: float = 0.0
    ranking: str = ""

    @property
    def pair(self) -> str:
        """The same for both orders of the sides."""
        names = [self.prompt, *sorted((self.left.file, self.right.file))]
        return hashlib.sha256(json.dumps(names).encode()).hexdigest()[:32]

    @property
    def decided(self) -> tuple[Candidate, Candidate] | None:
        """(chosen, rejected); None of a tie and of a skipped pair."""
        if self.choice not in ("left", "right"):
            return None
        return (self.left, self.right) if self.choice == "left" else (self.right, self.left)


class Votes:
    """The votes of a folder: `votes.sqlite` and `media/`. Several threads and processes may write at once.

    Raises:
        UsageError: the folder cannot be written, or its file is not one of votes. GenalignError, by every method: the
            file is locked for too long, or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path, self.media = folder, folder / DATABASE, folder / MEDIA_FOLDER
        try:
            self.media.mkdir(parents=True, exist_ok=True)
            # Statements commit one by one: a transaction that began by reading could not write after another writer.
            self._connection = sqlite3.connect(
                self.path, timeout=PATIENCE, isolation_level=None, check_same_thread=False
            )
        except (OSError, sqlite3.Error) as error:
            raise UsageError(f"cannot write votes to {folder} ({error}); choose another folder with --votes") from error
        self._lock = threading.Lock()
        with self._using() as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")  # a confirmed vote outlives a power cut too
            connection.execute("BEGIN IMMEDIATE")
            try:
                self._prepare(connection)
                connection.execute("COMMIT")
            except BaseException:
                connection.execute("ROLLBACK")
                raise

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Make the table, or bring that of an earlier version up to this one."""
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            raise UsageError(
                f"{self.path} is of version {version}, and this genalign writes version {VERSION}; update genalign, or "
                f"choose another folder with --votes"
            )
        if version == 1:
            connection.execute("ALTER TABLE votes ADD COLUMN ranking TEXT")
        for statement in SCHEMA:
            connection.execute(statement)

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._connection
            except sqlite3.OperationalError as error:
                raise GenalignError(f"the votes in {self.path} cannot be reached ({error}); try again") from error
            except sqlite3.DatabaseError as error:
                raise GenalignError(
                    f"{self.path} is no file of votes, or a damaged one ({error}); move it away, or take another folder"
                ) from error

    def close(self) -> None:
        self._connection.close()

    # ---- one vote ----------------------------------------------------------------------------------------------------

    def keep(self, media: Media, row: int) -> str:
        """Write a sample where votes can name it, under a name made of its content.

        Raises:
            GenalignError: it holds values that are not numbers.
        """
        draft = write_sample(media, row, self.media / f".{uuid.uuid4().hex}")
        name = f"{hashlib.sha256(draft.read_bytes()).hexdigest()[:40]}{draft.suffix}"
        os.replace(draft, self.media / name)
        return name

    def place(self, candidate: Candidate) -> Path:
        """The file of a sample."""
        return neighbour(self.media, candidate.file, str(self.path))

    def add(self, vote: Vote) -> Vote:
        """Store a vote; it and its samples are on the disk when this returns, with the time at which it was given."""
        (stored,) = self.add_together([vote])
        return stored

    def add_together(self, votes: Sequence[Vote]) -> list[Vote]:
        """Store the votes of a ranking, all of them or none."""
        now = time.time()
        stored = [vote if vote.at else replace(vote, at=now) for vote in votes]
        for path in {self.place(one) for vote in stored for one in (vote.left, vote.right)}:
            if path.is_file():
                sync_path(path)
        sync_path(self.media)
        rows = [_row(vote) for vote in stored]
        marks = ", ".join(f"({', '.join('?' * len(row))})" for row in rows)  # one statement, which commits as a whole
        with self._using() as connection:
            connection.execute(
                f"INSERT OR IGNORE INTO votes ({', '.join(rows[0])}) VALUES {marks}",
                [value for row in rows for value in row.values()],
            )
        return stored

    def undo(self, annotator: str) -> list[Vote]:
        """Take back what the annotator gave last on the page and return it: a vote, those of a ranking, or nothing."""
        last = f"SELECT {GIVEN} FROM votes WHERE annotator = :who AND seconds IS NOT NULL ORDER BY id DESC LIMIT 1"
        with self._using() as connection:
            rows = connection.execute(
                f"DELETE FROM votes WHERE annotator = :who AND {GIVEN} = ({last}) RETURNING *", {"who": annotator}
            ).fetchall()
        return [_vote(row) for row in sorted(rows)]  # by id, which comes first

    # ---- all of them -------------------------------------------------------------------------------------------------

    def all(self) -> list[Vote]:
        """Every vote, in the order in which they were stored."""
        with self._using() as connection:
            return [_vote(row) for row in connection.execute("SELECT * FROM votes ORDER BY id").fetchall()]

    def count(self, annotator: str | None = None) -> int:
        """How many votes there are, or how many of one annotator; a ranking is one."""
        where, given = ("", ()) if annotator is None else (" WHERE annotator = ?", (annotator,))
        with self._using() as connection:
            found: int = connection.execute(f"SELECT count(DISTINCT {GIVEN}) FROM votes{where}", given).fetchone()[0]
            return found

    def unseen(self, annotator: str, ranked: bool = False) -> list[Vote]:
        """What others have judged and this annotator has not, of it what fewest have: a pair or, ranked, a ranking."""
        with self._using() as connection:
            row = connection.execute(
                f"SELECT ranking, * FROM votes WHERE seconds IS NOT NULL AND ranking IS {'NOT' if ranked else ''} NULL "
                "AND pair NOT IN (SELECT pair FROM votes WHERE annotator = ?) GROUP BY pair ORDER BY count(*), id "
                "LIMIT 1",
                (annotator,),
            ).fetchone()
            if row is None or not ranked:
                return [] if row is None else [_vote(row[1:])]
            together = "SELECT * FROM votes WHERE ranking = ? ORDER BY id"
            return [_vote(one) for one in connection.execute(together, (row[0],)).fetchall()]


def _row(vote: Vote) -> dict[str, Any]:
    row: dict[str, Any] = {"at": vote.at, "annotator": vote.annotator, "choice": vote.choice, "seconds": vote.seconds}
    row |= {"prompt": vote.prompt, "facts": json.dumps(dict(vote.facts)), "pair": vote.pair}
    for side, candidate in (("left", vote.left), ("right", vote.right)):
        row |= {f"{side}_{name}": getattr(candidate, name) for name in SIDE}
    return row | {"ranking": vote.ranking or None}


def _vote(row: tuple[Any, ...]) -> Vote:
    _, at, annotator, choice, seconds, prompt, facts, _, *sides, ranking = row
    left, right = Candidate(*sides[: len(SIDE)]), Candidate(*sides[len(SIDE) :])
    return Vote(prompt, left, right, choice, annotator, seconds, json.loads(facts), at, ranking or "")
