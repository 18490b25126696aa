"""Ways of asking: a grammar of the forms in which people put a problem, in English and Chinese, some held out by construction.

A form is what is left of a question without its numbers, names, typos, capitals and spaces: the choices of verb, noun, sign, order,
courtesy, punctuation, and sentences around it. `Form.key` names them all. A form is held out where the CRC-32 of its key is a
multiple of 5. Training never draws those, evaluation draws nothing else.
"""

import random
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from models.recipe import problems
from models.recipe.problems import Comparison, Equation, Expression, Problem

Task = Expression | Comparison | Equation
KINDS = ("one", "two", "three", "comparison", "equation")
"""The kinds of problems that the grammar asks; word problems have their own words in `phrases`."""


@dataclass(frozen=True)
class Form:
    """A question, and the name of its form."""

    text: str
    key: str

    @property
    def held_out(self) -> bool:
        """Whether the form is kept for evaluation (about one in five)."""
        return zlib.crc32(self.key.encode()) % 5 == 0


def ask(rng: random.Random, task: Task, language: str, evaluation: bool) -> Form:
    """Return a question for a task, in a held-out form where it is for `evaluation`, else in one of the others."""
    while True:
        form = _Draft(rng, language).question(task)
        if form.held_out == evaluation:
            return form


def asked(rng: random.Random, kind: str, evaluation: bool, language: str | None = None) -> Problem:
    """Return a problem in one of the forms: a held-out problem in a held-out form where it is for `evaluation`, else others."""
    problem = problems.draw(rng, kind, evaluation, language)
    if kind == "word":
        return replace(problem, question=misspelt(rng, problem.question))
    assert problem.task is not None
    return replace(problem, question=ask(rng, problem.task, problem.language, evaluation).text)


def misspelt(rng: random.Random, text: str) -> str:
    """Return a text as people type it: now and then with a typo, without spaces or with too many, in small letters or capitals."""
    if rng.random() < 0.12:
        words = list(re.finditer(r"[A-Za-z]{4,}", text))
        if words:
            word = rng.choice(words)
            at = rng.randrange(word.start() + 1, word.end() - 1)
            a, b = text[at], text[at + 1]
            text = text[:at] + rng.choice([b + a, a, b, a + a + b]) + text[at + 2 :]
    if rng.random() < 0.2:
        text = rng.choice([str.lower, str.lower, str.lower, str.upper, str.title])(text)
    elif rng.random() < 0.3:
        text = text[:1].lower() + text[1:]
    if rng.random() < 0.08:
        text = re.sub(r" (?=[^A-Za-z])|(?<=[^A-Za-z.,]) ", lambda _: rng.choice(["", " "]), text)
    if rng.random() < 0.03:
        text = text.replace(" ", rng.choice(["  ", "\n"]), 1)
    if rng.random() < 0.03:
        text = text.replace(" ", "")
    return text + rng.choice([" ", "\n"]) if rng.random() < 0.03 else text


WIDE = str.maketrans("0123456789+-×*=()x.", "０１２３４５６７８９＋－×＊＝（）x．")
COUNT = {
    "en": "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty".split(),
    "zh": "零 一 二 三 四 五 六 七 八 九 十 十一 十二 十三 十四 十五 十六 十七 十八 十九 二十".split(),
}
"""Number words."""

SIGNS: dict[str, Sequence[str]] = {
    "+": ("+", "+", "+", "＋"),
    "-": ("-", "-", "-", "−", "–", "－"),
    "×": ("×", "*", "*", "x", "X", "·", "⋅", "∗", "＊", "✕", "✖", "•"),
    "÷": ("÷", "/", "/", ":"),
}
SIGN_WORDS: dict[str, dict[str, Sequence[str]]] = {
    "en": {
        "+": ("plus", "plus", "and", "added to"),
        "-": ("minus", "minus", "take away", "less"),
        "×": ("times", "times", "multiplied by", "multiplied with"),
        "÷": ("divided by", "over"),
    },
    "zh": {
        "+": ("加", "加上", "加"),
        "-": ("减", "减去", "减掉"),
        "×": ("乘", "乘以", "乘上"),
        "÷": ("除以", "除"),
    },
}

