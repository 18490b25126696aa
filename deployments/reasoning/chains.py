"""What vLLM's servers for chats and for Responses share, where the model writes a Chain of Action-Thought."""

from dataclasses import dataclass
from typing import Any

from vllm.exceptions import VLLMValidationError

from deployments.reasoning.answers.comparer import Comparer
from deployments.reasoning.ballot import Ballot
from deployments.reasoning.formatted import Formats, FormattedAnswers, thinks_first
from deployments.reasoning.reading import Vocabulary, vocabulary
from deployments.reasoning.request import CoatOptions, CoatRequest
from deployments.settings import CoatSettings


@dataclass(frozen=True)
class Chains:
    """What reads the chains of a model, and limits them; `limit_tokens` are the token ids that limits need."""

    vocabulary: Vocabulary
    limit_tokens: dict[str, Any]
    comparer: Comparer
    formats: Formats | None


class ChainServing:
    """What a server does for a model that writes chains, beside vLLM's class of it."""

    chains: Chains
    models: Any
    _extract_prompt_components: Any

    def plant(self, request: CoatRequest, prompt: Any) -> list[int]:
        """Tell a request of the tokens that its limits need; return the chain that the prompt ends within, empty without one."""
        planted = self.chains.vocabulary.planted(self._extract_prompt_components(prompt).token_ids or ())
        request._tokens = self.chains.limit_tokens | {"planted": planted}
        return planted

    def ballot(self, request: Any) -> Ballot:
        """Return the vote over the samples of a request that asks for one."""
        chains = self.chains
        answers = None
        if chains.formats is not None and thinks_first(request):
            answers = FormattedAnswers(chains.formats, request.extract_structured_outputs())
        return Ballot(
            request.vote, self.models.model_name(), chains.comparer, chains.vocabulary, answers, thoughts=request.include_reasoning
        )


def check_coat(request: CoatRequest, serving: Any) -> None:
    """Raise VLLMValidationError for a request that has the extension where the model, of this serving, writes no chains.

    `eta` alone is fine: it is told beside reasoning, where there is any.
    """
    asks = request.coat is not None and request.coat.model_dump(exclude={"eta"}) != CoatOptions().model_dump(exclude={"eta"})
    if asks and not isinstance(serving, ChainServing):
        raise VLLMValidationError("this model writes no Chain of Action-Thought; leave coat out", parameter="coat")


def limit_tokens(tokenizer: Any, settings: CoatSettings) -> dict[str, Any]:
    """Return the token ids that the engine needs to enforce a request's limits (see `deployments.reasoning.limits.Chain`)."""
    ids = {name: token for token, name in vocabulary(tokenizer).actions.items()}

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    return {
        "reflect": ids["reflect"],
        "explore": ids["explore"],
        "actions": list(ids.values()),
        "end": [tokenizer.eos_token_id],
        "marks": sorted(index for token, index in tokenizer.get_vocab().items() if "boxed" in token),
        "openings": [encode(opening) for opening in settings.openings],
        "answer": encode(settings.answer),
    }
