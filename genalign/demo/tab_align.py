"""The tab Align: its controls, and which function each of them calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from genalign.demo import markup
from genalign.demo.align import MOST_STEPS, progress
from genalign.demo.handlers import AT_ONCE, ONE_MODEL
from genalign.demo.handlers import said as sentence
from genalign.demo.models import BASE
from genalign.demo.room import Room, gr

EVERY = 2.0  # seconds between two looks at a training


def align_tab(room: Room, page: gr.Blocks, tab: gr.Tab) -> None:
    alignment = room.alignment
    gr.HTML(
        markup.note(
            "Trains an adapter on all votes so far; the finished run then stands in the lists of Draw and Vote."
        )
    )
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=300, elem_classes="controls"):
            methods, how = alignment.methods(), "d3po learns from the steps of samples, flow-dpo from samples alone"
            method = gr.Dropdown(
                methods, value=methods[0] if methods else None, label="Method", info=how, elem_id="align-method"
            )
            begin = gr.Dropdown([BASE], value=BASE, label="Begin with", elem_id="align-begin")
            steps = gr.Slider(1, MOST_STEPS, value=36, step=1, label="Steps", elem_id="align-steps")
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
        return sentence(lambda: _after(alignment.stop, name, "is stopped"))

    def go_on(name: str | None) -> str:
        return sentence(lambda: _after(alignment.resume, name, "goes on"))

    def look(name: str | None) -> str:
        return sentence(lambda: progress(alignment.state(name)) if name else "")

    start.click(go, [method, steps, begin], [said, which], show_progress="minimal", **ONE_MODEL)
    stop.click(stop_it, which, said, **AT_ONCE)
    resume.click(go_on, which, said, **AT_ONCE)
    timer.tick(look, which, shown, **AT_ONCE)
    which.change(look, which, shown, **AT_ONCE)
    page.load(runs, which, which, **AT_ONCE)
    gr.on([page.load, tab.select], lambda: gr.Dropdown(choices=room.models.names()), None, begin, **AT_ONCE)


def _after(do: Callable[[str], None], name: str | None, done: str) -> str:
    do(name or "")
    return markup.note(f"{name} {done}")