# Each starts from a and takes b; the value is always "a sign b".
VERBS: dict[str, dict[str, Sequence[str]]] = {
    "en": {
        "+": (
            "add {a} and {b}",
            "add {b} to {a}",
            "add up {a} and {b}",
            "sum {a} and {b}",
            "sum up {a} and {b}",
            "put {a} and {b} together",
            "add {a} plus {b}",
            "take {a} and add {b}",
            "add {a} with {b}",
            "increase {a} by {b}",
            "add together {a} and {b}",
        ),
        "-": (
            "subtract {b} from {a}",
            "take {b} from {a}",
            "take {b} away from {a}",
            "take away {b} from {a}",
            "deduct {b} from {a}",
            "remove {b} from {a}",
            "decrease {a} by {b}",
            "reduce {a} by {b}",
            "take {a} and subtract {b}",
            "subtract {a} minus {b}",
        ),
        "×": (
            "multiply {a} by {b}",
            "multiply {a} and {b}",
            "multiply {a} with {b}",
            "multiply {a} times {b}",
            "take {a} times {b}",
            "multiply together {a} and {b}",
            "take {a} and multiply it by {b}",
        ),
        "÷": ("divide {a} by {b}", "split {a} into {b} equal parts"),
    },
    "zh": {
        "+": ("把{a}和{b}加起来", "将{a}与{b}相加", "把{a}加上{b}", "给{a}加上{b}", "用{a}加{b}", "求{a}与{b}的和"),
        "-": ("从{a}里减去{b}", "从{a}中减去{b}", "用{a}减{b}", "把{a}减去{b}", "用{a}减去{b}", "从{a}中拿走{b}"),
        "×": ("把{a}和{b}相乘", "将{a}乘以{b}", "用{a}乘{b}", "把{a}乘以{b}", "求{a}与{b}的积"),
        "÷": ("用{a}除以{b}", "把{a}除以{b}"),
    },
}
NOUNS: dict[str, dict[str, Sequence[str]]] = {
    "en": {
        "+": (
            "the sum of {a} and {b}",
            "the total of {a} and {b}",
            "{b} more than {a}",
            "{a} increased by {b}",
            "{b} added to {a}",
            "{a} and {b} added together",
            "{a} and {b} combined",
            "{a} and {b} together",
            "{a} and {b} in total",
            "{a} and another {b}",
            "sum of {a} and {b}",
            "the sum {a} plus {b}",
        ),
        "-": (
            "the difference of {a} and {b}",
            "{a} decreased by {b}",
            "{a} reduced by {b}",
            "{b} less than {a}",
            "{b} subtracted from {a}",
            "{b} taken from {a}",
            "{a} without {b}",
            "{a} take away {b}",
            "{b} taken away from {a}",
        ),
        "×": (
            "the product of {a} and {b}",
            "{a} multiplied by {b}",
            "{a} multiplied with {b}",
            "product of {a} and {b}",
            "{a} lots of {b}",
            "{a} groups of {b}",
            "the product {a} times {b}",
            "{a} sets of {b}",
        ),
        "÷": ("the quotient of {a} and {b}", "{a} divided by {b}"),
    },
    "zh": {
        "+": ("{a}与{b}的和", "{a}和{b}之和", "{a}和{b}的总和", "{a}和{b}相加", "比{a}多{b}的数", "{a}增加{b}", "{a}跟{b}加起来"),
        "-": ("{a}与{b}的差", "{a}和{b}之差", "比{a}少{b}的数", "{a}减少{b}", "{a}去掉{b}"),
        "×": ("{a}与{b}的积", "{a}和{b}的乘积", "{a}的{b}倍", "{a}和{b}相乘", "{b}个{a}", "{a}跟{b}相乘"),
        "÷": ("{a}与{b}的商", "{a}平均分成{b}份"),
    },
}
WHOLE: dict[str, dict[str, Sequence[str]]] = {
    "en": {
        "+": (
            "{a} and {b} together make how much",
            "what do {a} and {b} make together",
            "how much are {a} and {b} together",
            "how much is {a} and {b}",
            "how many are {a} and {b} in total",
            "{a} and {b} make what",
            "I have {a} and get {b} more, how many is that",
            "if I have {a} and you give me {b}, how many do I have",
            "what is {a} and {b} altogether",
            "what number is {b} more than {a}",
            "I had {a} and got {b} more. How many now",
        ),
        "-": (
            "how much is left when I take {b} from {a}",
            "what is left of {a} after taking away {b}",
            "if I have {a} and lose {b}, how many are left",
            "what remains if you take {b} from {a}",
            "I had {a} and spent {b}, how much is left",
            "what number is {b} less than {a}",
            "{a} and take away {b}, what is left",
            "there were {a}, {b} went away, how many remain",
        ),
        "×": (
            "how much are {a} times {b}",
            "how many is {a} times {b}",
            "what do {a} groups of {b} make",
            "how many is {a} groups of {b}",
            "{a} boxes with {b} in each, how many in all",
            "{a} times {b} makes what",
        ),
        "÷": ("how many times does {b} go into {a}", "how much is {a} shared by {b}"),
    },
    "zh": {
        "+": (
            "{a}和{b}一共是多少",
            "{a}和{b}合起来是多少",
            "{a}跟{b}加起来等于几",
            "我有{a}个,又得到{b}个,现在有几个",
            "比{a}多{b}的数是几",
            "{a}再加{b}是多少",
            "{a}和{b}总共多少",
        ),
        "-": (
            "{a}减掉{b}还剩多少",
            "从{a}里拿走{b}还剩几",
            "我有{a}个,用了{b}个,还剩几个",
            "比{a}少{b}的数是几",
            "{a}去掉{b}剩多少",
        ),
        "×": ("{a}的{b}倍是多少", "{b}个{a}是多少", "{a}和{b}相乘得多少", "每份{a}个,{b}份一共几个", "{b}个{a}加起来是多少"),
        "÷": ("{a}里面有几个{b}", "把{a}平均分成{b}份,每份多少"),
    },
}
THEN_VERBS: dict[str, dict[str, Sequence[str]]] = {
    "en": {
        "+": ("add {b}", "plus {b}", "add {b} to it", "increase it by {b}", "add {b} to that", "add another {b}"),
        "-": ("subtract {b}", "minus {b}", "take away {b}", "take {b} away", "take {b} off", "reduce it by {b}", "remove {b}"),
        "×": ("multiply by {b}", "times {b}", "multiply it by {b}", "multiply that by {b}", "multiply the result by {b}"),
    },
    "zh": {
        "+": ("加{b}", "加上{b}", "加上一个{b}"),
        "-": ("减{b}", "减去{b}", "减掉{b}"),
        "×": ("乘{b}", "乘以{b}", "乘上{b}"),
    },
}
LINKS = {
    "en": (", then {v}", " and then {v}", ", {v}", " and {v}", ". Then {v}", ", and then {v}", ", after that {v}", "; then {v}"),
    "zh": ("再{v}", ",再{v}", "，再{v}", ",然后{v}", "，然后再{v}", "然后{v}", ",接着{v}", "之后再{v}", "，最后{v}"),
}
STARTS = {
    "en": ("start with {a}", "take {a}", "start at {a}", "begin with {a}", "from {a}", "let us start with {a}", "{a}"),
    "zh": ("{a}先", "先用{a}", "从{a}开始,", "{a}", "{a},先", "用{a}"),
}

