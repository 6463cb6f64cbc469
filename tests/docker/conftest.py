"""Dockerfiles as values, and boxes: what an engine does with an image, done with namespaces instead of one."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
ANY_UID = 54_321  # no image or machine has an entry for it


@dataclass(frozen=True)
class Stage:
    """One FROM and what follows it: instructions as (word, rest), in order."""

    base: str
    name: str | None
    instructions: tuple[tuple[str, str], ...]

    def all(self, word: str) -> list[str]:
        """The rest of every such instruction."""
        return [rest for one, rest in self.instructions if one == word]

    def words(self, word: str) -> list[str]:
        """The last such instruction as a list of words; it must be in exec form."""
        listed = json.loads(self.all(word)[-1])
        assert isinstance(listed, list)
        return listed


@dataclass(frozen=True)
class Image:
    """A Dockerfile: the arguments before the first FROM, and its stages."""

    path: Path
    arguments: Mapping[str, str]
    stages: tuple[Stage, ...]

    @property
    def final(self) -> Stage:
        return self.stages[-1]

    @property
    def environment(self) -> dict[str, str]:
        """What ENV sets in the final stage."""
        pairs = [pair for rest in self.final.all("ENV") for pair in shlex.split(rest)]
        return dict(pair.split("=", 1) for pair in pairs)

    @property
    def health(self) -> list[str]:
        """The words of the health check."""
        options, _, words = self.final.all("HEALTHCHECK")[-1].partition("CMD ")
        assert options
        return list(json.loads(words))

    @property
    def command(self) -> list[str]:
        """What runs if nothing else is said."""
        return self.final.words("ENTRYPOINT") + self.final.words("CMD")

    @property
    def volumes(self) -> list[str]:
        return self.final.words("VOLUME")


def read_image(path: Path) -> Image:
    """Parse a Dockerfile: comment lines dropped, continued lines joined, `${NAME}` of FROM filled in."""
    text = "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    arguments: dict[str, str] = {}
    stages: list[tuple[str, str | None, list[tuple[str, str]]]] = []
    for line in lines:
        word, _, rest = line.partition(" ")
        word, rest = word.upper(), " ".join(rest.split())
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            for key, value in arguments.items():
                base = base.replace(f"${{{key}}}", value)
            stages.append((base, name or None, []))
        elif stages:
            stages[-1][2].append((word, rest))
        else:
            assert word == "ARG", f"{word} before the first FROM"
            key, _, value = rest.partition("=")
            arguments[key] = value
    return Image(path, arguments, tuple(Stage(base, name, tuple(body)) for base, name, body in stages))


def first_of(process: subprocess.Popen[bytes]) -> int:
    """The number outside of the box's process 1, once the box is furnished and closed."""
    until = time.monotonic() + 20
    while time.monotonic() < until and process.poll() is None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if children and str(Path(f"/proc/{children[0]}/root").readlink()) != "/":
            return int(children[0])
        time.sleep(0.05)
    raise RuntimeError(f"the box did not start, or has ended: {process.returncode}")


@dataclass
class Box:
    """Runs command lines with an image's environment in a box; see box.py."""

    image: Image
    root: Path
    write: Mapping[str, Path]
    read: Mapping[str, Path] = field(default_factory=dict)
    network: str = "none"
    uid: int = ANY_UID

    def _words(self, words: Sequence[str], extra: Mapping[str, str]) -> list[str]:
        venv = Path(sys.prefix)
        self.root.mkdir(exist_ok=True)
        spec = {
            "words": self._found(words),
            "environment": {**self.image.environment, **extra},
            "uid": self.uid if os.geteuid() == 0 else 0,
            "network": self.network,
            "root": str(self.root),
            "write": {inside: str(outside) for inside, outside in self.write.items()},
            "read": {"/opt/eucaim-fl": str(venv), **{inside: str(outside) for inside, outside in self.read.items()}},
            "shared": sorted({str(ROOT), str(venv), sys.base_prefix}),
        }
        spaces = ["--mount", "--pid", "--fork", "--kill-child", "--ipc", "--uts"]
        spaces += ["--net"] if self.network == "none" else []
        spaces += [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        box = str(Path(__file__).with_name("box.py"))
        return ["unshare", *spaces, sys.executable, "-I", box, json.dumps(spec)]

    def _found(self, words: Sequence[str]) -> list[str]:
        """The command's program by its place in the image, which is where the environment stands."""
        installed = "/" not in words[0] and (Path(sys.prefix) / "bin" / words[0]).exists()
        return [f"/opt/eucaim-fl/bin/{words[0]}" if installed else words[0], *words[1:]]

    def run(self, words: Sequence[str], timeout: float = 60, **extra: str) -> subprocess.CompletedProcess[str]:
        """Run to the end."""
        return subprocess.run(
            self._words(words, extra), capture_output=True, text=True, timeout=timeout, check=False, cwd="/"
        )

    def start(self, words: Sequence[str], log: Path, **extra: str) -> subprocess.Popen[bytes]:
        """Start; standard output and error go to `log`."""
        with log.open("wb") as stream:
            return subprocess.Popen(self._words(words, extra), stdout=stream, stderr=subprocess.STDOUT, cwd="/")

    def inside(
        self, process: subprocess.Popen[bytes], words: Sequence[str], timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run one more command in the box of a running one, as `docker exec` and health checks do."""
        uid = self.uid if os.geteuid() == 0 else 0
        spaces = ["--target", str(first_of(process)), "--mount", "--pid", "--net", "--ipc", "--uts", "--root", "--wd"]
        spaces += [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        identity = ["--reuid", str(uid), "--regid", "0", "--clear-groups"] if uid else []
        setpriv = ["setpriv", *identity, "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all", "--"]
        return subprocess.run(
            ["nsenter", *spaces, *setpriv, *self._found(words)],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env=self.image.environment,
        )

    @staticmethod
    def stop(process: subprocess.Popen[bytes], timeout: float = 30) -> int:
        """SIGTERM to the box's process 1, as `docker stop` does; returns its exit code, or raises TimeoutExpired."""
        os.kill(first_of(process), signal.SIGTERM)
        return process.wait(timeout)


@pytest.fixture(scope="session")
def images() -> dict[str, Image]:
    """The Dockerfiles by name: `site` and `coordinator`."""
    return {path.name.removesuffix(".Dockerfile"): read_image(path) for path in DOCKER.glob("*.Dockerfile")}


@pytest.fixture(scope="session")
def _namespaces(images: dict[str, Image], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips where this machine allows no namespaces."""
    if shutil.which("unshare") is None or shutil.which("setpriv") is None:
        pytest.skip("this machine has no unshare or setpriv (util-linux)")
    folder = tmp_path_factory.mktemp("probe")
    probe = Box(images["site"], folder / "root", {"/home/site": volume(folder / "home")}).run(["/bin/true"])
    if probe.returncode != 0:
        pytest.skip(f"this machine lets no process make namespaces: {probe.stderr.strip()[-200:]}")


def volume(folder: Path) -> Path:
    """A folder as an engine makes a volume from the images: the owner is another, group 0 may write."""
    folder.mkdir(parents=True)
    folder.chmod(0o770)
    return folder


@pytest.fixture
def boxes(_namespaces: None, images: dict[str, Image], tmp_path: Path) -> dict[str, Box]:
    """A box for each image, with a volume for every place that the image declares."""
    return {
        name: Box(
            image, tmp_path / "root", {place: volume(tmp_path / name / place.strip("/")) for place in image.volumes}
        )
        for name, image in images.items()
    }
