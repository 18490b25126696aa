"""The chat endpoint: vLLM's own, taking requests with the extension `coat` (see `deployments.options`)."""

from typing import Any

from fastapi import Depends, FastAPI, Request
from vllm.entrypoints.openai.chat_completion import api_router
from vllm.entrypoints.serve.utils.api_utils import validate_json_request
from vllm.exceptions import VLLMValidationError

from deployments.options import CoatChatRequest
from deployments.replies import CoatServing

PATH = "/v1/chat/completions"


def mount(app: FastAPI) -> None:
    """Put this chat endpoint in the place of vLLM's, first of all routes: it is the one that is asked most."""
    routes = app.router.routes
    routes[:] = [route for route in routes if getattr(route, "path", None) != PATH]
    theirs = next(route for route in api_router.router.routes if getattr(route, "path", None) == PATH)
    app.post(PATH, dependencies=[Depends(validate_json_request)], responses=theirs.responses)(create_chat_completion)
    routes.insert(0, routes.pop())


async def create_chat_completion(request: CoatChatRequest, raw_request: Request) -> Any:
    """Answer a chat: OpenAI's chat completion, with the extension `coat`."""
    if request.coat is not None and not isinstance(api_router.chat(raw_request), CoatServing):
        raise VLLMValidationError("this model writes no Chain of Action-Thought; leave coat out", parameter="coat")
    return await api_router.create_chat_completion(request=request, raw_request=raw_request)
