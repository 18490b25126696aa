"""Ask questions with a client: each way in a program's `WAYS` asks all of them, and their answers are printed as JSON.

    PYTHON tests/clients/answers.py PROGRAM URL <QUESTIONS

PYTHON is that of an environment in which the client is (`dev/clients.py`). QUESTIONS are a JSON list.
"""

import json
import runpy
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor


def main(program: str, url: str) -> None:
    """Print what each way found; an answer that failed is the end of its traceback."""
    questions = json.load(sys.stdin)
    found = {}
    with ThreadPoolExecutor(len(questions)) as pool:
        for name, ask in runpy.run_path(program)["WAYS"].items():

            def answer(question: str, ask=ask) -> object:  # type: ignore[no-untyped-def]
                try:
                    return ask(url, question)
                except Exception:
                    return traceback.format_exc()[-2000:]

            found[name] = list(pool.map(answer, questions))
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
