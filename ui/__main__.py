"""Serves the web UI alone, beside any OpenAI-compatible API: `python -m ui --api http://127.0.0.1:8000 --port 7860`."""

import argparse

import uvicorn

from ui.app import asgi


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m ui", description="Serve the web UI alone.")
    parser.add_argument("--api", default="http://127.0.0.1:8000", help="where the API answers, without /v1 (%(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on (%(default)s)")
    parser.add_argument("--path", default="/ui", help="path of the page (%(default)s)")
    options = parser.parse_args()
    print(f"UI   http://{options.host}:{options.port}{options.path}", flush=True)
    uvicorn.run(asgi(options.api, options.path), host=options.host, port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
