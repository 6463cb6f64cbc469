"""What a site signs is its record, whatever it looks like as text; and nothing else fits."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from eucaim_fl.errors import SealError
from eucaim_fl.signing import PrivateKey, canonical_json
from eucaim_fl.validation.record import ModelFigures, check_record
from eucaim_fl.validation.signed import PURPOSE, RECORD, RecordSignature, fits, record_sha256, signed_by, statement
from tests.validation.site_records import decided, plan_for, record, whole

PLAN = plan_for("classification", ["a", "b"])
KEY, OTHER = PrivateKey.create(), PrivateKey.create()


@pytest.fixture(scope="module")
def told():
    rng = np.random.default_rng(0)
    found = record(PLAN, "a", whole(40, decided(PLAN, rng.random(40), rng.integers(0, 2, 40))), told_before=2)
    check_record(found, PLAN)
    return found


@pytest.fixture(scope="module")
def signature(told):
    return KEY.sign(PURPOSE, statement(told))


class TestSigned:
    def test_the_signature_is_of_plan_site_and_record(self, told, signature):
        assert statement(told)["plan_sha256"] == PLAN.sha256()
        assert statement(told)["site"] == "a"
        assert signed_by(told, signature, KEY.public) == RecordSignature(KEY.public, signature)
        assert fits(told, RecordSignature(KEY.public, signature))

    def test_it_fits_after_any_way_through_json(self, told, signature):
        text = json.dumps(statement(told)["record"], indent=3).replace("40.0", "40")
        again = RECORD.validate_json(text)
        assert fits(again, RecordSignature(KEY.public, signature))
        assert record_sha256(again) == record_sha256(told)
        assert canonical_json(statement(again)) == canonical_json(statement(told))

    @pytest.mark.parametrize(
        "change",
        [
            {"site": "b"},
            {"plan_sha256": "0" * 64},
            {"told_before": 0},
            {"data_is": "public"},
            {"failed": {"time": 1}},
            {"scopes": (whole(40, ModelFigures()),)},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_signed_by_refuses_any_other_record(self, told, signature, change):
        with pytest.raises(SealError, match="not that of the site's key over this record"):
            signed_by(replace(told, **change), signature, KEY.public)

    def test_signed_by_refuses_other_keys_and_purposes(self, told, signature):
        for key, text in (
            (OTHER.public, signature),
            ("", signature),
            (KEY.public, KEY.sign("reply", statement(told))),
            (KEY.public, "A" * 86),
        ):
            with pytest.raises(SealError, match="not that of the site's key"):
                signed_by(told, text, key)
        with pytest.raises(SealError, match="is not signed"):
            signed_by(told, "", KEY.public)
