"""Where the two apps meet: worker processes of this machine, Flower's simulation engine on Ray, or hospitals."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict

from eucaim_fl.config import FederationConfig
from eucaim_fl.errors import ConfigError
from eucaim_fl.federation import server_app
from eucaim_fl.federation.local_grid import CLIENT_APP, LocalGrid
from eucaim_fl.federation.progress import listeners
from eucaim_fl.sitefile import DATA_VARIABLE, data_root

__all__ = ["launch"]


def launch(
    folder: Path, federation: FederationConfig, site_files: Mapping[str, Path], client_app: str = CLIENT_APP
) -> None:
    """Run the plan of a run folder over its sites, from where its journal stands.

    site_files: by name, in canonical order. client_app: `module:attribute` of the ClientApp that sites run.
    Raises what the ServerApp raises; ConfigError if Ray is asked for and not installed, LinkError if the federation's
    servers do not answer.
    """
    logging.getLogger("flwr").setLevel(logging.ERROR)
    if federation.engine == "superlink":
        _in_hospitals(folder, federation)
        return
    ordered = dict(sorted(site_files.items()))
    if federation.engine == "ray":
        _on_ray(folder, list(ordered.values()))
        return
    workers = federation.workers or min(len(os.sched_getaffinity(0)), len(ordered))
    grid = LocalGrid(ordered, workers, app=client_app, log_file=folder / "sites.log")
    try:
        context = Context(
            run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={"run-folder": str(folder)}
        )
        server_app.app(grid, context)
    finally:
        grid.close()


def _in_hospitals(folder: Path, federation: FederationConfig) -> None:
    """Through a SuperLink; this process is the server app of the run that it starts there."""
    from eucaim_fl.federation.home import FederationHome
    from eucaim_fl.federation.superlink_grid import SuperlinkGrid

    for noisy in ("httpx", "httpcore"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    told = json.loads((folder / "launch.json").read_text(encoding="utf-8"))

    def tell(text: str) -> None:
        for listener in listeners():
            listener.line(text)

    home = FederationHome(Path(str(federation.home)))
    grid = SuperlinkGrid(home, str(told.get("holder_signature", "")), federation.link_wait_s, tell)
    completed = False
    try:
        context = Context(
            run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={"run-folder": str(folder)}
        )
        server_app.app(grid, context)
        completed = True
    finally:
        grid.close(completed=completed)


def _on_ray(folder: Path, files: list[Path]) -> None:
    """Flower's own engine; the same two apps. The environment carries what its API has no argument for."""
    try:
        import ray  # noqa: F401
    except ModuleNotFoundError:
        raise ConfigError("Ray is not installed.", fix='Install it: pip install "eucaim-fl[ray]".') from None
    from flwr.simulation import run_simulation

    from eucaim_fl.federation import client_app

    told = {
        "EUCAIM_FL_SITE_FILES": json.dumps([str(path) for path in files]),
        DATA_VARIABLE: str(data_root().absolute()),
        server_app.RUN_FOLDER_VARIABLE: str(folder),
    }
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    backend: dict[str, Any] = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0},
        "init_args": {"logging_level": 50},
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run_simulation(server_app.app, client_app.app, len(files), backend_config=backend)
    finally:
        server_app.stopping.set()
        with server_app.running:  # the app's thread does not hear Ctrl-C; the run folder is its until it ends
            server_app.stopping.clear()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
