"""Benchmarks as questions: the prompt, the right answer, how it is judged, and the published scores.

The sets are those of Satori's paper (arXiv 2502.02508, appendix D.4), which uses the prompt of the model card for all of them,
zero-shot. Questions that are not mathematics say what to put in the box. Field names are those of the dataset cards on the Hugging
Face hub (as of 2026). Where a card has none (GSM8K, OlympiadBench, AMC, FOLIO, StrategyQA), they are from public code that loads
the dataset. Each function below names the fields that it reads. The nano sets are drawn from `models.recipe.problems`, and are held
out from training by construction.
"""

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, ClassVar

from deployments.errors import SatoriError
from models.recipe import forms, outside, problems, talks
from models.recipe.phrases import CARD

Row = Mapping[str, Any]
NANO_SEED, NANO_EACH = 7, 200
"""The seed of the nano sets, and their number of problems of each kind."""
STEM = ("physics", "chemistry", "computer science", "engineering", "biology", "economics")
"""The paper's subsets of MMLU-Pro (5,371 questions); its mathematics is left out."""
MODELS = ("Satori-Qwen-7B (Round 2)", "Qwen-2.5-Math-7B-Instruct")
"""The models whose scores are in `Benchmark.published`, from github.com/satori-reasoning/Satori, README.md at 70d3aece."""


class BenchmarkError(SatoriError):
    """A benchmark is unknown, cannot be loaded, or has rows of another format. The message says which, and what is allowed."""

    code: ClassVar[str] = "invalid_benchmark"


@dataclass(frozen=True)
class Question:
    """A prompt and its right answer.

    `kind` is one of `cluster.evaluate.judge.KINDS`. `group` is a part of the benchmark, which gets a separate score. The prompt is
    a user's message; with `raw` it is all the text before the reply, with the chat template applied.
    """

    id: str
    prompt: str
    answer: str
    kind: str
    group: str = ""
    raw: bool = False


@dataclass(frozen=True)
class Benchmark:
    """Where the rows are (hub id, configuration, split), how a row becomes a question, and the published scores in percent.

    `read` gets a row and its number, and returns None for a row that is not part of the benchmark. `lines` is the URL of a
    JSON-lines file to read in place of the dataset, for datasets with a column of several types.
    """

    read: Callable[[Row, int], Question | None]
    hub: str
    split: str
    config: str | None = None
    lines: str | None = None
    published: tuple[float, float] | None = None


def gsm8k(row: Row, number: int) -> Question:
    """From `question` and `answer`, which ends in `#### 1,234` (openai/gsm8k, main, test: 1,319 rows)."""
    answer = row["answer"].rsplit("####", 1)[1].strip().replace(",", "")
    return Question(f"gsm8k-{number}", CARD.format(question=row["question"]), answer, "math")


def math500(row: Row, number: int) -> Question:
    """From `problem`, `answer`, `level` and `unique_id` (HuggingFaceH4/MATH-500, test: 500 rows)."""
    return Question(row["unique_id"], CARD.format(question=row["problem"]), row["answer"], "math", f"level {row['level']}")


def olympiadbench(row: Row, number: int) -> Question:
    """From `id`, `question`, `context` (may be null), `subfield` and `final_answer`, a list (OE_TO_maths_en_COMP: 674 rows).

    Several answers are judged as a set. The tolerance in `error`, which few rows have, is not used.
    """
    question = f"{row['context']}\n{row['question']}" if row["context"] else row["question"]
    answer = ", ".join(part.strip().strip("$") for part in row["final_answer"])
    return Question(f"olympiadbench-{row['id']}", CARD.format(question=question), answer, "math", row["subfield"])


def amc2023(row: Row, number: int) -> Question | None:
    """From `id`, `problem`, `answer` (a float) and `url` (AI-MO/aimo-validation-amc, train: 83 rows, those of 2023 are kept)."""
    if "2023" not in row["url"]:
        return None
    answer = float(row["answer"])
    return Question(
        f"amc-{row['id']}", CARD.format(question=row["problem"]), f"{answer:.0f}" if answer.is_integer() else f"{answer}", "math"
    )


def aime2024(row: Row, number: int) -> Question:
    """From `id`, `problem` and `answer` (HuggingFaceH4/aime_2024, train: 30 rows)."""
    return Question(f"aime-{row['id']}", CARD.format(question=row["problem"]), str(row["answer"]), "math")


def folio(row: Row, number: int) -> Question:
    """From `premises` (text; a list in the authors' own files), `conclusion` and `label` (yale-nlp/FOLIO, validation: 203 rows).

    The dataset is gated: log in to the hub once and accept its conditions.
    """
    premises = row["premises"] if isinstance(row["premises"], str) else "\n".join(row["premises"])
    question = (
        f"Premises:\n{premises}\n\nConclusion: {row['conclusion']}\n\nGoing by the premises alone, is the conclusion True, False "
        "or Uncertain? Put exactly one of True, False, Uncertain in the box."
    )
    return Question(f"folio-{number}", CARD.format(question=question), row["label"], "label")


