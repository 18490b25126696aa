"""Whether a Ray cluster has the GPUs that the settings ask for: the message for a user whose LLM replicas never start."""

from collections.abc import Mapping

from deployments.settings import LLMSettings

TYPE = "accelerator_type:"
"""What Ray puts before a GPU type to name the resource of the nodes that have such GPUs."""


def lacking(llm: LLMSettings, resources: Mapping[str, float]) -> str | None:
    """Return what a cluster with these `resources` (as Ray names them) lacks: key, value and what it has; None if nothing.

    Nodes that an autoscaler adds later may have it, so this alone is no error.
    """
    gpus = resources.get("GPU", 0)
    types = sorted(name.removeprefix(TYPE) for name in resources if name.startswith(TYPE))
    has = f"{gpus:g} GPUs" + (f" of type {', '.join(types)}" if types else "") if gpus else "no GPU"
    if llm.accelerator_type is not None and llm.accelerator_type not in types:
        return f"llm.accelerator_type={llm.accelerator_type!r}: the cluster has no such GPU; it has {has}"
    if llm.num_gpus > gpus:
        return f"llm.num_gpus={llm.num_gpus:g}: too many for a replica; the cluster has {has}"
    if llm.num_gpus * llm.num_replicas > gpus:
        able = int(gpus // llm.num_gpus)
        return f"llm.num_replicas={llm.num_replicas} with llm.num_gpus={llm.num_gpus:g}: {able} can start; the cluster has {has}"
    return None