ASKS = {
    "en": (
        "what is {e}",
        "what's {e}",
        "whats {e}",
        "what is the value of {e}",
        "what is the result of {e}",
        "what is the answer to {e}",
        "how much is {e}",
        "how much does {e} make",
        "what does {e} make",
        "what does {e} equal",
        "what do you get for {e}",
        "what would {e} be",
        "calculate {e}",
        "compute {e}",
        "evaluate {e}",
        "find {e}",
        "work out {e}",
        "figure out {e}",
        "determine {e}",
        "solve {e}",
        "do {e}",
        "give me {e}",
        "tell me {e}",
        "tell me what {e} is",
        "show me {e}",
        "can you calculate {e}",
        "can you tell me what {e} is",
        "could you compute {e}",
        "could you tell me {e}",
        "would you work out {e}",
        "do you know what {e} is",
        "do you know {e}",
        "i need {e}",
        "i need to know {e}",
        "i want to know what {e} is",
        "i'd like to know {e}",
        "i am looking for {e}",
        "i wonder what {e} is",
        "help me with {e}",
        "answer this: {e}",
        "solve this: {e}",
        "try {e}",
        "{e} is what",
        "{e} is how much",
        "{e} makes",
        "{e} equals",
        "{e} equals what",
        "{e}, what is it",
        "{e}, what is the answer",
        "{e}",
        "{e} =",
        "{e} = what",
        "{e} = how much",
        "result of {e}",
        "value of {e}",
        "the answer to {e}",
        "let x = {e}. What is x",
    ),
    "zh": (
        "{e}等于多少",
        "{e}等于几",
        "{e}等于什么",
        "{e}是多少",
        "{e}是几",
        "{e}得多少",
        "{e}得几",
        "{e}的结果是多少",
        "{e}的结果是什么",
        "{e}结果是多少",
        "{e}的值是多少",
        "{e}的答案是什么",
        "{e}答案是多少",
        "{e}一共是多少",
        "{e}怎么算",
        "{e}算出来是多少",
        "{e}应该是多少",
        "计算{e}",
        "算{e}",
        "算一算{e}",
        "算一下{e}",
        "算算{e}",
        "求{e}",
        "求出{e}",
        "求{e}的值",
        "试求{e}",
        "帮我算{e}",
        "帮我算一下{e}",
        "帮我算算{e}等于多少",
        "帮忙算下{e}",
        "帮我计算{e}",
        "给我算{e}",
        "告诉我{e}",
        "告诉我{e}是多少",
        "我想知道{e}",
        "我想知道{e}等于多少",
        "你知道{e}是多少吗",
        "你知道{e}等于几吗",
        "能告诉我{e}等于多少吗",
        "能不能算一下{e}",
        "能帮我算{e}吗",
        "可以算一下{e}吗",
        "你会算{e}吗",
        "{e}",
        "{e}=",
        "{e}等于",
        "{e}=多少",
        "{e}是啥",
    ),
}
DOES = {
    "en": (
        "{v}",
        "{v}",
        "{v} for me",
        "can you {v}",
        "could you {v}",
        "would you {v} for me",
        "i want you to {v}",
        "i'd like you to {v}",
        "let's {v}",
        "help me to {v}",
        "you should {v}",
        "what do you get when you {v}",
        "what do you get if you {v}",
        "what is the result if I {v}",
        "what will I get if I {v}",
        "what happens if you {v}",
        "if you {v}, what do you get",
        "if i {v}, what is the result",
        "when you {v}, what is the answer",
        "your task is to {v}",
        "try to {v}",
        "{v} and tell me the result",
        "{v} and give me the answer",
        "{v}. What is the result",
        "{v}. What do you get",
        "{v}, how much is it",
        "now {v}",
    ),
    "zh": (
        "{v}",
        "{v}等于多少",
        "{v}是多少",
        "{v}得多少",
        "{v}得几",
        "{v}的结果是多少",
        "{v},结果是多少",
        "{v}，等于几",
        "帮我{v}",
        "能不能{v}",
        "可以{v}吗",
        "如果{v},结果是多少",
        "{v}会得到什么",
        "{v},告诉我结果",
        "{v}，答案是多少",
    ),
}
TELLS = {
    "en": ("{w}", "{w}", "{w}", "tell me, {w}", "so {w}", "can you say {w}"),
    "zh": ("{w}", "{w}", "{w}", "告诉我{w}", "那么{w}"),
}
BEFORE = {
    "en": ("",) * 24
    + (
        "Please ",
        "Please, ",
        "Please ",
        "Hi! ",
        "Hi, ",
        "Hello, ",
        "Hello. ",
        "Hey, ",
        "Question: ",
        "Q: ",
        "Ok, ",
        "So, ",
        "And ",
        "Well, ",
        "Quick question: ",
        "I have a question. ",
        "I have a question: ",
        "This is my homework. ",
        "I am doing my homework. ",
        "My teacher asked me this. ",
        "I'm stuck. ",
        "Please help. ",
        "Math question: ",
        "Excuse me, ",
        "Hi there! I need some help. ",
        "Good morning. ",
        "Be careful. ",
        "Think step by step. ",
        "Just for fun: ",
        "Exercise 1: ",
        "Problem: ",
        "Be so kind and ",
    ),
    "zh": ("",) * 14
    + (
        "请",
        "请问",
        "请问",
        "请问,",
        "请问，",
        "麻烦",
        "麻烦你",
        "你好,",
        "你好，",
        "您好，请问",
        "你好！",
        "问题：",
        "问:",
        "那",
        "那么",
        "老师问：",
        "我有个问题，",
        "这是我的作业：",
        "数学题：",
        "题目:",
        "问一下，",
        "想问一下",
        "嗨，",
        "快问快答：",
        "仔细想想，",
        "谁知道",
    ),
}
AFTER = {
    "en": ("",) * 18
    + (
        " Thanks!",
        " Thanks",
        " Thank you.",
        " Thanks in advance.",
        " Explain.",
        " And explain.",
        " Please explain.",
        " Explain your steps.",
        " Explain how you got it.",
        " Show your work.",
        " Show the steps.",
        " Step by step.",
        " Give only the number.",
        " Just the number.",
        " Please answer quickly.",
        " Be careful.",
        " I need it fast.",
        " It is for my homework.",
        " Please.",
        " Please help me.",
        " Check your answer.",
        " My friend does not know it.",
        " Can you help?",
    ),
    "zh": ("",) * 14
    + (
        "谢谢",
        "谢谢！",
        "谢谢。",
        " 谢谢你。",
        "请解释。",
        "并解释",
        "请写出步骤。",
        "请说明过程。",
        "一步一步来。",
        "只要答案。",
        "请快一点。",
        "帮帮我。",
        "麻烦了。",
        "急！",
        "我不会。",
        "请检查。",
    ),
}
MARKS = {
    "en": ("?", "?", "?", ".", ".", "", "", "", "!", "??", " ?", "...", "?!", ":", " .", "？"),
    "zh": ("?", "？", "？", "。", "", "", "", "呢？", "呢", "啊？", "呀", "呀？", "！", "?", "吧", "。", "??", " ?", "…", "哦"),
}

