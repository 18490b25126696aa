"""Follow-ups: conversations of two to four turns in which later questions start from what was said before."""

import random
import zlib
from collections.abc import Sequence

from models.recipe import forms, problems, traces
from models.recipe.problems import Expression, Problem

GO_ON: dict[str, dict[str, Sequence[str]]] = {
    "en": {
        "+": (
            "now add {b} to that",
            "now add {b}",
            "add {b}",
            "and add {b}",
            "add {b} to it",
            "add {b} to that",
            "add {b} more",
            "add another {b}",
            "plus {b}",
            "and plus {b}",
            "and plus {b}?",
            "plus {b}?",
            "+ {b}",
            "+{b}",
            "and {b} more",
            "what if I add {b}",
            "and if I add {b}?",
            "then add {b}",
            "now plus {b}",
            "add {b} to the result",
            "add {b} to the answer",
            "what is that plus {b}?",
            "increase that by {b}",
            "how much is it with {b} more?",
            "that plus {b}",
        ),
        "-": (
            "now subtract {b}",
            "now subtract {b} from that",
            "subtract {b}",
            "subtract {b} from it",
            "subtract {b} from the result",
            "minus {b}",
            "and minus {b}",
            "and minus {b}?",
            "minus {b}?",
            "- {b}",
            "-{b}",
            "take away {b}",
            "now take {b} away",
            "and take away {b}",
            "take {b} off",
            "and without {b}?",
            "what if I take away {b}",
            "and if I subtract {b}?",
            "then minus {b}",
            "then subtract {b}",
            "what is that minus {b}?",
            "reduce that by {b}",
            "that minus {b}",
            "{b} less",
        ),
        "×": (
            "and times {b}?",
            "times {b}",
            "times {b}?",
            "now times {b}",
            "multiply that by {b}",
            "now multiply by {b}",
            "now multiply it by {b}",
            "multiply by {b}",
            "multiply the result by {b}",
            "and multiplied by {b}?",
            "* {b}",
            "*{b}",
            "× {b}",
            "x {b}",
            "what is that times {b}?",
            "and if I multiply it by {b}?",
            "then multiply by {b}",
            "that times {b}",
            "what is {b} times that?",
        ),
        "again": (
            "check it again",
            "check again",
            "check that again",
            "please check",
            "are you sure",
            "are you sure?",
            "is that right?",
            "is that correct?",
            "really?",
            "can you check that?",
            "double-check it",
            "check your answer",
            "do it again",
            "once more",
            "again",
            "again please",
            "calculate it again",
            "why?",
            "why",
            "why is that?",
            "how?",
            "how come?",
            "how did you get that?",
            "explain",
            "explain it",
            "explain that",
            "please explain",
            "show your work",
            "show me the steps",
            "how do you know?",
            "I don't believe it",
            "that is wrong",
            "that's wrong",
            "I think that is wrong",
        ),
    },
    "zh": {
        "+": (
            "再加{b}",
            "再加上{b}",
            "现在加{b}",
            "然后加{b}",
            "加{b}",
            "加上{b}呢",
            "再加{b}呢？",
            "再加{b}是多少",
            "再加{b}等于多少?",
            "那再加{b}呢",
            "给它加上{b}",
            "把结果加{b}",
            "把它加上{b}",
            "+{b}",
            "结果再加{b}",
            "如果再加{b}呢？",
            "多{b}呢",
            "接着加{b}",
        ),
        "-": (
            "再减{b}",
            "再减去{b}",
            "现在减{b}",
            "然后减去{b}",
            "减{b}",
            "减去{b}呢",
            "再减{b}呢？",
            "再减去{b}是多少",
            "再减{b}等于多少?",
            "那再减{b}呢",
            "从结果里减去{b}",
            "把结果减{b}",
            "把它减去{b}",
            "-{b}",
            "如果再减{b}呢？",
            "少{b}呢",
            "接着减{b}",
        ),
        "×": (
            "再乘{b}",
            "再乘以{b}",
            "现在乘{b}",
            "然后乘以{b}",
            "乘{b}",
            "乘以{b}呢",
            "再乘{b}呢？",
            "再乘以{b}是多少",
            "再乘{b}等于多少?",
            "那再乘{b}呢",
            "把结果乘以{b}",
            "把它乘{b}",
            "×{b}",
            "*{b}",
            "它的{b}倍是多少",
            "接着乘{b}",
        ),
        "again": (
            "再检查一遍",
            "再检查一下",
            "检查一下",
            "请检查",
            "你确定吗",
            "你确定？",
            "对吗?",
            "是对的吗",
            "真的吗？",
            "再算一遍",
            "再算一次",
            "重新算",
            "为什么?",
            "为什么",
            "为什么呢？",
            "怎么算的",
            "怎么得到的?",
            "怎么来的",
            "解释一下",
            "请解释",
            "请说明过程",
            "我不信",
            "不对吧",
            "我觉得不对",
            "错了吧",
        ),
    },
}
"""What is asked of an earlier answer: another operation on it, or the same question again."""


