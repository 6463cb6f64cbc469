"""A policy file is read whole or refused, with the line and the key that are wrong; silence allows nothing."""

from __future__ import annotations

import hashlib
from datetime import date
from importlib.resources import files
from pathlib import Path

import pytest
from pydantic import ValidationError

from eucaim_fl.errors import PolicyError
from eucaim_fl.site.policy import Policy, PrivacyPolicy, Window, load_policy

KEY = "ed25519:" + "A" * 43
SMALL = f"""\
schema: eucaim-fl-policy/1
valid_until: 2030-01-31
asking:
  bodies:
    hdab-es: "{KEY}"
networks: [unet]
hours:
  - days: [mon, fri]
    start: 20:00
    end: "06:00"
    zone: Europe/Madrid
pictures: no
metrics: {{names: [dice], decimals: 3}}
"""


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str | bytes) -> Path:
        path = tmp_path / "policy.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


class TestLoading:
    def test_a_policy_is_read_with_its_hash_and_the_line_of_every_key(self, write):
        loaded = load_policy(write(SMALL))
        assert loaded.policy.valid_until == date(2030, 1, 31)
        assert loaded.policy.asking.bodies == {"hdab-es": KEY}
        assert loaded.policy.networks == ("unet",)
        assert loaded.policy.hours == (Window(days=("mon", "fri"), start="20:00", end="06:00", zone="Europe/Madrid"),)
        assert loaded.sha256 == hashlib.sha256(SMALL.encode()).hexdigest()
        wanted = {
            "schema": 1,
            "valid_until": 2,
            "asking.bodies": 4,
            "hours": 7,
            "hours.0.start": 9,
            "metrics.names": 13,
        }
        assert wanted.items() <= loaded.lines.items()

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("eucaim-fl-policy/1", "eucaim-fl-policy/2", r"line 1 \(schema\)"),
            ("2030-01-31", "soon", r"line 2 \(valid_until\)"),
            ("2030-01-31", "1893456000", r"line 2 \(valid_until\)"),
            (KEY, "ssh-ed25519 AAAA", r"line 5 \(asking.bodies\)"),
            ("[unet]", "all", r"line 6 \(networks\)"),
            ("[unet]", "[Unet/../x]", r"line 6 \(networks\)"),
            ("mon, fri", "mon, freitag", r"line 8 \(hours.days\)"),
            ("20:00", "8 pm", r"line 9 \(hours.start\)"),
            ("20:00", '"24:00"', r"line 8 \(hours\)"),
            ("Europe/Madrid", "Europe/Nowhere", r"line 11 \(hours.zone\)"),
            ("Europe/Madrid", "../../etc/passwd", r"line 11 \(hours.zone\)"),
            ("pictures: no", "pictures: never", r"line 12 \(pictures\)"),
            ("[dice]", "[dice, secret_score]", r"line 13 \(metrics.names\)"),
            ("decimals: 3", "decimals: 17", r"line 13 \(metrics.decimals\)"),
            ("schema: eucaim-fl-policy/1", "valid_from: 2020-01-01", r"\(schema is missing\), line 1 \(unknown key\)"),
            ("[unet]", "[unet]\ntargets: all", r"line 7 \(targets\)"),
            ("[unet]", "[unet]\ntargets: [home address]", r"line 7 \(targets\)"),
            ("[unet]", "[unet]\nplans: {day: 0}", r"line 7 \(plans.day\)"),
            ("[unet]", "[unet]\nplans: {total: many}", r"line 7 \(plans.total\)"),
            ("[unet]", "[unet]\nwork: {minutes: 10081}", r"line 7 \(work.minutes\)"),
            ("[unet]", "[unet]\nwork: {minutes: 0}", r"line 7 \(work.minutes\)"),
            ("start: 20:00", "begin: 20:00", r"line 8 \(hours.start is missing\), line 9 \(unknown key\)"),
        ],
    )
    def test_a_wrong_line_is_named(self, write, old, new, message):
        with pytest.raises(PolicyError, match=message) as caught:
            load_policy(write(SMALL.replace(old, new)))
        assert new.split()[-1].strip('"') not in str(caught.value)

    def test_an_unknown_key_stays_here_and_the_nearest_is_proposed(self, write):
        with pytest.raises(PolicyError, match=r"line 14 \(unknown key\)") as caught:
            load_policy(write(f"{SMALL}puposes: [education]\n"))
        assert "puposes" not in str(caught.value)
        assert "'purposes'" in caught.value.fix
        assert "puposes" in caught.value.local_detail

    def test_what_to_do_stands_with_a_missing_schema_and_a_number_out_of_its_range(self, write):
        with pytest.raises(PolicyError, match="schema is missing") as caught:
            load_policy(write(SMALL.replace("schema: eucaim-fl-policy/1\n", "")))
        assert caught.value.fix == "Add the line: schema: eucaim-fl-policy/1"
        with pytest.raises(PolicyError, match=r"\(work.minutes\)") as caught:
            load_policy(write(f"{SMALL}work: {{minutes: 0}}\n"))
        assert caught.value.fix == "Give a value within the range."

    def test_a_number_that_is_not_finite_is_refused(self, write):
        with pytest.raises(PolicyError, match=r"line 15 \(update.largest_norm\)"):
            load_policy(write(f"{SMALL}update:\n  largest_norm: .inf\n"))

    def test_a_file_that_is_missing_or_no_file_is_refused_at_once(self, tmp_path):
        for path in (tmp_path / "none.yaml", tmp_path, Path("/dev/zero")):
            with pytest.raises(PolicyError, match="missing or can't be read") as caught:
                load_policy(path)
            assert str(path) not in str(caught.value)

    def test_what_is_no_plain_yaml_is_refused_with_the_path_for_people_here(self, write):
        path = write("!!python/object/apply:os.system ['true']")
        with pytest.raises(PolicyError, match="has a tag at line 1") as caught:
            load_policy(path)
        assert str(path) in caught.value.local_detail


