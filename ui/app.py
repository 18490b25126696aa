"""The Gradio app: our own page (`page/`) in one component, and beside it what the page asks for: replies, stops, the model's state.

The page keeps conversations in the browser and draws everything. A reply is a stream of its states. It is not one of Gradio's
events: after a lost connection, Gradio's client (6.31) may read a stream that has ended for ever.
"""

import json
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import RedirectResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from gradio.routes import templates
from jinja2 import ChoiceLoader, DictLoader

from ui.asking import Stops, ask
from ui.changes import change
from ui.client import Client
from ui.errors import ApiError, UnreachableError
from ui.export import exported
from ui.question import EFFORTS, Question, Stop
from ui.readiness import Readiness

PAGE = Path(__file__).parent / "page"
ASSETS = Path(gr.__file__).parent / "templates" / "frontend" / "assets"

# Gradio runs a component's script with `element` and `server`.
PAGE_SCRIPT = """
const home = location.origin + location.pathname.replace(/\\/?$/, "/");
import(home + "page/main.js").then((page) => page.start({element, server, home, settings: SETTINGS})).then(endLoading);
"""

# The loader of Gradio's page (6.31) asks for one frame after the other for ever, also when it has gone, and the browser makes the
# page anew for each. Who could ask before our page was there gets no more. Goes when Gradio's StatusTracker ends its own timer.
LOADING_SCRIPT = """<script>{
const frames = window.requestAnimationFrame;
let loading = true;
window.requestAnimationFrame = (draw) => (loading ? frames.call(window, draw) : 0);
window.endLoading = () => { loading = false; window.requestAnimationFrame = frames; };
}</script>"""


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

    readiness, stops = Readiness(client), Stops()

    @app.get(f"{path}/state")
    async def state() -> dict[str, Any]:
        return await readiness.state()

    @app.post(f"{path}/ask")
    async def answer(question: Question) -> StreamingResponse:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        return StreamingResponse(_events(ask(client, question, stops)), media_type="text/event-stream", headers=headers)

    @app.post(f"{path}/stop")
    async def stop(wanted: Stop) -> Response:
        await stops.stop(wanted.id)
        try:
            await client.delete(wanted.id, wanted.key)
        except UnreachableError:  # the page asks again
            return Response(status_code=503)
        return Response(status_code=204)

    _prepare_template()
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
        css="footer {display: none !important}",
    )


async def _events(states: AsyncGenerator[dict[str, Any]]) -> AsyncGenerator[str]:
    """Yield the changes from each state to the next as server-sent events, the first one from nothing."""
    before = None
    async with aclosing(states):
        async for state in states:
            yield f"data: {json.dumps(change(before, state), ensure_ascii=False, separators=(',', ':'))}\n\n"
            before = state


def _build(client: Client) -> gr.Blocks:
    async def models(key: str) -> dict[str, Any]:
        try:
            return {"models": await client.models(key), "error": None}
        except ApiError as error:
            return {"models": [], "error": error.described()}

    def export(request: dict[str, Any]) -> str:
        return exported(request["conversation"], request["language"])

    # After each event, Gradio's queue would summarize all events so far with pandas. Nobody reads the summary.
    os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(10**9))
    with gr.Blocks(title="Satori", analytics_enabled=False, fill_width=True, fill_height=True) as blocks:
        gr.HTML(
            html_template='<div class="satori"></div>',
            js_on_load=PAGE_SCRIPT.replace("SETTINGS", _page_settings()),
            apply_default_css=False,
            server_functions=[models, export],
        )
    blocks.queue(api_open=False)
    # Seconds between polls of an idle queue, for events and for progress bars, of which there are none. With Gradio's, 0.001 and
    # 0.1, they take 2 % of a core.
    blocks._queue.sleep_when_free, blocks._queue.progress_update_sleep_when_free = 0.05, 1.0
    return blocks


@cache
def _prepare_template() -> None:
    """Put our script before those of Gradio's page: its own parameter `head` puts it behind them."""
    environment, name = templates.env, "frontend/index.html"
    assert environment.loader is not None
    source = environment.loader.get_source(environment, name)[0]
    ours = DictLoader({name: source.replace("<head>", f"<head>{LOADING_SCRIPT}", 1)})
    environment.loader = ChoiceLoader([ours, environment.loader])


def _page_settings() -> str:
    """Return what the page needs from the server, as JavaScript: paths of Gradio's own copy of KaTeX, and the thinking efforts."""
    [katex], [style] = ASSETS.glob("katex-*.js"), ASSETS.glob("katex-*.css")
    return json.dumps({"katex": f"assets/{katex.name}", "katexStyle": f"assets/{style.name}", "efforts": EFFORTS})
