"""One process of the benchmark of a validation's cost: makes one thing, and prints what it took as one line of JSON."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_KILOBYTE = 1000


class Stages:
    """Wall and CPU seconds by stage; what runs twice is added up."""

    def __init__(self) -> None:
        """Nothing has run yet."""
        self.found: dict[str, dict[str, float]] = {}

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Count what runs inside."""
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            own = self.found.setdefault(name, {"wall_s": 0.0, "cpu_s": 0.0})
            own["wall_s"] += time.perf_counter() - wall
            own["cpu_s"] += time.process_time() - cpu

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, each call of which counts."""

        def counted(*given: Any, **named: Any) -> Any:
            with self.of(name):
                return function(*given, **named)

        return counted


def peak_mb() -> float:
    """The most memory that this process had, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _KILOBYTE**2


def report(folder: Path) -> dict[str, Any]:
    """Analyse the records in a folder and make the page, with all imports, as a coordinator does at a run's end."""
    stages = Stages()
    with stages.of("import"):
        from pydantic import TypeAdapter

        from eucaim_fl.plan import FederationPlan
        from eucaim_fl.validation.analysis import analyse
        from eucaim_fl.validation.page import About, render_validation
        from eucaim_fl.validation.record import ValidationRecord
    with stages.of("read"):
        plan = FederationPlan.model_validate_json((folder / "plan.json").read_bytes())
        records = TypeAdapter(tuple[ValidationRecord, ...]).validate_json((folder / "records.json").read_bytes())
    with stages.of("analyse"):
        result = analyse(plan, records, seed=plan.seed)
    with stages.of("render"):
        page = render_validation(result, plan, About())
    whole = {"cpu_s": time.process_time()}  # of the process since its start
    numbers = json.dumps(result.model_dump(mode="json"), sort_keys=True).encode()
    (folder / "result.json").write_bytes(numbers)
    (folder / "report.html").write_text(page)
    return {
        "stages": stages.found,
        "whole": whole,
        "bytes": {"records": (folder / "records.json").stat().st_size, "result": len(numbers), "page": len(page)},
        "peak_mb": peak_mb(),
    }


def main() -> None:
    """Measure one thing and print it as one line of JSON."""
    what, *given = sys.argv[1:]
    if what == "report":
        found = report(Path(given[0]))
    else:
        from validation_site import file, site

        found = site(json.loads(given[0])) if what == "site" else file(json.loads(given[0]))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