def boardgameqa(row: Row, number: int) -> Question:
    """From `example` (game and question in one text), `label` and `config` (tasksource/Boardgame-QA, test: 15,000 rows)."""
    question = (
        f"{row['example']}\n\nPut exactly one of proved, disproved, unknown in the box: proved if the statement follows, disproved "
        "if its negation follows, unknown if neither does."
    )
    return Question(f"boardgameqa-{number}", CARD.format(question=question), row["label"], "label", row["config"])


def cruxeval(row: Row, number: int) -> Question:
    """From `code` (a function `f`), `input`, `output` and `id`: output prediction (cruxeval-org/cruxeval, test: 800 rows)."""
    question = (
        f"What does f({row['input']}) return?\n\n```python\n{row['code']}\n```\n\nPut the returned value in the box, written as a "
        "Python literal."
    )
    return Question(f"cruxeval-{row['id']}", CARD.format(question=question), row["output"], "literal")


def strategyqa(row: Row, number: int) -> Question:
    """From `qid`, `question` and `answer` (a bool) (ChilleD/StrategyQA, test: 687 rows; the paper does not name its split)."""
    question = f"{row['question']}\n\nPut exactly one of yes, no in the box."
    return Question(f"strategyqa-{row['qid']}", CARD.format(question=question), "yes" if row["answer"] else "no", "label")


def tablebench(row: Row, number: int) -> Question | None:
    """From `id`, `qtype`, `table` (columns and data; an object or its JSON text), `question` and `answer`.

    TableBench.jsonl of Multilingual-Multimodal-NLP/TableBench, of which the paper keeps fact checking and numerical reasoning: 491
    rows.
    """
    if row["qtype"] not in ("FactChecking", "NumericalReasoning"):
        return None
    table = json.loads(row["table"]) if isinstance(row["table"], str) else row["table"]
    lines = [table["columns"], ["---"] * len(table["columns"]), *table["data"]]
    text = "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
    question = (
        f"{text}\n\n{row['question']}\n\nPut only the answer in the box: a number or a name, as short as possible; several answers "
        "are separated by commas."
    )
    return Question(f"tablebench-{row['id']}", CARD.format(question=question), str(row["answer"]), "table", row["qtype"])


def mmlu_pro_stem(row: Row, number: int) -> Question | None:
    """From `question_id`, `question`, `options`, `answer` (a letter) and `category` (TIGER-Lab/MMLU-Pro, test)."""
    if row["category"] not in STEM:
        return None
    options = "\n".join(f"{letter}. {option}" for letter, option in zip("ABCDEFGHIJ", row["options"], strict=False))
    question = f"{row['question']}\n\n{options}\n\nPut only the letter of the right option in the box."
    return Question(f"mmlu-pro-{row['question_id']}", CARD.format(question=question), row["answer"], "choice", row["category"])


BENCHMARKS = {
    "gsm8k": Benchmark(gsm8k, "openai/gsm8k", "test", "main", published=(93.9, 95.2)),
    "math500": Benchmark(math500, "HuggingFaceH4/MATH-500", "test", published=(83.6, 83.6)),
    "olympiadbench": Benchmark(olympiadbench, "Hothan/OlympiadBench", "train", "OE_TO_maths_en_COMP", published=(48.5, 41.6)),
    "amc2023": Benchmark(amc2023, "AI-MO/aimo-validation-amc", "train", published=(72.5, 62.5)),
    "aime2024": Benchmark(aime2024, "HuggingFaceH4/aime_2024", "train", published=(23.3, 16.7)),
    "folio": Benchmark(folio, "yale-nlp/FOLIO", "validation", published=(72.9, 68.9)),
    "boardgameqa": Benchmark(boardgameqa, "tasksource/Boardgame-QA", "test", published=(58.5, 51.3)),
    "cruxeval": Benchmark(cruxeval, "cruxeval-org/cruxeval", "test", published=(41.1, 28.0)),
    "strategyqa": Benchmark(strategyqa, "ChilleD/StrategyQA", "test", published=(90.4, 85.3)),
    "tablebench": Benchmark(
        tablebench,
        "Multilingual-Multimodal-NLP/TableBench",
        "test",
        lines="hf://datasets/Multilingual-Multimodal-NLP/TableBench/TableBench.jsonl",
        published=(44.6, 36.2),
    ),
    "mmlu-pro-stem": Benchmark(mmlu_pro_stem, "TIGER-Lab/MMLU-Pro", "test", published=(57.4, 45.2)),
}


def nano(each: int = NANO_EACH) -> list[Question]:
    """Return `each` held-out problems of every kind, in turn, and as many questions that the model must turn down."""
    rng, questions = random.Random(NANO_SEED), []
    for number in range(each):
        for kind in (*problems.KINDS, "unknown"):
            problem = problems.draw_unknown(rng) if kind == "unknown" else problems.draw(rng, kind, evaluation=True)
            prompt = problems.dressed(rng, problem.question)
            judged = "math" if problem.task else "refuse"
            questions.append(Question(f"{kind}-{number}", prompt, problem.answer, judged, kind))
    return questions


