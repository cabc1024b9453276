"""Batches on Ray: a cluster of two nodes on this machine, of which workers and a node end."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from safeweights.batching import Outcome, Unit, Work, run_units
from safeweights.errors import MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
UNITS = [Unit(f"u{number:02}") for number in range(24)]


def test_without_ray_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"safeweights\[ray\]"):
        list(run_units(UNITS, Work(""), engine="ray"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    ray = pytest.importorskip(
        "ray", reason="needs the package ray (it has no wheel for this Python)"
    )
    from ray.cluster_utils import Cluster

    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parents[1] / "src"), before])
    os.environ["RAY_AUTH_MODE"] = "disabled"
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()
    os.environ["PYTHONPATH"] = before


@pytest.mark.servers
@pytest.mark.filterwarnings("ignore")  # Ray leaves sockets and files open
class TestCluster:
    def test_the_report_is_that_of_processes(self, cluster: Any, models: Path) -> None:
        import safeweights

        reports = [
            safeweights.batch("check", ["models", "nothing"], engine=engine)
            for engine in ("process", "ray")
        ]
        assert reports[0].document() == reports[1].document()
        assert reports[0].exit_code == 1

    def test_one_that_is_interrupted_goes_on_with_another_engine(
        self, cluster: Any, models: Path
    ) -> None:
        import safeweights

        first = safeweights.batch("convert", "models", to="out", engine="ray", resume="m")
        again = safeweights.batch("convert", "models", to="out", engine="process", resume="m")
        assert again.document() == first.document()

    def test_killed_workers(self, cluster: Any, tmp_path: Path) -> None:
        told: list[str] = []
        work = Work("batch_functions:die_once", (str(tmp_path),))
        found = list(run_units(UNITS[:6], work, engine="ray", jobs=2, notice=told.append))
        assert [outcome.document for outcome in found] == [{"source": u.source} for u in UNITS[:6]]
        assert len(told) >= 6

    def test_a_unit_that_always_ends_its_worker_is_reported(self, cluster: Any) -> None:
        work = Work("batch_functions:die", ("u02",))
        found = list(run_units(UNITS[:5], work, engine="ray"))
        assert [outcome.exit_code for outcome in found] == [0, 0, 3, 0, 0]

    def test_closing_the_iterator_cancels_tasks(self, cluster: Any, tmp_path: Path) -> None:
        outcomes = run_units(UNITS, Work("batch_functions:nap", ("0.05",)), engine="ray")
        assert isinstance(next(outcomes), Outcome)
        outcomes.close()

    def test_a_node_that_is_removed(self, cluster: Any) -> None:
        node = cluster.add_node(num_cpus=2)
        work = Work("batch_functions:nap", ("0.3",))
        found = []
        for outcome in run_units(UNITS, work, engine="ray", jobs=6):
            found.append(outcome)
            if len(found) == 4:
                cluster.remove_node(node, allow_graceful=False)
        assert [(o.document or {})["source"] for o in found] == [unit.source for unit in UNITS]