def held(template: str) -> bool:
    """Return whether a follow-up is kept for evaluation (about one in five)."""
    return zlib.crc32(template.encode()) % 5 == 0


def said(problem: Problem, answer: str) -> str:
    """Return an earlier answer, as the page sends it: without the thought before it."""
    return traces.SAY[problem.language]["answer"].format(answer) if problem.task else answer


def draw(rng: random.Random, evaluation: bool) -> tuple[list[tuple[str, str]], Problem]:
    """Return earlier turns (question, answer), one to three, and the question that follows them.

    Where it is for `evaluation`, the follow-up is a held-out one and so is the problem that it starts from. To be asked again, a
    question may have been answered wrongly.
    """
    language = rng.choices(["en", "zh"], [6, 4])[0]
    first = problems.draw(rng, rng.choice(problems.KINDS), evaluation, language)
    assert first.task is not None
    question = first.question if rng.random() < 0.4 else forms.ask(rng, first.task, language, False).text
    if first.kind == "word":
        question = first.question
    turns: list[tuple[str, str]] = []
    now, now_asked = first, question
    for left in reversed(range(rng.choices([1, 2, 3], [6, 3, 1])[0])):
        template, following = _follow(rng, now, language, evaluation if left == 0 else False)
        wrong = following.task == now.task and rng.random() < 0.35
        turns.append((now_asked, said(now, _wrong(rng, now.answer) if wrong else now.answer)))
        now, now_asked = following, template
    return turns, Problem("follow-up", language, now_asked, now.task, now.answer)


def _follow(rng: random.Random, now: Problem, language: str, evaluation: bool) -> tuple[str, Problem]:
    """Return the words of a follow-up and its problem."""
    whole = now.answer.lstrip("-").isdigit()
    while True:
        kinds = ["again"] + ["+", "-", "×"] * (whole and abs(int(now.answer)) <= 3000) * 2
        sign = rng.choice(kinds)
        template = rng.choice(GO_ON[language][sign])
        if held(template) != evaluation:
            continue
        task = now.task
        b = rng.choice([rng.randint(1, 20), rng.randint(2, 99), rng.randint(100, 999)])
        if sign != "again":
            start = int(now.answer)
            if sign == "×":
                b = rng.randint(2, 9)
                if not 0 <= start <= 99:
                    continue
            task = Expression((start, sign, b))
            if sign == "-" and start < b and rng.random() < 0.8:
                continue
        text = template.format(b=b)
        if sign != "again" and b <= 20 and rng.random() < 0.05:
            text = template.format(b=forms.COUNT[language][b])
        if text[-1] not in "?？" and rng.random() < 0.5:
            text += rng.choice(forms.MARKS[language])
        if rng.random() < 0.12:
            text = rng.choice(("Ok, ", "And ", "Please ", "Now ") if language == "en" else ("好,", "那么", "请", "那")) + text
        if rng.random() < 0.1:
            text += rng.choice((" please", " Thanks!", " and explain") if language == "en" else ("谢谢", "，谢谢！"))
        answer = now.answer if sign == "again" else str(task.value)  # type: ignore[union-attr]
        return forms.misspelt(rng, text[:1].upper() + text[1:]), Problem("follow-up", language, text, task, answer)


def _wrong(rng: random.Random, answer: str) -> str:
    """Return an answer with another last digit."""
    return answer[:-1] + rng.choice([digit for digit in "0123456789" if digit != answer[-1]])


def turn(role: str, text: str) -> str:
    """Return one message as the chat template writes it."""
    return f"<|im_start|>{role}\n{text}<|im_end|>\n"


def conversation(system: str, turns: list[tuple[str, str]], question: str) -> str:
    """Return the text before the reply to a question, after a system message (as written, or nothing) and earlier turns."""
    earlier = "".join(turn("user", asked) + turn("assistant", answer) for asked, answer in turns)
    return system + earlier + turn("user", question) + "<|im_start|>assistant\n"