EQUATIONS = {
    "en": (
        "{e}; find {x}",
        "{e}; solve for {x}",
        "{e}, find {x}",
        "{e}, solve",
        "{e} what is {x}",
        "{e} find {x}",
        "{e} => {x} = ?",
        "{e}. {x}?",
        "{e} so {x} is",
        "{e} and what is {x}",
        "solve {e}",
        "solve {e} for {x}",
        "solve for {x}: {e}",
        "solve for {x} in {e}",
        "solve the equation {e}",
        "solve this equation: {e}",
        "solve the following equation: {e}",
        "find {x} in {e}",
        "find {x} such that {e}",
        "find {x} where {e}",
        "find {x}, {e}",
        "find the value of {x}: {e}",
        "find the unknown {x} in {e}",
        "find the number {x} with {e}",
        "find the solution of {e}",
        "determine {x} if {e}",
        "determine {x}: {e}",
        "calculate {x} if {e}",
        "calculate {x}: {e}",
        "compute {x} when {e}",
        "work out {x} from {e}",
        "get {x} from {e}",
        "give me {x} if {e}",
        "tell me {x} if {e}",
        "tell me what {x} is when {e}",
        "what is {x} when {e}",
        "what is {x} in {e}",
        "what is {x} given {e}",
        "what is {x}? {e}",
        "what must {x} be if {e}",
        "what must {x} be so that {e}",
        "what number is {x} if {e}",
        "which {x} solves {e}",
        "which {x} makes {e} true",
        "which value of {x} gives {e}",
        "for which {x} is {e}",
        "if {e}, what's {x}",
        "if {e} then {x} is what",
        "if {e}, how much is {x}",
        "if {e}, then {x} =",
        "when {e}, what is {x}",
        "given that {e}, what is {x}",
        "suppose {e}. what is {x}",
        "let {e}. find {x}",
        "we know that {e}. how much is {x}",
        "how much is {x} if {e}",
        "the equation is {e}. find {x}",
        "can you solve {e}",
        "can you find {x} if {e}",
        "could you solve {e} for {x}",
        "help me solve {e}",
        "i need {x} if {e}",
        "{x} = ? if {e}",
        "{x} in {e}",
        "{x} is what number if {e}",
    ),
    "zh": (
        "{e},求{x}",
        "{e}，求{x}",
        "{e}求{x}",
        "{e},{x}是多少",
        "{e}，{x}等于几",
        "{e},那么{x}=?",
        "{e},解出{x}",
        "{e},{x}的值是多少",
        "解{e}",
        "解方程{e}",
        "解一下方程{e}",
        "解一下{e}",
        "解这个方程：{e}",
        "解下列方程：{e}",
        "求{e}中的{x}",
        "求{e}里的{x}",
        "求{x},{e}",
        "求{x}：{e}",
        "求{x}的值：{e}",
        "求方程{e}的解",
        "求解方程{e}",
        "如果{e},求{x}",
        "如果{e}，{x}是几",
        "如果{e},那么{x}是多少",
        "要是{e}，{x}等于多少",
        "假如{e}，{x}是多少",
        "设{e}，求{x}",
        "已知{e}，{x}是多少",
        "已知{e},则{x}等于几",
        "当{e}时，{x}是多少",
        "{x}等于多少时{e}",
        "{x}是多少才能使{e}",
        "{x}取什么值时{e}成立",
        "帮我解{e}",
        "帮我解方程{e}",
        "能解一下{e}吗",
        "你会解{e}吗",
        "计算{x}，{e}",
        "算出{x}：{e}",
        "告诉我{x}是多少，{e}",
        "方程{e}的解是多少",
        "方程{e}怎么解",
        "{e}这个方程的{x}是多少",
        "{e}的解",
        "{e}怎么解",
        "{e}里{x}是多少",
    ),
}
RIDDLES: dict[str, dict[str, Sequence[str]]] = {
    "en": {
        "ax+b": (
            "I think of a number, multiply it by {a} and add {b}. I get {c}. What is the number",
            "{a} times a number plus {b} is {c}. What is the number",
            "{a} times {x} plus {b} equals {c}. What is {x}",
            "{a} times {x} plus {b} is {c}, find {x}",
            "a number times {a}, plus {b}, gives {c}. Which number is it",
        ),
        "ax-b": (
            "I think of a number, multiply it by {a} and subtract {b}. I get {c}. What is the number",
            "{a} times a number minus {b} is {c}. What is the number",
            "{a} times {x} minus {b} equals {c}. What is {x}",
            "{a} times {x} minus {b} is {c}, find {x}",
        ),
        "ax": (
            "{a} times a number is {c}. What is the number",
            "{a} times what is {c}",
            "what times {a} equals {c}",
            "{a} times {x} is {c}. What is {x}",
            "which number times {a} makes {c}",
            "{a} * ? = {c}",
            "? × {a} = {c}",
        ),
        "x+b": (
            "a number plus {b} is {c}. What is the number",
            "what plus {b} is {c}",
            "{b} plus what makes {c}",
            "I think of a number and add {b}. I get {c}. Which number is it",
            "{x} plus {b} is {c}. What is {x}",
            "what number do I add to {b} to get {c}",
            "? + {b} = {c}",
            "{b} + ? = {c}",
            "_ + {b} = {c}",
            "___ + {b} = {c}",
            "which number must be added to {b} to make {c}",
        ),
        "x-b": (
            "a number minus {b} is {c}. What is the number",
            "what minus {b} is {c}",
            "{x} minus {b} is {c}. What is {x}",
            "? - {b} = {c}",
            "_ - {b} = {c}",
            "I think of a number and take away {b}. I get {c}. Which number is it",
        ),
    },
    "zh": {
        "ax+b": ("一个数的{a}倍加{b}等于{c},这个数是多少", "{a}乘{x}加{b}等于{c}，{x}是多少", "一个数乘{a}再加{b}得{c}，求这个数"),
        "ax-b": ("一个数的{a}倍减{b}等于{c},这个数是多少", "{a}乘{x}减{b}等于{c}，{x}是多少", "一个数乘{a}再减{b}得{c}，求这个数"),
        "ax": ("一个数的{a}倍是{c},这个数是多少", "{a}乘多少等于{c}", "几乘{a}等于{c}", "{a}乘{x}等于{c}，求{x}", "{a}×?={c}"),
        "x+b": (
            "一个数加{b}等于{c},这个数是多少",
            "几加{b}等于{c}",
            "{b}加多少等于{c}",
            "{x}加{b}等于{c}，求{x}",
            "?+{b}={c}",
            "{b}+（）={c}",
        ),
        "x-b": ("一个数减{b}等于{c},这个数是多少", "几减{b}等于{c}", "{x}减去{b}等于{c}，{x}是多少", "?-{b}={c}"),
    },
}

