"""A conversation as a document to read, in Markdown."""

from typing import Any

from ui.assurance import described
from ui.texts import texts


def exported(conversation: dict[str, Any], language: str) -> str:
    """Return a conversation, in the shape in which the page keeps it."""
    words = texts(language)
    parts = [f"# {_line(conversation.get('title') or words['conversation.untitled'])}"]
    for turn in conversation.get("turns", []):
        parts += [f"## {words['export.question']}", turn["question"], *_reply(turn.get("reply"), words)]
    return "\n\n".join(parts) + "\n"


def _reply(reply: dict[str, Any] | None, words: dict[str, str]) -> list[str]:
    if not reply:
        return []
    parts = []
    if reply.get("steps"):
        parts.append(f"### {words['export.reasoning']}")
        for number, step in enumerate(reply["steps"], 1):
            parts += [f"{number}. **{words['step.' + (step['action'] or 'none')]}**", _indented(step["text"])]
    if reply.get("content") or reply.get("answer"):
        parts.append(f"### {words['export.answer']}")
    if reply.get("content"):
        parts.append(reply["content"].strip())
    if reply.get("answer") is not None:
        parts.append(f"**{_line(reply['answer'])}**")
        if assurance := reply.get("assurance"):
            parts.append(f"*{described(assurance, words)}*")
    if error := reply.get("error"):
        parts.append(f"*{words['error.' + error['kind'] + '.title']}*")
    if stats := reply.get("stats"):
        known = [f"{words['stats.' + name]}: {value}" for name, value in stats.items() if value is not None]
        parts.append(f"*{' · '.join(known)}*")
    return parts


def _line(text: str) -> str:
    return " ".join(text.split())


def _indented(text: str) -> str:
    """Return text as the body of a list item."""
    return "\n".join(f"   {line}".rstrip() for line in text.strip().splitlines())
