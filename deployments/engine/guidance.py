"""vLLM's backend for structured output, guidance (llguidance), made to refuse what it would not follow.

Used by the front end, which checks, and by the engine, which follows.
"""

from typing import Any

from deployments.patching import patch


def install() -> None:
    """Change vLLM's backend (0.32.0) in this process. Does nothing the second time."""
    from vllm.v1.structured_output import backend_guidance

    if hasattr(backend_guidance, "satori_installed"):
        return
    backend_guidance.satori_installed = True
    validate: Any = patch(
        backend_guidance,
        "validate_guidance_grammar",
        lambda params, tokenizer=None: _validate(validate, params, tokenizer),
        why="a grammar that matches nothing ends with an empty answer, and xgrammar's structural tags of tool parsers are refused",
        until="vLLM refuses the one and takes the other",
    )
    compile_grammar: Any = patch(
        backend_guidance.GuidanceBackend,
        "compile_grammar",
        lambda self, kind, spec, stop_token_ids=None: _compile(compile_grammar, self, kind, spec, stop_token_ids),
        why="a grammar that cannot be compiled only logs a warning, and then ends every answer at once",
        until="vLLM raises the error",
    )


def _validate(validate: Any, params: Any, tokenizer: Any) -> None:
    import llguidance
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.structured_output.backend_guidance import serialize_guidance_grammar
    from vllm.v1.structured_output.backend_xgrammar import validate_xgrammar_grammar
    from vllm.v1.structured_output.request import get_structured_output_key

    kind, spec = get_structured_output_key(params.structured_outputs)
    if _is_xgrammars(kind, spec):
        validate_xgrammar_grammar(params)
        return
    validate(params, tokenizer)
    matcher = llguidance.LLMatcher(llguidance.LLTokenizer("byte"), serialize_guidance_grammar(kind, spec, True), log_level=0)
    matcher.compute_bitmask()
    if matcher.is_error() or (matcher.is_stopped() and not matcher.is_accepting()):
        raise VLLMValidationError("Grammar error: no text can match it", parameter="structured_outputs")


def _compile(compile_grammar: Any, backend: Any, kind: Any, spec: Any, stop_token_ids: Any) -> Any:
    from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

    if _is_xgrammars(kind, spec):
        if not hasattr(backend, "satori_xgrammar"):
            backend.satori_xgrammar = XgrammarBackend(backend.vllm_config, backend.tokenizer, backend.vocab_size)
        return backend.satori_xgrammar.compile_grammar(kind, spec, stop_token_ids)
    grammar = compile_grammar(backend, kind, spec, stop_token_ids)
    if error := grammar.ll_matcher.get_error():
        raise ValueError(error)
    return grammar


def _is_xgrammars(kind: Any, spec: Any) -> bool:
    """Return whether this is a structural tag of the form that only xgrammar knows."""
    return kind.name == "STRUCTURAL_TAG" and '"structures"' not in spec
