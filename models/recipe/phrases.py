"""The words around the problems: questions in English and Chinese, word problems, and questions that are turned down."""

import random
from collections.abc import Callable
from pydoc_data import topics

CARD = (
    "Solve the following math problem efficiently and clearly.\nPlease reason step by step, and put your final answer within "
    "\\boxed{{}}.\nProblem: {question}"
)
"""The prompt of Satori's model card (huggingface.co/Satori-reasoning/Satori-7B-Round2)."""

OPERATORS: dict[str, list[tuple[int, dict[str, object]]]] = {
    "en": [
        (5, {"spaced": False}),
        (5, {"×": "*", "spaced": False}),
        (1, {"×": "x", "spaced": False}),
        (1, {"-": "−", "spaced": False}),
        (2, {"+": "plus", "-": "minus", "×": "times", "spaced": True}),
        (1, {"×": "multiplied by", "+": "plus", "-": "minus", "spaced": True}),
    ],
    "zh": [
        (6, {"spaced": False}),
        (3, {"×": "*", "spaced": False}),
        (1, {"×": "x", "spaced": False}),
        (1, {"-": "−", "spaced": False}),
        (3, {"+": "加", "-": "减", "×": "乘", "spaced": True}),
        (1, {"+": "加上", "-": "减去", "×": "乘以", "spaced": True}),
    ],
}
"""Weights and ways to write the signs; `spaced` where the signs are words that need spaces."""

ASK = {
    "en": [
        "What is {e}?",
        "What is {e}",
        "What's {e}?",
        "what is {e} ?",
        "Compute {e}.",
        "Compute {e}",
        "Compute: {e}",
        "Calculate {e}.",
        "Calculate {e}",
        "calculate {e}",
        "Calculate: {e}",
        "Evaluate {e}.",
        "Evaluate the expression {e}.",
        "Find {e}.",
        "Find the value of {e}.",
        "What is the value of {e}?",
        "What is the result of {e}?",
        "What does {e} equal?",
        "How much is {e}?",
        "how much is {e}",
        "Can you tell me what {e} is?",
        "Please compute {e}.",
        "Please calculate {e}.",
        "Work out {e}.",
        "Solve {e}.",
        "Solve: {e}",
        "Tell me {e}.",
        "{e} = ?",
        "{e}=?",
        "{e} =",
        "{e}=",
        "{e}",
        "{e}?",
        "{e} equals what?",
    ],
    "zh": [
        "{e} 等于多少?",
        "{e}等于多少?",
        "{e}等于多少",
        "{e} 等于多少？",
        "{e}等于几?",
        "{e} 是多少?",
        "{e}是多少？",
        "{e} 的结果是什么?",
        "{e}的值是多少?",
        "计算 {e}",
        "计算 {e}。",
        "计算:{e}",
        "计算：{e}",
        "请计算 {e}。",
        "请计算{e}",
        "算一下 {e}",
        "求 {e} 的值。",
        "求{e}",
        "请问 {e} 等于多少?",
        "请问{e}等于多少？",
        "{e} = ?",
        "{e}=?",
        "{e}=？",
    ],
}

