"""The Gradio app: our own page (`page/`) in one component, and the events that carry its questions and replies.

The page keeps conversations in the browser and draws everything. It triggers the events `ask0`, `ask1`, ... with a question. Each
event has a lane, a hidden component from which the page reads the reply as it grows. With several lanes, replies stream side by
side.
"""

import json
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import RedirectResponse
from fastapi.staticfiles import StaticFiles

from ui.asking import Stops, ask
from ui.client import Client
from ui.errors import ApiError
from ui.export import exported
from ui.question import EFFORTS, Question
from ui.readiness import Readiness

LANES = 3
"""One for the chat, two for a comparison."""
AT_ONCE = 1000
"""Replies that one process streams at a time, over all users; further ones wait in Gradio's queue."""
PAGE = Path(__file__).parent / "page"
ASSETS = Path(gr.__file__).parent / "templates" / "frontend" / "assets"
POLL_S, LOADING_POLL_S = 15.0, 2.0

# Gradio runs a component's script with `element`, `trigger`, `server` and `watch`. It knows only the events that the script names.
PAGE_SCRIPT = """
const home = location.origin + location.pathname.replace(/\\/?$/, "/");
window.satoriLanes = window.satoriLanes || {receive: {}, latest: {}};
import(home + "page/main.js").then((page) => page.start({element, trigger, server, home, settings: SETTINGS}));
// 'ask0' 'ask1' 'ask2' 'stop0' 'stop1' 'stop2' 'check'
"""
LANE_SCRIPT = """
window.satoriLanes = window.satoriLanes || {receive: {}, latest: {}};
const receive = () => { window.satoriLanes.latest[LANE] = props.value; window.satoriLanes.receive[LANE]?.(props.value); };
watch("value", receive);
receive();
"""


def asgi(api_url: str, path: str = "/ui") -> FastAPI:
    """Return an ASGI app with the page under `path`. Its lifespan must be run; it uses HTTP and server-sent events only."""
    client = Client(api_url)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await client.close()

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)

    @app.get(path)
    async def page() -> RedirectResponse:
        return RedirectResponse(path.rsplit("/", 1)[-1] + "/")  # relative, so it is right behind any proxy

    app.mount(f"{path}/page", GZipMiddleware(StaticFiles(directory=PAGE)))
    font = ["system-ui", "sans-serif"]
    return gr.mount_gradio_app(
        app,
        _build(client),
        path,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        show_error=False,
        theme=gr.themes.Base(font=font, font_mono=["ui-monospace", "monospace"]),
        css="footer {display: none !important} .satori-lane {display: none !important}",
    )


def _build(client: Client) -> gr.Blocks:
    readiness = Readiness(client)
    stops = Stops()

    async def check() -> tuple[dict[str, Any], gr.Timer]:
        state = await readiness.state()
        return state, gr.Timer(POLL_S if state["stage"] == "ready" else LOADING_POLL_S)

    async def models(key: str) -> dict[str, Any]:
        try:
            return {"models": await client.models(key), "error": None}
        except ApiError as error:
            return {"models": [], "error": error.described()}

    def export(request: dict[str, Any]) -> str:
        return exported(request["conversation"], request["language"])

    async def answer(event: gr.EventData) -> AsyncGenerator[dict[str, Any]]:
        async for state in ask(client, Question.model_validate(event._data), stops):
            yield state

    def stop(event: gr.EventData) -> None:
        stops.stop(str(event._data))

    # After each event, Gradio's queue would summarize all events so far with pandas. Nobody reads the summary.
    os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(10**9))
    with gr.Blocks(title="Satori", analytics_enabled=False, fill_width=True, fill_height=True) as blocks:
        script = PAGE_SCRIPT.replace("SETTINGS", _page_settings())
        page = gr.HTML(
            html_template='<div class="satori"></div>',
            js_on_load=script,
            apply_default_css=False,
            server_functions=[models, export],
        )
        status = _lane("status")
        timer = gr.Timer(LOADING_POLL_S)
        for event in (timer.tick, blocks.load, page.check):
            event(check, None, [status, timer], queue=False, show_progress="hidden", api_visibility="private")
        for number in range(LANES):
            getattr(page, f"ask{number}")(
                answer,
                None,
                _lane(str(number)),
                concurrency_limit=None,
                trigger_mode="multiple",
                show_progress="hidden",
                api_visibility="private",
            )
            # Not Gradio's `cancels`: it does nothing until the page has received the event's id for its question.
            getattr(page, f"stop{number}")(stop, None, None, queue=False, show_progress="hidden", api_visibility="private")
    blocks.max_threads = AT_ONCE  # slots of the queue, which also bound it; no threads are started for them
    blocks.queue(default_concurrency_limit=None, api_open=False)
    # Seconds between polls of an idle queue, for questions and for progress bars, of which there are none. With Gradio's, 0.001 and
    # 0.1, they take 2 % of a core.
    blocks._queue.sleep_when_free, blocks._queue.progress_update_sleep_when_free = 0.05, 1.0
    return blocks


def _lane(name: str) -> gr.HTML:
    return gr.HTML(html_template="", js_on_load=LANE_SCRIPT.replace("LANE", f'"{name}"'), elem_classes=["satori-lane"])


def _page_settings() -> str:
    """Return what the page needs from the server, as JavaScript: paths of Gradio's own copy of KaTeX, and the thinking efforts."""
    [katex], [style] = ASSETS.glob("katex-*.js"), ASSETS.glob("katex-*.css")
    return json.dumps({"katex": f"assets/{katex.name}", "katexStyle": f"assets/{style.name}", "efforts": EFFORTS})
