"""Every metric of ours, declared once. vLLM's own keep their names (`vllm:*`); ours begin with `satori_` and are in base units."""

from prometheus_client import Counter, Histogram

STEPS = (0, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50)
SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)

TTFT = Histogram(
    "satori_ttft_seconds", "From a streaming chat's arrival to its first token of any kind.", ["model"], buckets=SECONDS
)
TTFAT = Histogram(
    "satori_ttfat_seconds", "From a streaming chat's arrival to the first token of its answer.", ["model"], buckets=SECONDS
)
REFLECTIONS = Histogram("satori_answer_reflections", "Reflections in the reasoning of an answer.", ["model"], buckets=STEPS)
EXPLORATIONS = Histogram("satori_answer_explorations", "Explorations in the reasoning of an answer.", ["model"], buckets=STEPS)
TOKENS = Counter("satori_coat_tokens_total", "Tokens of complete chat replies, by what they belong to.", ["model", "action"])
ANSWERS = Counter("satori_answers_total", "Complete chat replies, by whether the answer is in a box.", ["model", "boxed"])
VOTES = Counter(
    "satori_votes_total", "Votes on an answer, by whether they were decided before all samples ended.", ["model", "decided"]
)
VOTE_TOKENS_SAVED = Counter(
    "satori_vote_tokens_saved_total",
    "Tokens not generated because a vote was decided: what the stopped samples lacked to the mean length of the finished ones.",
    ["model"],
)
FAILOVER_REQUESTS = Counter("satori_failover_requests_total", "Times that a request moved on from an LLM replica that was lost.")
FAILOVER_TOKENS = Counter(
    "satori_failover_tokens_total", "Tokens that were delivered before a move and computed again after it, as prompt or forced."
)
