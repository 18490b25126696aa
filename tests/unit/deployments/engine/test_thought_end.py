"""Where vLLM's engine begins a grammar: behind the separator, however many tokens a step has."""

import pytest

from deployments.engine.thought_end import NAME, ThoughtEnd

PROMPT = [5, 1, 2, 3]  # ends with the separator's own tokens, as a chat template may
THOUGHT, SEPARATOR, ANSWER = [7, 8, 9], [1, 2, 3], [6, 6]


def test_a_request_without_a_separator_has_no_thought() -> None:
    assert ThoughtEnd(None, chat_template_kwargs={}).is_reasoning_end(PROMPT)
    assert not ThoughtEnd(None, separator=SEPARATOR).is_reasoning_end(PROMPT)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_the_thought_ends_in_the_step_that_completes_the_separator(size: int) -> None:
    end, output = ThoughtEnd(None, separator=SEPARATOR), THOUGHT + SEPARATOR + ANSWER
    for start in range(0, len(output), size):
        new = output[start : start + size]
        ends = start < len(THOUGHT + SEPARATOR) <= start + len(new)
        assert end.is_reasoning_end_streaming(PROMPT + output[: start + size], new) is ends, (start, size)


def test_the_engine_finds_it_by_name() -> None:
    from vllm.reasoning import ReasoningParserManager

    assert ReasoningParserManager.get_reasoning_parser(NAME) is ThoughtEnd
