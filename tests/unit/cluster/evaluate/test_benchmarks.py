"""Benchmarks: rows as the datasets have them become questions, from a file, a directory and a seed."""

import json
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest

from cluster.evaluate import benchmarks, judge
from cluster.evaluate.benchmarks import BENCHMARKS, NAMES, BenchmarkError, Question, digest, load
from models.recipe.forms import KINDS as FORMS
from models.recipe.phrases import CARD
from models.recipe.problems import KINDS

ROWS: dict[str, list[dict[str, Any]]] = {
    "gsm8k": [
        {
            "question": "A mill grinds 600 sacks a day. How many in 2 days?",
            "answer": "In 2 days it grinds 600*2=<<600*2=1200>>1200 sacks.\n#### 1,200",
        },
        {"question": "Ann has 5 hens and sells 8 eggs.", "answer": "She has <<5-8=-3>>-3.\n#### -3"},
    ],
    "math500": [
        {
            "problem": "Compute $\\dbinom{5}{2}$.",
            "solution": "$\\dbinom{5}{2} = \\boxed{10}.$",
            "answer": "10",
            "subject": "Counting & Probability",
            "level": 2,
            "unique_id": "test/counting_and_probability/1.json",
        }
    ],
    "olympiadbench": [
        {
            "id": 1606,
            "question": "Find all $x$ with $x^{2}=4$.",
            "solution": ["..."],
            "final_answer": ["$2$", "$-2$"],
            "context": None,
            "image_1": None,
            "modality": "Text-only",
            "difficulty": "Competition",
            "is_multiple_answer": True,
            "unit": None,
            "answer_type": "Numerical",
            "error": None,
            "question_type": "Open-ended",
            "subfield": "Algebra",
            "subject": "Math",
            "language": "English",
        },
        {"id": 1607, "question": "Now find $y$.", "final_answer": ["3"], "context": "Let $y=3$.", "subfield": "Algebra"},
    ],
    "amc2023": [
        {
            "id": 0,
            "problem": "Old?",
            "answer": 142.0,
            "url": "https://artofproblemsolving.com/wiki/index.php/2022_AMC_12A_Problems/Problem_1",
        },
        {
            "id": 43,
            "problem": "New?",
            "answer": 27.0,
            "url": "https://artofproblemsolving.com/wiki/index.php/2023_AMC_12A_Problems/Problem_1",
        },
        {
            "id": 44,
            "problem": "Half?",
            "answer": 3.5,
            "url": "https://artofproblemsolving.com/wiki/index.php/2023_AMC_12B_Problems/Problem_2",
        },
    ],
    "aime2024": [
        {
            "id": 60,
            "problem": "Every morning Aya walks $9$ kilometres. How many minutes?",
            "solution": "...",
            "answer": "025",
            "url": "https://artofproblemsolving.com/wiki/index.php/2024_AIME_I_Problems/Problem_1",
            "year": "2024",
        }
    ],
    "folio": [
        {
            "story_id": 380,
            "premises": "All cats purr.\nTom is a cat.",
            "premises-FOL": "∀x (Cat(x) → Purr(x))\nCat(tom)",
            "conclusion": "Tom purrs.",
            "conclusion-FOL": "Purr(tom)",
            "label": "True",
            "example_id": 1014,
        },
        {"premises": ["All cats purr.", "Tom is a dog."], "conclusion": "Tom purrs.", "label": "Uncertain"},
    ],
    "boardgameqa": [
        {
            "proof": "...",
            "example": "A few players are playing a boardgame. The bee has a card. Does the bee wink at the cat?",
            "label": "proved",
            "rules": "...",
            "preferences": "...",
            "theory": "...",
            "goal": "(bee, wink, cat)",
            "facts": "...",
            "config": "LowConflict-depth1",
        }
    ],
    "cruxeval": [
        {
            "code": "def f(nums):\n    return {n: {n} for n in nums}",
            "input": "[1, 2]",
            "output": "{1: {1}, 2: {2}}",
            "id": "sample_0",
        }
    ],
    "strategyqa": [
        {
            "qid": "872e",
            "term": "Albany",
            "question": "Will the Albany in Georgia reach 100,000 people first?",
            "answer": False,
            "facts": "...",
        },
        {"qid": "873f", "term": "Sea", "question": "Is the sea salty?", "answer": True, "facts": "..."},
    ],
    "tablebench": [
        {
            "id": "4ee3",
            "qtype": "NumericalReasoning",
            "qsubtype": "Aggregation",
            "table": {"columns": ["year", "films"], "data": [["2012", 121], ["2013", "322"]]},
            "question": "How many films in both years?",
            "answer": "443",
        },
        {
            "id": "4ee4",
            "qtype": "FactChecking",
            "table": '{"columns": ["a"], "data": [[1], [2.5]]}',
            "question": "Which is larger?",
            "answer": 2.5,
        },
        {
            "id": "4ee5",
            "qtype": "Visualization",
            "table": {"columns": ["a"], "data": [[1]]},
            "question": "Draw it.",
            "answer": "y_references = [[1]]",
        },
    ],
    "mmlu-pro-stem": [
        {
            "question_id": 70,
            "question": "Typical advertising bodies?",
            "options": ["Safe", "Distress"],
            "answer": "B",
            "answer_index": 1,
            "cot_content": "",
            "category": "business",
            "src": "ori_mmlu-business_ethics",
        },
        {
            "question_id": 9000,
            "question": "What falls?",
            "options": ["Nothing", "A stone", "A star"],
            "answer": "B",
            "answer_index": 1,
            "cot_content": "",
            "category": "physics",
            "src": "stemez-Physics",
        },
    ],
}
"""Rows with the fields and types of each dataset; the first of each with all fields."""
ANSWERS = {
    "gsm8k": ["1200", "-3"],
    "math500": ["10"],
    "olympiadbench": ["2, -2", "3"],
    "amc2023": ["27", "3.5"],
    "aime2024": ["025"],
    "folio": ["True", "Uncertain"],
    "boardgameqa": ["proved"],
    "cruxeval": ["{1: {1}, 2: {2}}"],
    "strategyqa": ["no", "yes"],
    "tablebench": ["443", "2.5"],
    "mmlu-pro-stem": ["B"],
}
OTHER_WORDS = {
    "gsm8k": r"\$1,200.00",
    "math500": r"\frac{20}{2}",
    "olympiadbench": "-2, 2",
    "amc2023": "27.0",
    "aime2024": "25",
    "folio": r"\text{true}.",
    "boardgameqa": "True",
    "cruxeval": "{2: {2}, 1: {1}}",
    "strategyqa": "No",
    "tablebench": "443.0",
    "mmlu-pro-stem": "(b)",
}
"""The first answer of each as a model may write it."""


