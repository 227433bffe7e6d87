"""What the tabs share: how their functions are called by Gradio, whose page asks, and errors as a sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

from genalign.demo import markup
from genalign.demo.room import Room, gr
from genalign.demo.works import CancelledError, Work

ONE_MODEL: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}  # draws wait in one queue
AT_ONCE: dict[str, Any] = {"queue": False, "show_progress": "hidden"}


def session_of(request: gr.Request) -> str:
    return request.session_hash or ""


def who(name: str, request: gr.Request) -> str:
    """The name by which somebody signed in, else the one written on the page."""
    return request.username or name or ""


def said(make: Callable[[], str]) -> str:
    """HTML, or the sentence of what went wrong."""
    try:
        return make()
    except Exception as error:
        return markup.refused(error)


def working(room: Room, request: gr.Request, run: Callable[[Work], Iterator[str]]) -> Iterator[str]:
    """HTML of a work as it grows; of one that was cancelled what it showed last."""
    work = room.works.start(session_of(request))
    try:
        with closing(run(work)) as pieces:  # type: ignore[type-var]  # they are generators
            for piece in pieces:
                work.shown = piece
                yield piece
    except CancelledError:
        yield cancelled(work)
    except Exception as error:
        yield markup.refused(error)
    finally:
        work.ended = True


def cancelled(work: Work | None) -> str:
    """What the page shows of a work that it ended."""
    return markup.note("cancelled") + (work.shown if work is not None else "")


def stop(room: Room, request: gr.Request) -> Any:
    """End what this page is waiting for; what is shown of it."""
    work = room.works.cancel(session_of(request))
    return gr.skip() if work is not None and work.ended else cancelled(work)