BIG = {"en": ("bigger", "larger", "greater", "higher", "more"), "zh": ("大", "更大", "比较大", "大一点", "大些", "大一些")}
SMALL = {"en": ("smaller", "less", "lower", "lesser"), "zh": ("小", "更小", "比较小", "小一点", "小些", "小一些")}
BIGGEST = {"en": ("biggest", "largest", "greatest", "highest", "maximum", "max"), "zh": ("最大", "较大", "大的", "更大的")}
SMALLEST = {"en": ("smallest", "least", "lowest", "minimum", "min"), "zh": ("最小", "较小", "小的", "更小的")}
COMPARES = {
    "en": (
        "which is {m}, {a} or {b}",
        "which is {m}: {a} or {b}",
        "which is {m} {a} or {b}",
        "which one is {m}, {a} or {b}",
        "which of {a} and {b} is {m}",
        "which of the two is {m}: {a} or {b}",
        "which of these is {m}: {a}, {b}",
        "which number is {m}, {a} or {b}",
        "which of the numbers {a} and {b} is {m}",
        "what is {m}, {a} or {b}",
        "what number is {m}: {a} or {b}",
        "what's {m}: {a} or {b}",
        "is {a} or {b} {m}",
        "is {a} {m} than {b} or is {b} {m}",
        "{a} or {b}, which is {m}",
        "{a} or {b}: what is {m}",
        "{a} or {b}? which one is {m}",
        "{a} vs {b}, which is {m}",
        "{a} vs. {b}: which number is {m}",
        "{a} and {b}: which is {m}",
        "{a}, {b}. which one is {m}",
        "between {a} and {b}, which is {m}",
        "of {a} and {b} which one is {m}",
        "compare {a} and {b}, which is {m}",
        "compare {a} with {b} and tell me which is {m}",
        "tell me which is {m}, {a} or {b}",
        "tell me the {m} of {a} and {b}",
        "give me the {m} one of {a} and {b}",
        "give me the {m} number: {a} or {b}",
        "find the {m} number: {a} or {b}",
        "find the {m} one, {a} or {b}",
        "pick the {m} of {a} and {b}",
        "choose the {m} number from {a} and {b}",
        "name the {m} number, {a} or {b}",
        "do you know which is {m}, {a} or {b}",
        "can you tell me which number is {m}, {a} or {b}",
        "i want to know which is {m}: {a} or {b}",
        "the {m} of {a} and {b}",
        "the {m} number of {a} and {b} is",
        "{n} of {a} and {b}",
        "the {n} of {a} and {b}",
        "what is the {n} of {a} and {b}",
        "which is the {n}: {a} or {b}",
        "{n}({a}, {b})",
    ),
    "zh": (
        "{a}和{b}哪个{m}",
        "{a}和{b}谁{m}",
        "{a}与{b}哪个{m}",
        "{a}跟{b}哪个{m}",
        "{a}跟{b}比,哪个{m}",
        "{a}还是{b}{m}",
        "{a}和{b}相比哪个{m}",
        "{a}和{b}比较，谁{m}",
        "{a}和{b}，哪一个{m}",
        "{a}、{b}哪个{m}",
        "{a}和{b}哪个数{m}",
        "{a}和{b}哪个数字{m}",
        "{a}和{b}两个数哪个{m}",
        "{a}和{b}里面哪个{m}",
        "{a}和{b}中哪个{m}",
        "{a}和{b}到底哪个{m}",
        "哪个{m},{a}还是{b}",
        "哪个{m}：{a}还是{b}",
        "哪个数{m}，{a}还是{b}",
        "哪一个{m}，{a}或者{b}",
        "哪个数字{m}，{a}还是{b}",
        "谁{m}，{a}还是{b}",
        "比较{a}和{b}，哪个{m}",
        "比较一下{a}和{b}哪个{m}",
        "比一比{a}和{b}谁{m}",
        "比比看，{a}和{b}哪个{m}",
        "是{a}{m}还是{b}{m}",
        "告诉我{a}和{b}哪个{m}",
        "你知道{a}和{b}哪个{m}吗",
        "我想知道{a}和{b}谁{m}",
        "{a}和{b}中{n}的数是哪个",
        "{a}和{b}里{n}是哪个",
        "找出{a}和{b}中{n}的数",
        "{a}与{b}中{n}的是多少",
    ),
}


