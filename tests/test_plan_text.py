"""A plan in plain words."""

from __future__ import annotations

import re
from typing import Any

import pytest

from eucaim_fl.config import ExperimentConfig
from eucaim_fl.plan import FederationPlan, make_plan
from eucaim_fl.plan_text import explain

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "sites": ["a", "b"],
    "rounds": 2,
    "task": {"name": "segmentation", "spatial_dims": 2, "labels": ["lesion"]},
    "model": {"name": "unet"},
    "training": {"local_steps": 3},
}
NOISE = {"noise_multiplier": 2.0, "delta": 1e-5, "clipping_norm": 0.5}


def plan_of(**changes: Any) -> FederationPlan:
    return make_plan(ExperimentConfig.model_validate({**RECIPE, **changes}), ("a", "b"))


class TestExplain:
    def test_it_says_what_a_site_does_sends_and_never_sends(self) -> None:
        told = " ".join(explain(plan_of()))
        for phrase in (
            "segmentation of lesion with a 2-D unet, over 2 sites (a, b)",
            "Each of 2 rounds",
            "3 optimizer steps",
            "the change of every model weight",
            "Never sent: images, labels, clinical values, identifiers",
            "A round needs 1 of 2 sites within 3600 s",
            "no noise is added",
        ):
            assert phrase in told

    @pytest.mark.parametrize(
        ("batch", "words"), [(8, "down to 8 people, whatever"), (1, "down to one person, whose image can then be read")]
    )
    def test_without_noise_it_says_to_how_few_people_crafted_weights_bring_an_update(
        self, batch: int, words: str
    ) -> None:
        told = " ".join(explain(plan_of(training={"local_steps": 3, "batch_size": batch})))
        assert f"A coordinator that crafts the arriving weights can bring it {words}" in told

    def test_a_warm_start_is_said(self) -> None:
        assert "an earlier run" not in " ".join(explain(plan_of()))
        warm = plan_of().model_copy(update={"start_sha256": "ab" * 32})
        told = f"Each of 2 rounds (the first begins with weights of an earlier run, SHA-256 {'ab' * 32}): evaluate"
        assert told in " ".join(explain(warm))

    def test_it_knows_classification_epochs_and_the_proximal_term(self) -> None:
        plan = plan_of(
            task={"name": "classification", "target": "malignant", "classes": ["no", "yes"]},
            training={"local_epochs": 2},
            method={"objective": {"name": "proximal", "mu": 0.5}},
            data={"modality": "CT"},
        )
        told = " ".join(explain(plan))
        for phrase in ("classification of 'malignant' into no, yes", "2 epochs", "mu = 0.5", "of CT series", "AUC"):
            assert phrase in told

    def test_it_says_which_series_become_channels_and_what_happens_to_labels(self) -> None:
        rules = [
            {
                "name": "t2", "modality": "MR", "words": ["t2", "tse"], "without": ["fs"], "plane": "axial",
                "thickness_mm": [2.0, 4.0], "body_part": "PROSTATE", "contrast": False,
            },
            {
                "name": "dwi", "b_value": [800.0, 800.0], "image_type": ["ADC"], "echo_time_ms": [50, 90],
                "prefer": "thinnest",
            },
            {"name": "any", "prefer": "first", "contrast": True},
        ]  # fmt: skip
        told = " ".join(explain(plan_of(data={"channels": rules, "labels_on_other_grid": "resample"})))
        for phrase in (
            "t2 = modality MR, described with 't2' and 'tse', not described with 'fs', body part 'PROSTATE', "
            "axial slices, slice thickness 2 to 4 mm, without contrast agent; of several the one with most slices",
            "dwi = image type 'ADC', b-value 800 s/mm², echo time 50 to 90 ms; of several the one with the thinnest",
            "any = with contrast agent; of several the first by its UID",
            "one study that has all of these",
            "The first gives the grid; the others are interpolated onto it",
            "one that lies on other voxels than its image is brought onto the image's",
        ):
            assert phrase in told
        alone = " ".join(explain(plan_of(data={"channels": [{"name": "x"}]})))
        assert "one study that has this, and one series for each: x = any series;" in alone
        assert "The first gives the grid" not in alone
        for phrase in ("Channels:", "Labels:"):
            assert phrase not in " ".join(explain(plan_of()))

    def test_words_of_a_stranger_can_not_steer_a_terminal(self) -> None:
        rules = [{"name": "a", "words": ["\x1b[2J"], "without": ["\n"], "image_type": ["\x07"], "body_part": "\r"}]
        assert all(line.isprintable() for line in explain(plan_of(data={"channels": rules})))


