"""What an answer in a format copies from its thought: the rules on a vocabulary of single bytes and a few longer tokens."""

import json
import re

import pytest

from deployments.engine.vocabulary import ModelVocabulary
from deployments.reasoning.pointer import Place, Pointer, Source, as_number, plain

LONGER = [b'",', b"null", b'":', b"12", b"]}", b"answer"]
END = 256 + len(LONGER)
VOCABULARY = ModelVocabulary([*(bytes((byte,)) for byte in range(256)), *LONGER, b"</s>"], [END])
THOUGHT = "Let me see. The final answer is \\boxed{12}."


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("12", "12"),
        ("-3", "-3"),
        ("007", "7"),
        ("-0.50", "-0.50"),
        ("9.9", "9.9"),
        ("1,234", "1234"),
        ("10\\,236", "10236"),
        ("1{,}000{,}000", "1000000"),
        ("x = 5", "5"),
        ("x=-5", "-5"),
        ("50\\%", "50"),
        ("5\\text{ km}", "5"),
        ("\\frac{1}{2}", "0.5"),
        ("-\\frac{6}{3}", "-2"),
        ("1/3", repr(1 / 3)),
        ("3 1/2", None),
        ("x-3", None),
        ("(1, 2)", None),
        ("\\pi", None),
        ("1/0", None),
        ("", None),
    ],
)
def test_the_number_in_an_answer(answer: str, number: str | None) -> None:
    assert as_number(answer) == number
    if number is not None:
        json.loads(number)


@pytest.mark.parametrize(("box", "text"), [("\\text{Monday}", "Monday"), ("\\$1{,}000", "1000"), (" $12$ ", "12"), ("x^2", "x^2")])
def test_a_box_without_its_type_setting(box: str, text: str) -> None:
    assert plain(box) == text


def test_without_a_box_the_last_statement_is_copied() -> None:
    source = Source.of("<|continue|>first<|reflect|>I only know\na little.")
    assert (source.text, source.number) == (b"I only know\na little.", None)
    assert source.string == b"I only know\\na little."
    assert Source.of("  ") is None


@pytest.mark.parametrize(
    ("written", "kind", "part"),
    [
        ("", "value", ""),
        ("{", "key", ""),
        ('{"a', "in_key", "a"),
        ('{"a\\"b', "in_key", 'a\\"b'),
        ('{"a"', "other", ""),
        ('{"a":', "value", ""),
        ('{"a": [', "value", ""),
        ('{"a":["x\\\\"', "after", ""),
        ('{"a":-1', "number", "-1"),
        ('{"a":tr', "literal", "tr"),
        ('{"a":1 ', "after", ""),
        ('{"a":1,', "key", ""),
        ("[1,", "value", ""),
        ("[{}", "after", ""),
    ],
)
def test_the_place_in_a_json_text(written: str, kind: str, part: str) -> None:
    place = Place()
    place.feed(written.encode())
    assert (place.kind, place.written) == (kind, part.encode())


@pytest.mark.parametrize(
    ("written", "kind"),
    [
        ("", "choice"),
        ("T", "choice"),
        ("{", "choice"),
        ("<tool_call>\n", "choice"),
        ("<tool_call>\n{", "key"),
        ('<x>{"a":', "value"),
    ],
)
def test_the_place_in_what_may_be_a_call(written: str, kind: str) -> None:
    place = Place(may_call=True)
    place.feed(written.encode())
    assert place.kind == kind


def test_the_choice_is_the_models_and_a_text_that_is_no_call_ends() -> None:
    pointer = Pointer(Source.of(THOUGHT), VOCABULARY, [END], is_json=True, decisive=True, may_call=True)
    assert list(pointer.preferred()) == []
    text = pointer.copy()
    text.feed([ord("T")])
    assert list(text.preferred()) == [[END]]
    pointer.feed(list(b'<tool_call>\n{"name": "add", "arguments": {"a":'))
    assert next(iter(pointer.preferred())) == [256 + LONGER.index(b"12")]