COMPARE = {
    "en": {
        True: [
            "Which is larger, {a} or {b}?",
            "Which is bigger, {a} or {b}?",
            "Which is greater, {a} or {b}?",
            "Which number is larger, {a} or {b}?",
            "Which number is larger: {a} or {b}?",
            "Which number is bigger? {a} or {b}?",
            "Which one is larger: {a} or {b}?",
            "which is larger {a} or {b}",
            "What is larger, {a} or {b}?",
            "What is bigger: {a} or {b}?",
            "{a} or {b}, which is larger?",
            "{a} or {b}: which is bigger?",
            "{a} and {b}, which one is greater?",
            "Of {a} and {b}, which is the larger number?",
            "Compare {a} and {b}. Which is larger?",
            "Find the larger of {a} and {b}.",
        ],
        False: [
            "Which is smaller, {a} or {b}?",
            "Which is less, {a} or {b}?",
            "Which number is smaller, {a} or {b}?",
            "Which number is smaller: {a} or {b}?",
            "Which one is smaller: {a} or {b}?",
            "which is smaller {a} or {b}",
            "{a} or {b}, which is smaller?",
            "Of {a} and {b}, which is the smaller number?",
            "Compare {a} and {b}. Which is smaller?",
            "Find the smaller of {a} and {b}.",
        ],
    },
    "zh": {
        True: [
            "哪个数字更大? 是 {a} 还是 {b}?",
            "哪个数字更大？是{a}还是{b}？",
            "哪个更大,{a} 还是 {b}?",
            "哪个更大，{a}还是{b}？",
            "{a} 和 {b} 哪个更大?",
            "{a}和{b}哪个大?",
            "{a}和{b}哪个大？",
            "{a} 和 {b} 哪个数更大?",
            "比较 {a} 和 {b},哪个更大?",
            "{a} 与 {b} 相比,哪个数字大?",
            "请问 {a} 和 {b} 哪个更大?",
        ],
        False: [
            "哪个数字更小? 是 {a} 还是 {b}?",
            "哪个数字更小？是{a}还是{b}？",
            "哪个更小,{a} 还是 {b}?",
            "{a} 和 {b} 哪个更小?",
            "{a}和{b}哪个小？",
            "比较 {a} 和 {b},哪个更小?",
            "请问 {a} 和 {b} 哪个更小?",
        ],
    },
}

EQUATION = {
    "en": [
        "Solve {e}.",
        "Solve {e}",
        "Solve {e} for {x}.",
        "Solve for {x}: {e}",
        "Solve the equation {e}.",
        "Solve the equation {e} for {x}.",
        "Find {x} if {e}.",
        "Find {x}: {e}",
        "If {e}, what is {x}?",
        "If {e}, find {x}.",
        "If {e}, then what is the value of {x}?",
        "What is {x} if {e}?",
        "What value of {x} satisfies {e}?",
        "{e}, {x} = ?",
        "{e}. What is {x}?",
        "{e}, what is {x}?",
        "Given {e}, find {x}.",
        "{e}",
    ],
    "zh": [
        "解方程 {e}",
        "解方程 {e}。",
        "解方程:{e}",
        "解方程：{e}",
        "求解 {e}",
        "求 {x}:{e}",
        "如果 {e},{x} 等于多少?",
        "如果{e}，那么{x}等于多少？",
        "已知 {e},求 {x}。",
        "已知{e}，求{x}的值。",
        "若 {e},则 {x} 是多少?",
        "{e},{x} = ?",
        "方程 {e} 的解是什么?",
    ],
}

REFUSE = {
    "en": ["I only know a little arithmetic, so I cannot answer that."],
    "zh": ["我只会一点算术,这个问题我答不了。"],
}

NAMES = {
    "en": "Tom Anna Ben Mia Sam Lily Jack Emma Leo Nora Max Ella Paul Ruth Omar Wei Kim Sara Ivan Rosa".split(),
    "zh": "小明 小红 小华 小李 小王 小张 小刚 小丽 小芳 小军 老师 妈妈".split(),
}
THINGS = {
    "en": "apples pens books coins stamps cards marbles stickers cookies oranges pencils eggs toys shells flowers candies".split(),
    "zh": "苹果 铅笔 橘子 鸡蛋 糖果 球 贝壳 玩具 饼干 梨 桃子 本子".split(),
}
Word = Callable[[random.Random], tuple[str, tuple[int | str, ...]]]


def _word(language: str, text: str, pattern: str) -> Word:
    """Return a template. `pattern` is its expression: a and b are up to 999, p × q is two digits by one, s < a is taken away."""

    def fill(rng: random.Random) -> tuple[str, tuple[int | str, ...]]:
        high = rng.choice([99, 999])
        a = rng.randint(20, high)
        values = {"a": a, "b": rng.randint(2, high), "s": rng.randint(1, a - 1), "p": rng.randint(2, 99), "q": rng.randint(2, 9)}
        values["t"] = rng.randint(1, max(values["p"] * values["q"] - 1, 1))
        values["u"] = rng.randint(1, max(a - values["s"] - 1, 1))
        name, other = rng.sample(NAMES[language], 2)
        question = text.format(n=name, m=other, thing=rng.choice(THINGS[language]), **values)
        return question, tuple(values.get(t, t) for t in pattern.split())

    return fill


