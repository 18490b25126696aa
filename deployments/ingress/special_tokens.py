"""Special tokens in messages are plain text: no message can end its turn, begin another one or take an action of the model.

Chat templates paste messages into one text, and a tokenizer cannot tell the template's `<|im_end|>` from a user's. So before a
template is rendered, every special token in its input is cut by a mark, and the rendered text is tokenized piece by piece: `<`
and `|im_end|>` are ordinary text. Input without special tokens is tokenized as usual. In assistant messages the actions of a
Chain of Action-Thought remain special tokens, because clients plant reasoning there. A raw prompt (`/v1/completions`) is not
changed: it is entirely its user's own.
"""

import re
import secrets
from collections.abc import Iterable
from itertools import chain
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.renderers.base import BaseRenderer
from vllm.renderers.hf import HfRenderer
from vllm.renderers.registry import RENDERER_REGISTRY

from deployments.ingress.content import joined
from deployments.patching import patch
from deployments.reasoning.coat import ACTIONS

# Random characters from those that Unicode reserves for a program's own use: no client can write the mark, because none knows it.
MARK = "".join(chr(0xFDD0 + secrets.randbelow(32)) for _ in range(6))
SHORT = 512
"""Characters of a text that is tokenized in the event loop, which takes it at most 0.3 ms."""


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

        A string whose end could begin a special token is also cut at its end, so that the next string cannot complete the token.
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
    """Return the texts that a tokenizer treats as special tokens, and the actions if it has them."""
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return special | (ACTIONS.keys() & tokenizer.get_vocab().keys())


def plain_text(tokenizer: Any) -> Any:
    """Return a class for `tokenizer`, based on its own, that treats special tokens in messages as text."""
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

    return PlainText


class PlainTextRenderer(HfRenderer):
    """vLLM's renderer for Hugging Face tokenizers, which treats special tokens in messages as text, and joins texts in parts."""

    def __init__(self, config: Any, tokenizer: Any) -> None:
        super().__init__(config, tokenizer)
        self.tokenizer.__class__ = plain_text(self.tokenizer)  # the renderer has its own copy
        self._tokenize_in_thread: Any = self._tokenize_prompt_async  # type: ignore[has-type]
        self._tokenize_prompt_async = self._tokenize_short_here

    def render_messages(self, messages: Any, params: Any) -> Any:
        """Return conversation and prompt, as vLLM does, of messages with their texts joined."""
        return super().render_messages(joined(messages), params)

    async def render_messages_async(self, messages: Any, params: Any) -> Any:
        """Do the same, without blocking."""
        return await super().render_messages_async(joined(messages), params)

    async def _tokenize_short_here(self, prompt: Any, params: Any) -> Any:
        """Tokenize a short text in the event loop: a thread would cost more than the work."""
        if len(prompt["prompt"]) <= SHORT:
            return self._tokenize_prompt(prompt, params)
        return await self._tokenize_in_thread(prompt, params)

    def _tokenize_prompt(self, prompt: Any, params: Any) -> Any:
        if MARK not in prompt["prompt"]:
            return super()._tokenize_prompt(prompt, params)
        check_length(self, prompt["prompt"])
        pieces = prompt["prompt"].split(MARK)
        ids = pieces_encoded(self.tokenizer, pieces, params.get_encode_kwargs())
        return self._build_tokens_prompt(ids, prompt | {"prompt": "".join(pieces)})


def check_length(renderer: Any, text: str) -> None:
    """Raise VLLMValidationError when a text is certain to have more tokens than the model's context."""
    longest = renderer.model_config.max_model_len * renderer.tokenizer.max_chars_per_token
    if len(text) > longest:
        message = f"the prompt has {len(text)} characters; at most {longest} are allowed"
        raise VLLMValidationError(message, parameter="prompt")


def install() -> None:
    """Have vLLM render for Hugging Face tokenizers with `PlainTextRenderer`, and refuse long texts, in this process."""
    for mode, (_, name) in list(RENDERER_REGISTRY.renderers.items()):
        if name == HfRenderer.__name__:  # `register` warns when it replaces one
            RENDERER_REGISTRY.renderers[mode] = (__name__, PlainTextRenderer.__name__)

    def tokenize_within_bounds(self: Any, prompt: Any, params: Any) -> Any:
        check_length(self, prompt["prompt"])
        return original(self, prompt, params)

    original = patch(
        BaseRenderer,
        "_tokenize_prompt",
        tokenize_within_bounds,
        why="vLLM 0.32.0 tokenizes all of a text that is too long, and then cuts or refuses it",
        until="it looks at the length of a text first",
    )


def pieces_encoded(tokenizer: Any, pieces: list[str], options: dict[str, Any]) -> list[int]:
    """Return the token ids of consecutive texts, with what the tokenizer adds around a text."""
    ids = list(chain.from_iterable(tokenizer(pieces, **options | {"add_special_tokens": False})["input_ids"]))
    if not options.get("add_special_tokens"):
        return ids
    bare, whole = (tokenizer("x", add_special_tokens=added)["input_ids"] for added in (False, True))
    start = next(at for at in range(len(whole)) if whole[at : at + len(bare)] == bare)
    return [*whole[:start], *ids, *whole[start + len(bare) :]]
