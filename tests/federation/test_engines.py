"""The same plan on Flower's simulation engine gives the same bits as on this machine's processes."""

from __future__ import annotations

import json
import sys

import pytest

from eucaim_fl.compose import resolve
from eucaim_fl.errors import ConfigError, PlanError, RunNotFoundError
from eucaim_fl.federation.launch import launch
from eucaim_fl.federation.run import create_run, execute
from eucaim_fl.federation.server_app import main


@pytest.mark.federated
class TestRay:
    @pytest.mark.long
    def test_ray_and_local_give_the_same_weights(self, hospital, recipe):
        files = [hospital(name) for name in "ab"]
        results = []
        for engine in ("local", "ray"):
            federation = {"engine": engine, "quorum": 2, "quorum_wait_s": 60.0}
            config = recipe(files, rounds=2, federation=federation)
            resolved = resolve(config)
            folder = create_run(config, resolved.plan, resolved.site_files)
            results.append(execute(folder, config, resolved.site_files)[0])
        assert results[0]["weights_sha256"] == results[1]["weights_sha256"]
        assert results[0]["metrics"] == results[1]["metrics"]
        assert results[0]["plan_sha256"] == results[1]["plan_sha256"]

    def test_without_ray_it_says_how_to_get_it(self, hospital, recipe, monkeypatch):
        monkeypatch.setitem(sys.modules, "ray", None)
        config = recipe([hospital("a")], federation={"engine": "ray"})
        resolved = resolve(config)
        folder = create_run(config, resolved.plan, resolved.site_files)
        with pytest.raises(ConfigError, match="Ray is not installed"):
            launch(folder, config.federation, resolved.site_files)


class TestServerApp:
    class Context:
        def __init__(self, folder):
            self.run_config = {"run-folder": str(folder)}

    def test_a_folder_without_plan_is_no_run(self, tmp_path):
        with pytest.raises(RunNotFoundError, match="no plan"):
            main(None, self.Context(tmp_path))

    def test_a_damaged_plan_is_refused(self, tmp_path):
        (tmp_path / "plan.json").write_text(json.dumps({"schema_version": 1}))
        with pytest.raises(PlanError, match="not valid"):
            main(None, self.Context(tmp_path))