class TestPrivacy:
    """The promise in the words of the plan; its epsilon is computed, never quoted."""

    def told(self, mechanism: str, training: dict[str, Any] | None = None, **changes: Any) -> str:
        privacy = {"mechanism": mechanism, **NOISE, **changes}
        return " ".join(explain(plan_of(privacy=privacy, training=training or {"local_steps": 3})))

    def test_patients_are_sampled_clipped_and_hidden_in_noise(self) -> None:
        told = self.told("patient_dp", sampling_rate=0.1, multiplicity=4)
        for phrase in (
            "train for 3 optimizer steps (patients drawn at random",
            "DP-SGD by patient. In each of 6 steps every training patient takes part with probability 0.1",
            "averaged over 4 of its examples, is clipped to L2 norm 0.5",
            "Gaussian noise of standard deviation 1 (noise multiplier 2) is added to their sum",
            "Each site spends epsilon 0.653 at delta 1e-05 over all 2 rounds for each of its training patients.",
            "no training loss leaves",
            "of other patients not at all",
        ):
            assert phrase in told
        assert "mean training loss" not in told

    def test_epochs_become_steps(self) -> None:
        told = self.told("patient_dp", training={"local_epochs": 2}, sampling_rate=0.1)
        assert "train for 20 optimizer steps" in told
        assert "In each of 40 steps" in told

    def test_a_noised_update_protects_all_patients_alike(self) -> None:
        told = self.told("update_dp", metrics_noise=8.0)
        for phrase in (
            "the site clips its whole update to L2 norm 0.5 and adds Gaussian noise of standard deviation 1 before",
            "for all its patients alike",
            "of other patients with Gaussian noise of 8 times what one patient can change, which is charged for",
        ):
            assert phrase in told
        assert "mean training loss" not in told
        assert "weights by patients" in told

    def test_noise_at_the_server_does_not_protect_from_the_server(self) -> None:
        told = self.told("central_dp")
        for phrase in (
            "the server clips every site's update to L2 norm 0.5 and adds Gaussian noise of standard deviation 1 to",
            "divided by the number of all sites of the plan",
            "hides a site from those who see the models",
            "the server itself sees the updates as they are",
            "every site alike",
            "of other patients not at all",
        ):
            assert phrase in told
        assert "mean training loss" not in told

    @pytest.mark.parametrize("mechanism", ["patient_dp", "update_dp", "central_dp"])
    def test_what_is_said_of_data_and_figures_does_not_gainsay_itself(self, mechanism: str) -> None:
        told = self.told(mechanism, **({"sampling_rate": 0.1} if mechanism == "patient_dp" else {}))
        for phrase in (
            "keeps about 20% of its patients for validation and about 20% for the final test",
            "the site draws them with a key of its own",
            "Sent at the start: the site's short name, the number of its training patients, and a SHA-256",
            "over patients), but only those that the line Figures lets leave.",
            "over validation and test patients, under the same condition; and",
            "whom the site's policy declares as test data leave without noise, and so do all of a site that has no "
            "policy and whose site file calls its data synthetic or public",
        ):
            assert phrase in told

    def test_without_noise_the_shares_and_figures_are_as_they_stand(self) -> None:
        told = " ".join(explain(plan_of()))
        assert "keeps 20% of its patients for validation and 20% for the final test, and trains on the rest." in told
        assert "the number of its training patients and of cases set aside" in told
        assert "the mean training loss" in told
        for phrase in ("Figures", "key of its own", "condition"):
            assert phrase not in told

    def test_what_is_sent_of_steps_and_in_which_rounds_figures_are_is_said(self) -> None:
        told = " ".join(explain(plan_of()))
        assert "the number of steps and of patients whom they saw, the mean training loss, seconds, and Dice" in told
        assert "at the end: the same metrics of the final model over" in told
        seldom = " ".join(explain(plan_of(stopping={"validate_every": 2})))
        assert "the mean training loss, seconds, and in rounds that evaluate, Dice" in seldom
        assert "the number of steps, seconds, and Dice" in self.told("update_dp")

    def test_noise_that_can_be_repeated_is_called_so(self) -> None:
        warning = "Whoever has the plan can take it off again"
        assert warning in self.told("update_dp", secure=False)
        assert warning not in self.told("update_dp")

    @pytest.mark.parametrize("mechanism", ["update_dp", "central_dp"])
    def test_less_noise_costs_more(self, mechanism: str) -> None:
        def spent(noise: float) -> float:
            found = re.search(r"epsilon ([\d.]+) at delta 1e-05", self.told(mechanism, noise_multiplier=noise))
            assert found is not None
            return float(found.group(1))

        assert spent(1.0) > spent(2.0) > spent(8.0) > 0


