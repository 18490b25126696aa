"""A question as the page sends it, and the chat request that it becomes."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

CARD_PROMPT = (
    "Solve the following math problem efficiently and clearly.\n"
    "Please reason step by step, and put your final answer within \\boxed{{}}.\n"
    "Problem: {question}"
)
"""The user turn of the model card of Satori-7B-Round2 (huggingface.co/Satori-reasoning/Satori-7B-Round2)."""

EFFORTS: dict[str, dict[str, int]] = {
    "quick": {"max_reasoning_tokens": 400, "max_reflections": 1, "max_explorations": 1},
    "normal": {},
    "thorough": {"min_reflections": 2},
}
"""The fields of the API's `coat` that each thinking effort sets; `normal` leaves them to the model."""

VOTE_TEMPERATURE = 0.7
"""Temperature of a vote where the user's is 0, at which all chains would be the same."""


Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,64}$")]
"""Of a question. It is a part of a path."""


class Message(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: str


class Step(BaseModel):
    """A segment of a thought, as the page has it."""

    model_config = ConfigDict(extra="forbid")

    action: Literal["continue", "reflect", "explore"] | None = None
    text: str


class Settings(BaseModel):
    """The user's settings. None leaves a value to the API."""

    model_config = ConfigDict(extra="forbid")

    model: str = ""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    effort: Literal["quick", "normal", "thorough", "custom"] = "normal"
    max_reasoning_tokens: Annotated[int | None, Field(ge=0)] = None
    max_reflections: Annotated[int | None, Field(ge=0)] = None
    max_explorations: Annotated[int | None, Field(ge=0)] = None
    min_reflections: Annotated[int, Field(ge=0, le=32)] = 0
    votes: Annotated[int, Field(ge=1, le=16)] = 1
    card_prompt: bool = False

    @property
    def coat(self) -> dict[str, Any]:
        """The chat request's extension. One chain says how long it still takes."""
        if self.effort == "custom":
            names = ("max_reasoning_tokens", "max_reflections", "max_explorations")
            limits: dict[str, Any] = {name: value for name in names if (value := getattr(self, name)) is not None}
            if self.min_reflections:
                limits["min_reflections"] = self.min_reflections
        else:
            limits = dict(EFFORTS[self.effort])
        if self.votes > 1:
            return limits | {"vote": {"samples": self.votes, "temperature": self.temperature or VOTE_TEMPERATURE, "chains": True}}
        return limits | {"eta": True}


class Question(BaseModel):
    """One request for an answer. The API stores the reply under `id`; `resumed` says that it has it already.

    The model goes on from `thought`, if there is any: the steps that it is to have written.
    """

    model_config = ConfigDict(extra="forbid")

    id: Id
    resumed: bool = False
    messages: Annotated[list[Message], Field(min_length=1)]
    thought: list[Step] = []
    settings: Settings = Settings()
    key: str = ""

    @property
    def storable(self) -> bool:
        """Whether an API that stores replies stores this one: the chains of a vote are not streamed."""
        return self.settings.votes == 1

    def body(self) -> dict[str, Any]:
        """Return the body of the streamed chat request, which asks for exact token counts in every chunk."""
        body: dict[str, Any] = {
            "messages": [self._as_sent(message) for message in self.messages],
            "temperature": self.settings.temperature,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            "coat": self.settings.coat,
        }
        if self.thought:
            text = "".join(f"<|{step.action}|>{step.text}" if step.action else step.text for step in self.thought)
            body["messages"].append({"role": "assistant", "content": text})
            body |= {"add_generation_prompt": False, "continue_final_message": True, "echo": True}
        if self.settings.model:
            body["model"] = self.settings.model
        if self.settings.max_tokens is not None:
            body["max_tokens"] = self.settings.max_tokens
        return body

    def _as_sent(self, message: Message) -> dict[str, str]:
        wrap = self.settings.card_prompt and message.role == "user"
        return {"role": message.role, "content": CARD_PROMPT.format(question=message.content) if wrap else message.content}


class Stop(BaseModel):
    """That a question is answered no more."""

    model_config = ConfigDict(extra="forbid")

    id: Id
    key: str = ""
