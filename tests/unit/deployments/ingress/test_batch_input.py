"""The lines of a batch's input, however its bytes come."""

import json
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.ingress import batch_input
from deployments.ingress.batch_input import Check, Line, by_prefix, split, windows
from deployments.ingress.bounds import DEPTH

URL, MOST = "/v1/completions", 40


async def lines_of(pieces: list[bytes]) -> list[Line]:
    async def come() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    return [line async for group in split(come(), MOST) for line in group]


@given(st.lists(st.text("ab \r", max_size=12)), st.data())
async def test_lines_are_the_same_however_they_come(lines: list[str], data: st.DataObject) -> None:
    text = "\n".join(lines).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert await lines_of(pieces) == [Line(n, line.encode()) for n, line in enumerate(lines, 1) if line.strip()]


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_a_long_line_is_not_kept(size: int) -> None:
    text = b"a\n" + b"x" * (MOST + 1) + b"\nb\n" + b"y" * MOST + b"\n" + b"z" * 200
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    assert await lines_of(pieces) == [Line(1, b"a"), Line(2, None), Line(3, b"b"), Line(4, b"y" * MOST), Line(5, None)]


def checked(*lines: Any) -> list[tuple[int | None, str]]:
    check = Check(URL, MOST)
    texts = [line if isinstance(line, bytes | None) else json.dumps(line).encode() for line in lines]
    check.take([Line(number, text) for number, text in enumerate(texts, 1)])
    check.end()
    return [(error["line"], error["code"]) for error in check.errors]


def line(number: Any = 1, **fields: Any) -> dict[str, Any]:
    return {"custom_id": f"{number}", "method": "POST", "url": URL, "body": {}} | fields


def test_what_is_wrong_is_told_by_the_number_of_its_line() -> None:
    assert checked(line(1), line(2, more="x")) == []
    assert checked(
        None,
        b"\xff",
        b"[" * 100_000,
        b"7",
        line(1, custom_id=7),
        line(1, custom_id=""),
        line(1, custom_id="x" * 513),
        line(1, body=[]),
    ) == [
        (1, "line_too_long"),
        (2, "invalid_json_line"),
        (3, "line_too_deep"),
        (4, "invalid_json_line"),
        (5, "invalid_custom_id"),
        (6, "invalid_custom_id"),
        (7, "invalid_custom_id"),
        (8, "invalid_body"),
    ]
    assert checked(line("\ud800"), line("\ud800")) == [(2, "duplicate_custom_id")]
    assert checked(line(1, method=None), line(2, url=None)) == [(1, "invalid_method"), (2, "mismatched_url")]
    assert checked() == [(None, "empty_file")]


def test_a_body_is_as_deep_as_a_clients_may_be() -> None:
    def nested(levels: int) -> bytes:
        return json.dumps(line(levels)).replace('"body": {}', '"body": ' + '{"a": ' * levels + "1" + "}" * levels).encode()

    assert checked(nested(DEPTH), nested(DEPTH + 1)) == [(2, "line_too_deep")]


def test_only_so_many_lines_and_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_input, "LINES", 3)
    assert checked(*map(line, range(3))) == []
    assert checked(*map(line, range(4))) == [(None, "too_many_lines")]
    monkeypatch.setattr(batch_input, "ERRORS", 2)
    assert checked(*[b"{"] * 3) == [(1, "invalid_json_line"), (2, "invalid_json_line")]


def asked(number: int, **body: Any) -> Line:
    return Line(number, json.dumps({"custom_id": f"{100 - number}", "method": "POST", "url": URL, "body": body}).encode())


def test_lines_whose_prompts_begin_alike_follow_each_other() -> None:
    """They are three evaluations in mixed order, of each kind of prompt, and lines without one."""
    lists = ["examples " * 50 + name for name in ("one", "two")]
    lines = [asked(n, messages=[{"role": "user", "content": f"{lists[n % 2]}: question {n}"}]) for n in range(8)]
    lines += [asked(n, prompt=f"{lists[n % 2]}: question {n}") for n in range(8, 14)]
    lines += [asked(n, instructions=lists[n % 2], input=f"question {n}") for n in range(14, 20)]
    strange = [Line(20, None), Line(21, b"nonsense"), Line(22, b'{"body": 7}'), Line(23, b"[]"), Line(24, b"[" * 100_000)]
    order = by_prefix([*lines, *strange])
    assert order[:5] == strange
    parts = [[line.number % 2 for line in order if line.number in part] for part in (range(8), range(8, 14), range(14, 20))]
    assert [sum(one != other for one, other in pairwise(part)) for part in parts] == [1, 1, 1]
    assert sorted(order) == [*lines, *strange]


async def test_windows_have_all_lines_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_input, "WINDOW_BYTES", 10)
    groups = [[Line(1, b"abcd")], [Line(2, None), Line(3, b"efghij")], [Line(4, b"x" * 30)], [], [Line(5, b"k")]]

    async def come() -> AsyncIterator[list[Line]]:
        for group in groups:
            yield group

    assert [[line.number for line in window] async for window in windows(come())] == [[1, 2, 3], [4], [5]]
