"""Ask questions with a client: each way in a program's `WAYS` or `ALL` asks all of them, and their answers are printed as JSON.

    PYTHON tests/clients/answers.py PROGRAM URL <QUESTIONS

PYTHON is that of an environment in which the client is (`dev/clients.py`). QUESTIONS are a JSON list. A way in `WAYS` gets one
question, and is called for all at once; a way in `ALL` gets the list.
"""

import contextlib
import json
import runpy
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def main(program: str, url: str) -> None:
    """Print what each way found; an answer that failed is the end of its traceback."""
    questions = json.load(sys.stdin)
    ways = runpy.run_path(program)
    with ThreadPoolExecutor(len(questions)) as pool, contextlib.redirect_stdout(sys.stderr):
        found = {
            name: list(pool.map(lambda question, ask=ask: told(ask, url, question), questions)) for name, ask in each(ways, "WAYS")
        }
        found |= {name: told(ask, url, questions) for name, ask in each(ways, "ALL")}
    print(json.dumps(found))


def each(ways: dict[str, Any], kind: str) -> list[tuple[str, Callable[..., Any]]]:
    return list(ways.get(kind, {}).items())


def told(ask: Callable[..., Any], url: str, asked: Any) -> Any:
    try:
        return ask(url, asked)
    except Exception:
        return traceback.format_exc()[-2000:]


if __name__ == "__main__":
    main(*sys.argv[1:])
