"""Where the repository is, and the embedded model in it."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
NANO = ROOT / "models" / "nano"
