"""The plan: one canonical text, one hash, and nothing hostile gets in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.config import ExperimentConfig
from eucaim_fl.errors import PlanError, RecipeError
from eucaim_fl.plan import FederationPlan, make_plan, read_plan
from eucaim_fl.validation_config import ValidationConfig

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "sites": ["a", "b"],
    "rounds": 2,
    "task": {"name": "segmentation", "spatial_dims": 2, "labels": ["lesion"]},
    "model": {"name": "unet"},
    "training": {"local_steps": 3},
}
GOLDEN = "14e7069ac20f965c7be93a4c7e6207b93d91f9540df191834215129f2b0d9ca1"


def plan_of(**changes: Any) -> FederationPlan:
    return make_plan(ExperimentConfig.model_validate({**RECIPE, **changes}), ("a", "b"))


TEXT = plan_of().canonical_json()
PRIVACY = {
    "mechanism": "patient_dp", "noise_multiplier": 1.0, "delta": 1e-5, "clipping_norm": 1.0, "sampling_rate": 0.1,
    "metrics_noise": 4.0,
}  # fmt: skip
PRIVATE_TEXT = plan_of(privacy=PRIVACY).canonical_json()


def canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def leaves(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every single value of a plan with its place."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield from leaves(inner, (*place, key))
    if not isinstance(value, dict | list):
        yield place, value


def put(place: tuple[Any, ...], value: object, text: str = TEXT) -> dict[str, Any]:
    """The plan as JSON values with another value at one place."""
    plan = json.loads(text)
    inner = plan
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return plan  # type: ignore[no-any-return]


def asked(**changes: Any) -> dict[str, Any]:
    """A validation of one frozen model, as a plan that says nothing of its data has it."""
    model = {"name": "frozen", "format": "onnx", "sha256": "0" * 64, "size_bytes": 1000, "intended_use": "Research."}
    values = {"models": [{**model, "data": json.loads(TEXT)["data"]}], **changes}
    return ValidationConfig.model_validate(values).model_dump(mode="json")


OTHER_TEXT: dict[tuple[Any, ...], object] = {
    ("name",): "other",
    ("purpose",): "education",
    ("permit",): {"schema": "eucaim-fl-permit/1"},
    ("sites", 0): "0",
    ("sites", 1): "c",
    ("task", "labels", 0): "liver",
    ("task", "spatial_dims"): 3,
    ("model", "name"): "dynunet",
    ("data", "modality"): "CT",
    ("data", "orientation"): "LPS",
    ("data", "colour"): True,
    ("data", "labels_on_other_grid"): "resample",
    ("data", "intensity", "kind"): "zscore",
    ("data", "split", "seed"): 0,
    ("method", "rule", "name"): "median",
    ("method", "rule", "keep"): 1,
    ("method", "server_optimizer", "name"): "adam",
    ("method", "objective", "name"): "proximal",
    ("privacy", "gradients"): "loop",
    ("privacy", "secure"): False,
    ("training", "gradient_clip"): 1.0,
    ("training", "loss"): "dice",
    ("training", "patch_voxels"): [8, 8],
    ("training", "optimizer", "name"): "adam",
    ("training", "schedule", "kind"): "cosine",
    ("training", "precision"): "bfloat16",
    ("training", "balance", "loss"): "weights",
    ("training", "balance", "shares"): "federation",
    ("training", "balance", "sampling"): "classes",
    ("training", "balance", "expect"): "federation",
    ("method", "weighting", "name"): "equal",
    ("method", "personal", "arrays"): "head",
    ("method", "personal", "ditto"): 0.1,
    ("method", "personal", "local"): True,
    ("method", "personal", "choose"): True,
    ("method", "personal", "blend"): True,
    ("training", "optimizer", "kept"): True,
    ("data", "standardise"): "site",
    ("stopping", "patience"): 3,
    ("stopping", "keep"): "best",
    ("start_sha256",): "0" * 64,
    ("validation",): asked(),
    **{("data", "spacing_mm", axis): 3.0 for axis in range(3)},
    **{("data", "size_voxels", axis): 3 for axis in range(3)},
}
FIXED = {
    ("software",),  # other versions are refused
    ("schema_version",),
    ("privacy", "mechanism"),  # would ask for other keys
    ("privacy", "target_epsilon"),  # is refused in plans
    ("task", "name"),  # would ask for other keys
    ("training", "local_epochs"),  # either steps or epochs
}
CLASSES = {"name": "classification", "spatial_dims": 2, "target": "t", "classes": ["0", "1"]}


def of_classes(**balance: str) -> str:
    return plan_of(
        task=CLASSES, model={"name": "small_cnn"}, training={"local_steps": 3, "balance": balance}
    ).canonical_json()


WITHOUT_NOISE = {
    ("training", "gradient_clip"): TEXT,
    ("training", "precision"): TEXT,
    ("training", "balance", "sampling"): of_classes(),
    ("training", "balance"): of_classes(loss="logits"),
    ("data", "standardise"): TEXT,
    ("method", "personal", "choose"): plan_of(method={"personal": {"local": True}}).canonical_json(),
    ("method", "personal", "blend"): plan_of(method={"personal": {"local": True}}).canonical_json(),
    ("training", "optimizer", "kept"): TEXT,
    ("method", "personal"): TEXT,
    ("validation",): plan_of(rounds=1).canonical_json(),
}
"""What noise does not go together with, and what means something with another key only."""
PLACES = [(place, value) for place, value in leaves(json.loads(PRIVATE_TEXT)) if place not in FIXED]


class TestWhatIsAsked:
    CLASSES: ClassVar[dict[str, Any]] = {
        "name": "classification", "target": "malignant", "classes": ["no", "yes", "perhaps"],
    }  # fmt: skip

    def test_statistics_are_asked_for_only_where_those_of_all_sites_are_needed(self) -> None:
        assert not plan_of().needs_statistics()
        assert not plan_of(data={"standardise": "site"}).needs_statistics()
        own = {"local_steps": 3, "balance": {"loss": "weights"}}
        assert not plan_of(task=self.CLASSES, training=own).needs_statistics()

    def test_moments_of_each_channel_and_counts_of_each_class(self) -> None:
        images = plan_of(data={"standardise": "federation", "colour": True})
        assert (images.asked_channels(), images.asked_classes(), images.needs_statistics()) == (3, 0, True)
        training = {"local_steps": 3, "balance": {"loss": "weights", "shares": "federation"}}
        counted = plan_of(task=self.CLASSES, training=training)
        assert (counted.asked_channels(), counted.asked_classes(), counted.needs_statistics()) == (0, 3, True)

    def test_the_model_is_measured_in_the_first_round_every_so_many_and_at_the_end(self) -> None:
        assert plan_of(rounds=3).measured_rounds() == (1, 2, 3, 4)
        assert plan_of(rounds=5, stopping={"validate_every": 2}).measured_rounds() == (1, 3, 5, 6)
        assert plan_of(rounds=5, stopping={"validate_every": 9}).measured_rounds() == (1, 6)


class TestValidation:
    def test_what_is_asked_of_models_is_a_part_of_the_plan(self) -> None:
        found = read_plan(canonical(put(("validation",), asked(bins=50), plan_of(rounds=1).canonical_json())))
        assert found.validation is not None
        assert found.validation.bins == 50

    @pytest.mark.parametrize(
        ("place", "value", "complaint"),
        [
            (("rounds",), 2, "trains nothing"),
            (("start_sha256",), "0" * 64, "trains nothing"),
            (("privacy",), PRIVACY, "trains nothing"),
            (("data", "orientation"), "LPS", r"that of validation\.models\[0\]"),
        ],
    )
    def test_such_a_plan_trains_nothing_and_its_data_is_the_first_models(
        self, place: tuple[Any, ...], value: object, complaint: str
    ) -> None:
        text = canonical(put(("validation",), asked(), plan_of(rounds=1).canonical_json()))
        with pytest.raises(PlanError, match=complaint):
            read_plan(canonical(put(place, value, text)))

    @pytest.mark.parametrize(
        "changes",
        [{"thresholds": [0.5, 0.50000001]}, {"subgroups": [{"by": "age", "edges": [50.0, 50.0000001]}]}],
    )
    def test_what_would_have_one_name_is_refused(self, changes: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="must differ within six digits"):
            asked(**changes)

    def test_two_models_are_asked_of_the_same_patients(self) -> None:
        models = [*asked()["models"], {**asked()["models"][0], "name": "other"}]
        models[1] = {**models[1], "data": {**models[1]["data"], "split": {"seed": 7}}}
        with pytest.raises(PlanError, match=r"same data\.split"):
            read_plan(canonical(put(("validation",), {"models": models}, plan_of(rounds=1).canonical_json())))


class TestTheHash:
    def test_it_is_the_same_on_every_machine(self) -> None:
        assert plan_of().sha256() == GOLDEN

    def test_the_order_of_sites_and_keys_does_not_matter(self) -> None:
        config = ExperimentConfig.model_validate(dict(reversed(RECIPE.items())))
        assert make_plan(config, ("b", "a")).sha256() == GOLDEN

    @pytest.mark.parametrize(("place", "value"), PLACES, ids=[".".join(map(str, place)) for place, _ in PLACES])
    def test_any_other_value_gives_another_hash(self, place: tuple[Any, ...], value: object) -> None:
        if isinstance(value, float):
            other: object = value / 2 if value else 0.25
        else:
            other = OTHER_TEXT[place] if place in OTHER_TEXT else int(str(value)) + 1
        text = next((base for first, base in WITHOUT_NOISE.items() if place[: len(first)] == first), PRIVATE_TEXT)
        assert read_plan(canonical(put(place, other, text))).sha256() != read_plan(text).sha256()

    def test_what_decides_no_result_is_not_in_it(self) -> None:
        assert plan_of(runs_dir="/elsewhere", tracking={"enabled": False}, title="x").sha256() == GOLDEN
        assert plan_of(federation={"workers": 3, "engine": "ray"}).sha256() == GOLDEN


class TestMakePlan:
    @pytest.mark.parametrize(
        ("changes", "complaint"),
        [
            ({"training": {"local_steps": 1, "patch_voxels": [8, 8, 8]}}, "patch_voxels has 3 values, but .* 2-D"),
            ({"data": {"size_voxels": [1024, 1024, 256]}}, r"data\.size_voxels asks for more than 134217728 voxels\."),
            (
                {"data": {"size_voxels": [1024, 1024, 100], "channels": [{"name": "a"}, {"name": "b"}]}},
                "134217728 voxels in all channels together",
            ),
            (
                {
                    "data": {"size_voxels": [512, 512, 16], "channels": [{"name": str(n)} for n in range(16)]},
                    "training": {"local_steps": 1, "batch_size": 129, "patch_voxels": [512, 512]},
                },
                "a training batch would have more than 536870912 voxels",
            ),
            (
                {
                    "task": {"name": "classification", "target": "t", "classes": ["0", "1"]},
                    "training": {"local_steps": 1, "loss": "dice"},
                },
                "Dice is for segmentation",
            ),
            (
                {"privacy": {**PRIVACY, "noise_multiplier": None, "target_epsilon": 8.0}},
                "a plan states its noise, not the epsilon",
            ),
            (
                {"privacy": PRIVACY, "training": {"local_steps": 1, "gradient_clip": 1.0}},
                r"training\.gradient_clip: with patient_dp every patient's gradient is clipped instead",
            ),
            (
                {
                    "privacy": {**PRIVACY, "mechanism": "central_dp", "sampling_rate": None, "metrics_noise": None},
                    "method": {"rule": {"name": "median"}},
                },
                r"method\.rule: central_dp adds noise to the sites' mean; choose weighted_mean",
            ),
        ],
    )
    def test_values_that_contradict_each_other_are_refused(self, changes: dict[str, Any], complaint: str) -> None:
        with pytest.raises(RecipeError, match=complaint):
            make_plan(ExperimentConfig.model_validate({**RECIPE, **changes}), ("a", "b"))

    @pytest.mark.parametrize("names", [("a", "a"), ("A",), ("../a",), ()])
    def test_names_of_sites_must_be_good_and_differ(self, names: tuple[str, ...]) -> None:
        with pytest.raises(RecipeError, match="sites"):
            make_plan(ExperimentConfig.model_validate(RECIPE), names)

    def test_a_seed_for_the_split_goes_before_the_runs_even_if_it_is_zero(self) -> None:
        assert plan_of(seed=7).split_seed() == 7
        assert plan_of(seed=7, data={"split": {"seed": 0}}).split_seed() == 0


class TestReadPlan:
    def test_its_own_text_gives_the_same_plan(self) -> None:
        assert read_plan(TEXT) == plan_of()

    @given(
        st.integers(0, 2**63),
        st.floats(1e-9, 1e9),
        st.lists(st.text("abc", min_size=1, max_size=63), min_size=1, unique=True),
    )
    def test_every_plan_survives_the_way_to_a_site(self, seed: int, lr: float, sites: list[str]) -> None:
        training = {"local_steps": 1, "optimizer": {"lr": lr}}
        config = ExperimentConfig.model_validate(
            {**RECIPE, "seed": seed, "sites": sites, "training": training, "model": {"name": "unet", "args": {"é": lr}}}
        )
        plan = make_plan(config, tuple(sites))
        assert read_plan(plan.canonical_json()) == plan
        assert read_plan(plan.canonical_json()).sha256() == plan.sha256()

    @pytest.mark.parametrize(
        ("place", "value", "complaint"),
        [
            (("_target_",), "os.system", "unknown key '_target_'"),
            (("model", "_target_"), "os.system", r"unknown key 'model\._target_'"),
            (("data", "folder"), "/etc", r"unknown key 'data\.folder'"),
            (("training", "optimizer", "_partial_"), True, "unknown key"),
            (("name",), "../../etc/passwd", "name: must be lower-case letters"),
            (("sites",), ["../a"], r"sites\.0: must be lower-case letters"),
            (("sites",), ["b", "a"], "sites must be sorted"),
            (("sites",), ["a", "a"], "sites must be sorted and differ"),
            (("model", "name"), "torch.nn.Linear", r"model\.name: string should match pattern"),
            (("model", "args"), {"x": float("nan")}, "finite number"),
            (("data", "intensity", "low"), float("-inf"), "finite number"),
            (("privacy", "target_epsilon"), 8.0, "mechanism none takes no epsilon"),
            (("privacy", "mechanism"), "patient_dp", "set exactly one of"),
            (("rounds",), 10_001, "rounds: input should be less than or equal to 10000"),
            (("rounds",), None, "rounds: input should be a valid integer"),
            (("task", "name"), "rm -rf", "task: input tag"),
            (("schema_version",), 2, "schema version is not 1"),
            (("schema_version",), None, "schema version is not 1"),
            (("software",), "99.0", r"asks for eucaim_fl 99\.0, this is"),
            (("software",), "0.1; rm", "software: string should match pattern"),
        ],
    )
    def test_a_hostile_value_is_refused(self, place: tuple[str, ...], value: object, complaint: str) -> None:
        with pytest.raises(PlanError, match=complaint):
            read_plan(canonical(put(place, value)))

    @pytest.mark.parametrize("text", ["", "not json", "{", "\ud800", "[" * 100_000, '{"seed":' + "9" * 5000 + "}"])
    def test_what_is_no_json_is_refused(self, text: str) -> None:
        with pytest.raises(PlanError, match="The plan is not JSON"):
            read_plan(text)

    @pytest.mark.parametrize("text", ["[]", "null", '"x"', "1"])
    def test_what_is_no_mapping_is_refused(self, text: str) -> None:
        with pytest.raises(PlanError, match="valid dictionary"):
            read_plan(text)

    def test_deep_nesting_is_refused(self) -> None:
        with pytest.raises(PlanError, match="not valid"):
            read_plan(TEXT.replace('"args":{}', '"args":{"x":' + "[" * 500 + "]" * 500 + "}"))

    def test_a_text_that_is_too_long_is_refused_before_it_is_parsed(self) -> None:
        with pytest.raises(PlanError, match="longer than 262144 bytes"):
            read_plan("[" * 262_145)

    def test_length_is_counted_in_bytes(self) -> None:
        with pytest.raises(PlanError, match="longer than"):
            read_plan("é" * 131_073)

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("{", "{ "),
            ('"seed":0', '"seed":0.0'),
            ('"seed":0', '"seed":"0"'),
            ('"seed":0', '"seed":false'),
            ('"seed":0', '"seed":1,"seed":0'),
            ('"lr":0.01', '"lr":0.010'),
            ('"lr":0.01', '"lr":1e-2'),
            ('"schema_version":1', '"schema_version":true'),
            ('"name":"tiny"', '"name":"\\u0074iny"'),
            ('"args":{}', '"args":{"x":"\\ud800"}'),
            (',"seed":0', ""),
        ],
    )
    def test_a_second_way_to_write_the_same_plan_is_refused(self, old: str, new: str) -> None:
        assert old in TEXT
        with pytest.raises(PlanError, match=r"not in canonical form|seed: field required"):
            read_plan(TEXT.replace(old, new, 1))

    @given(st.integers(0, len(TEXT) - 1), st.characters(codec="utf-8"))
    def test_one_changed_character_is_refused_or_gives_another_hash(self, place: int, character: str) -> None:
        altered = TEXT[:place] + character + TEXT[place + 1 :]
        try:
            plan = read_plan(altered)
        except PlanError:
            assert altered != TEXT
        else:
            assert (plan.sha256() == GOLDEN) is (altered == TEXT)
