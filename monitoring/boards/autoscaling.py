"""Why did it scale, and was it right to?"""

from deployments.observability import metrics
from monitoring.board import Board, Row, graph
from monitoring.queries import OF_MODEL, mean, rate, ratio, select, total

OFF = "autoscaling (autoscaling.enabled)"
LLM = 'deployment="LLM"'
RUNNING = select(metrics.REPLICAS, LLM, 'state="RUNNING"', of=())
GPUS = total(metrics.DEVICES, where=['kind="gpu"'])

DECISIONS = (
    graph(
        "LLM replicas: wanted and running",
        "Replicas that the policy wants, and those it saw running. A lasting gap means a start-up that hangs or a full cluster.",
        "short",
        (f"max by (deployment) ({select(metrics.AUTOSCALING_DESIRED, of=())})", "{{deployment}} wanted"),
        (f"max by (deployment) ({select(metrics.AUTOSCALING_ACTUAL, of=())})", "{{deployment}} seen running"),
        empty="autoscaling is off",
        needs=OFF,
    ),
    graph(
        "Decisions by reason",
        "Changes of the wanted number of replicas per minute, by the policy's reason.",
        "short",
        (f"60 * {rate(metrics.AUTOSCALING_DECISIONS, 'reason', of=())}", "{{reason}}"),
        empty="autoscaling is off",
        needs=OFF,
    ),
    graph(
        "LLM replicas by state",
        "What Serve does about it: target, running, starting, stopping.",
        "short",
        (f"max by (state) ({select(metrics.REPLICAS, LLM, of=())})", "{{state}}"),
        (f"max({select(metrics.REPLICAS_TARGET, LLM, of=())})", "target"),
        empty="no ingress is scraped",
    ),
)

DEMAND = (
    graph(
        "Requests for each LLM replica",
        "Requests in flight per running replica: the load to which a policy responds.",
        "short",
        (
            ratio(total(metrics.ONGOING), f"max({RUNNING})"),
            "in flight per replica",
        ),
        empty="no LLM replica runs",
    ),
    graph(
        "Waiting",
        "Requests that wait for a replica, and those in the engines' own queues.",
        "short",
        (total(metrics.UNASSIGNED), "for a replica"),
        (total("vllm:num_requests_waiting"), "in engines"),
        empty="no replica is scraped",
    ),
    graph(
        "KV cache in use",
        "Highest and mean share of the engines' KV caches in use.",
        "percentunit",
        (f"max({select('vllm:kv_cache_usage_perc', of=OF_MODEL)})", "highest"),
        (f"avg({select('vllm:kv_cache_usage_perc', of=OF_MODEL)})", "mean"),
        empty="no LLM replica",
    ),
    graph(
        "Queue time",
        "Mean time from a request's arrival until an engine starts it: the cost of too few replicas.",
        "s",
        (mean(metrics.QUEUE), "mean"),
    ),
    graph(
        "Start-up by phase",
        "Time that the newest replicas took to start, by phase (`start` is the total): how long a scale-up takes.",
        "s",
        (f"max by (deployment, phase) ({select(metrics.STARTUP)})", "{{deployment}} {{phase}}"),
        empty="no replica is scraped",
    ),
    graph(
        "GPUs of the cluster",
        "GPUs of the Ray cluster's live nodes, and those of LLM replicas. 0 on a cluster without GPUs.",
        "short",
        (f"max({select(metrics.CLUSTER_GPUS, of=())})", "in the cluster"),
        (f"{GPUS} or vector(0)", "of LLM replicas"),
        empty="no ingress is scraped",
    ),
)

BOARD = Board(
    "satori-autoscaling",
    "Satori / Autoscaling",
    "Why did it scale, and was it right to?",
    (Row("Decisions", DECISIONS), Row("Demand", DEMAND)),
)