def nano_repair(each: int = NANO_EACH) -> list[Question]:
    """Return `each` held-out problems of every kind, whose replies begin with a wrong step, where the problem allows one."""
    from models.recipe import rollout

    rng, questions = random.Random(NANO_SEED), []
    for number in range(each):
        for kind in problems.KINDS:
            problem = problems.draw(rng, kind, evaluation=True)
            if start := rollout.planted(problem, rng):
                prompt = rollout.ask(problem, rng) + start
                questions.append(Question(f"{kind}-{number}", prompt, problem.answer, "math", kind, raw=True))
    return questions


def nano_forms(each: int = NANO_EACH) -> list[Question]:
    """Return `each` held-out problems of every kind in held-out forms of asking, in turn, half of them in Chinese."""
    rng, questions = random.Random(NANO_SEED), []
    for number in range(each):
        for kind in forms.KINDS:
            language = ("en", "zh")[number % 2]
            problem = forms.asked(rng, kind, evaluation=True, language=language)
            questions.append(Question(f"{kind}-{number}", problem.question, problem.answer, "math", f"{language} {kind}"))
    return questions


def nano_follow_ups(each: int = NANO_EACH) -> list[Question]:
    """Return `each` questions that start from what was said before them, in held-out words."""
    rng, questions = random.Random(NANO_SEED), []
    for number in range(each):
        turns, problem = talks.draw(rng, evaluation=True)
        prompt = talks.conversation("", turns, problem.question)
        questions.append(Question(str(number), prompt, problem.answer, "math", problem.language, raw=True))
    return questions


def nano_outside(each: int = 300) -> list[Question]:
    """Return `each` questions, from held-out templates, that the model must turn down."""
    rng = random.Random(NANO_SEED)
    drawn = [outside.draw(rng, evaluation=True) for _ in range(each)]
    return [
        Question(str(number), problem.question, problem.answer, "refuse", problem.language) for number, problem in enumerate(drawn)
    ]


DRAWN: dict[str, Callable[[], list[Question]]] = {
    "nano": nano,
    "nano-repair": nano_repair,
    "nano-forms": nano_forms,
    "nano-follow-ups": nano_follow_ups,
    "nano-outside": nano_outside,
}
NAMES = (*DRAWN, *BENCHMARKS)


def load(name: str, data: Path | None = None) -> list[Question]:
    """Return a benchmark's questions, from the hub or from `data`, a JSON-lines file with the dataset's rows.

    Raises BenchmarkError if the name is unknown, the rows cannot be loaded or lack a field, or two have the same id.
    """
    if name not in NAMES:
        raise BenchmarkError(f"no benchmark {name!r}; there are {', '.join(NAMES)}")
    if name in DRAWN:
        if data is not None:
            raise BenchmarkError(f"{name} is drawn from a seed and reads no data; leave out {data}")
        return DRAWN[name]()
    benchmark = BENCHMARKS[name]
    try:
        questions = list(read(benchmark, local(data) if data else remote(benchmark)))
    except OSError as error:
        raise BenchmarkError(f"{name}: cannot load {data or benchmark.hub}: {error}") from error
    if len({question.id for question in questions}) < len(questions):
        raise BenchmarkError(f"{name}: {data or benchmark.hub} has rows with the same id; is it more than one split?")
    return questions


def read(benchmark: Benchmark, rows: Iterable[Row]) -> Iterator[Question]:
    """Yield the question of each row that is part of the benchmark. Raises BenchmarkError for a row of another format."""
    for number, row in enumerate(rows):
        try:
            question = benchmark.read(row, number)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise BenchmarkError(f"row {number} is not as in {benchmark.hub}: {type(error).__name__} {error}") from error
        if question:
            yield question


def local(path: Path) -> Iterator[Row]:
    """Yield the rows of a JSON-lines file. Raises BenchmarkError, with the line's number, if a line is no JSON object."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise BenchmarkError(f"{path}:{number}: {error}") from error
            if not isinstance(row, dict):
                raise BenchmarkError(f"{path}:{number}: not an object")
            yield row


def remote(benchmark: Benchmark) -> Iterator[Row]:
    """Yield the rows from the hub; `datasets` keeps them in its cache."""
    from datasets import load_dataset  # takes 1.5 s, and the nano sets do not need it

    if benchmark.lines:
        for row in load_dataset("text", data_files=benchmark.lines, split="train"):
            yield json.loads(row["text"])
    else:
        yield from load_dataset(benchmark.hub, benchmark.config, split=benchmark.split)


def digest(questions: Sequence[Question]) -> str:
    """Return 16 hexadecimal digits that change with any question."""
    return hashlib.sha256(json.dumps([astuple(question) for question in questions]).encode()).hexdigest()[:16]
