"""Votes as files: pairs of media that every trainer reads, and labelled seeds that d3po draws again."""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from genalign.data.preferences import Pairs, find_pairs
from genalign.data.tables import read_table
from genalign.demo.votes import MEDIA_FOLDER, Candidate, Choice, Vote, Votes
from genalign.files.atomic import replace_file
from genalign.media.files import MEDIUM_OF
from genalign.types import UsageError

PAIRS = "pairs.jsonl"
UNPACKED = 1 << 30  # bytes of an archive of pairs
LONG_AGO = 1.0  # when votes were given that do not say when: always the same, so that none is imported twice


def export_pairs(votes: Votes, out: Path) -> int:
    """Write `out`/pairs.jsonl, rows {"prompt", "chosen", "rejected", "user", ...}, and `out`/media/; how many rows.

    The first three columns are TRL's, and genalign reads them as `data.prompts`; the others let `import_pairs` bring
    the whole vote back. Ties and skipped pairs are left out.

    Raises:
        UsageError: the folder holds such a file, or nothing was decided.
    """
    if (out / PAIRS).exists():
        raise UsageError(f"{out} already holds {PAIRS}; choose another folder")
    decided = [(vote, found) for vote in votes.all() if (found := vote.decided) and found[0].file != found[1].file]
    if not decided:
        raise UsageError("no vote prefers one sample to another; vote first")
    (out / MEDIA_FOLDER).mkdir(parents=True, exist_ok=True)
    rows = []
    for vote, (chosen, rejected) in decided:
        row: dict[str, Any] = {"prompt": vote.prompt}
        row |= {name: _value(votes, one, out) for name, one in (("chosen", chosen), ("rejected", rejected))}
        row |= {"user": vote.annotator, "facts": dict(vote.facts), "seconds": vote.seconds, "at": vote.at}
        row |= {"position": vote.choice, "ranking": vote.ranking}
        for name, one in (("chosen", chosen), ("rejected", rejected)):
            row |= {f"{name}_{key}": getattr(one, key) for key in ("seed", "model", "sampler", "source")}
        rows.append(json.dumps(row, ensure_ascii=False) + "\n")
    replace_file(out / PAIRS, "".join(rows))
    return len(rows)


def _value(votes: Votes, candidate: Candidate, out: Path) -> str:
    """What stands in a row: the path of a file that is copied, or the text itself."""
    file = votes.place(candidate)
    if MEDIUM_OF.get(file.suffix) == "text":
        return file.read_text(encoding="utf-8")
    target = out / MEDIA_FOLDER / file.name
    if not target.exists():
        shutil.copyfile(file, target)
    return f"{MEDIA_FOLDER}/{file.name}"


def export_seeds(votes: Votes, path: Path, drawn_by: Mapping[str, str]) -> int:
    """Write labelled pairs of seeds for `method.pairs` (docs/data.md) and return how many.

    drawn_by: digests of model and sampler, as a policy gives them; votes on samples of anything else are left out.

    Raises:
        UsageError: no vote is left.
    """
    rows, others = [], 0
    for vote in votes.all():
        if (decided := vote.decided) is None:
            continue
        if any(one.seed is None or {"model": one.model, "sampler": one.sampler} != drawn_by for one in decided):
            others += 1
            continue
        chosen, rejected = decided
        if chosen.seed == rejected.seed:
            continue
        row = {"prompt": vote.prompt, "facts": dict(vote.facts), "chosen_seed": chosen.seed}
        rows.append(json.dumps({**row, "rejected_seed": rejected.seed, **drawn_by}, ensure_ascii=False) + "\n")
    if not rows:
        model, sampler = (drawn_by[name][:12] for name in ("model", "sampler"))
        raise UsageError(
            f"no vote prefers one of two samples of model {model} and sampler {sampler} ({others} are about other "
            f"samples); vote on samples of this model first"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, "".join(rows), sync=True)
    return len(rows)