class TestSilence:
    def test_it_is_strict(self):
        silent = Policy(schema="eucaim-fl-policy/1")
        assert silent.asking.permits == "required"
        assert silent.approval == "manual"
        assert not silent.pictures
        assert not silent.score_histograms
        assert (silent.networks, silent.hours, silent.purposes, silent.tasks, silent.datasets) == ((),) * 5
        assert silent.privacy.mechanism is None
        assert silent.targets == ()
        assert (silent.plans.day, silent.plans.total, silent.work.minutes) == (None,) * 3


class TestPrivacyPolicy:
    @pytest.mark.parametrize(
        "values",
        [{"mechanism": "dp"}, {"mechanism": "dp", "epsilon": 3}, {"mechanism": "none", "epsilon": 3}, {"delta": 0.1}],
    )
    def test_ceilings_and_differential_privacy_belong_together(self, values):
        with pytest.raises(ValidationError, match="mechanism dp"):
            PrivacyPolicy(**values)

    def test_test_data_name_the_share_that_is_held_out(self):
        policy = PrivacyPolicy(mechanism="none", test_data=("test",), held_out=0.2)
        assert (policy.test_data, policy.held_out) == (("test",), 0.2)

    def test_what_is_reserved_is_kept_for_whole_days_and_at_least_one(self):
        assert PrivacyPolicy().reserved_days == 30
        assert PrivacyPolicy(reserved_days=1).reserved_days == 1
        for wrong in (0, 1.5, 3651):
            with pytest.raises(ValidationError, match="reserved_days"):
                PrivacyPolicy.model_validate({"reserved_days": wrong})

    @pytest.mark.parametrize("values", [{"test_data": ("test",)}, {"held_out": 0.2}], ids=["no_share", "no_split"])
    def test_test_data_and_their_share_need_each_other(self, values):
        with pytest.raises(ValidationError, match="held_out, the share of patients that never train, and test_data"):
            PrivacyPolicy(mechanism="none", **values)

    @pytest.mark.parametrize("share", [0, 1, -0.1, float("nan"), "a fifth"])
    def test_a_share_is_a_part_of_the_whole(self, share):
        with pytest.raises(ValidationError, match="held_out"):
            PrivacyPolicy(mechanism="none", test_data=("test",), held_out=share)


class TestTheTemplate:
    def test_it_can_be_read_and_leaves_what_only_the_hospital_knows_to_it(self):
        policy = load_policy(Path(str(files("eucaim_fl.site") / "templates" / "policy.yaml"))).policy
        assert policy.valid_until is None
        assert policy.datasets == ()
        assert policy.asking.bodies == {}
        assert policy.targets == ()

    def test_it_bounds_plans_and_work(self):
        policy = load_policy(Path(str(files("eucaim_fl.site") / "templates" / "policy.yaml"))).policy
        assert (policy.plans.day, policy.plans.total, policy.work.minutes) == (20, 1000, 240)

    def test_every_key_of_the_model_stands_in_it(self):
        text = (files("eucaim_fl.site") / "templates" / "policy.yaml").read_text()
        models = [
            Policy,
            *(f.annotation for f in Policy.model_fields.values() if hasattr(f.annotation, "model_fields")),
        ]
        names = {field.alias or name for model in models for name, field in model.model_fields.items()}
        missing = [name for name in sorted(names | set(Window.model_fields)) if f"{name}:" not in text]
        assert not missing
