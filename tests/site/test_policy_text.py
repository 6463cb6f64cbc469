"""A policy in words that people who don't program can check."""

from __future__ import annotations

from typing import Any

import pytest

from eucaim_fl.signing import PrivateKey, fingerprint
from eucaim_fl.site.policy import Policy
from eucaim_fl.site.policy_text import SILENT, describe


def says(**values: Any) -> dict[str, str]:
    return describe(Policy.model_validate({"schema": "eucaim-fl-policy/1", **values}))


class TestDescribe:
    def test_silence_is_named(self):
        silent = {key for key, words in says().items() if words == SILENT}
        assert {"valid_until", "purposes", "networks", "rounds", "hours", "sent_mb.plan", "privacy"} <= silent
        assert {"targets", "plans.day", "plans.total", "work.minutes"} <= silent

    @pytest.mark.parametrize(
        ("values", "key", "words"),
        [
            ({"networks": "any"}, "networks", "any network"),
            ({"networks": ["unet"]}, "networks", "only unet"),
            ({"targets": "any"}, "targets", "any clinical column"),
            ({"targets": ["malignant", "any"]}, "targets", "may learn: malignant, any"),
            ({"plans": {"day": 20}}, "plans.day", "at most 20 different plans"),
            ({"plans": {"total": 1000}}, "plans.total", "at most 1000 different plans"),
            ({}, "patients.batch", "no least batch size is asked of plans without noise"),
            ({"patients": {"batch": 10}}, "patients.batch", "a batch has at least 10 images"),
            ({"work": {"minutes": 2.5}}, "work.minutes", "stops after 2.5 minutes"),
            ({"sites": {"at_least": 3}}, "sites.at_least", "the coordinator sees each site's update by itself"),
            ({"sent_mb": {"message": 0.5}}, "sent_mb.message", "0.5 million bytes"),
            ({"pictures": True}, "pictures", "may leave if the site file"),
            ({"approval": "automatic"}, "approval", "no person is asked"),
            ({"asking": {"permits": "not_required"}}, "asking", "no data permit"),
            (
                {"privacy": {"mechanism": "dp", "epsilon": 3, "delta": 1e-5}},
                "privacy",
                "epsilon at most 3 and delta at",
            ),
            ({"hours": "any"}, "hours", "at any time"),
        ],
    )
    def test_each_line_has_a_sentence(self, values, key, words):
        assert words in says(**values)[key]

    @pytest.mark.parametrize("ceilings", [{"mechanism": "none"}, {"mechanism": "dp", "epsilon": 3, "delta": 1e-5}])
    def test_of_test_data_it_is_told_who_they_are_and_who_decides(self, ceilings):
        words = says(privacy={**ceilings, "test_data": ["test"], "held_out": 0.2})["privacy"]
        assert "figures of test patients need none" in words
        assert "about 20 in 100 patients, drawn once by a key of this site, not by plans" in words
        assert "never train under such a plan" in words
        assert "drawn" not in says(privacy=ceilings)["privacy"]

    @pytest.mark.parametrize(("values", "words"), [({}, "30 days"), ({"reserved_days": 1}, "a day")])
    def test_it_is_told_when_what_is_reserved_is_freed(self, values, words):
        told = says(privacy={"mechanism": "dp", "epsilon": 3, "delta": 1e-5, **values})["privacy"]
        assert f"what a plan has reserved is freed when it was idle for {words}" in told

    def test_a_night_is_told_with_its_following_day(self):
        window = {"days": ["mon", "fri"], "start": "20:00", "end": "06:00", "zone": "UTC"}
        assert "mon, fri 20:00 to 06:00 of the following day (UTC)" in says(hours=[window])["hours"]

    def test_bodies_are_told_with_what_is_compared_over_the_telephone(self):
        key = PrivateKey.create().public
        assert fingerprint(key) in says(asking={"bodies": {"hdab": key}})["asking"]
