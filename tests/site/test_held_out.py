"""The site's client and the attacks on a plan see the same patients train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from eucaim_fl.errors import CohortError, JournalError
from eucaim_fl.exposure import examination
from eucaim_fl.plan import FederationPlan
from eucaim_fl.site import node
from eucaim_fl.site.held_out import held_out_of
from eucaim_fl.site.policy import Policy, PrivacyPolicy
from eucaim_fl.sitefile import SiteFile
from tests.site.confidential import GAUSSIAN

PRIVACY = {"mechanism": "none", "test_data": ["test"], "held_out": 0.4}
POLICY = Policy.model_validate({"schema": "eucaim-fl-policy/1", "privacy": PRIVACY})


@pytest.fixture
def site(tmp_path: Path) -> SiteFile:
    cohort = {"layout": "nifti_csv", "folder": tmp_path / "cohort"}
    return SiteFile.model_validate({"name": "a", "cohort": cohort, "cache": {"folder": tmp_path / "cache"}})


class TestHeldOutOf:
    def test_a_policy_s_share_is_drawn_with_a_key_that_stays(
        self, site: SiteFile, plan_for: Callable[..., FederationPlan]
    ) -> None:
        first = held_out_of(site, plan_for(privacy=GAUSSIAN), POLICY)
        assert first is not None
        assert (first.share, first.splits) == (0.4, ("test",))
        assert held_out_of(site, plan_for(seed=9, privacy=GAUSSIAN), POLICY) == first

    def test_nobody_is_without_a_share_noise_or_confidential_data(
        self, site: SiteFile, plan_for: Callable[..., FederationPlan]
    ) -> None:
        plan = plan_for(privacy=GAUSSIAN)
        public = site.model_copy(update={"release": site.release.model_copy(update={"data_is": "public"})})
        open_policy = POLICY.model_copy(update={"privacy": PrivacyPolicy(mechanism="none")})
        assert held_out_of(site, plan, None) is None
        assert held_out_of(site, plan, open_policy) is None
        assert held_out_of(site, plan_for(), POLICY) is None
        assert held_out_of(public, plan, POLICY) is None
        assert not site.records_folder().exists()

    def test_a_key_that_is_spoilt_is_an_error(self, site: SiteFile, plan_for: Callable[..., FederationPlan]) -> None:
        site.records_folder().mkdir()
        (site.records_folder() / "held_out.key").write_bytes(b"short")
        with pytest.raises(JournalError, match="key of this site"):
            held_out_of(site, plan_for(privacy=GAUSSIAN), POLICY)


def test_who_trains_for_the_client_is_whom_the_attacks_are_on(
    site: SiteFile, tmp_path: Path, plan_for: Callable[..., FederationPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*_: object, held_out: object, **__: object) -> None:
        seen.append(held_out)
        raise CohortError("That is enough.")

    seen: list[object] = []
    for module in (node, examination):
        monkeypatch.setattr(module, "open_cohort", opened)
    plan = plan_for(privacy=GAUSSIAN)
    cohort = {"layout": "nifti_csv", "folder": str(tmp_path / "cohort")}
    written = {"name": "a", "cohort": cohort, "cache": {"folder": str(tmp_path / "cache")}, "policy": "policy.yaml"}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(written))
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump({"schema": "eucaim-fl-policy/1", "privacy": PRIVACY}))
    with pytest.raises(CohortError, match="enough"):
        node.SiteNode(tmp_path / "a.yaml", plan)
    with pytest.raises(CohortError, match="enough"):
        examination.examine(site, plan, examination.Settings(), held_out=held_out_of(site, plan, POLICY))
    assert seen[0] is not None
    assert seen[0] == seen[1]
