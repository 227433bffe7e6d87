"""Who may open the page: a file of names and scrypt hashes."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from genalign.files.atomic import replace_file
from genalign.types import UsageError

N, R, P = 2**14, 8, 1  # cost of scrypt (RFC 7914): 16 MiB and about 50 ms a try
SHAPE = "one NAME:SALT:HASH a line, as genalign demo --auth FILE --add-user NAME writes it"
SHORTEST = 8


def checker(path: Path) -> Callable[[str, str], bool]:
    """A function that says whether a name and a password belong together.

    Raises:
        UsageError: no such file, or a line of another form.
    """
    known = _read(path)
    nobody = _line("nobody", secrets.token_hex())

    def check(name: str, password: str) -> bool:
        salt, wanted = known.get(name, nobody)  # a name that is not known takes as long as one that is
        return hmac.compare_digest(_hash(password, salt), wanted) and name in known

    return check


def add_user(path: Path, name: str, password: str) -> None:
    """Write a name and the hash of its password to the file, in the place of an earlier one.

    Raises:
        UsageError: a name that cannot stand in the file, a password that is too short, or the file cannot be written.
    """
    if not name or ":" in name or not name.isprintable():
        raise UsageError(f"{name!r} is no user name; write letters and digits")
    if len(password) < SHORTEST:
        raise UsageError(f"the password has {len(password)} signs; take {SHORTEST} at least")
    known = _read(path) if path.exists() else {}
    known[name] = _line(name, password)
    lines = [f"{one}:{salt.hex()}:{found.hex()}\n" for one, (salt, found) in known.items()]
    try:
        replace_file(path, "".join(lines), sync=True)
        os.chmod(path, 0o600)
    except OSError as error:
        raise UsageError(f"cannot write {path} ({error.strerror}); name another file with --auth") from error


def _line(name: str, password: str) -> tuple[bytes, bytes]:
    salt = secrets.token_bytes(16)
    return salt, _hash(password, salt)


def _hash(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=N, r=R, p=P)


def _read(path: Path) -> dict[str, tuple[bytes, bytes]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the users in {path}; it should hold {SHAPE}") from error
    known = {}
    for number, line in enumerate(lines, start=1):
        try:
            name, salt, found = line.split(":")
            known[name] = bytes.fromhex(salt), bytes.fromhex(found)
        except ValueError as error:
            raise UsageError(f"line {number} of {path} is not {SHAPE}") from error
    if not known:
        raise UsageError(f"{path} names nobody; add a user with genalign demo --auth {path} --add-user NAME")
    return known
