"""Where a federation runs is the recipe's choice; an engine that is not there is named."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from eucaim_fl.config import FederationConfig
from eucaim_fl.errors import ConfigError
from eucaim_fl.federation.launch import launch
from eucaim_fl.federation.server_app import RUN_FOLDER_VARIABLE


class TestLaunch:
    def test_ray_is_asked_for_and_not_installed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for variable in ("EUCAIM_FL_SITE_FILES", RUN_FOLDER_VARIABLE, "RAY_USAGE_STATS_ENABLED"):
            monkeypatch.setenv(variable, "")  # put back afterwards, whatever is left in it
        monkeypatch.setitem(sys.modules, "ray", None)
        with pytest.raises(ConfigError, match=r"^Ray is not installed\. Install it: pip install"):
            launch(tmp_path, FederationConfig(engine="ray"), {"a": tmp_path / "a.yaml"})
