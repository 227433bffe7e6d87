"""The tab Inspect: its controls, and which function each of them calls; the recipe of a run as a form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from genalign.demo import markup
from genalign.demo.form import Field, changes_of, fields_of
from genalign.demo.handlers import AT_ONCE, ONE_MODEL, said, stop, working
from genalign.demo.inspect import changed, check, extremes, report, run_names
from genalign.demo.room import Room, gr
from genalign.demo.works import Work


def inspect_tab(room: Room, page: gr.Blocks, tab: gr.Tab) -> None:
    models = room.models
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=300, elem_classes="controls"):
            name = gr.Dropdown([], label="Run", elem_id="inspect-run")
            with gr.Row():
                look = gr.Button("Best and worst samples", elem_id="inspect-extremes", size="sm", scale=3)
                cancel = gr.Button("Cancel", size="sm", scale=1, min_width=80)
            _again_form(room, name)
        with gr.Column(scale=3):
            best = gr.HTML(elem_id="extremes")
            shown = gr.HTML(elem_id="inspected")

    def runs(chosen: str | None) -> Any:
        names = run_names(models)
        return gr.Dropdown(choices=names, value=chosen if chosen in names else (names[0] if names else None))

    def show(name: str | None) -> str:
        return said(lambda: report(models, name)) if name else markup.note("no runs yet; align from votes makes one")

    def rank(name: str | None, request: gr.Request) -> Any:
        def run(work: Work) -> Iterator[str]:
            return extremes(models, work, name or "")

        yield from working(room, request, run)

    def end(request: gr.Request) -> Any:
        return stop(room, request)

    name.change(show, name, shown, show_progress="minimal")
    name.change(lambda: "", None, best, **AT_ONCE)
    ranking = look.click(rank, name, best, show_progress="minimal", **ONE_MODEL)
    cancel.click(end, None, best, cancels=[ranking], **AT_ONCE)
    gr.on([page.load, tab.select], runs, name, name, **AT_ONCE)


def _again_form(room: Room, name: gr.Dropdown) -> None:
    """The recipe of the run: fields that are checked as one types, and a button that trains with them."""
    models = room.models

    @gr.render(inputs=name, queue=False, show_progress="hidden")
    def form(run: str | None) -> None:
        if not run:
            return
        try:
            _, recipe = changed(models, run, "")
            sections = fields_of(recipe)
        except Exception as error:
            gr.HTML(markup.refused(error))
            return
        with gr.Accordion("Train it again", open=True, elem_id="inspect-form"):
            verdict = gr.HTML(said(lambda: check(models, run, "")), elem_id="inspect-verdict")
            start = gr.Button("Train with this recipe", elem_id="inspect-start")
            filled = []
            for title, fields in sections.items():
                with gr.Accordion(title, open=title == "train"):
                    filled += [(field, _component(field)) for field in fields]
        known, components = [field for field, _ in filled], [component for _, component in filled]

        def judge(*values: Any) -> str:
            return said(lambda: check(models, run, changes_of(known, values)))

        def again(*values: Any) -> str:
            def begin() -> str:
                words, _ = changed(models, run, changes_of(known, values))
                begun = room.alignment.run_again(words)
                return markup.note(f"{begun.name} has begun; the tab Align follows it")

            return said(begin)

        touched = [component.change for component in components]
        gr.on(touched, judge, components, verdict, trigger_mode="always_last", **AT_ONCE)
        start.click(again, components, verdict, **AT_ONCE)


def _component(field: Field) -> Any:
    """A text box of numbers, a list of words, or a box to tick."""
    shown: dict[str, Any] = {
        "value": field.value,
        "label": field.key.partition(".")[2],
        "info": field.about,
        "interactive": True,
        "elem_id": f"field-{field.key.replace('.', '-')}",
    }
    if isinstance(field.value, bool):
        return gr.Checkbox(**shown)
    if field.choices:
        return gr.Dropdown(list(field.choices), **shown)
    return gr.Textbox(**shown, max_lines=1)
