"""The page `/docs`: OpenAPI's description to read and try, with the script and style that come with vLLM, from nowhere else."""

from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from vllm.entrypoints.serve import instrumentator

ASSETS = Path(next(iter(instrumentator.__path__)), "static")
POLICY = "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
POLICY += "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
"""What the page may load, and who may frame it (Content-Security-Policy). Swagger UI starts from a script in the page."""


def mount(app: FastAPI) -> None:
    """Add the page and what it loads, unless the settings want no description. Raises RuntimeError when vLLM brings no files."""
    if app.openapi_url is None:
        return
    app.mount("/docs/assets", StaticFiles(directory=ASSETS))
    app.get("/docs", include_in_schema=False)(page)


async def page(request: Request) -> HTMLResponse:
    """Return the page, whose links have the path below which a proxy shows the application."""
    below = request.scope.get("root_path", "")
    html = get_swagger_ui_html(
        openapi_url=f"{below}/openapi.json",
        title=f"{request.app.title}: API",
        swagger_js_url=f"{below}/docs/assets/swagger-ui-bundle.js",
        swagger_css_url=f"{below}/docs/assets/swagger-ui.css",
        swagger_favicon_url="data:,",
    )
    html.headers["content-security-policy"] = POLICY
    html.headers["x-content-type-options"] = "nosniff"
    return html