def import_pairs(votes: Votes, source: Path, annotator: str = "imported") -> int:
    """Add the pairs of a file or folder in any form of preferences that genalign reads; how many are new.

    annotator: of rows that name no `user`. What `export_pairs` wrote comes back as it was.

    Raises:
        UsageError: as of `find_pairs`, or prompts alone.
    """
    pairs = find_pairs(source)
    if pairs is None:
        raise UsageError(f"{source.name} holds no pairs; write rows with a prompt, chosen and rejected")
    before = votes.count()
    for number, row in enumerate(_rows(source, pairs)):
        media = pairs.load([number])  # the preferred one first
        chosen, rejected = (
            _candidate(votes.keep(media, k), row, name) for k, name in enumerate(("chosen", "rejected"))
        )
        # Pairs of others were shown nowhere: which side they take must not depend on which is the better.
        first = row["position"] == "left" if "position" in row else chosen.file < rejected.file
        choice: Choice = "left" if first else "right"
        left, right = (chosen, rejected) if first else (rejected, chosen)
        facts = row["facts"] if isinstance(row.get("facts"), dict) else {}
        prompt, user = pairs.found.items[pairs.pairs[number].a].prompt, pairs.pairs[number].user or annotator
        at = _number(row.get("at")) or LONG_AGO
        ranking = row["ranking"] if isinstance(row.get("ranking"), str) else ""
        votes.add(Vote(prompt, left, right, choice, user, _number(row.get("seconds")), facts, at, ranking))
    return votes.count() - before


def _rows(source: Path, pairs: Pairs) -> list[Mapping[str, Any]]:
    """The row of each pair, where rows are pairs; else nothing is known of a pair but itself."""
    rows = list(read_table(source).rows)
    return rows if len(rows) == len(pairs.pairs) else [{} for _ in pairs.pairs]


def _candidate(file: str, row: Mapping[str, Any], name: str) -> Candidate:
    """The chosen or the rejected sample of a row, with what our own export says of it."""
    seed, *texts = (row.get(f"{name}_{key}") for key in ("seed", "model", "sampler", "source"))
    model, sampler, run = (value if isinstance(value, str) else None for value in texts)
    known = isinstance(seed, int) and abs(seed) < 1 << 63  # what SQLite holds
    return Candidate(file, seed if known else None, model, sampler, run or "")


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def archive(votes: Votes, folder: Path) -> Path:
    """The pairs of `export_pairs` as one .zip in a folder.

    Raises:
        UsageError: nothing was decided.
    """
    export_pairs(votes, folder / "pairs")
    return Path(shutil.make_archive(str(folder / "pairs"), "zip", folder / "pairs"))


def import_file(votes: Votes, file: Path, annotator: str) -> int:
    """Add the pairs of a file that somebody sent: an archive, or rows of texts; how many are new.

    Raises:
        UsageError: as of `unpack` and `import_pairs`.
    """
    if file.suffix.lower() not in (".zip", ".jsonl"):
        raise UsageError(f"{file.name} is neither a .zip of pairs nor a .jsonl; export pairs to see how one is made")
    if file.suffix.lower() == ".jsonl":
        return import_pairs(votes, file, annotator)
    with tempfile.TemporaryDirectory() as folder:
        return import_pairs(votes, unpack(file, Path(folder)), annotator)


def unpack(archive: Path, folder: Path) -> Path:
    """The pairs of an archive that somebody sent, unpacked in `folder`: one pairs.jsonl and files that are media.

    Raises:
        UsageError: no .zip, a name that leads elsewhere, a file of another kind, or too large when unpacked.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = [entry for entry in opened.infolist() if not entry.is_dir()]
            if sum(entry.file_size for entry in entries) > UNPACKED:
                raise UsageError(f"{archive.name} is larger than {UNPACKED >> 30} GiB when unpacked; send it in parts")
            for entry in entries:
                _check_entry(archive.name, entry.filename)
            for entry in entries:
                target = folder / entry.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(entry) as packed, target.open("wb") as file:
                    shutil.copyfileobj(packed, file)  # zipfile stops at the size that was checked
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError) as error:
        raise UsageError(f"{archive.name} is no .zip that can be read ({error}); export pairs again") from error
    found = sorted(folder.rglob(PAIRS))
    if len(found) != 1:
        raise UsageError(f"{archive.name} should hold one {PAIRS}, and has {len(found)}; export pairs again")
    return found[0]


def _check_entry(archive: str, name: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
        raise UsageError(f"{archive} names {name!r}, which leads elsewhere; pack files below one folder")
    if path.name != PAIRS and path.suffix.lower() not in MEDIUM_OF:
        raise UsageError(f"{archive} holds {path.name!r}, which is neither {PAIRS} nor a medium; leave it out")
