"""Print coverage and fail where the core's branches are not all covered."""

from __future__ import annotations

import subprocess
import sys

CORE = ("errors", "lazy", "text", "format/*", "storage/*", "checkpoint/*")


def main() -> int:
    coverage = [sys.executable, "-m", "coverage"]
    subprocess.run([*coverage, "report", "--skip-covered"], check=False)
    included = ",".join(f"*/safeweights/{name}.py" for name in CORE)
    print("the core, of which every branch has to be covered:", flush=True)
    command = [*coverage, "report", f"--include={included}", "--fail-under=100", "--show-missing"]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
