"""The routes that are served: a list of those allowed. Whatever else vLLM's server makes, under whatever environment, is left out.

vLLM 0.32.0 has routes that no client of a shared server may use: to abort the requests of others, to scale, to run a request
that its own checks have not seen (`/inference/v1/generate`). With VLLM_SERVER_DEV_MODE or VLLM_ALLOW_RUNTIME_LORA_UPDATING it
adds some that put the engine to sleep, change its weights, load files or call any of its methods.
"""

from fastapi import FastAPI

ALLOWED = frozenset(
    """
    /v1/models /v1/chat/completions /v1/completions /v1/responses /v1/responses/{response_id} /v1/responses/{response_id}/cancel
    /v1/messages /v1/messages/count_tokens /tokenize /detokenize
    /health /load /version /metrics /docs /docs/oauth2-redirect /redoc /openapi.json
    """.split()
)


def keep_allowed(app: FastAPI) -> None:
    """Take all routes from vLLM's app but the allowed ones. What is added afterwards is served."""
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", None) in ALLOWED]
