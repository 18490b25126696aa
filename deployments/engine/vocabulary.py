"""The texts of a model's tokens, for what copies text into an answer (`deployments.reasoning.pointer`)."""

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any, Self

_made: dict[str, "ModelVocabulary"] = {}


class ModelVocabulary:
    """The texts of all tokens, by id. The `special` tokens have a text, but are never found by it."""

    def __init__(self, texts: Sequence[bytes], special: Collection[int]) -> None:
        self._texts = texts
        self._special = frozenset(special)
        self._starting: dict[bytes, list[int]] = {}

    @classmethod
    def of(cls, config: Any) -> Self:
        """Return the vocabulary of the model that vLLM's configuration `config` names. It is made once in a process."""
        import xgrammar
        from vllm.tokenizers import cached_tokenizer_from_config

        model = config.model_config
        if model.tokenizer not in _made:
            tokenizer = cached_tokenizer_from_config(model)
            size = max(model.get_vocab_size(), len(tokenizer))
            texts = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=size).decoded_vocab
            _made[model.tokenizer] = cls(texts, special_tokens(tokenizer))
        return _made[model.tokenizer]  # type: ignore[return-value]

    def token(self, text: bytes) -> Sequence[int]:
        """Return the tokens whose text this is."""
        return self._by_text.get(text, ())

    def starting(self, first: bytes) -> Sequence[int]:
        """Return the tokens whose text begins with one of these bytes."""
        if first not in self._starting:
            tokens = (token for text, tokens in self._by_text.items() if text[0] in first for token in tokens)
            self._starting[first] = list(tokens)
        return self._starting[first]

    def text(self, tokens: Sequence[int]) -> bytes:
        """Return the text of tokens; ids that the model does not have are left out."""
        return b"".join(self._texts[token] for token in tokens if 0 <= token < len(self._texts))

    @cached_property
    def _by_text(self) -> dict[bytes, list[int]]:
        found: dict[bytes, list[int]] = {}
        for token, text in enumerate(self._texts):
            if text and token not in self._special:
                found.setdefault(text, []).append(token)
        return found


def special_tokens(tokenizer: Any) -> list[int]:
    """Return the ids of a tokenizer's special and added tokens, sorted."""
    return sorted({*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()})
