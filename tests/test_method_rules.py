"""Which choices of a method, of local training and of privacy go together."""

from __future__ import annotations

from typing import Any

import pytest

from eucaim_fl.config import DataConfig, MethodConfig, PrivacyConfig, TrainingConfig
from eucaim_fl.method_rules import check_conditioning, check_method, check_task

SGD = {"local_steps": 3, "optimizer": {"name": "sgd", "momentum": 0.0}}


def check(method: dict[str, Any], training: dict[str, Any] | None = None, mechanism: str = "none") -> None:
    check_method(MethodConfig.model_validate(method), TrainingConfig.model_validate(training or SGD), mechanism)


class TestCheckMethod:
    @pytest.mark.parametrize(
        "method",
        [
            {},
            {"weighting": {"name": "fair"}},
            {"weighting": {"name": "normalised"}, "objective": {"name": "proximal"}},
            {"objective": {"name": "scaffold"}, "weighting": {"name": "equal"}},
            {"objective": {"name": "dynamic"}, "personal": {"ditto": 0.1, "choose": True}},
            {"rule": {"name": "median"}, "server_optimizer": {"name": "adam"}},
        ],
    )
    def test_what_goes_together_passes(self, method: dict[str, Any]) -> None:
        check(method)

    @pytest.mark.parametrize(
        ("method", "training", "mechanism", "complaint"),
        [
            ({"weighting": {"name": "equal"}, "rule": {"name": "median"}}, SGD, "none", "equal weighs a mean"),
            ({"weighting": {"name": "fair"}}, SGD, "patient_dp", "fair needs the sites' training loss"),
            ({"weighting": {"name": "equal"}}, SGD, "central_dp", "every site counts alike"),
            ({"weighting": {"name": "normalised"}}, {"local_steps": 1, "optimizer": {"name": "adam"}}, "none", "sgd"),
            ({"objective": {"name": "scaffold"}, "rule": {"name": "krum"}}, SGD, "none", "needs the sites' mean"),
            ({"objective": {"name": "dynamic"}, "weighting": {"name": "fair"}}, SGD, "none", "needs the sites' mean"),
            ({"objective": {"name": "dynamic"}}, SGD, "update_dp", "a state of its own"),
            ({"objective": {"name": "dynamic"}}, {"local_epochs": 1}, "none", "equally many steps"),
            ({"objective": {"name": "dynamic", "mu": 0.0}}, SGD, "none", "divides by it"),
            (
                {"objective": {"name": "scaffold"}},
                {"local_steps": 1, "optimizer": {"momentum": 0.9}},
                "none",
                "must be",
            ),
            ({"objective": {"name": "scaffold"}}, {**SGD, "gradient_clip": 1.0}, "none", "gradient_clip null"),
            (
                {"weighting": {"name": "normalised"}},
                {"local_steps": 1, "optimizer": {"name": "sgd", "kept": True}},
                "none",
                "begins afresh",
            ),
            ({"weighting": {"name": "normalised"}}, SGD, "patient_dp", "equally many steps; leave normalised out"),
            ({"weighting": {"name": "fair"}}, {"local_epochs": 1}, "none", r"fair needs .* set training\.local_steps"),
            ({"objective": {"name": "scaffold"}}, {**SGD, "precision": "float16"}, "none", "not float16"),
            ({"personal": {"local": True}}, SGD, "patient_dp", "own models are not trained under"),
            ({}, {**SGD, "balance": {"loss": "weights", "sampling": "classes"}}, "none", "each even the classes out"),
            ({}, {**SGD, "precision": "bfloat16"}, "patient_dp", "made in float32"),
        ],
    )
    def test_what_does_not_is_named(
        self, method: dict[str, Any], training: dict[str, Any], mechanism: str, complaint: str
    ) -> None:
        values = MethodConfig.model_validate(method), TrainingConfig.model_validate(training)
        with pytest.raises(ValueError, match=complaint):
            check_method(*values, mechanism)


