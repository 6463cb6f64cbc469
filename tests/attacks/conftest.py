"""A federation to be attacked: real servers, two honest hospitals that run, a dozen admitted sites that are hostile.

One for all tests of this folder. Everything between the sites and the proxy goes through a tap.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from eucaim_fl.errors import NotAdmittedError, ServiceStateError
from eucaim_fl.federation.proxy import find_nginx
from tests.attacks.federation import HONEST, Attacked, Hand
from tests.attacks.hospitals import Canaries
from tests.attacks.players import ROUNDS, Call, Player, play, script
from tests.groups import at_the_end


@pytest.fixture(scope="session")
def canaries() -> Canaries:
    """What stands in the hospitals' files."""
    return Canaries()


@pytest.fixture(scope="session")
def attacked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, canaries: Canaries) -> Attacked:
    """The federation, running, with both honest sites connected."""
    try:
        find_nginx()
    except ServiceStateError:
        if not (os.environ.get("CI") or os.environ.get("EUCAIM_FL_REQUIRE_NGINX")):
            pytest.skip("nginx is not installed")
        raise
    made = Attacked(tmp_path_factory.mktemp("attacked"), canaries)
    at_the_end(request.config, lambda: made.__exit__(None, None, None))
    made.set_up()
    at_the_end(request.config, made.tap.close)
    made.admit_hostile("mallory", *script())
    made.start(timeout_s=240)  # a busy machine has been slow enough for less
    return made


@pytest.fixture(scope="session")
def hand(request: pytest.FixtureRequest, attacked: Attacked) -> Hand:
    """A run of its own at the SuperLink, for messages of all kinds."""
    made = Hand(attacked)
    at_the_end(request.config, lambda: made.grid.close(completed=True))
    return made


@pytest.fixture
def player(attacked: Attacked) -> Iterator[Callable[..., Player]]:
    """Logs in as an admitted site."""
    made: list[Player] = []

    def log_in(name: str, address: str | None = None) -> Player:
        until = time.monotonic() + 30
        while True:
            try:
                made.append(Player(attacked, name, address))
            except NotAdmittedError:  # the supervisor has not told the SuperLink yet
                if time.monotonic() > until:
                    raise
                time.sleep(0.3)
            else:
                return made[-1]

    yield log_in
    for one in made:
        one.close()


@dataclass(frozen=True)
class Run:
    """A training of two honest and many hostile sites: what `train` printed, its folder, its rounds' records."""

    result: dict[str, Any]
    folder: Path
    rounds: list[dict[str, Any]]

    def entry(self, number: int, site: str) -> dict[str, Any]:
        """What the record of a round says of a site."""
        return next(dict(p) for p in self.rounds[number - 1]["participation"] if p["site"] == site)

    def outcome(self, attack: str) -> dict[str, Any]:
        """What became of an attack; and that nothing of it was averaged."""
        ((site, number),) = [(s, n) for s, names in script().items() for n, a in enumerate(names, 1) if a == attack]
        assert site not in self.rounds[number - 1]["aggregated_from"]
        return self.entry(number, site)


@pytest.fixture(scope="session")
def run(attacked: Attacked) -> Run:
    """Train over everybody, hostile sites included, with a permit and MLflow."""
    stop, call = threading.Event(), Call(sorted(script())[-1])
    players = {Player(attacked, name): attacks for name, attacks in script().items()}
    threads = [threading.Thread(target=play, args=(*pair, stop, call), daemon=True) for pair in players.items()]
    for thread in threads:
        thread.start()
    names = ",".join([*HONEST, *(player.name for player in players)])
    try:
        result = attacked.train(*attacked.overrides("attacked"), f"rounds={ROUNDS}", f"federation.sites=[{names}]")
    finally:
        stop.set()
        call.heard()
        for thread in threads:
            thread.join(10)
        for player in players:
            player.close()
    (folder,) = (attacked.folder / "runs").glob("attacked-*")
    places = sorted(folder.glob("journal/round-*/record.json"))
    return Run(result, folder, [json.loads(place.read_bytes()) for place in places])
