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
        parts += [f"### {words['export.reasoning']}", *_steps(reply["steps"], words)]
    if reply.get("content") or reply.get("answer"):
        parts.append(f"### {words['export.answer']}")
    if reply.get("content"):
        parts.append(reply["content"].strip())
    if reply.get("answer") is not None:
        parts.append(f"**{_line(reply['answer'])}**")
        if assurance := reply.get("assurance"):
            parts.append(f"*{described(assurance, words)}*")
    parts += _chains(reply, words)
    if error := reply.get("error"):
        parts.append(f"*{words['error.' + error['kind'] + '.title']}*")
    if stats := reply.get("stats"):
        known = [f"{words['stats.' + name]}: {value}" for name, value in stats.items() if value is not None]
        parts.append(f"*{' · '.join(known)}*")
    return parts


def _steps(steps: list[dict[str, Any]], words: dict[str, str]) -> list[str]:
    parts = []
    for number, step in enumerate(steps, 1):
        parts += [f"{number}. **{words['step.' + (step['action'] or 'none')]}**", _indented(step["text"])]
    return parts


def _chains(reply: dict[str, Any], words: dict[str, str]) -> list[str]:
    """Return the chains of a vote, but for the one that is the reply."""
    chains = sorted(reply.get("chains") or [], key=lambda chain: chain["index"])
    winner = (reply.get("vote") or {}).get("winner")
    parts = [f"### {words['export.chains']}"] if chains else []
    for chain in chains:
        title = words["chains.attempt"].format(number=chain["index"] + 1)
        if chain["index"] == winner:
            parts += [f"#### {title}", f"*{words['chains.won']}*"]
            continue
        parts += [f"#### {title}", *_steps(chain["segments"], words)]
        if chain["content"]:
            parts.append(chain["content"].strip())
        if chain["finish_reason"] is None:
            parts.append(f"*{words['chains.stopped']}*")
    return parts


def _line(text: str) -> str:
    return " ".join(text.split())


def _indented(text: str) -> str:
    """Return text as the body of a list item."""
    return "\n".join(f"   {line}".rstrip() for line in text.strip().splitlines())
