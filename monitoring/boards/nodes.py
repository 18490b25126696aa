"""Do the machines have room, and are the GPUs well?"""

from deployments.observability import metrics
from monitoring.board import Board, Panel, Row, graph
from monitoring.queries import OF_REPLICA, rate, select

DCGM = "dcgm-exporter on port 9400 of each GPU node"
NONE = "no replica is scraped"


def gpu(title: str, description: str, unit: str, metric: str) -> Panel:
    """Return a panel with a metric of each GPU, from NVIDIA's dcgm-exporter."""
    chosen = select(metric, of=['node=~"$node"'])
    expr = f"max by (node, gpu) ({chosen})"
    return graph(title, description, unit, (expr, "{{node}} GPU {{gpu}}"), empty="no dcgm-exporter is scraped", needs=DCGM)


NODES = (
    graph(
        "CPU of the nodes",
        "Share of each node's CPU time in use, by any process.",
        "percentunit",
        (f"max by (node) ({select(metrics.NODE_CPU, of=OF_REPLICA)})", "{{node}}"),
        empty=NONE,
    ),
    graph(
        "Memory available on the nodes",
        "Memory that is available on each node without swapping.",
        "bytes",
        (f"min by (node) ({select(metrics.NODE_MEMORY, of=OF_REPLICA)})", "{{node}}"),
        empty=NONE,
    ),
    graph(
        "Memory of the replicas",
        "Resident memory of each replica, including its engine's processes.",
        "bytes",
        (f"sum by (deployment, replica) ({select(metrics.MEMORY, of=OF_REPLICA)})", "{{deployment}} {{replica}}"),
        stacked=True,
        empty=NONE,
    ),
    graph(
        "CPU of the replicas",
        "CPU seconds per second of each replica's own process (an engine runs in other processes).",
        "short",
        (
            rate("process_cpu_seconds_total", "deployment", "replica", of=OF_REPLICA),
            "{{deployment}} {{replica}}",
        ),
        empty=NONE,
    ),
    graph(
        "Open files",
        "Open files and connections of each replica, as a share of the number that it may hold open.",
        "percentunit",
        (
            f"sum by (deployment, replica) ({select('process_open_fds', of=OF_REPLICA)})"
            f" / sum by (deployment, replica) ({select('process_max_fds', of=OF_REPLICA)})",
            "{{deployment}} {{replica}}",
        ),
        empty=NONE,
    ),
    graph(
        "GPUs of the cluster",
        "GPUs of the Ray cluster's live nodes: a step down means that a node or a card was lost.",
        "short",
        (f"max({select(metrics.CLUSTER_GPUS, of=())})", "GPUs"),
        empty="no ingress is scraped",
    ),
)

GPUS = (
    gpu("GPU busy", "Share of time in which a kernel ran.", "percent", "DCGM_FI_DEV_GPU_UTIL"),
    gpu("GPU memory used", "Memory in use on each GPU.", "decmbytes", "DCGM_FI_DEV_FB_USED"),
    gpu("GPU power", "Power that each GPU draws.", "watt", "DCGM_FI_DEV_POWER_USAGE"),
    gpu("GPU temperature", "Temperature of each GPU. A 4090 slows down above about 83 degrees.", "celsius", "DCGM_FI_DEV_GPU_TEMP"),
    gpu(
        "GPU clock",
        "Clock of the multiprocessors. A lower one than usual under load means throttling.",
        "rotmhz",
        "DCGM_FI_DEV_SM_CLOCK",
    ),
    gpu("XID errors", "The last XID error of each GPU. If not 0, look at the kernel's log.", "none", "DCGM_FI_DEV_XID_ERRORS"),
)

BOARD = Board(
    "satori-nodes",
    "Satori / Nodes and GPUs",
    "Do the machines have room, and are the GPUs well?",
    (Row("Nodes", NODES), Row("GPUs", GPUS)),
)
