"""Where a federation runs is the recipe's choice; an engine that is not there is named."""

from __future__ import annotations

import json
import socket
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from eucaim_fl.config import FederationConfig
from eucaim_fl.errors import ConfigError, LinkError
from eucaim_fl.federation.home import Settings, create
from eucaim_fl.federation.launch import launch
from eucaim_fl.federation.server_app import RUN_FOLDER_VARIABLE


class TestLaunch:
    def test_ray_is_asked_for_and_not_installed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for variable in ("EUCAIM_FL_SITE_FILES", RUN_FOLDER_VARIABLE, "RAY_USAGE_STATS_ENABLED"):
            monkeypatch.setenv(variable, "")  # put back afterwards, whatever is left in it
        monkeypatch.setitem(sys.modules, "ray", None)
        with pytest.raises(ConfigError, match=r"^Ray is not installed\. Install it: pip install"):
            launch(tmp_path, FederationConfig(engine="ray"), {"a": tmp_path / "a.yaml"})

    def test_a_federation_whose_servers_do_not_run_is_named_at_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("EUCAIM_FL_FEDERATIONS", str(tmp_path / "federations"))
        now = datetime.now(UTC)
        with socket.socket() as nobody_listens:
            nobody_listens.bind(("127.0.0.1", 0))
            port = nobody_listens.getsockname()[1]
            home = create(Settings(name="liver", host="localhost", port=443, superlink_port=port, made_at=now), now)
            (tmp_path / "launch.json").write_text(json.dumps({"holder_signature": ""}))
            federation = FederationConfig(engine="superlink", home=home.folder, link_wait_s=0.0)
            with pytest.raises(LinkError, match="SuperLink"):
                launch(tmp_path, federation, {})
