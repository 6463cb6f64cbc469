"""Over a SuperLink, nginx and site clients the same plan gives the same bits as on one machine."""

from __future__ import annotations

import pytest

from tests.federation.deployed import Deployed, deployed

__all__ = ["deployed"]


@pytest.mark.federated
class TestParity:
    def test_a_deployed_run_and_a_local_one_give_the_same_weights(self, deployed: Deployed) -> None:
        there = deployed.begin().result()
        here = deployed.begin("local").result()
        assert there["plan_sha256"] == here["plan_sha256"]
        assert there["weights_sha256"] == here["weights_sha256"]
        assert there["metrics"] == here["metrics"]
