"""Special tokens in what users say are text: no message can end its turn, begin another's or take an action of the model's.

Chat templates paste messages into one text, and a tokenizer cannot tell the template's `<|im_end|>` from a user's. So before a
template is rendered, every special token in its input is cut by a mark, and the rendered text is tokenized piece by piece:
`<` and `|im_end|>` are ordinary text. Input without special tokens is tokenized as ever. In assistant messages the actions
of a Chain of Action-Thought stay what they are: clients plant reasoning there. A raw prompt (`/v1/completions`) is its user's own.
"""

import re
import secrets
from collections.abc import Iterable
from itertools import chain
from typing import Any

from deployments.coat import ACTIONS

# Characters that Unicode keeps for a program's own use. What a client writes is not taken for the mark: it cannot know it.
MARK = "".join(chr(0xFDD0 + secrets.randbelow(32)) for _ in range(6))


class Cutter:
    """Cuts special tokens in text."""

    def __init__(self, tokens: Iterable[str]) -> None:
        tokens = [token for token in tokens if len(token) > 1]
        any_token = "|".join(map(re.escape, tokens))
        self._any = re.compile(any_token or "(?!)")
        self._first = re.compile(f"(?={any_token})(.)", re.DOTALL)
        self._begun = {token[:end] for token in tokens for end in range(1, len(token))}
        self._longest = max(map(len, tokens), default=0)

    def cut(self, value: Any) -> Any:
        """Return a string with each special token cut, or a structure of lists and dictionaries with such strings.

        A string that ends like the beginning of a special token is cut at its end, lest the next one complete it.
        """
        if isinstance(value, str):
            text = self._first.sub(rf"\1{MARK}", value) if self._any.search(value) else value
            return text + MARK if any(value[-size:] in self._begun for size in range(1, self._longest)) else text
        if isinstance(value, dict):
            return {self.cut(key): self.cut(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.cut(item) for item in value]
        return value


def special_tokens(tokenizer: Any) -> set[str]:
    """Return the texts that a tokenizer takes for special tokens, and the actions where it has them."""
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return special | (ACTIONS.keys() & tokenizer.get_vocab().keys())


def install(renderer: Any) -> None:
    """Make a renderer of vLLM's (0.32.0) take special tokens in messages for text, if it is one for Hugging Face tokenizers."""
    from vllm.renderers.hf import HfRenderer
    from vllm.utils.async_utils import make_async

    if not isinstance(renderer, HfRenderer):
        return
    tokenizer = renderer.tokenizer
    tokens = special_tokens(tokenizer)
    usual, assistants = Cutter(tokens), Cutter(tokens - ACTIONS.keys())

    base: Any = type(tokenizer)

    class PlainText(base):
        def apply_chat_template(self, conversation: list[dict[str, Any]], *args: Any, **options: Any) -> Any:
            cut = [(assistants if message["role"] == "assistant" else usual).cut(message) for message in conversation]
            template = {"chat_template": options.pop("chat_template", None)}
            tokenize = options.pop("tokenize", True)
            text = super().apply_chat_template(cut, *args, tokenize=False, **template, **usual.cut(options))
            return pieces_encoded(self, text.split(MARK), {"add_special_tokens": False}) if tokenize else text

    theirs = renderer._tokenize_prompt

    def tokenize_prompt(prompt: Any, params: Any) -> Any:
        if MARK not in prompt["prompt"]:
            return theirs(prompt, params)
        pieces = prompt["prompt"].split(MARK)
        ids = pieces_encoded(tokenizer, pieces, params.get_encode_kwargs())
        return renderer._build_tokens_prompt(ids, prompt | {"prompt": "".join(pieces)})

    tokenizer.__class__ = PlainText
    renderer._tokenize_prompt = tokenize_prompt
    renderer._tokenize_prompt_async = make_async(tokenize_prompt, executor=renderer._executor)


def pieces_encoded(tokenizer: Any, pieces: list[str], options: dict[str, Any]) -> list[int]:
    """Return the token ids of texts that follow each other, with what the tokenizer adds around a text."""
    ids = list(chain.from_iterable(tokenizer(pieces, **options | {"add_special_tokens": False})["input_ids"]))
    if not options.get("add_special_tokens"):
        return ids
    bare, whole = (tokenizer("x", add_special_tokens=added)["input_ids"] for added in (False, True))
    start = next(at for at in range(len(whole)) if whole[at : at + len(bare)] == bare)
    return [*whole[:start], *ids, *whole[start + len(bare) :]]
