"""The API server of an ingress: vLLM's own app on our engine client, with our middleware, error handlers and chat endpoint.

Its imports take seconds, so an ingress imports it in a thread.
"""

import asyncio
import os
import time
import types
from argparse import Namespace
from typing import TYPE_CHECKING

from fastapi import FastAPI
from pydantic import BaseModel
from vllm.config import VllmConfig
from vllm.entrypoints.generate.base.protocol import DeltaMessage
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionResponseStreamChoice, ChatCompletionStreamResponse
from vllm.entrypoints.openai.completion.protocol import CompletionResponseStreamChoice, CompletionStreamResponse
from vllm.reasoning import ReasoningParserManager
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.tool_parsers import ToolParserManager
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.executor import Executor

from deployments.access.keys import KeyStore
from deployments.access.shared import CountStore
from deployments.access.usage import client_name
from deployments.engine import guidance
from deployments.engine.arguments import server_arguments
from deployments.engine.config import TASKS, frontend_config, tune_process
from deployments.engine_client.client import Hooks, ServeEngineClient, used_by_async_llm
from deployments.engine_client.replicas import LLMReplicas
from deployments.errors import SatoriError, SettingsError
from deployments.ingress import batches, chats, direct, direct_responses, docs, endpoints, error_handlers, files, special_tokens
from deployments.ingress.frontend import BoundedLLM
from deployments.ingress.grammars import Grammars
from deployments.ingress.inner import Inner
from deployments.ingress.json_schema import followed
from deployments.ingress.middleware.access import Guard
from deployments.ingress.middleware.draining import Ongoing
from deployments.ingress.middleware.intake import prepared
from deployments.ingress.middleware.stack import stack
from deployments.ingress.responses import Responses, default_url, make_ids_again, mount
from deployments.observability.vllm_metrics import FrontendMetrics
from deployments.observability.writer import Writer
from deployments.patching import patch
from deployments.reasoning import parser as parser  # registers the reasoning parser `coat`
from deployments.reasoning import serving
from deployments.reasoning.coat import ACTIONS
from deployments.reasoning.formatted import Formats
from deployments.settings import Settings, port_range

if TYPE_CHECKING:
    from deployments.observability.tracing import Tracer

ALLOWED = frozenset(
    """
    /v1/models /v1/chat/completions /v1/completions /v1/responses
    /v1/messages /v1/messages/count_tokens /tokenize /detokenize /tokenizer_info
    /health /load /version /openapi.json
    """.split()
)
"""The routes of vLLM's app that are served; some only where a setting asks for them.

vLLM 0.32.0 has routes that no client of a shared server may use: to abort the requests of others, to scale, to run a request that
bypasses its own checks (`/inference/v1/generate`). With VLLM_SERVER_DEV_MODE or VLLM_ALLOW_RUNTIME_LORA_UPDATING it adds routes
that put the engine to sleep, change its weights, load files or call any of its methods.
"""
STRAY_S = 10.0
CHECK = "__log_extra_fields__"
CHUNKS: tuple[type[BaseModel], ...] = (
    DeltaMessage,
    ChatCompletionResponseStreamChoice,
    ChatCompletionStreamResponse,
    CompletionResponseStreamChoice,
    CompletionStreamResponse,
)
"""The models that make up a stream's chunks, inner ones first: an outer model takes over how its inner ones are validated."""


class Server:
    """vLLM's OpenAI server (`app`) on an AsyncLLM (`engine`) whose engine is the LLM replicas (`client`).

    `ongoing` counts its requests. `responses` and `batches` are those that are stored.
    """

    def __init__(
        self,
        app: FastAPI,
        engine: BoundedLLM,
        client: ServeEngineClient,
        ongoing: Ongoing,
        responses: Responses,
        batches: batches.Batches,
    ) -> None:
        self.app, self.engine, self.client, self.ongoing = app, engine, client, ongoing
        self.responses, self.batches = responses, batches
        self._strays: dict[str, float] = {}

    @property
    def direct_chunks(self) -> int:
        """How many chunks of streams were written directly; 0 where the settings do not allow it."""
        return getattr(self.engine.output_processor, "written", 0)

    def strays(self) -> int:
        """Return how many states vLLM's frontend keeps of requests that the engine has not had for `STRAY_S`: a leak.

        Each counts against the bounds of the queue. Those of requests that are just ending are not counted.
        """
        now, states = time.monotonic(), self.engine.output_processor.request_states.keys() - set(self.client.open_requests)
        self._strays = {request: self._strays.get(request, now) for request in states}
        return sum(now - since >= STRAY_S for since in self._strays.values())


