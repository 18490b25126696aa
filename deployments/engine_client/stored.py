"""Stored responses, whose tokens come from the store: an engine's outputs as the log has them, and back."""

from vllm.v1.engine import EngineCoreOutput, FinishReason

from deployments.store.values import End


def one_by_one(output: EngineCoreOutput) -> list[EngineCoreOutput]:
    """Return an output as outputs of a token each: how many an engine sent at a time is not kept, and clients must not see it."""
    first, *rest = output.new_token_ids or [None]
    if first is None:
        return []
    output.new_token_ids = [first]
    output.finish_reason = output.stop_reason = None
    return [output, *(EngineCoreOutput(output.request_id, [token]) for token in rest)]


def end_of(output: EngineCoreOutput) -> End | None:
    """Return how a request ends with this output; None where it goes on."""
    return None if output.finish_reason is None else End(str(output.finish_reason), stop_reason=output.stop_reason)


def ending(outputs: list[EngineCoreOutput], request_id: str, end: End) -> None:
    """Have the last of a request's outputs end it."""
    if not outputs or end.code is not None or end.finish == str(FinishReason.ABORT):  # no token came with it
        outputs.append(EngineCoreOutput(request_id, []))
    outputs[-1].finish_reason = next(reason for reason in FinishReason if str(reason) == end.finish)
    outputs[-1].stop_reason = end.stop_reason
