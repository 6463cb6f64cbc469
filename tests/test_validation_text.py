"""A plan that judges frozen models, in plain words: nothing of training is said."""

from __future__ import annotations

import pytest

from eucaim_fl.plan_text import explain
from eucaim_fl.validation_text import explain_validation
from tests.validation.frozen import CLASSES, LABELS, MASKS, SURVIVAL, frozen_plan


class TestExplain:
    def test_it_says_which_models_see_whom_and_what_leaves(self):
        plan = frozen_plan(
            CLASSES, 2, thresholds=[0.3, 0.5], patients="test",
            subgroups=[{"by": "sex"}, {"by": "age", "edges": [50.0, 70.0]}],
            comparisons=[{"metric": "auc", "margin": 0.05}], half_widths={"auc": 0.02},
        )  # fmt: skip
        told = " ".join(explain(plan))
        for phrase in (
            "frozen models for classification of 'dx' into no, yes, judged at 2 sites (a, b)",
            "Nothing is trained",
            f"Model m0: ONNX, standard operators only, 10 bytes, SHA-256 {'0' * 64}",
            "'Research.'",
            "only the 20% that a training with this split (seed 0) holds out",
            "at most 60 s an image, with 4 GB and 1 thread",
            "counts of true against predicted class",
            "cut also at 0.3, 0.5",
            "by sex; age in years (50, 70)",
            "m0 and m1 on the same patients",
            "fixed beforehand: auc, not inferior within 0.05",
            "auc to within ±0.02",
            "Never sent: images, predictions, what a single patient got",
            "no noise is added",
        ):
            assert phrase in told
        for word in ("optimizer", "learning rate", "every model weight", "training loss", "rounds", "update"):
            assert word not in told

    @pytest.mark.parametrize(
        ("task", "words"),
        [
            (MASKS, "surface Dice (within 2 mm)"),
            (LABELS, "of each label how many patients"),
            (SURVIVAL, "pairs whose order is known"),
        ],
    )
    def test_each_task_has_its_figures(self, task, words):
        told = " ".join(explain(frozen_plan(task)))
        assert words in told
        assert "the models see all of them" in told

    def test_programs_are_called_so(self):
        plan = frozen_plan()
        model = plan.validation.models[0].model_copy(update={"format": "torchscript"})
        asked = plan.validation.model_copy(update={"models": (model,)})
        told = " ".join(explain(plan.model_copy(update={"validation": asked})))
        assert "m0 is a program: only sites run it whose policy lists its format" in told

    def test_words_from_elsewhere_are_printable(self):
        plan = frozen_plan()
        model = plan.validation.models[0].model_copy(update={"intended_use": "one\ntwo\t" + "x" * 4000})
        asked = plan.validation.model_copy(update={"models": (model,)})
        assert all(line.isprintable() for line in explain(plan.model_copy(update={"validation": asked})))

    def test_a_plan_that_trains_has_none_of_it(self):
        plan = frozen_plan().model_copy(update={"validation": None})
        assert explain_validation(plan, "", ()) == []
        assert "optimizer" in " ".join(explain(plan))