async def build(
    settings: Settings, replicas: LLMReplicas, host: str, keys: KeyStore | None, tracer: "Tracer | None" = None
) -> Server:
    """Return the server for a model whose files are in the directory `settings.model`.

    Replicas send their tokens to `host`. Without `keys` the API is open.
    """
    make_chunks_without_check()
    special_tokens.install()
    make_ids_again()
    guidance.install()
    arguments = await asyncio.to_thread(server_arguments, settings)
    load_plugins(arguments)
    config = await asyncio.to_thread(frontend_config, arguments)
    coat = await asyncio.to_thread(writes_coat, arguments, config)
    guard, ongoing = Guard(keys, _counts(settings), settings.ingress.num_replicas), Ongoing()

    def refuse(request_id: str, error: SatoriError) -> None:
        engine.refuse(request_id, error)

    client = ServeEngineClient(
        replicas,
        host,
        wait_s=settings.llm.wait_s,
        beat_s=settings.llm.beat_s,
        hooks=Hooks(refuse, prepared, client_name, guard.charge),
        ports=port_range(settings.ports.tokens),
        cache_blocks=settings.routing.cache_index_blocks if settings.routing.cache_events else 0,
    )
    engine = frontend(arguments, config, client)
    app = build_app(arguments, TASKS, config.model_config)
    keep_allowed(app)
    writer = Writer(settings.served_model_name, settings.slo, guard.cost) if settings.measuring.enabled else None
    app.user_middleware = stack(
        app.user_middleware,
        http=settings.http,
        guard=guard,
        ongoing=ongoing,
        pace_s=lambda: client.pace_s,
        writer=writer,
        tracer=tracer,
    )
    error_handlers.install(app)
    await init_app_state(engine, app.state, arguments, TASKS)
    endpoints.mend(app, engine, len(cached_tokenizer_from_config(config.model_config)))
    app.state.grammars = Grammars()
    app.state.grammars.check_before(app.state.online_renderer)
    serving.mount(app)
    url = settings.store.url or default_url(settings.http.port)
    responses = Responses(app.state.openai_serving_responses, engine, settings.store, url, settings.served_model_name)
    mount(app, responses)
    chats.mount(app, chats.Chats(app.state.openai_serving_chat, engine, responses, settings.store, settings.served_model_name))
    stored_files = files.Files(responses, settings.store)
    files.mount(app, stored_files)
    stored_batches = batches.Batches(responses, stored_files, Inner(app, settings.http, writer), guard, settings, client.idle)
    batches.mount(app, stored_batches)
    docs.mount(app)
    if coat:
        client.turn_ids = write_coat(engine, app, settings)
    if settings.ingress.direct_streams:
        direct.install(engine, app.state, lambda: client.behind)
        direct_responses.install(app.state.openai_serving_responses)
    app.state.server = types.SimpleNamespace()  # vLLM's own launcher puts its uvicorn server here
    app.middleware_stack = None  # vLLM has built it already; the first request builds it again, with what was added since
    tune_process()
    # What `make serve` starts is under SCHED_BATCH (see deployments.launch.serve_run). Clients wait for the ingress, so it may push
    # other processes aside.
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    responses.start()
    stored_batches.start()
    return Server(app, engine, client, ongoing, responses, stored_batches)


def _counts(settings: Settings) -> CountStore | None:
    """Return the store of counts that the settings name; None where each ingress counts by itself."""
    if settings.access.store is None:
        return None
    from deployments.access.counts import Counts  # redis' library takes time to import

    return Counts(settings.access.store)


def load_plugins(arguments: Namespace) -> None:
    """Import the files whose parsers the settings add to vLLM's, as its own launcher does.

    Raises SettingsError for a parser of tool calls that there is not.
    """
    if arguments.tool_parser_plugin:
        ToolParserManager.import_tool_parser(arguments.tool_parser_plugin)
    if arguments.reasoning_parser_plugin:
        ReasoningParserManager.import_reasoning_parser(arguments.reasoning_parser_plugin)
    known = ToolParserManager.list_registered()
    if (name := arguments.tool_call_parser) is not None and name not in known:
        raise SettingsError(f"api.tool_call_parser={name!r}: no such parser; allowed: {', '.join(known)}")


def frontend(arguments: Namespace, config: VllmConfig, client: EngineCoreClient) -> BoundedLLM:
    """Return vLLM's frontend on an engine client."""
    with used_by_async_llm(client):
        return BoundedLLM(
            config,
            Executor,
            log_stats=not arguments.disable_log_stats,
            log_requests=arguments.enable_log_requests,
            stat_loggers=None if arguments.disable_log_stats else [FrontendMetrics],
        )


def keep_allowed(app: FastAPI) -> None:
    """Remove all routes from vLLM's app except the allowed ones. Routes that are added afterwards are served."""
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", None) in ALLOWED]


def make_chunks_without_check() -> None:
    """Have chunks made without the check for unknown fields, in this process. Their content and encoding stay the same."""
    for part in CHUNKS:
        decorators = part.__pydantic_decorators__
        if CHECK in decorators.model_validators:
            patch(
                decorators,
                "model_validators",
                {name: validator for name, validator in decorators.model_validators.items() if name != CHECK},
                why="vLLM 0.32.0 checks its API's models for unknown fields, for a debug log of requests. A chunk is three models"
                " that the server itself fills in for every token: the check is two fifths of the cost of making them",
                until="the check is for requests only",
            )
            part.model_rebuild(force=True)


def write_coat(engine: BoundedLLM, app: FastAPI, settings: Settings) -> frozenset[int]:
    """Have the endpoints read a Chain of Action-Thought, which comes before an answer in a format.

    Returns the tokens with which a chain turns: reflections and explorations.
    """
    formats = None
    if not engine.vllm_config.structured_outputs_config.enable_in_reasoning:
        formats = engine.formats = Formats.of(cached_tokenizer_from_config(engine.model_config), settings.coat)
    engine.limit_tokens = serving.CoatServing.adopt(app.state, settings.coat, formats, followed)
    if settings.api.get("anthropic_disabled_thinking_effort", "auto") == "auto":
        app.state.anthropic_serving_messages._disabled_thinking_effort = "none"  # vLLM would look whether the template knows it
    return frozenset(engine.limit_tokens[action] for action in ("reflect", "explore"))


def writes_coat(arguments: Namespace, frontend: VllmConfig) -> bool:
    """Return whether the model writes a Chain of Action-Thought; if so, make `coat` the frontend's reasoning parser.

    It does if its tokenizer has the actions, unless the settings ask for another reasoning parser.
    """
    parsers = arguments.structured_outputs_config
    if parsers.reasoning_parser or not ACTIONS.keys() <= cached_tokenizer_from_config(frontend.model_config).get_vocab().keys():
        return False
    parsers.reasoning_parser = "coat"
    return True