class _Draft:
    """A question that is being put together; `made` are the choices so far."""

    def __init__(self, rng: random.Random, language: str) -> None:
        self.rng = rng
        self.language = language
        self.made: list[str] = []

    def pick(self, options: Sequence[str]) -> str:
        """Choose an option, which becomes part of the form's name."""
        self.made.append(self.rng.choice(options))
        return self.made[-1]

    def question(self, task: Task) -> Form:
        self.digits = self.rng.choices(["digits", "words", "wide"], [84, 10, 6] if self.language == "zh" else [88, 10, 2])[0]
        if isinstance(task, Comparison):
            self.digits = "digits"
            core = self.comparison(task)
        elif isinstance(task, Equation):
            core = self.equation(task)
        else:
            core = self.expression(task)
        self.made.append(self.digits)
        mark = "" if core[-1] in "?？=" else self.pick(MARKS[self.language])
        if self.language == "zh" and core.endswith("吗") and mark[:1] in tuple("呢啊呀吧哦"):
            mark = "？"
        before, after = self.pick(BEFORE[self.language]), self.pick(AFTER[self.language])
        if self.language == "en":
            core = core[0].upper() + core[1:] if not before or before[-2] in ".!" else core
            if after and not mark:
                after = after[0].lower() + after[1:] if self.rng.random() < 0.5 else "." + after
        elif after and not mark:
            mark = self.pick(("，", ",", " ", "。"))
        text = before + core + mark + after
        return Form(misspelt(self.rng, text), "|".join(self.made))

    def number(self, value: int | str) -> str:
        """Return a number as digits, as a word where there is one, or in full width."""
        if self.digits == "wide":
            return str(value).translate(WIDE)
        small = isinstance(value, int) and 0 <= value <= 20
        return COUNT[self.language][int(value)] if small and self.digits == "words" else str(value)

    def fill(self, template: str, a: int | str, b: int | str) -> str:
        return template.format(a=self.number(a) if isinstance(a, int) else a, b=self.number(b) if isinstance(b, int) else b)

    # Expressions.

    def expression(self, task: Expression) -> str:
        chain = _in_order(task)
        how = self.rng.random()
        say = self.language
        if chain is None or how < 0.36:
            return self.pick(ASKS[say]).format(e=self.infix(task, words=False))
        first, steps = chain
        sign, second = steps[0]
        if how < 0.5:
            return self.pick(ASKS[say]).format(e=self.infix(task, words=True))
        if how < 0.66:
            return self.pick(DOES[say]).format(v=self.fill(self.pick(VERBS[say][sign]), first, second) + self.rest(steps[1:]))
        if how < 0.76 and (len(steps) > 1 or self.rng.random() < 0.3) and sign in THEN_VERBS[say]:
            start = self.pick(STARTS[say])
            if say == "en":
                return self.pick(DOES[say][:3]).format(v=self.fill(start, first, 0) + self.rest(steps, link=start != "{a}"))
            return self.pick(DOES[say][:7]).format(v=self.fill(start, first, 0) + self.then(steps[0]) + self.rest(steps[1:]))
        if how < 0.86 and len(steps) == 1:
            return self.pick(TELLS[say]).format(w=self.fill(self.pick(WHOLE[say][sign]), first, second))
        noun = self.fill(self.pick(NOUNS[say][sign]), first, second)
        if say == "en" and len(steps) > 1 and steps[1][0] == "×":
            noun = self.fill(self.pick(NOUNS[say][sign][:2] if sign == "+" else NOUNS[say][sign][:1]), first, second)
        for then, value in steps[1:]:
            join = self.pick((" ", ", ", " ") if say == "en" else ("", "再", ",再"))
            noun += join + self.pick(SIGN_WORDS[say][then][:2]) + (" " if say == "en" else "") + self.number(value)
        return self.pick(ASKS[say]).format(e=noun)

    def then(self, step: tuple[str, int]) -> str:
        return self.fill(self.pick(THEN_VERBS[self.language][step[0]]), 0, step[1])

    def rest(self, steps: Sequence[tuple[str, int]], link: bool = True) -> str:
        """Return the steps after the first one."""
        text = ""
        for step in steps:
            told = self.pick(LINKS[self.language]) if link else ", {v}"
            text += told.format(v=self.then(step))
        return text

    def infix(self, task: Expression, words: bool) -> str:
        """Return an expression in written order, with signs or with words for them."""
        say = self.language
        tokens = list(task.tokens)
        if words and "(" not in tokens:
            spoken = {sign: self.pick(SIGN_WORDS[say][sign]) for sign in "+-×÷" if sign in tokens}
            if say == "zh" and self.rng.random() < 0.4:
                last = max(at for at, token in enumerate(tokens) if token in spoken)
                if last > 1 and tokens[last] != "×":
                    tokens[last] = self.pick(("再", "再", ",再", "，再")) + spoken[str(tokens[last])]
            parts = [self.number(token) if isinstance(token, int) else spoken.get(token, token) for token in tokens]
            return (" " if say == "en" or self.rng.random() < 0.15 else "").join(parts)
        signs = {sign: self.pick(SIGNS[sign]) for sign in "+-×÷" if sign in tokens}
        if "×" in tokens and "(" not in tokens and len(tokens) > 3 and self.rng.random() < 0.2:
            at = tokens.index("×")
            tokens[at - 1 : at + 2] = ["(", *tokens[at - 1 : at + 2], ")"]
            self.made.append("()")
        parts = [self.number(token) if isinstance(token, int) else signs.get(token, token) for token in tokens]
        space = " " if (say == "en" and self.digits == "words") or self.rng.random() < 0.5 else ""
        text = space.join(parts).replace("( ", "(").replace(" )", ")")
        if self.digits == "wide" or (say == "zh" and self.rng.random() < 0.3):
            text = text.replace("(", "（").replace(")", "）")
        return text

    # Equations.

    def equation(self, task: Equation) -> str:
        say = self.language
        if self.rng.random() < 0.3:
            kind = f"{'a' if task.a > 1 else ''}x{'+b' if task.b > 0 else '-b' if task.b else ''}"
            a, b, c = self.number(task.a), self.number(abs(task.b)), self.number(task.c)
            return self.pick(RIDDLES[say][kind]).format(a=a, b=b, c=c, x=task.letter)
        sign = self.pick(SIGNS["+" if task.b >= 0 else "-"])
        times = self.pick(("", "", "", "*", "×", "·", " * ", "∗")) if task.a > 1 else ""
        order = self.pick(("abc",) * 12 + ("bac",) * 2 * (task.b > 0) + ("cab",) * 2)
        if task.a > 1 and times and self.rng.random() < 0.3:
            product = f"{task.letter}{times}{self.number(task.a)}"
        else:
            a = self.number(task.a) if times or self.digits == "wide" else str(task.a)
            product = f"{a if task.a > 1 else ''}{times}{task.letter}"
        space = self.rng.choice(["", " "])
        b, c = self.number(abs(task.b)), self.number(task.c)
        left = product
        if task.b:
            left = f"{product}{space}{sign}{space}{b}" if order != "bac" else f"{b}{space}{sign}{space}{product}"
        equals = "＝" if self.digits == "wide" else "="
        if self.rng.random() < 0.06:
            equals, space = (self.pick(("is", "equals")), " ") if say == "en" else (self.pick(("等于",)), "")
        text = f"{c}{space}{equals}{space}{left}" if order == "cab" else f"{left}{space}{equals}{space}{c}"
        return self.pick(EQUATIONS[say]).format(e=text, x=task.letter)

    # Comparisons.

    def comparison(self, task: Comparison) -> str:
        say = self.language
        more, most = (BIG, BIGGEST) if task.larger else (SMALL, SMALLEST)
        template = self.pick(COMPARES[say])
        m = self.pick(more[say]) if "{m}" in template else ""
        n = self.pick(most[say]) if "{n}" in template else ""
        return template.format(a=task.first, b=task.second, m=m, n=n)


def _in_order(task: Expression) -> tuple[int, list[tuple[str, int]]] | None:
    """Return the first number and the steps from there, where an expression is computed from the left; None for others."""
    tokens = list(task.tokens)
    if tokens[0] == "(":
        if tokens[5:6] != ["×"]:
            return None
        tokens = [*tokens[1:4], *tokens[5:]]
        late = 5
    elif "(" in tokens:
        return None
    else:
        late = 3
    if "×" in tokens[late:] or "÷" in tokens[late:]:
        return None
    first, rest = int(tokens[0]), tokens[1:]
    return first, [(str(sign), int(value)) for sign, value in zip(rest[::2], rest[1::2], strict=True)]
