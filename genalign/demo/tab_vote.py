"""The tab Vote: its controls, and which function each of them calls."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from genalign.demo import markup
from genalign.demo.exchange import archive, import_file
from genalign.demo.handlers import AT_ONCE, ONE_MODEL, said, session_of, who
from genalign.demo.room import Room, gr
from genalign.demo.vote import annotator_name

ON_VOTE = (Path(__file__).with_name("ballot.js")).read_text(encoding="utf-8")
ME, KEPT = "me", "genalign-annotator"  # who votes, until a name is written; and where the browser keeps that
RECALL = f"() => localStorage.getItem('{KEPT}') || '{ME}'"
REMEMBER = f"(name) => {{ localStorage.setItem('{KEPT}', name); }}"
SEEDS = "seeds.jsonl"


def vote_tab(room: Room, page: gr.Blocks, tab: gr.Tab) -> None:
    with gr.Row():
        annotator = gr.Textbox(
            ME, label="Your name", info="kept with each vote", elem_id="annotator", max_length=40, min_width=160
        )
        kind = gr.Dropdown(
            room.deck.kinds(),
            value=room.deck.kinds()[0],
            label="Vote on",
            info="which one shows better what the prompt asks for? The tab Align trains on it",
            elem_id="pairs",
            min_width=260,
        )
    ballot = gr.HTML(elem_id="ballot", js_on_load=ON_VOTE)
    with gr.Accordion("What the votes say; export and import", open=False, elem_id="votes-say"):
        figures = gr.HTML(elem_id="figures")
        with gr.Row():
            again = gr.Button("Count again", size="sm")
            save = gr.Button("Export pairs", size="sm", elem_id="export")
            label = gr.Button("Export seeds for d3po", size="sm", elem_id="export-seeds")
            bring = gr.UploadButton("Import pairs", size="sm", file_types=[".zip", ".jsonl"], elem_id="import")
        file = gr.File(label="File", visible=False, interactive=False, elem_id="exported")
        moved = gr.HTML(elem_id="moved")

    def show(annotator: str, kind: str, request: gr.Request) -> str:
        return said(lambda: room.booth.show(session_of(request), who(annotator, request), kind))

    def vote(annotator: str, kind: str, event: gr.EventData, request: gr.Request) -> str:
        choice, token = str(event.choice), str(event.pair)
        voter, session = who(annotator, request), session_of(request)
        if choice == "undo":
            return said(lambda: room.booth.undo(session, voter, kind))
        return said(lambda: room.booth.vote(session, voter, kind, choice, token, event.ranks))

    def count() -> str:
        return said(room.booth.figures)

    def export() -> Any:
        return _offered(lambda folder: archive(room.votes, folder))

    def export_seeds() -> Any:
        def write(folder: Path) -> Path:
            room.alignment.labelled_seeds(folder / SEEDS)
            return folder / SEEDS

        return _offered(write)

    def bring_in(file: str | None, annotator: str, request: gr.Request) -> str:
        def go() -> str:
            voter = annotator_name(who(annotator, request))
            return markup.note(markup.count(import_file(room.votes, Path(file or ""), voter), "new vote"))

        return said(go)

    save.click(export, None, [file, moved], **AT_ONCE)
    label.click(export_seeds, None, [file, moved], show_progress="hidden", **ONE_MODEL)
    bring.upload(bring_in, [bring, annotator], moved, **AT_ONCE)
    ballot.submit(vote, [annotator, kind], ballot, trigger_mode="multiple", **AT_ONCE)
    kind.input(show, [annotator, kind], ballot, **AT_ONCE)
    again.click(count, None, figures, **AT_ONCE)
    named = page.load(None, None, annotator, js=RECALL)
    named.then(show, [annotator, kind], ballot, show_progress="hidden", **ONE_MODEL)
    annotator.change(None, annotator, None, js=REMEMBER)
    annotator.submit(show, [annotator, kind], ballot, **AT_ONCE)
    page.load(count, None, figures, **AT_ONCE)
    gr.on([page.load, tab.select], lambda: gr.Dropdown(choices=room.deck.kinds()), None, kind, **AT_ONCE)
    tab.select(count, None, figures, **AT_ONCE)


def _offered(write: Callable[[Path], Path]) -> Any:
    """A file written into a folder of its own, for the browser to take; else the sentence that refuses it."""
    try:
        return gr.File(str(write(Path(tempfile.mkdtemp(prefix="genalign-")))), visible=True), ""
    except Exception as error:
        return gr.File(visible=False), markup.refused(error)