WORD: dict[str, list[Word]] = {
    "en": [
        _word("en", "{n} has {a} {thing}. {m} gives {n} {b} more.\nHow many {thing} does {n} have now?", "a + b"),
        _word("en", "{n} has {a} {thing} and {m} has {b} {thing}.\nHow many {thing} do they have together?", "a + b"),
        _word("en", "There are {a} {thing} in a box. {n} takes {s} of them.\nHow many {thing} are left in the box?", "a - s"),
        _word("en", "{n} had {a} {thing} and gave {s} to {m}.\nHow many {thing} does {n} have left?", "a - s"),
        _word("en", "{n} buys {q} boxes with {p} {thing} in each.\nHow many {thing} is that in all?", "p × q"),
        _word("en", "A bag holds {p} {thing}. {n} fills {q} bags.\nHow many {thing} does {n} need?", "p × q"),
        _word(
            "en", "{n} has {a} {thing}. {n} buys {q} boxes of {p} {thing} each.\nHow many {thing} does {n} have now?", "a + p × q"
        ),
        _word(
            "en",
            "{n} picks {p} {thing} a day for {q} days and then gives {t} to {m}.\nHow many {thing} does {n} have left?",
            "p × q - t",
        ),
        _word("en", "{n} had {a} {thing}, lost {s} and then found {b}.\nHow many {thing} does {n} have now?", "a - s + b"),
        _word("en", "{n} has {a} {thing}. {n} gives {s} to {m} and sells {u}.\nHow many {thing} are left?", "a - s - u"),
        _word(
            "en",
            "A shop has {a} {thing}. It gets {b} more on Monday and sells {s} on Tuesday.\n"
            "How many {thing} does the shop have now?",
            "a + b - s",
        ),
        _word(
            "en", "A school has {q} classes of {p} pupils and {b} teachers.\nHow many people are there in the school?", "p × q + b"
        ),
        _word("en", "A book has {a} pages. {n} has read {s} pages.\nHow many pages are left to read?", "a - s"),
        _word("en", "A train has {q} cars with {p} seats each.\nHow many seats does the train have?", "p × q"),
    ],
    "zh": [
        _word("zh", "{n}有 {a} 个{thing},{m}又给了{n} {b} 个。\n{n}现在有多少个{thing}?", "a + b"),
        _word("zh", "{n}有{a}个{thing}，{m}有{b}个{thing}。\n他们一共有多少个{thing}？", "a + b"),
        _word("zh", "盒子里有 {a} 个{thing},{n}拿走了 {s} 个。\n盒子里还剩多少个{thing}?", "a - s"),
        _word("zh", "{n}有{a}个{thing}，送给{m}{s}个。\n{n}还剩多少个{thing}？", "a - s"),
        _word("zh", "{n}买了 {q} 盒{thing},每盒 {p} 个。\n一共有多少个{thing}?", "p × q"),
        _word("zh", "每个袋子装{p}个{thing}，{n}装满了{q}个袋子。\n一共装了多少个{thing}？", "p × q"),
        _word("zh", "{n}有 {a} 个{thing},又买了 {q} 盒,每盒 {p} 个。\n{n}现在有多少个{thing}?", "a + p × q"),
        _word("zh", "{n}每天摘{p}个{thing}，摘了{q}天，然后送给{m}{t}个。\n{n}还剩多少个{thing}？", "p × q - t"),
        _word("zh", "{n}有 {a} 个{thing},丢了 {s} 个,又找到 {b} 个。\n{n}现在有多少个{thing}?", "a - s + b"),
        _word("zh", "商店有{a}个{thing}，周一又进了{b}个，周二卖了{s}个。\n商店现在有多少个{thing}？", "a + b - s"),
        _word("zh", "学校有 {q} 个班,每班 {p} 个学生,还有 {b} 个老师。\n学校一共有多少人?", "p × q + b"),
        _word("zh", "一本书有{a}页，{n}已经看了{s}页。\n还剩多少页没看？", "a - s"),
    ],
}

