"""The page: its tabs, and which function each button calls. What is shown is made by the other files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genalign.demo import markup
from genalign.demo.align import METHODS, MOST_STEPS, Alignment, progress
from genalign.demo.deck import BASE_PAIRS, Deck
from genalign.demo.draw import MOST, drawing, searching
from genalign.demo.models import BASE, Models
from genalign.demo.vote import Booth
from genalign.demo.votes import Votes
from genalign.demo.works import CancelledError, Work, Works
from genalign.reward import shipped_rewards
from genalign.types import UsageError

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported, and when a page is made
try:
    import gradio as gr
except ImportError as missing:
    raise UsageError("the demo needs gradio; pip install 'genalign[demo]'") from missing

HERE = Path(__file__).parent
STYLE, SCRIPT = HERE / "page.css", HERE / "page.js"
ON_VOTE = (HERE / "ballot.js").read_text(encoding="utf-8")
SEARCHES = ("best-of-n", "random", "reno", "fk")
FOCUS_BALLOT = "() => setTimeout(() => document.querySelector('.ballot')?.focus(), 100)"  # else arrows change tabs
EVERY = 2.0  # seconds between two looks at a training
OWN_REWARD = "the recipe's own"
ONE_MODEL: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}  # draws wait in one queue
AT_ONCE: dict[str, Any] = {"queue": False, "show_progress": "hidden"}


@dataclass
class Room:
    """All that the pages of one server share."""

    models: Models
    votes: Votes
    works: Works = field(default_factory=Works)

    def __post_init__(self) -> None:
        self.deck = Deck(self.models, self.votes)
        self.booth = Booth(self.deck, self.votes)
        self.alignment = Alignment(self.models, self.votes)


def build_page(room: Room) -> gr.Blocks:
    """The page of a room; launch it with `launch_settings`."""
    with gr.Blocks(title="genalign demo", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(
            f"<header><h1>genalign</h1><span>{markup.text(room.models.recipe.name)} · "
            f"{markup.text(Path(room.models.recipe.policy.model).name)}</span></header>"
        )
        with gr.Tabs():
            with gr.Tab("Draw", id="draw"):
                draw_tab(room, page)
            with gr.Tab("Vote", id="vote") as vote:
                vote_tab(room, page)
            with gr.Tab("Align", id="align"):
                align_tab(room, page)
        vote.select(None, None, None, js=FOCUS_BALLOT)

        def forget(request: gr.Request) -> None:
            """Nothing is kept of a page that was closed, and its work ends."""
            room.works.cancel(_session(request))
            room.booth.close(_session(request))

        page.unload(forget)
    return page


def launch_settings(room: Room) -> dict[str, Any]:
    """What `launch` is called with, whatever the address: system fonts, no file of this machine, no history."""
    fonts = ["system-ui", "sans-serif"]
    theme = gr.themes.Base(
        primary_hue="indigo", neutral_hue="slate", font=fonts, font_mono=["ui-monospace", "monospace"]
    )
    return {
        "theme": theme,
        "css_paths": [STYLE],
        "head": f"<script>{SCRIPT.read_text(encoding='utf-8')}</script>",
        "footer_links": [],
        "run_history": False,
        "enable_monitoring": False,
        "ssr_mode": False,
        "mcp_server": False,
        "pwa": False,
        "allowed_paths": [],
        "max_file_size": 64 << 20,
        "show_error": False,
        "quiet": True,
    }


# ---- Draw -----------------------------------------------------------------------------------------------------------


def draw_tab(room: Room, page: gr.Blocks) -> None:
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
        room.works.cancel(_session(request))

    given = [name, prompt, seed, count, steps, guidance]
    draw.click(go, given, shown, show_progress="minimal", **ONE_MODEL)
    prompt.change(go, given, shown, show_progress="minimal", trigger_mode="always_last", **ONE_MODEL)
    search.click(look, [name, prompt, seed, methods, reward, budget], shown, show_progress="minimal", **ONE_MODEL)
    cancel.click(stop, None, None, **AT_ONCE)
    page.load(lambda: gr.Dropdown(choices=models.names()), None, name, **AT_ONCE)
    page.load(go, given, shown, show_progress="hidden", **ONE_MODEL)


def _first_name(room: Room) -> str:
    return BASE if room.models.run is None else room.models.run.name


def _working(room: Room, request: gr.Request, run: Callable[[Work], Iterator[str]]) -> Iterator[str]:
    """HTML of a work as it grows; of one that was cancelled what it showed last."""
    work, last = room.works.start(_session(request)), ""
    try:
        with closing(run(work)) as pieces:  # type: ignore[type-var]  # they are generators
            for piece in pieces:
                last = piece
                yield piece
    except CancelledError:
        yield markup.note("cancelled") + last
    except Exception as error:
        yield markup.refused(error)


def _session(request: gr.Request) -> str:
    return request.session_hash or ""


# ---- Vote -----------------------------------------------------------------------------------------------------------


def vote_tab(room: Room, page: gr.Blocks) -> None:
    with gr.Row():
        annotator = gr.Textbox("me", label="Your name", elem_id="annotator", max_length=40, min_width=160)
        kind = gr.Dropdown(room.deck.kinds(), value=BASE_PAIRS, label="Pairs", elem_id="pairs", min_width=260)
    ballot = gr.HTML(elem_id="ballot", js_on_load=ON_VOTE)
    with gr.Accordion("What the votes say", open=False):
        figures = gr.HTML(elem_id="figures")
        again = gr.Button("Count again", size="sm")

    def show(annotator: str, kind: str, request: gr.Request) -> str:
        return _said(lambda: room.booth.show(_session(request), _who(annotator, request), kind))

    def vote(annotator: str, kind: str, event: gr.EventData, request: gr.Request) -> str:
        choice, token = str(event.choice), str(event.pair)
        who, session = _who(annotator, request), _session(request)
        if choice == "undo":
            return _said(lambda: room.booth.undo(session, who, kind))
        return _said(lambda: room.booth.vote(session, who, kind, choice, token))

    def count() -> str:
        return _said(room.booth.figures)

    ballot.submit(vote, [annotator, kind], ballot, trigger_mode="multiple", **AT_ONCE)
    kind.input(show, [annotator, kind], ballot, **AT_ONCE)
    again.click(count, None, figures, **AT_ONCE)
    page.load(show, [annotator, kind], ballot, show_progress="hidden", **ONE_MODEL)
    page.load(count, None, figures, **AT_ONCE)
    page.load(lambda: gr.Dropdown(choices=room.deck.kinds()), None, kind, **AT_ONCE)


# ---- Align ----------------------------------------------------------------------------------------------------------


def align_tab(room: Room, page: gr.Blocks) -> None:
    alignment = room.alignment
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=300, elem_classes="controls"):
            choices = [(METHODS[name], name) for name in alignment.methods()]
            method = gr.Dropdown(
                choices, value=choices[0][1] if choices else None, label="Method", elem_id="align-method"
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
    page.load(lambda: gr.Dropdown(choices=room.models.names()), None, begin, **AT_ONCE)


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