class TestPersonal:
    def told(self, **personal: Any) -> str:
        return " ".join(explain(plan_of(method={"personal": personal})))

    def test_a_plan_without_own_models_has_no_word_of_them(self) -> None:
        assert "The site's own" not in self.told()

    def test_arrays_that_stay_are_not_said_to_leave(self) -> None:
        told = self.told(arrays="normalization", fine_tune_steps=5)
        for phrase in (
            "The site's own: all of the normalisation layers of the network stays at the site and is in neither",
            "in the end the site makes 5 more steps from the final model, for itself",
            "the change of every model weight that does not stay at the site",
            "never sent.",
        ):
            assert phrase in told
        assert "each of its models" not in told
        assert "the last layer of the network stays" in self.told(arrays="head")

    def test_several_models_are_measured_and_one_is_named(self) -> None:
        told = self.told(ditto=0.5, local=True, choose=True)
        for phrase in (
            "a second model for itself, with as many steps, drawn towards the common one (lambda = 0.5)",
            "a model that sees nothing of the federation",
            "In the end it tells the metrics of each of its models.",
            "names the one that is best by the figures on its validation patients that it tells",
            "A patient who withdraws is not trained on from the next round on; but models that are kept have seen the "
            "patient, and so has the common one.",
            "at the end: the same metrics of each of its models over validation and test patients",
            "and every figure of a model of its own that was trained on fewer than may be behind an update.",
        ):
            assert phrase in told


class TestConditioning:
    def test_a_plan_that_needs_no_statistics_has_no_word_of_them(self) -> None:
        assert not any("before the first round" in line or line.startswith("Inputs") for line in explain(plan_of()))

    def test_what_is_sent_before_the_first_round_is_said(self) -> None:
        told = " ".join(
            explain(
                plan_of(
                    task={"name": "classification", "target": "malignant", "classes": ["no", "yes"]},
                    data={"standardise": "federation"},
                    training={"local_steps": 3, "balance": {"loss": "logits", "expect": "federation"}},
                )
            )
        )
        for phrase in (
            "those of all sites, which are a part of the model",
            "Sent once before the first round: the sums of each channel's mean and mean square over its training "
            "patients, and the number of its training patients of each class",
            "lists no intensity_sums or class_counts refuses",
            "Predictions: brought to the shares of classes in all sites together",
        ):
            assert phrase in told

    def test_a_site_s_own_statistics_are_not_sent(self) -> None:
        told = " ".join(explain(plan_of(data={"standardise": "site"})))
        assert "the site's own, which stay there" in told
        assert "before the first round" not in told

    @pytest.mark.parametrize(
        ("task", "phrases"),
        [
            (
                {"name": "multilabel", "targets": ["oedema", "effusion"]},
                ("a yes or no for each of 'oedema', 'effusion'", "of each column and their means", "of either answer"),
            ),
            (
                {"name": "survival", "time": "time_days", "event": "died"},
                ("orders patients by 'time_days' until 'died'", "the concordance index", "pairs of patients"),
            ),
        ],
        ids=["multilabel", "survival"],
    )
    def test_labels_and_survival_are_told_with_their_columns_and_figures(
        self, task: dict[str, Any], phrases: tuple[str, ...]
    ) -> None:
        told = " ".join(explain(plan_of(task=task, model={"name": "small_cnn"})))
        assert all(phrase in told for phrase in phrases)
