"""The requests of chats and Responses: vLLM's own with the extension `coat`.

With it, a request sets limits on its chain, asks for a vote over several chains, or turns the parsing of actions off. For what
replies carry, see `deployments.reasoning.serving` and `deployments.reasoning.responses`.
"""

from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.sampling_params import RequestOutputKind, SamplingParams

from deployments.reasoning.limits import ARGUMENT


class Vote(BaseModel):
    """Self-consistency: sample several chains and return the answer that most agree on."""

    model_config = ConfigDict(extra="forbid")

    samples: Annotated[int, Field(ge=2, le=64, description="How many chains to sample.")] = 8
    temperature: Annotated[float, Field(gt=0, le=2, description="Sampling temperature of the chains.")] = 0.7
    stop_when_decided: Annotated[bool, Field(description="Stop the other chains as soon as they cannot change the outcome.")] = True
    chains: Annotated[bool, Field(description="Return all chains, also those that were stopped, and who voted for what.")] = False


class CoatOptions(BaseModel):
    """What a request may set for its Chain of Action-Thought. The engine enforces the limits token by token."""

    model_config = ConfigDict(extra="forbid")

    parse: Annotated[
        bool, Field(description="Separate reasoning from the answer; false returns the raw text, actions included.")
    ] = True
    max_reasoning_tokens: Annotated[int | None, Field(ge=0, description="The model must answer after this many tokens.")] = None
    max_reflections: Annotated[int | None, Field(ge=0, description="At most this many <|reflect|> segments; 0 bans them.")] = None
    max_explorations: Annotated[int | None, Field(ge=0, description="At most this many <|explore|> segments; 0 bans them.")] = None
    min_reflections: Annotated[int, Field(ge=0, le=32, description="An answer before this many becomes a <|reflect|>.")] = 0
    vote: Vote | None = None
    eta: Annotated[
        bool,
        Field(
            description="Chunks of reasoning say about once a second how long the reply still takes (`coat.eta_s`): the 10, 50 and"
            " 90 % quantiles, in seconds. Only in streams of one chain."
        ),
    ] = False

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.max_reflections is not None and self.min_reflections > self.max_reflections:
            raise ValueError(f"min_reflections ({self.min_reflections}) is more than max_reflections ({self.max_reflections})")
        if self.eta and (self.vote or not self.parse):
            raise ValueError("eta is told of one chain that is parsed; leave it out, or vote and parse")
        if self.vote and self.vote.chains and not self.parse:
            raise ValueError("the chains of a vote (vote.chains) are parsed; leave vote.chains or parse out")
        return self

    @property
    def limits(self) -> dict[str, int]:
        """The limits that are set, by their names in `deployments.reasoning.limits.Limits`."""
        most = {name: getattr(self, name) for name in ("max_reasoning_tokens", "max_reflections", "max_explorations")}
        least = {"min_reflections": self.min_reflections} if self.min_reflections else {}
        return {name: value for name, value in most.items() if value is not None} | least


class CoatRequest:
    """What requests with the extension have in common, beside vLLM's classes."""

    coat: CoatOptions | None
    _tokens: dict[str, Any]

    @property
    def tells_eta(self) -> bool:
        """Whether the stream says how long it still takes."""
        return self.coat is not None and self.coat.eta

    @property
    def vote(self) -> Vote | None:
        """The vote that is asked for; None without one."""
        return self.coat.vote if self.coat else None

    @property
    def parsed(self) -> bool:
        """Whether actions are parsed."""
        return self.coat is None or self.coat.parse

    def _apply(self, params: SamplingParams) -> SamplingParams:
        """Return vLLM's sampling parameters with what is asked for; limits go to the engine's logits processor."""
        if self.coat and (limits := self.coat.limits):
            params.extra_args = (params.extra_args or {}) | {ARGUMENT: self._tokens | limits}
        if self.vote:
            params.n = self.vote.samples
            params.temperature = self.vote.temperature
            params.output_kind = RequestOutputKind.DELTA
        return params


class CoatChatRequest(CoatRequest, ChatCompletionRequest):
    """vLLM's chat request with the extension `coat`."""

    coat: CoatOptions | None = None
    # vLLM fills this per class to find the fields that it does not know; a subclass must not share it.
    field_names: ClassVar[set[str] | None] = None
    _tokens: dict[str, Any] = PrivateAttr(default_factory=dict)  # token ids for the limits, set by `deployments.reasoning.serving`

    @model_validator(mode="before")
    @classmethod
    def _no_tools_at_all(cls, given: Any) -> Any:
        """Take an empty list of tools for none, as agents without tools send it; vLLM refuses it."""
        if isinstance(given, dict) and given.get("tools") == []:
            return {name: value for name, value in given.items() if name not in ("tools", "tool_choice")}
        return given

    @model_validator(mode="after")
    def _one_choice_in_a_vote(self) -> Self:
        if self.vote and (self.n or 1) > 1:
            raise ValueError(f"n is {self.n}, but a vote (coat.vote) has one answer; leave n out")
        return self

    @model_validator(mode="after")
    def _eta_in_a_stream_of_one_choice(self) -> Self:
        if self.tells_eta and (not self.stream or (self.n or 1) > 1):
            raise ValueError("coat.eta is told in a stream with one choice: set stream and leave n out, or leave coat.eta out")
        return self

    def resolve_reasoning_ended(self, parser: Any, prompt_token_ids: list[int]) -> bool | None:
        """Return whether a format holds from the first token: not where the reply is a thought first, shown or not."""
        return not self.parsed

    def to_sampling_params(self, max_tokens: int, default_sampling_params: dict[str, Any]) -> SamplingParams:
        """Return vLLM's sampling parameters; limits go to the engine's logits processor."""
        return self._apply(super().to_sampling_params(max_tokens, default_sampling_params))


class CoatResponsesRequest(CoatRequest, ResponsesRequest):
    """vLLM's request for a response, with the extension `coat`."""

    coat: CoatOptions | None = None
    field_names: ClassVar[set[str] | None] = None
    _tokens: dict[str, Any] = PrivateAttr(default_factory=dict)  # as above

    @model_validator(mode="after")
    def _eta_in_a_stream(self) -> Self:
        if self.tells_eta and not self.stream:
            raise ValueError("coat.eta is told in a stream: set stream, or leave coat.eta out")
        return self

    def to_sampling_params(self, default_max_tokens: int, default_sampling_params: dict[str, Any] | None = None) -> SamplingParams:
        """Return vLLM's sampling parameters; limits go to the engine's logits processor."""
        return self._apply(super().to_sampling_params(default_max_tokens, default_sampling_params))
