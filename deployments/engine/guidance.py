"""vLLM's backend for structured output, guidance (llguidance), made to refuse what it would not follow.

Used by the front end, which checks, and by the engine, which follows.
"""

import copy
import json
import logging
from typing import Any

from deployments.engine import grammar_check
from deployments.patching import patch

PASSED: dict[tuple[str, str], None] = {}
"""Kind and text of grammars that have passed the check of `grammar_check` in another process; the latest are last."""
KEPT = 1024
UNWRITTEN = "\ufdd0"
"""A code point that stands for no character: no text has it."""


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
        why="a grammar that matches nothing, or never ends, fails in the engine; and xgrammar's structural tags are refused",
        until="vLLM refuses the one and takes the other",
    )
    compile_grammar: Any = patch(
        backend_guidance.GuidanceBackend,
        "compile_grammar",
        lambda self, kind, spec, stop_token_ids=None: _compile(compile_grammar, self, kind, spec, stop_token_ids),
        why="a grammar that cannot be compiled only logs a warning, and then ends every answer at once",
        until="vLLM raises the error",
    )
    build_tokenizer: Any = patch(
        backend_guidance.GuidanceBackend,
        "_build_ll_tokenizer",
        staticmethod(lambda tokenizer, vocab_size: _tokenizer(build_tokenizer, tokenizer, vocab_size)),
        why="llguidance (1.7.6) tokenizes text that a grammar forces as if a special token were meant where the text spells one,"
        " then refuses that token, and the request fails: {'enum': ['<|im_end|>']}",
        until="llguidance forces ordinary tokens there",
    )
    for name in ("vllm.v1.structured_output", backend_guidance.__name__):
        logging.getLogger(name).addFilter(_in_one_line)  # who asked for a grammar is told its error, too


def _in_one_line(record: logging.LogRecord) -> bool:
    """Write a log record without line breaks, its error in place of a traceback. Always returns True: the record is logged."""
    error = record.exc_info[1] if record.exc_info else None
    message = f"{record.getMessage()}: {error}" if error else record.getMessage()
    record.msg, record.args, record.exc_info, record.exc_text = " ".join(message.split()), (), None, None
    return True


def _tokenizer(build: Any, tokenizer: Any, vocab_size: int) -> Any:
    """Return llguidance's tokenizer of a model, in which no text is a special token."""
    import llguidance

    if not hasattr(tokenizer, "backend_tokenizer"):
        return build(tokenizer, vocab_size)
    described = copy.copy(tokenizer.backend_tokenizer)
    described.no_padding()
    described.no_truncation()
    whole = json.loads(described.to_str())
    vocabulary = whole["model"]["vocab"]
    if not isinstance(vocabulary, dict):
        return build(tokenizer, vocab_size)
    for token in whole["added_tokens"]:
        if token["special"]:
            name = UNWRITTEN + token["content"]
            if token["content"] in vocabulary:
                vocabulary[name] = vocabulary.pop(token["content"])
            token["content"] = name
    size = max(vocab_size, len(tokenizer))
    return llguidance.LLTokenizer(json.dumps(whole), n_vocab=size, eos_token=tokenizer.eos_token_id)


def passed(kind: str, spec: str) -> None:
    """Note that a grammar has been checked already: vLLM, which checks in an event loop, does not check it again."""
    PASSED.pop((kind, spec), None)
    PASSED[kind, spec] = None
    if len(PASSED) > KEPT:
        del PASSED[next(iter(PASSED))]


def is_xgrammars(kind: Any, spec: Any) -> bool:
    """Return whether this is a structural tag of the form that only xgrammar knows."""
    return kind.name == "STRUCTURAL_TAG" and '"structures"' not in spec


def _validate(validate: Any, params: Any, tokenizer: Any) -> None:
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.structured_output.backend_xgrammar import validate_xgrammar_grammar
    from vllm.v1.structured_output.request import get_structured_output_key

    kind, spec = get_structured_output_key(params.structured_outputs)
    if is_xgrammars(kind, spec):
        validate_xgrammar_grammar(params)
    elif tokenizer is not None:  # Mistral's, whose tool parser names its special tokens
        validate(params, tokenizer)
    elif (kind.name, spec) not in PASSED and (fault := grammar_check.fault(kind.name, spec)) is not None:
        raise VLLMValidationError(f"Grammar error: {fault}", parameter="structured_outputs")


def _compile(compile_grammar: Any, backend: Any, kind: Any, spec: Any, stop_token_ids: Any) -> Any:
    from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

    if is_xgrammars(kind, spec):
        if not hasattr(backend, "satori_xgrammar"):
            backend.satori_xgrammar = XgrammarBackend(backend.vllm_config, backend.tokenizer, backend.vocab_size)
        return backend.satori_xgrammar.compile_grammar(kind, spec, stop_token_ids)
    grammar = compile_grammar(backend, kind, spec, stop_token_ids)
    if error := grammar.ll_matcher.get_error():
        raise ValueError(error)
    return grammar