def written(path: Path, rows: list[Mapping[str, Any]] | list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", BENCHMARKS)
def test_rows_of_a_file_become_questions(name: str, tmp_path: Path) -> None:
    questions = load(name, written(tmp_path / "rows.jsonl", ROWS[name]))
    assert [question.answer for question in questions] == ANSWERS[name]
    assert len({question.id for question in questions}) == len(questions)
    for question in questions:
        assert question.prompt.startswith(CARD.split("{question}")[0].format())
        assert question.kind in judge.KINDS
        assert judge.right(question.kind, question.answer, question.answer), "what cannot be parsed is not even like itself"
        assert not question.raw
    first = questions[0]
    assert first.answer != OTHER_WORDS[name]
    assert judge.right(first.kind, first.answer, OTHER_WORDS[name])
    wrong = {"label": "Uncertain", "choice": "C"}.get(first.kind, "11")
    assert not judge.right(first.kind, first.answer, wrong)


def test_every_name_has_published_scores_or_is_drawn() -> None:
    assert set(ROWS) == set(OTHER_WORDS) == set(BENCHMARKS) == set(NAMES) - set(benchmarks.DRAWN)
    assert all(benchmark.published for benchmark in BENCHMARKS.values())


def test_kinds_and_parts(tmp_path: Path) -> None:
    found = {name: load(name, written(tmp_path / f"{name}.jsonl", rows))[0] for name, rows in ROWS.items()}
    assert {name: question.kind for name, question in found.items()} == {
        "gsm8k": "math",
        "math500": "math",
        "olympiadbench": "math",
        "amc2023": "math",
        "aime2024": "math",
        "folio": "label",
        "boardgameqa": "label",
        "cruxeval": "literal",
        "strategyqa": "label",
        "tablebench": "table",
        "mmlu-pro-stem": "choice",
    }
    assert {name: question.group for name, question in found.items() if question.group} == {
        "math500": "level 2",
        "olympiadbench": "Algebra",
        "boardgameqa": "LowConflict-depth1",
        "tablebench": "NumericalReasoning",
        "mmlu-pro-stem": "physics",
    }


def test_prompts_say_what_goes_in_the_box(tmp_path: Path) -> None:
    found = {name: load(name, written(tmp_path / f"{name}.jsonl", rows)) for name, rows in ROWS.items()}
    assert found["gsm8k"][0].prompt == CARD.format(question=ROWS["gsm8k"][0]["question"])
    assert found["olympiadbench"][1].prompt.endswith("Let $y=3$.\nNow find $y$.")
    assert "Premises:\nAll cats purr.\nTom is a dog.\n\nConclusion: Tom purrs." in found["folio"][1].prompt
    assert found["folio"][0].prompt.endswith("Put exactly one of True, False, Uncertain in the box.")
    assert "Put exactly one of proved, disproved, unknown in the box" in found["boardgameqa"][0].prompt
    assert (
        "What does f([1, 2]) return?\n\n```python\ndef f(nums):\n    return {n: {n} for n in nums}\n```"
        in found["cruxeval"][0].prompt
    )
    assert found["strategyqa"][0].prompt.endswith("Put exactly one of yes, no in the box.")
    assert "| year | films |\n| --- | --- |\n| 2012 | 121 |\n| 2013 | 322 |\n\nHow many films" in found["tablebench"][0].prompt
    assert "What falls?\n\nA. Nothing\nB. A stone\nC. A star\n\nPut only the letter" in found["mmlu-pro-stem"][0].prompt


def test_an_unknown_name_is_named_with_what_is_allowed() -> None:
    with pytest.raises(
        BenchmarkError, match=r"no benchmark 'gsm'; there are nano, nano-repair, nano-forms, .*, gsm8k, math500, .*mmlu-pro-stem"
    ):
        load("gsm")


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("gsm8k", '{"question": "?"}', "row 0 is not as in openai/gsm8k: KeyError 'answer'"),
        ("gsm8k", '{"question": "?", "answer": "4"}', "row 0 is not as in openai/gsm8k: IndexError"),
        ("folio", '{"premises": null, "conclusion": "", "label": ""}', "row 0 is not as in yale-nlp/FOLIO: TypeError"),
        ("gsm8k", "{", r"rows.jsonl:1: "),
        ("gsm8k", "[]", r"rows.jsonl:1: not an object"),
    ],
)
def test_a_row_of_another_format_is_named(name: str, line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(line + "\n")
    with pytest.raises(BenchmarkError, match=message):
        load(name, tmp_path / "rows.jsonl")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"gsm8k: cannot load .*none.jsonl: .*No such file"):
        load("gsm8k", tmp_path / "none.jsonl")


