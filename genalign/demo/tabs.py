"""The four tabs: their controls, and which function each of them calls. What they show is made by the other files."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from genalign.demo import markup
from genalign.demo.align import MOST_STEPS, progress
from genalign.demo.draw import MOST, drawing, searching
from genalign.demo.exchange import archive, import_file
from genalign.demo.inspect import changed, check, report, run_names
from genalign.demo.models import BASE
from genalign.demo.room import Room, gr
from genalign.demo.vote import annotator_name
from genalign.demo.works import CancelledError, Work
from genalign.reward import shipped_rewards

ON_VOTE = (Path(__file__).with_name("ballot.js")).read_text(encoding="utf-8")
SEARCHES = ("best-of-n", "random", "reno", "fk")
EVERY = 2.0  # seconds between two looks at a training
ONE_MODEL: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}  # draws wait in one queue
AT_ONCE: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
ME, KEPT = "me", "genalign-annotator"  # who votes, until a name is written; and where the browser keeps that
RECALL = f"() => localStorage.getItem('{KEPT}') || '{ME}'"
REMEMBER = f"(name) => {{ localStorage.setItem('{KEPT}', name); }}"
OWN_REWARD = "the recipe's own"


# ---- Draw -----------------------------------------------------------------------------------------------------------


def draw_tab(room: Room, page: gr.Blocks, tab: gr.Tab) -> None:
    models = room.models
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=300, elem_classes="controls"):
            name = gr.Dropdown(models.names(), value=_first_name(room), label="Model", elem_id="draw-model")
            prompt = gr.Dropdown(
                models.offered, value=models.offered[0], allow_custom_value=True, label="Prompt", elem_id="draw-prompt"
            )
            with gr.Row():
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=90)
                count = gr.Slider(1, MOST, value=4, step=1, label="Samples", min_width=120)
            with gr.Row():
                steps = gr.Number(0, label="Steps", info="0: the recipe's", precision=0, minimum=0, min_width=90)
                guidance = gr.Number(0, label="Guidance", info="0: the recipe's", minimum=0, min_width=90)
            with gr.Row():
                draw = gr.Button("Draw", variant="primary", elem_id="draw-go", min_width=120)
                cancel = gr.Button("Cancel", elem_id="draw-cancel", min_width=120)
            with gr.Accordion("Search for better samples", open=False, elem_id="search"):
                methods = gr.CheckboxGroup(SEARCHES, value=["best-of-n"], label="Searches, at equal budgets")
                rewards = [OWN_REWARD, *(one for one in shipped_rewards() if one.startswith((models.modality, "any")))]
                reward = gr.Dropdown(rewards, value=OWN_REWARD, label="Reward to search for")
                budget = gr.Slider(4, 200, value=32, step=4, label="Budget, in plain samplings")
                search = gr.Button("Search", elem_id="search-go")
        with gr.Column(scale=3):
            shown = gr.HTML(elem_id="drawn")

    def go(name: str, prompt: str, seed: float, count: float, steps: Any, guidance: Any, request: gr.Request) -> Any:
        yield from _working(
            room, request, lambda work: drawing(models, work, name, prompt or "", seed, count, guidance, steps)
        )

    def look(name: str, prompt: str, seed: float, methods: Any, reward: str, budget: float, request: gr.Request) -> Any:
        wanted = "" if reward == OWN_REWARD else reward
        yield from _working(
            room, request, lambda work: searching(models, work, name, prompt or "", seed, methods, wanted, budget)
        )

    def stop(request: gr.Request) -> None:
        room.works.cancel(session_of(request))

    given = [name, prompt, seed, count, steps, guidance]
    draw.click(go, given, shown, show_progress="minimal", **ONE_MODEL)
    prompt.change(go, given, shown, show_progress="minimal", trigger_mode="always_last", **ONE_MODEL)
    search.click(look, [name, prompt, seed, methods, reward, budget], shown, show_progress="minimal", **ONE_MODEL)
    cancel.click(stop, None, None, **AT_ONCE)
    gr.on([page.load, tab.select], lambda: gr.Dropdown(choices=models.names()), None, name, **AT_ONCE)
    page.load(go, given, shown, show_progress="hidden", **ONE_MODEL)


def _first_name(room: Room) -> str:
    return BASE if room.models.run is None else room.models.run.name


def _working(room: Room, request: gr.Request, run: Callable[[Work], Iterator[str]]) -> Iterator[str]:
    """HTML of a work as it grows; of one that was cancelled what it showed last."""
    work, last = room.works.start(session_of(request)), ""
    try:
        with closing(run(work)) as pieces:  # type: ignore[type-var]  # they are generators
            for piece in pieces:
                last = piece
                yield piece
    except CancelledError:
        yield markup.note("cancelled") + last
    except Exception as error:
        yield markup.refused(error)


def session_of(request: gr.Request) -> str:
    return request.session_hash or ""


# ---- Vote -----------------------------------------------------------------------------------------------------------


def vote_tab(room: Room, page: gr.Blocks, tab: gr.Tab) -> None:
    with gr.Row():
        annotator = gr.Textbox(ME, label="Your name", elem_id="annotator", max_length=40, min_width=160)
        kind = gr.Dropdown(room.deck.kinds(), value=room.deck.kinds()[0], label="Pairs", elem_id="pairs", min_width=260)
    ballot = gr.HTML(elem_id="ballot", js_on_load=ON_VOTE)
    with gr.Accordion("What the votes say", open=False, elem_id="votes-say"):
        figures = gr.HTML(elem_id="figures")
        with gr.Row():
            again = gr.Button("Count again", size="sm")
            save = gr.Button("Export pairs", size="sm", elem_id="export")
            bring = gr.UploadButton("Import pairs", size="sm", file_types=[".zip", ".jsonl"], elem_id="import")
        pairs = gr.File(label="Pairs", visible=False, interactive=False, elem_id="exported")
        moved = gr.HTML(elem_id="moved")

    def show(annotator: str, kind: str, request: gr.Request) -> str:
        return _said(lambda: room.booth.show(session_of(request), _who(annotator, request), kind))

    def vote(annotator: str, kind: str, event: gr.EventData, request: gr.Request) -> str:
        choice, token = str(event.choice), str(event.pair)
        who, session = _who(annotator, request), session_of(request)
        if choice == "undo":
            return _said(lambda: room.booth.undo(session, who, kind))
        return _said(lambda: room.booth.vote(session, who, kind, choice, token))

    def count() -> str:
        return _said(room.booth.figures)

    def export() -> Any:
        try:
            return gr.File(str(archive(room.votes, Path(tempfile.mkdtemp(prefix="genalign-")))), visible=True), ""
        except Exception as error:
            return gr.File(visible=False), markup.refused(error)

    def bring_in(file: str | None, annotator: str, request: gr.Request) -> str:
        def go() -> str:
            who = annotator_name(_who(annotator, request))
            return markup.note(markup.count(import_file(room.votes, Path(file or ""), who), "new vote"))

        return _said(go)

    save.click(export, None, [pairs, moved], **AT_ONCE)
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


# ---- Align ----------------------------------------------------------------------------------------------------------


def align_tab(room: Room, page: gr.Blocks, tab: gr.Tab) -> None:
    alignment = room.alignment
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=300, elem_classes="controls"):
            methods, how = alignment.methods(), "d3po learns from the steps of samples, flow-dpo from samples alone"
            method = gr.Dropdown(
                methods, value=methods[0] if methods else None, label="Method", info=how, elem_id="align-method"
            )
            begin = gr.Dropdown([BASE], value=BASE, label="Begin with", elem_id="align-begin")
            steps = gr.Slider(1, MOST_STEPS, value=60, step=1, label="Steps", elem_id="align-steps")
            start = gr.Button("Align from the votes", variant="primary", elem_id="align-start")
            which = gr.Dropdown([], label="Training", elem_id="align-run")
            with gr.Row():
                stop = gr.Button("Stop", elem_id="align-stop", min_width=100)
                resume = gr.Button("Resume", elem_id="align-resume", min_width=100)
        with gr.Column(scale=3):
            said = gr.HTML(elem_id="align-said")
            shown = gr.HTML(elem_id="aligned")
    timer = gr.Timer(EVERY)

    def runs(chosen: str | None = None) -> Any:
        names = [one.run.name for one in alignment.all()]
        return gr.Dropdown(choices=names, value=chosen if chosen in names else (names[0] if names else None))

    def go(method: str, steps: float, begin: str) -> Any:
        try:
            run = alignment.start(method or "", steps, begin or BASE)
        except Exception as error:
            return markup.refused(error), runs()
        return markup.note(f"{run.name} has begun; it goes on when this page is closed"), runs(run.name)

    def stop_it(name: str | None) -> str:
        return _said(lambda: _after(alignment.stop, name, "is stopped"))

    def go_on(name: str | None) -> str:
        return _said(lambda: _after(alignment.resume, name, "goes on"))

    def look(name: str | None) -> str:
        return _said(lambda: progress(alignment.state(name)) if name else "")

    start.click(go, [method, steps, begin], [said, which], show_progress="minimal", **ONE_MODEL)
    stop.click(stop_it, which, said, **AT_ONCE)
    resume.click(go_on, which, said, **AT_ONCE)
    timer.tick(look, which, shown, **AT_ONCE)
    which.change(look, which, shown, **AT_ONCE)
    page.load(runs, which, which, **AT_ONCE)
    gr.on([page.load, tab.select], lambda: gr.Dropdown(choices=room.models.names()), None, begin, **AT_ONCE)


# ---- Inspect --------------------------------------------------------------------------------------------------------


def inspect_tab(room: Room, page: gr.Blocks, tab: gr.Tab) -> None:
    models = room.models
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=300, elem_classes="controls"):
            name = gr.Dropdown([], label="Run", elem_id="inspect-run")
            changes = gr.Textbox(
                label="Changes to its recipe", info="one a line, as train.steps=60", lines=3, elem_id="inspect-changes"
            )
            verdict = gr.HTML(elem_id="inspect-verdict")
            start = gr.Button("Run it again", elem_id="inspect-start")
        with gr.Column(scale=3):
            shown = gr.HTML(elem_id="inspected")

    def runs(chosen: str | None) -> Any:
        names = run_names(models)
        return gr.Dropdown(choices=names, value=chosen if chosen in names else (names[0] if names else None))

    def show(name: str | None) -> str:
        return _said(lambda: report(models, name)) if name else markup.note("no runs yet; align from votes makes one")

    def judge(name: str | None, changes: str | None) -> str:
        return _said(lambda: check(models, name, changes or "")) if name else ""

    def again(name: str | None, changes: str | None) -> str:
        def begin() -> str:
            words, _ = changed(models, name or "", changes or "")
            run = room.alignment.run_again(words)
            return markup.note(f"{run.name} has begun; the tab Align follows it")

        return _said(begin)

    name.change(show, name, shown, show_progress="minimal")
    name.change(judge, [name, changes], verdict, **AT_ONCE)
    changes.change(judge, [name, changes], verdict, trigger_mode="always_last", **AT_ONCE)
    start.click(again, [name, changes], verdict, **AT_ONCE)
    gr.on([page.load, tab.select], runs, name, name, **AT_ONCE)


def _after(do: Callable[[str], None], name: str | None, done: str) -> str:
    do(name or "")
    return markup.note(f"{name} {done}")


def _who(name: str, request: gr.Request) -> str:
    """The name by which somebody signed in, else the one written on the page."""
    return request.username or name or ""


def _said(make: Callable[[], str]) -> str:
    try:
        return make()
    except Exception as error:
        return markup.refused(error)
