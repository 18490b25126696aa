"""Speculation by n-grams on recorded replies: prints the tokens a step by number of drafts and length of n-grams.

The file has a line of JSON for each reply, `{"prompt_token_ids": [...], "token_ids": [...]}`, as the completions API returns them
with `return_token_ids`. With greedy replies the count is exact: a draft is accepted if it is what follows. Replies are taken one
after the other, as of a lone client: each finds the texts of the `--before` requests before it, which an engine still has.

    python -m cluster.plan.ngrams replies.jsonl --before 16
"""

import argparse
import json
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path

Reply = tuple[Sequence[int], Sequence[int]]
"""The token ids of a prompt, and of the reply to it."""
MOST_DRAFTS = 5
LENGTHS = ((1, 3), (1, 4), (2, 2), (2, 3), (2, 4), (2, 5), (3, 3), (3, 5), (4, 4))
"""The lengths of n-grams to try, shortest and longest."""


class Ngrams:
    """The n-grams of a sequence as it grows: what followed the last time that its end was seen, there or in the sequences `before`.

    As `deployments.engine.drafts` does it: the longest n-gram counts, then the own sequence, then the latest. Without others, that
    is vLLM 0.32.0's speculator (`v1/worker/gpu/spec_decode/ngram`).
    """

    def __init__(self, tokens: Sequence[int], shortest: int, longest: int, before: Sequence["Ngrams"] = ()) -> None:
        """Begin with the tokens of a prompt; n-grams have `shortest` to `longest` tokens."""
        self._before = before
        self._tokens: list[int] = []
        self._lengths = range(longest, shortest - 1, -1)
        self._ends: dict[tuple[int, ...], int] = {}
        for token in tokens:
            self.append(token)

    def append(self, token: int) -> None:
        """Add a token."""
        for length in self._lengths:  # only now can these be found: something follows them
            if length <= len(self._tokens):
                self._ends[tuple(self._tokens[-length:])] = len(self._tokens)
        self._tokens.append(token)

    def drafts(self, most: int) -> list[int]:
        """Return `most` drafts, or none. Where too few tokens follow, the last token of all is repeated, as vLLM does."""
        for length in self._lengths:
            if length > len(self._tokens):
                continue
            wanted = tuple(self._tokens[-length:])
            for text in (self, *reversed(self._before)):
                if (end := text._ends.get(wanted)) is not None:
                    found = text._tokens[end : end + most]
                    return found + [self._tokens[-1]] * (most - len(found))
        return []


def tokens_a_step(replies: Sequence[Reply], drafts: int, shortest: int, longest: int, before: int = 0) -> float:
    """Return the tokens that a decode step gives a request on average, with that many drafts. A prefill gives the first token.

    Each reply finds n-grams in the texts of `before` requests before it, too.
    """
    steps = tokens = 0
    texts: deque[Ngrams] = deque(maxlen=before)
    for prompt, reply in replies:
        seen, place = Ngrams([*prompt, *reply[:1]], shortest, longest, tuple(texts)), 1
        tokens += max(0, len(reply) - 1)
        while place < len(reply):
            steps += 1
            accepted = 0
            for draft in seen.drafts(drafts):
                if place + accepted + 1 >= len(reply) or draft != reply[place + accepted]:
                    break
                accepted += 1
            for token in reply[place : place + accepted + 1]:
                seen.append(token)
            place += accepted + 1
        texts.append(seen)
    return tokens / steps if steps else 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tokens a step for the replies in a file; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="replies, a line of JSON each")
    parser.add_argument("--before", type=int, default=0, help="requests before a reply in whose texts it finds n-grams (default 0)")
    options = parser.parse_args(arguments)
    path, before = options.file, max(0, options.before)
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        replies = [(line["prompt_token_ids"], line["token_ids"]) for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"ngrams: {path}: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print(f"{len(replies)} replies, {sum(len(reply) for _, reply in replies):,} tokens: tokens a step\n\nn-grams  drafts")
    print("       " + "".join(f"{drafts:7}" for drafts in range(1, MOST_DRAFTS + 1)))
    for shortest, longest in LENGTHS:
        rates = [tokens_a_step(replies, drafts, shortest, longest, before) for drafts in range(1, MOST_DRAFTS + 1)]
        print(f"{shortest} to {longest} " + "".join(f"{rate:7.2f}" for rate in rates))
    return 0


if __name__ == "__main__":
    sys.exit(main())
