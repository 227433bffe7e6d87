"""The page: its tabs, and how Gradio shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from genalign.demo import markup
from genalign.demo.handlers import session_of
from genalign.demo.room import Room, gr
from genalign.demo.tab_align import align_tab
from genalign.demo.tab_draw import draw_tab
from genalign.demo.tab_inspect import inspect_tab
from genalign.demo.tab_vote import vote_tab

HERE = Path(__file__).parent
STYLE, SCRIPT = HERE / "page.css", HERE / "page.js"
MOST_BYTES = 64 << 20  # of an upload
FOCUS_BALLOT = "() => setTimeout(() => document.querySelector('.ballot')?.focus(), 100)"  # for screen readers


def build_page(room: Room) -> gr.Blocks:
    """The page of a room; launch it with `launch_settings`."""
    with gr.Blocks(title="genalign demo", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(
            f"<header><h1>genalign</h1><span>{markup.text(room.models.recipe.name)} · "
            f"{markup.text(Path(room.models.recipe.policy.model).name)}</span></header>"
        )
        with gr.Tabs():
            with gr.Tab("Draw", id="draw") as draw:
                draw_tab(room, page, draw)
            with gr.Tab("Vote", id="vote") as vote:
                vote_tab(room, page, vote)
            with gr.Tab("Align", id="align") as align:
                align_tab(room, page, align)
            with gr.Tab("Inspect", id="inspect") as inspect:
                inspect_tab(room, page, inspect)
        vote.select(None, None, None, js=FOCUS_BALLOT)

        def forget(request: gr.Request) -> None:
            """Nothing is kept of a page that was closed, and its work ends."""
            room.works.cancel(session_of(request))
            room.booth.close(session_of(request))

        page.unload(forget)
    return page


def launch_settings(room: Room) -> dict[str, Any]:
    """What `launch` is called with, whatever the address: system fonts, no file of this machine, no history."""
    fonts = ["system-ui", "sans-serif"]
    theme = gr.themes.Base(
        primary_hue="indigo", neutral_hue="slate", font=fonts, font_mono=["ui-monospace", "monospace"]
    ).set(  # a contrast of 4.5 or more
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        body_text_color_subdued="*neutral_600",
        block_info_text_color="*neutral_600",
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
        "max_file_size": MOST_BYTES,
        "show_error": False,
        "quiet": True,
    }
