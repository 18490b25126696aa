"""What Triton asks of a backend's compiler before a kernel is run."""

from typing import Any

from triton.backends.compiler import BaseBackend, GPUTarget


class Compiler(BaseBackend):
    """Compiles nothing."""

    @staticmethod
    def supports_target(target: GPUTarget) -> bool:
        """Return whether it is for this target."""
        return target.backend == "cpu"

    def hash(self) -> str:
        """Return what tells its results from those of others."""
        return "cpu"

    def parse_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return a kernel's options as they are."""
        return options

    def add_stages(self, stages: dict[str, Any], options: object) -> None:
        """Raise: whoever comes here has not set TRITON_INTERPRET=1."""
        raise NotImplementedError("this backend compiles nothing; set TRITON_INTERPRET=1")

    def load_dialects(self, context: Any) -> None:
        """Load nothing."""

    def get_module_map(self) -> dict[str, Any]:
        """Return no modules."""
        return {}
