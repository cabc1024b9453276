"""The public names of the package: check docs/api.md against what the modules export.

    scripts/public_api.py [--write]

A module is public if it stands in `PUBLIC`; its names are those of ``__all__``. With ``--write`` the tables
of docs/api.md are brought up to date. A name that appears or disappears is a decision: it shows in a diff
of that page.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "safeweights"
PAGE = ROOT / "docs" / "api.md"
BEGIN, END = "<!-- names: written by scripts/public_api.py -->\n", "<!-- end of names -->\n"

PUBLIC = {
    "safeweights": "open, save, convert, scan, check; what the `safetensors` package offers",
    "safeweights.numpy": "NumPy arrays",
    "safeweights.torch": "PyTorch tensors and modules",
    "safeweights.distributed": "checkpoints that many ranks of PyTorch save and load together",
    "safeweights.flax": "JAX arrays",
    "safeweights.jax": "trees of JAX arrays over a mesh",
    "safeweights.tensorflow": "TensorFlow tensors",
    "safeweights.mlx": "MLX arrays",
    "safeweights.paddle": "Paddle tensors",
    "safeweights.checkpoint": "the mapping from names to unread tensors",
    "safeweights.conversion": "other formats, read without executing anything in them",
    "safeweights.editing": "changing checkpoints without loading them",
    "safeweights.trust": "digests, signatures, policies, admission",
    "safeweights.errors": "every exception",
    "safeweights.compat": "stands in for the `safetensors` package",
    "safeweights.guard": "refuses pickles in a process",
    "safeweights.agents": "tools for agents (MCP)",
    "safeweights.conformance": "the format's rules as vectors, for any implementation",
}
"""Public module -> what it is for."""


def exported(module: str) -> list[str]:
    """The names in ``__all__`` of a module, read from its source: nothing is imported."""
    path = SOURCE.joinpath(*module.split(".")[1:])
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return sorted(ast.literal_eval(node.value), key=str.casefold)
    return []


def tables() -> str:
    """The tables of docs/api.md."""
    lines = ["| module | names |", "|---|---|"]
    for module, purpose in PUBLIC.items():
        names = " ".join(f"`{name}`" for name in exported(module))
        lines.append(f"| `{module}`: {purpose} | {names} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    current, _, after = rest.partition(END)
    if "--write" in sys.argv:
        PAGE.write_text(f"{before}{BEGIN}{tables()}{END}{after}")
    elif current != tables():
        print(f"{PAGE.name} lists other names than the modules export: run {sys.argv[0]} --write")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