class TestCheckConditioning:
    @staticmethod
    def asked(balance: dict[str, Any], standardise: str) -> tuple[DataConfig, TrainingConfig]:
        training = TrainingConfig.model_validate({**SGD, "balance": balance})
        return DataConfig.model_validate({"standardise": standardise}), training

    @pytest.mark.parametrize(
        ("balance", "standardise", "mechanism", "task"),
        [
            ({}, "none", "patient_dp", "segmentation"),
            ({}, "federation", "none", "segmentation"),
            ({"loss": "weights", "shares": "federation"}, "site", "none", "classification"),
            ({"loss": "logits", "expect": "federation"}, "none", "none", "classification"),
            ({"sampling": "classes", "expect": "federation"}, "none", "none", "classification"),
            (
                {"loss": "weights", "strength": 0.5, "shares": "federation", "expect": "federation"},
                "none",
                "none",
                "classification",
            ),
            ({"loss": "logits"}, "none", "central_dp", "classification"),
        ],
    )
    def test_what_goes_together_passes(
        self, balance: dict[str, Any], standardise: str, mechanism: str, task: str
    ) -> None:
        check_conditioning(task, *self.asked(balance, standardise), mechanism)

    @pytest.mark.parametrize(
        ("balance", "standardise", "mechanism", "task", "complaint"),
        [
            ({"loss": "weights"}, "none", "none", "segmentation", "those of a classification"),
            ({"sampling": "classes"}, "none", "none", "segmentation", "those of a classification"),
            ({"expect": "federation"}, "none", "none", "classification", "already expects the shares"),
            (
                {"loss": "logits", "strength": 0.5, "expect": "federation"},
                "none",
                "none",
                "classification",
                r"training\.balance\.expect: with shares of the site and a strength other than 1",
            ),
            ({}, "site", "patient_dp", "classification", "data.standardise: .* not protected by noise"),
            ({}, "federation", "central_dp", "classification", "data.standardise: .* not protected by noise"),
            ({"loss": "weights"}, "none", "patient_dp", "classification", "training.balance: .* not protected"),
            ({"sampling": "classes"}, "none", "update_dp", "classification", "training.balance: .* not protected"),
            (
                {"loss": "logits", "shares": "federation"},
                "none",
                "central_dp",
                "classification",
                "training.balance: .* not protected",
            ),
        ],
    )
    def test_what_does_not_is_named(
        self, balance: dict[str, Any], standardise: str, mechanism: str, task: str, complaint: str
    ) -> None:
        data, training = self.asked(balance, standardise)
        with pytest.raises(ValueError, match=complaint):
            check_conditioning(task, data, training, mechanism)


UPDATE: dict[str, Any] = {"mechanism": "update_dp", "noise_multiplier": 1.0, "delta": 1e-5, "clipping_norm": 1.0}
DP = {**UPDATE, "mechanism": "patient_dp", "sampling_rate": 0.5}


class TestCheckTask:
    @pytest.mark.parametrize(
        ("task", "training", "privacy"),
        [
            ("segmentation", {"loss": "dice"}, {}),
            ("classification", {"loss": "cross_entropy"}, DP | {"metrics_noise": 1.0}),
            ("multilabel", {"loss": "cross_entropy"}, DP),
            ("survival", {}, UPDATE),
        ],
    )
    def test_what_can_be_trained_passes(self, task: str, training: dict[str, Any], privacy: dict[str, Any]) -> None:
        check_task(task, TrainingConfig(local_steps=1, **training), PrivacyConfig.model_validate(privacy))

    @pytest.mark.parametrize(
        ("task", "training", "privacy", "complaint"),
        [
            ("classification", {"loss": "dice_ce"}, {}, "Dice is for segmentation; use cross_entropy"),
            ("multilabel", {"loss": "dice"}, {}, "Dice is for segmentation; use cross_entropy"),
            ("survival", {"loss": "dice"}, {}, "Dice is for segmentation; leave it out"),
            ("survival", {"loss": "cross_entropy"}, {}, "Cox's partial likelihood"),
            ("survival", {"batch_size": 1}, {}, "set it to 2 or more"),
            ("survival", {}, DP, "no gradient of one patient alone"),
            ("survival", {}, UPDATE | {"metrics_noise": 1.0}, "figures of survival can't be noised"),
            ("multilabel", {}, DP | {"metrics_noise": 1.0}, "figures of multilabel can't be noised"),
        ],
    )
    def test_what_can_not_is_named(
        self, task: str, training: dict[str, Any], privacy: dict[str, Any], complaint: str
    ) -> None:
        with pytest.raises(ValueError, match=complaint):
            check_task(task, TrainingConfig(local_steps=1, **training), PrivacyConfig.model_validate(privacy))

    def test_labels_have_no_class_shares(self) -> None:
        balance = TrainingConfig.model_validate({"local_steps": 1, "balance": {"loss": "weights"}})
        with pytest.raises(ValueError, match="those of a classification"):
            check_conditioning("multilabel", DataConfig(), balance, "none")
