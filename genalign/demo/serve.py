"""`genalign demo`: the page of a recipe or a run, served to this machine alone unless it asks for a password."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genalign.demo.passwords import add_user, checker
from genalign.types import GenalignError, UsageError

WAITING = 24  # draws in the queue; a further one is refused
HERE_ONLY = ("127.0.0.1", "localhost", "::1")


def serve(
    recipe: str = "image-d3po",
    overrides: Sequence[str] = (),
    *,
    runs: Path = Path("runs"),
    votes: Path = Path("votes"),
    host: str = "127.0.0.1",
    port: int = 7860,
    share: bool = False,
    auth: Path | None = None,
    disputed: bool = False,
    pictures: Path | None = None,
    block: bool = True,
) -> Any:
    """Serve the page until the process is interrupted; returns Gradio's page, which `close()` ends.

    recipe: a recipe, or a run folder, which the page then begins with. runs, votes: folders that are shown and written.
    auth: file of users, see `genalign.demo.passwords`. disputed: choose pairs by the disagreement about them, see
    `genalign.demo.choice`. pictures: a folder to vote on, see `genalign.demo.found`. block: wait until it ends.

    Raises:
        UsageError: no such recipe, gradio is missing, a folder cannot be written, the port is taken, or the page would
            be open to others without a password.
    """
    if auth is None and (share or host not in HERE_ONLY):
        where = "--share puts the page on the internet" if share else f"--host {host} opens the page to the network"
        raise UsageError(f"{where}, where anybody could train on this machine; add --auth FILE")
    if not 0 <= port < 1 << 16:
        raise UsageError(f"--port is {port}; it must lie in 0..65535")
    users = None if auth is None else checker(auth)
    from genalign.demo.models import Models
    from genalign.demo.page import build_page, launch_settings
    from genalign.demo.room import Room
    from genalign.demo.votes import Votes

    room = Room(Models(recipe, overrides, runs), Votes(votes), disputed, pictures)
    page = build_page(room).queue(max_size=WAITING, api_open=False)
    try:
        _, address, public = page.launch(
            server_name=host,
            server_port=port or None,
            share=share,
            auth=users,
            prevent_thread_lock=True,
            **launch_settings(room),
        )
    except OSError as error:
        raise UsageError(f"cannot serve at {host}:{port} ({error}); choose another --port") from error
    threading.Thread(target=_warm, args=(room,), daemon=True).start()
    print(f"genalign demo at {public or address} (votes in {votes}, runs in {runs}); end it with Ctrl-C", flush=True)
    if block:
        page.block_thread()
    return page


def _warm(room: Any) -> None:
    """Load the base and its rewards before the first page asks for them."""
    from genalign.demo.draw import drawing
    from genalign.demo.works import Work

    try:
        for _ in drawing(room.models, Work(), "base", room.models.offered[0], 0, 1, 0, 0):
            pass
    except GenalignError:  # the page says it to whoever draws
        pass


def ask_password(path: Path, name: str) -> None:
    """Ask for a password at the terminal, twice, and write its hash to the file.

    Raises:
        UsageError: the two differ, or as of `add_user`.
    """
    from getpass import getpass

    first = getpass(f"password of {name}: ")
    if first != getpass("again: "):
        raise UsageError("the two passwords differ; try again")
    add_user(path, name, first)
    print(f"{name} can open the page that is served with --auth {path}")