def write(pattern: str, *, thought: str = THOUGHT, is_json: bool = True, decisive: bool = True) -> str | None:
    """Write the answer that the pointer alone would write, while the text so far can become a match of `pattern`.

    Return None when it leaves the choice to the model.
    """
    import regex  # vLLM's own, which knows partial matches

    allowed = regex.compile(pattern)
    pointer, text = Pointer(Source.of(thought), VOCABULARY, [END], is_json=is_json, decisive=decisive), b""
    while True:

        def possible(token: int, text: bytes = text) -> bool:
            if token == END:
                return allowed.fullmatch(text.decode()) is not None
            return allowed.fullmatch((text + VOCABULARY.text([token])).decode(errors="replace"), partial=True) is not None

        chosen = next((group for group in ([t for t in group if possible(t)] for group in pointer.preferred()) if group), None)
        if chosen is None:
            forced = [token for token in range(END + 1) if possible(token)]
            shortest = [token for token in forced if token < 256 or token == END]
            if len(shortest) != 1:
                return None
            chosen = shortest
        if chosen[0] == END:
            return text.decode()
        text += VOCABULARY.text(chosen[:1])
        pointer.feed(chosen[:1])


STRING, INTEGER, ANY = r'"(?:[^"\\]|\\.)*"', r"-?(?:0|[1-9]\d*)", r'(?:"(?:[^"\\]|\\.)*"|-?(?:0|[1-9]\d*))'


@pytest.mark.parametrize(
    ("pattern", "answer"),
    [
        (INTEGER, "12"),
        (rf"{INTEGER}(?:\.\d+)?", "12"),
        (STRING, '"12"'),
        (ANY, "12"),
        (rf'\{{"answer":{INTEGER}\}}', '{"answer":12}'),
        (rf'\{{"a":{INTEGER},"b":{STRING}\}}', '{"a":12,"b":"12"}'),
        (rf"\[(?:{INTEGER}(?:,{INTEGER})*)?\]", "[12]"),
        (rf"\{{(?:{STRING}:{INTEGER}(?:,{STRING}:{INTEGER})*)?\}}", '{"answer":12}'),
        (r'\{"x":(?:null|\{"x":null\})\}', '{"x":null}'),
        ("[5-9]|[5-9]\\d", None),
    ],
)
def test_the_box_goes_where_it_fits_and_values_end(pattern: str, answer: str | None) -> None:
    assert write(pattern) == answer
    if answer is not None:
        assert re.fullmatch(pattern, answer)
        json.loads(answer)


@pytest.mark.parametrize(
    ("pattern", "answer"),
    [(r"\d+", "12"), (r"The answer is \d+!?", "The answer is 12"), ("11|12|13", "12"), ("yes|no", None)],
)
def test_the_box_goes_into_other_formats(pattern: str, answer: str | None) -> None:
    assert write(pattern, is_json=False) == answer


def test_a_pointer_that_is_not_decisive_leaves_the_models_own_words_alone() -> None:
    pointer = Pointer(Source.of(THOUGHT), VOCABULARY, [END], is_json=True, decisive=False)
    assert next(iter(pointer.preferred())) == [256 + LONGER.index(b"12")], "it offers the box where a value begins"
    pointer.feed(list(b'"Dear'))
    assert list(pointer.preferred()) == []
    pointer.feed(list(b'"'))
    assert list(pointer.preferred()) == []


def test_a_number_of_the_models_own_does_not_go_on_for_ever() -> None:
    pointer = Pointer(Source.of(THOUGHT), VOCABULARY, [END], is_json=True, decisive=False)
    pointer.feed(list(b"9" * 39))
    assert list(pointer.preferred()) == []
    pointer.feed(list(b"9"))
    [closing] = pointer.preferred()
    assert END in closing
    assert ord("}") in closing
