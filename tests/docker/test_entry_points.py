"""What the images run, run as an engine runs it: any uid, no capabilities, read-only but for the declared places.

There is no engine in it: `box.py` makes the same confinement with namespaces, with the environment and the words that
stand in the Dockerfiles.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.integration
BOTH = pytest.mark.parametrize("name", ["site", "coordinator"])


@BOTH
class TestTheBox:
    """The tests below mean something only if these hold."""

    def test_a_process_is_nobody_known_and_can_do_nothing_special(self, boxes, name) -> None:
        done = boxes[name].run(["/bin/sh", "-c", "id -g; getent passwd $(id -u); cat /proc/self/status"])
        assert done.stdout.splitlines()[0] == "0"
        assert set(re.findall(r"^Cap\w+:\s+(\w+)", done.stdout, re.M)) == {"0" * 16}
        assert "NoNewPrivs:\t1" in done.stdout

    def test_it_writes_to_the_declared_places_and_nowhere_else(self, boxes, name) -> None:
        places = [*boxes[name].image.volumes, "/tmp", "/dev/shm"]  # noqa: S108
        others = ["/", "/etc", "/opt/eucaim-fl", "/opt/eucaim-fl/bin", "/home", "/usr", "/dev", "/var"]
        probe = 'for place in "$@"; do touch "$place/written" 2>/dev/null && echo "$place"; done; true'
        done = boxes[name].run(["/bin/sh", "-c", probe, "probe", *places, *others])
        assert done.stdout.split() == places

    def test_it_has_no_network(self, boxes, name) -> None:
        done = boxes[name].run(["/bin/cat", "/proc/net/route"])
        assert len(done.stdout.splitlines()) == 1


@BOTH
class TestCommands:
    def test_they_exist(self, boxes, name) -> None:
        for words in (boxes[name].image.command, boxes[name].image.health):
            done = boxes[name].run([*words, "--help"])
            assert done.returncode == 0, done.stderr
            assert done.stdout.startswith(f"Usage: eucaim-fl {words[1]} {words[2]}")
            for option in (word for word in words if word.startswith("--")):
                assert option in done.stdout

    def test_an_empty_home_is_refused_with_advice_and_is_not_healthy(self, boxes, name) -> None:
        done = boxes[name].run(boxes[name].image.command)
        assert done.returncode == 2, done.stdout + done.stderr
        assert "eucaim-fl" in done.stderr
        assert "Traceback" not in done.stderr
        sick = boxes[name].run(boxes[name].image.health)
        assert sick.returncode != 0
        assert "Traceback" not in sick.stderr

    def test_libraries_that_ask_who_and_where_they_are_get_an_answer(self, boxes, name) -> None:
        code = (
            "import getpass, pathlib, tempfile; print(getpass.getuser(), pathlib.Path.home(), tempfile.gettempdir());"
            "import matplotlib, torch, flwr; print(matplotlib.get_cachedir())"
        )
        done = boxes[name].run(["python", "-c", code])
        assert done.stdout.split() == ["eucaim-fl", "/tmp", "/tmp", "/tmp/matplotlib"]  # noqa: S108
        assert done.stderr == ""


class TestACohortThatIsOnlyRead:
    @pytest.fixture
    def cohort(self, hospital, boxes, tmp_path: Path) -> Path:
        """A tiny hospital's cohort, and in the home a site file that names the places inside."""
        site = yaml.safe_load(hospital("a").read_text())
        site["cohort"]["folder"], site["cache"]["folder"] = "/data", "/home/site/cache"
        home = boxes["site"].write["/home/site"]
        (home / "site.yaml").write_text(yaml.safe_dump(site))
        for path in (tmp_path / "data").rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        return tmp_path / "data/a"

    def test_it_is_checked_and_left_as_it_was(self, boxes, cohort: Path) -> None:
        before = {path: path.stat().st_mtime_ns for path in cohort.rglob("*")}
        box = boxes["site"]
        box.read = {"/data": cohort}
        done = box.run(["eucaim-fl", "site", "check", "/home/site/site.yaml"], timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "12 of 12 patients can be used" in " ".join(done.stdout.split())
        assert {path: path.stat().st_mtime_ns for path in cohort.rglob("*")} == before
        assert (box.write["/home/site"] / "cache/index").is_dir()

    def test_a_cohort_that_this_uid_may_not_read_is_an_error_with_advice(self, boxes, cohort: Path) -> None:
        cohort.chmod(0o700)
        with (cohort / "clinical.csv").open() as stream:
            assert len(list(csv.reader(stream))) == 13
        box = boxes["site"]
        box.read = {"/data": cohort}
        done = box.run(["eucaim-fl", "site", "check", "/home/site/site.yaml"])
        assert done.returncode == 2
        assert "Traceback" not in done.stdout + done.stderr
