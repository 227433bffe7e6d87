"""The tab Draw: its controls, and which function each of them calls."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from genalign.demo.draw import MOST, drawing
from genalign.demo.guide import MOST_STRENGTH, MOST_WEIGHT, guiding
from genalign.demo.handlers import AT_ONCE, ONE_MODEL, stop, working
from genalign.demo.models import BASE
from genalign.demo.room import Room, gr
from genalign.demo.searches import searching
from genalign.demo.works import Work
from genalign.reward import shipped_rewards

SEARCHES = ("best-of-n", "random", "reno", "fk")
OWN_REWARD = "the recipe's own"


def draw_tab(room: Room, page: gr.Blocks, tab: gr.Tab) -> None:
    models, writes = room.models, room.models.modality == "text"
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=300, elem_classes="controls"):
            first = BASE if models.run is None else models.run.name
            name = gr.Dropdown(models.names(), value=first, label="Model", elem_id="draw-model")
            prompt = gr.Dropdown(
                models.offered,
                value=models.offered[0],
                allow_custom_value=True,
                label="Prompt",
                info="choose one, or write your own",
                elem_id="draw-prompt",
            )
            with gr.Row():
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=90)
                count = gr.Slider(1, MOST, value=1 if writes else 4, step=1, label="Samples", min_width=120)
            with gr.Row():
                own, unit = "0: the recipe's", "Tokens" if writes else "Steps"
                steps = gr.Number(0, label=unit, info=own, precision=0, minimum=0, min_width=90)
                guidance = gr.Number(0, label="Guidance", info=own, minimum=0, min_width=90, visible=not writes)
                greedy = gr.Checkbox(label="Greedy", info="the likeliest tokens", min_width=90, visible=writes)
            with gr.Row():
                draw = gr.Button("Draw", variant="primary", elem_id="draw-go", min_width=120)
                cancel = gr.Button("Cancel", elem_id="draw-cancel", min_width=120)
            asked = [name, prompt, seed, count]
            forms = [] if writes else [_search_form(room), _guide_form(room)]
        with gr.Column(scale=3):
            shown = gr.HTML(elem_id="drawn")

    def go(
        name: str, prompt: str, seed: float, count: float, steps: Any, guidance: Any, greedy: bool, request: gr.Request
    ) -> Any:
        def run(work: Work) -> Iterator[str]:
            return drawing(models, work, name, prompt or "", seed, count, guidance or 0, steps or 0, greedy)

        yield from working(room, request, run)

    def end(request: gr.Request) -> Any:
        return stop(room, request)

    given = [*asked, steps, guidance, greedy]
    works = [
        draw.click(go, given, shown, show_progress="minimal", **ONE_MODEL),
        prompt.change(go, given, shown, show_progress="minimal", trigger_mode="always_last", **ONE_MODEL),
        *(event for form in forms for event in form(asked, shown)),
    ]
    cancel.click(end, None, shown, cancels=works, **AT_ONCE)
    gr.on([page.load, tab.select], lambda: gr.Dropdown(choices=models.names()), None, name, **AT_ONCE)
    page.load(go, given, shown, show_progress="hidden", **ONE_MODEL)


def _search_form(room: Room) -> Any:
    """The controls of searches; returns what connects them with what is asked for and where that is shown."""
    models = room.models
    with gr.Accordion("Search for better samples", open=False, elem_id="search"):
        methods = gr.CheckboxGroup(SEARCHES, value=["best-of-n"], label="Searches, at equal budgets")
        rewards = [OWN_REWARD, *(one for one in shipped_rewards() if one.startswith((models.modality, "any")))]
        reward = gr.Dropdown(
            rewards, value=OWN_REWARD, label="Reward to search for", info="ReNO needs one with a gradient: image-clip"
        )
        budget = gr.Slider(4, 200, value=32, step=4, label="Budget, in plain samplings")
        button = gr.Button("Search", elem_id="search-go")

    def look(name: str, prompt: str, seed: float, methods: Any, reward: str, budget: float, request: gr.Request) -> Any:
        wanted = "" if reward == OWN_REWARD else reward

        def run(work: Work) -> Iterator[str]:
            return searching(models, work, name, prompt or "", seed, methods, wanted, budget)

        yield from working(room, request, run)

    def connect(asked: list[Any], shown: gr.HTML) -> list[Any]:
        given = [*asked[:3], methods, reward, budget]
        return [button.click(look, given, shown, show_progress="minimal", **ONE_MODEL)]

    return connect


def _guide_form(room: Room) -> Any:
    """The same of guidance, a slider for each objective; drawn anew when one is let go."""
    models, guide = room.models, room.guide
    if guide is None:
        return lambda asked, shown: []
    with gr.Accordion("Guide by objectives (Flow-NRG)", open=False, elem_id="guide"):
        strength = gr.Slider(
            0, MOST_STRENGTH, value=guide.strength, step=0.1, label="Strength", info="0: as drawn plainly"
        )
        sliders = [
            gr.Slider(0, MOST_WEIGHT, value=weight, step=0.1, label=name, elem_classes="objective")
            for name, weight in guide.weights.items()
        ]
        button = gr.Button("Draw guided", elem_id="guide-go")

    def draw(
        name: str, prompt: str, seed: float, count: float, strength: float, request: gr.Request, *weights: float
    ) -> Any:
        def run(work: Work) -> Iterator[str]:
            chosen = dict(zip(guide.weights, weights, strict=True))
            return guiding(models, guide, work, name, prompt or "", seed, count, strength, chosen)

        yield from working(room, request, run)

    def connect(asked: list[Any], shown: gr.HTML) -> list[Any]:
        touched = [button.click, *(slider.release for slider in (strength, *sliders))]
        given = [*asked, strength, *sliders]
        return [gr.on(touched, draw, given, shown, show_progress="minimal", trigger_mode="always_last", **ONE_MODEL)]

    return connect
