"""The hashes of a prompt's KV blocks, as an engine makes them: by vLLM's own functions (0.32.0), from the request that it gets."""

from collections.abc import Callable, Sequence
from typing import Any, overload

from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import BlockHash, generate_block_hash_extra_keys, hash_block_tokens
from vllm.v1.engine import EngineCoreRequest

from deployments.routing.cache_index import HASH_BYTES, Scheme


class BlockHashes(Sequence[int]):
    """The hashes of the blocks that an engine may find in its cache, each made when it, or one behind it, is first asked for.

    An engine computes at least the last token of a prompt, so that the last block of a prompt of whole blocks is never one of them.
    """

    def __init__(self, request: EngineCoreRequest, tokens: Sequence[int], scheme: Scheme) -> None:
        """Begin with a prompt of these tokens, which is `request`'s otherwise. Before an engine has a root, it has no blocks."""
        self._request, self._tokens, self._scheme = request, tokens, scheme
        self._function: Callable[[Any], bytes] = get_hash_fn_by_name(scheme.function)
        self._parent = BlockHash(scheme.root)
        self._images = 0
        self._made: list[int] = []

    def __len__(self) -> int:
        return max(len(self._tokens) - 1, 0) // self._scheme.block_size if self._scheme.root else 0

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = index if index >= 0 else len(self) + index
        if not 0 <= place < len(self):
            raise IndexError(index)
        size = self._scheme.block_size
        for start in range(len(self._made) * size, (place + 1) * size, size):
            end = start + size
            extra, self._images = generate_block_hash_extra_keys(self._request, start, end, self._images)
            self._parent = hash_block_tokens(self._function, self._parent, self._tokens[start:end], extra)
            self._made.append(int.from_bytes(self._parent[-HASH_BYTES:], "big"))
        return self._made[place]


class Prompt:
    """A prompt whose blocks are looked up: that of `request`, and the tokens that were generated after it.

    Its hashes are made at most once.
    """

    def __init__(self, request: EngineCoreRequest, tokens: Sequence[int] = ()) -> None:
        self._request = request
        self._tokens = [*(request.prompt_token_ids or ()), *tokens] if hashable(request) else []
        self._hashes: dict[Scheme, BlockHashes] = {}

    def hashes(self, scheme: Scheme) -> BlockHashes:
        """Return the hashes of its blocks, as an engine of this scheme makes them; none if it does not look for them."""
        if (hashes := self._hashes.get(scheme)) is None:
            hashes = self._hashes[scheme] = BlockHashes(self._request, self._tokens, scheme)
        return hashes


def hashable(request: EngineCoreRequest) -> bool:
    """Return whether the engine looks for this request's prompt in its cache, and hashes it from its tokens alone.

    It does not look for a prompt whose log-probabilities are wanted: all of it is computed.
    """
    params = request.sampling_params
    return request.prompt_embeds is None and params is not None and not params.skip_reading_prefix_cache