def test_rows_with_one_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="rows with the same id"):
        load("math500", written(tmp_path / "rows.jsonl", ROWS["math500"] * 2))


def test_the_drawn_sets_read_no_file(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="nano is drawn from a seed and reads no data"):
        load("nano", tmp_path / "rows.jsonl")


def test_rows_come_through_the_datasets_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory stands for a repository on the hub: the library reads both alike."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    repository = tmp_path / "gsm8k"
    repository.mkdir()
    written(repository / "test.jsonl", ROWS["gsm8k"])
    benchmark = replace(BENCHMARKS["gsm8k"], hub=str(repository), config=None)
    assert [question.answer for question in benchmarks.read(benchmark, benchmarks.remote(benchmark))] == ["1200", "-3"]


def test_rows_without_one_type_a_column_are_read_as_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    row = ROWS["tablebench"][0] | {"question": "which?\u2028of these\r\n?"}
    benchmark = replace(BENCHMARKS["tablebench"], lines=str(written(tmp_path / "rows.jsonl", [row, *ROWS["tablebench"][1:]])))
    questions = list(benchmarks.read(benchmark, benchmarks.remote(benchmark)))
    assert [question.answer for question in questions] == ANSWERS["tablebench"]
    assert "which?\u2028of these\r\n?" in questions[0].prompt


def test_a_dataset_that_cannot_be_had_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setitem(BENCHMARKS, "gsm8k", replace(BENCHMARKS["gsm8k"], hub=str(tmp_path / "nowhere")))
    with pytest.raises(BenchmarkError, match=r"gsm8k: cannot load .*nowhere"):
        load("gsm8k")


def test_the_nano_set_is_the_same_each_time_and_has_every_kind_in_turn() -> None:
    random.seed(0)
    first, again = load("nano"), benchmarks.nano(each=2)
    assert first[: len(again)] == again
    assert [question.group for question in first[:7]] == [*KINDS, "unknown"]
    assert len(first) == 200 * 7
    assert {question.kind for question in first if question.group == "unknown"} == {"refuse"}
    assert {question.kind for question in first if question.group != "unknown"} == {"math"}
    assert len({question.id for question in first}) == len(first)


def test_the_repair_set_begins_replies_with_a_wrong_step() -> None:
    questions = benchmarks.nano_repair(each=5)
    assert {question.group for question in questions} == set(KINDS)
    for question in questions:
        assert question.raw
        user, _, reply = question.prompt.partition("<|im_start|>assistant\n")
        assert user.startswith("<|im_start|>user\n")
        assert reply.startswith("<|continue|>")
        assert "\\boxed" not in reply


def test_the_sets_of_forms_follow_ups_and_questions_from_outside() -> None:
    asked, follow_ups, outside = (
        benchmarks.nano_forms(each=4),
        benchmarks.nano_follow_ups(each=20),
        benchmarks.nano_outside(each=20),
    )
    assert [question.group for question in asked[:5]] == [f"en {kind}" for kind in FORMS]
    assert {question.group for question in asked} == {f"{language} {kind}" for language in ("en", "zh") for kind in FORMS}
    assert {question.kind for question in asked + follow_ups} == {"math"}
    assert all(question.raw and question.prompt.count("<|im_start|>user\n") >= 2 for question in follow_ups)
    assert {question.kind for question in outside} == {"refuse"}
    for name in ("nano-forms", "nano-follow-ups", "nano-outside"):
        questions = load(name)
        assert questions == load(name)
        assert len({question.id for question in questions}) == len(questions)


def test_a_digest_changes_with_any_question() -> None:
    questions = [Question("1", "p", "a", "math"), Question("2", "p", "a", "math")]
    other = [questions[0], replace(questions[1], answer="b")]
    assert digest(questions) == digest(list(questions)) != digest(other)
    assert digest(questions) != digest(questions[:1])