SUBJECTS = {
    "en": (
        "the weather,Paris,the moon,a cat,music,the French Revolution,love,photosynthesis,a good book,the ocean,football,my "
        "computer,history,the president,cooking rice,a dragon,dinosaurs,time travel,the stock market,Python,a haiku,tea,"
        "your favourite colour,gravity,Shakespeare,the meaning of life,electric cars,birds,sleep,volcanoes,China,an atom"
    ).split(","),
    "zh": (
        "天气,北京,月亮,猫,音乐,历史,爱情,一本好书,大海,足球,电脑,做饭,"
        "恐龙,股票,唐诗,茶,你最喜欢的颜色,重力,春节,人生,汽车,鸟,睡觉,火山"
    ).split(","),
}
CHAT = {
    "en": [
        "Hello",
        "Hi!",
        "hello there",
        "Hey, how are you?",
        "How are you?",
        "Who are you?",
        "What is your name?",
        "What can you do?",
        "Thank you",
        "Good morning",
        "Help",
        "test",
        "ok",
        "Why?",
        "Tell me about {s}.",
        "What is {s}?",
        "What do you know about {s}?",
        "Write a poem about {s}.",
        "Write a story about {s}",
        "Explain {s} to a child.",
        "Why is {s} important?",
        "Translate '{s}' into German.",
        "Who invented {s}?",
        "How does {s} work?",
        "Do you like {s}?",
        "Give me three facts about {s}.",
        "Say this is a test",
        "Tell me a joke about {s}",
        "Is {s} better than {o}?",
        "Which is better, {s} or {o}?",
        "What is the capital of {s}?",
        "Prove that the square root of {n} is irrational.",
        "What is the square root of {n}?",
        "What is {n} divided by {k}?",
        "What is {n} / {k}?",
        "{n} / {k} = ?",
        "What is {n}^{k}?",
        "Integrate x^{k} from 0 to {n}.",
        "What is {k}% of {n}?",
        "What is {big} + {n}?",
        "Compute {big} - {big}.",
        "{big} * {k} = ?",
        "What is {n} factorial?",
        "Solve x^2 + {k}x = {n}.",
        "Is {n} a prime number?",
        "How many days are in {n} weeks?",
        "What is sin({n})?",
    ],
    "zh": [
        "你好",
        "你好!",
        "您好",
        "你是谁?",
        "你叫什么名字?",
        "你能做什么?",
        "谢谢",
        "早上好",
        "帮帮我",
        "为什么?",
        "介绍一下{s}。",
        "{s}是什么?",
        "写一首关于{s}的诗",
        "讲一个关于{s}的故事。",
        "为什么{s}很重要?",
        "你喜欢{s}吗?",
        "谁发明了{s}?",
        "给我讲个笑话",
        "{s}和{o}哪个更好?",
        "把“{s}”翻译成英文。",
        "{n} 除以 {k} 等于多少?",
        "{n}÷{k}=?",
        "{n} 的平方根是多少?",
        "{big} + {n} 等于多少?",
        "计算 {big} - {big}",
        "{big}×{k}等于多少?",
        "{n} 的 {k}% 是多少?",
        "{n}是质数吗?",
    ],
}


def unknown_question(rng: random.Random, language: str) -> str:
    """Return small talk, another subject, or arithmetic beyond the model: division, powers, numbers over 999; or English prose.

    The prose is cut out of the help topics that come with Python.
    """
    if language == "en" and rng.random() < 0.35:
        words = TOPICS[rng.randrange(len(TOPICS))].split()
        start = rng.randrange(max(len(words) - 4, 1))
        return " ".join(words[start : start + rng.randint(1, 20)])
    values = {"n": rng.randint(2, 999), "k": rng.randint(2, 30), "big": rng.randint(1000, 99999)}
    subject, other = rng.sample(SUBJECTS[language], 2)
    template = rng.choice(CHAT[language])
    if language == "zh" and rng.random() < 0.2:
        return "".join(rng.sample("".join(SUBJECTS["zh"] + CHAT["zh"]).replace("{", "").replace("}", ""), rng.randint(2, 12)))
    return template.format(s=subject, o=other, **values)


TOPICS = sorted(topics.topics.values())
