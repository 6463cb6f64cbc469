"""The run report: the answer, the numbers, the gaps, and nothing from elsewhere."""

from __future__ import annotations

import base64
import dataclasses
import re
import zlib
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from eucaim_fl.config import ExperimentConfig, MethodConfig
from eucaim_fl.plan import FederationPlan, make_plan
from eucaim_fl.records import ModelName, Participation, RoundRecord, SiteMetrics
from eucaim_fl.validation.figures import curves_svg, png_data_uri
from eucaim_fl.validation.report import PREDICTION_RGB, TRUTH_RGB, render
from eucaim_fl.validation.wording import model_words

SITES = ("alpha", "beta", "gamma", "delta")
HOSTILE = '<script>alert("x")</script><img src=//evil.example>&"\'$x_1$'


def make(task: dict[str, Any] | None = None, rounds: int = 8, sites: tuple[str, ...] = SITES) -> FederationPlan:
    config = ExperimentConfig.model_validate(
        {
            "name": "lesions",
            "rounds": rounds,
            "sites": sites,
            "task": task or {"name": "segmentation", "spatial_dims": 2, "labels": ("lesion",)},
            "model": {"name": "unet"},
            "training": {"local_steps": 20},
        }
    )
    return make_plan(config, sites)


def story(plan: FederationPlan) -> list[RoundRecord]:
    """A plausible run: Dice rises, sites differ, gamma dies in round 2 and is late in 3 and 4, delta withholds."""
    records = []
    for number in range(1, plan.rounds + 2):
        final = number == plan.rounds + 1
        metrics, participation = {}, []
        for index, site in enumerate(plan.sites):
            out = {2: "lost", 3: "deadline", 4: "deadline"}.get(number) if site == "gamma" else None
            reason = {"lost": "The worker process ended.", "deadline": "No answer within 600 s."}.get(out or "", "")
            participation.append(
                Participation(
                    site, out or "took_part", "EFL303" if out else "", reason,  # type: ignore[arg-type]
                    0 if out else 12 + 9 * index, 0.0 if out else 2.5 + index,
                    0 if out or final else 1_900_000, 1_900_000,
                )
            )  # fmt: skip
            if out:
                continue
            dice = (0.9 - 0.04 * index) * (1 - 0.55 ** (number - 1)) + 0.004 * ((number * (index + 3)) % 5)
            splits = ("validation", "test") if final else ("validation",)
            metrics[site] = tuple(
                SiteMetrics(split, 4 + index, withheld="fewer than 8 patients")  # type: ignore[arg-type]
                if site == "delta"
                else SiteMetrics(split, 4 + index, {"dice": dice, "dice_lesion": dice, "hd95_mm": 24 * (1 - dice) + 2})  # type: ignore[arg-type]
                for split in splits
            )
        pooled_dice = 0.86 * (1 - 0.55 ** (number - 1)) + 0.004 * ((number * 3) % 5)
        pooled = {"dice": pooled_dice, "dice_lesion": pooled_dice, "hd95_mm": 24 * (1 - pooled_dice) + 2}
        records.append(
            RoundRecord(
                number, "a" * 64, "b" * 64, tuple(participation), metrics,
                {s: {**pooled, "patients": 15.0} for s in (("validation", "test") if final else ("validation",))},
                {} if final else {site: 1.1 * 0.72**number + 0.06 * i for i, site in enumerate(metrics)},
                () if final else tuple(metrics), 9.0, 0.2, 2 if number == 3 else 1,
            )
        )  # fmt: skip
    return records


def outcome(dice: float = 0.8642) -> dict[str, Any]:
    return {
        "plan_sha256": "c" * 64,
        "weights_sha256": "d" * 64,
        "rounds": 8,
        "split": "test",
        "metrics": {
            "pooled": {"dice": dice, "hd95_mm": 5.318, "patients": 15},
            "sites": {
                "alpha": {"dice": 0.9012, "hd95_mm": 4.1, "patients": 4},
                "beta": {"dice": 0.8467, "hd95_mm": 5.9, "patients": 5},
                "gamma": {"dice": 0.8071, "hd95_mm": 6.66, "patients": 6},
            },
        },
    }


def blob_pictures(count: int = 4, size: int = 192) -> np.ndarray[Any, np.dtype[np.uint8]]:
    y, x = np.mgrid[:size, :size] / size - 0.5
    pictures = []
    for index in range(count):
        grey = 60 + 60 * np.cos(9 * x + index) * np.cos(7 * y) + 40 * (np.hypot(x, y) < 0.42)
        rgb = np.repeat(grey[..., None], 3, axis=2)
        for radius, colour in ((0.16, TRUTH_RGB), (0.15 + 0.01 * index, PREDICTION_RGB)):
            distance = np.hypot(x - 0.1, y + 0.05 * index - 0.1)
            rgb[np.abs(distance - radius) < 0.008] = colour
        pictures.append(rgb.clip(0, 255).astype(np.uint8))
    return np.stack(pictures)


PROVENANCE = {
    "python": "3.11.9",
    "packages": {"eucaim-fl": "0.1.0", "monai": "1.6.1", "numpy": "2.4.6", "torch": "2.13.0"},
    "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": True},
    "seed": 0,
    "plan_sha256": "c" * 64,
    "machine": {"system": "Linux 6.1", "architecture": "x86_64", "cpu": "Example CPU", "cores": 2},
    "cohorts": {site: f"{index}" * 64 for index, site in enumerate(SITES)},
}


def report(plan: FederationPlan | None = None, **changes: Any) -> str:
    plan = plan or make()
    given: dict[str, Any] = {
        "records": story(plan), "result": outcome(), "previews": {"alpha": blob_pictures(2)}, "provenance": PROVENANCE,
    }  # fmt: skip
    return render(plan, **{**given, **changes})


class Reader(HTMLParser):
    """Collects tags with their attributes, and the text that a person sees."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._hidden = 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._hidden += tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag == "style"

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.text += data + " "


@pytest.fixture(scope="module")
def page() -> str:
    return report()


class TestRender:
    def test_the_answer_comes_first_with_its_number_of_patients(self, page: str) -> None:
        text = " ".join(Reader(page.split("<section")[0]).text.split())
        assert "Segmentation of lesion" in text
        assert "0.864 Dice over 15 test patients" in text
        assert "4 of 4 sites took part, 8 of 8 rounds completed." in text

    def test_every_site_has_its_row_and_the_pooled_value_ends_the_table(self, page: str) -> None:
        table = page[page.index("Test patients") :]
        rows = re.findall(r"<tr>(.*?)</tr>", table[: table.index("</table>")], flags=re.DOTALL)
        cells = [[re.sub("<.*?>", "", c) for c in re.findall(r"<t[hd].*?</t[hd]>", row)] for row in rows]
        assert cells == [
            ["Site", "Patients", "Dice", "HD95, mm"],
            ["alpha", "4", "0.901", "4.10"],
            ["beta", "5", "0.847", "5.90"],
            ["delta", "–", "withheld", "withheld"],
            ["gamma", "6", "0.807", "6.66"],
            ["Pooled", "15", "0.864", "5.32"],
        ]

    def test_a_withheld_metric_says_why(self, page: str) -> None:
        assert "delta withheld its metrics: fewer than 8 patients" in page

    def test_the_one_reason_that_sites_tell_is_put_in_words(self) -> None:
        records = story(make())
        silent = {"alpha": (SiteMetrics("test", 0, withheld="by_the_sites_rules"),)}
        page = report(records=[*records[:-1], dataclasses.replace(records[-1], metrics=silent)])
        assert "alpha withheld its metrics: its rules let none leave (nobody or too few patients, the policy" in page
        assert "by_the_sites_rules" not in page

    def test_absences_are_told_by_site_rounds_and_reason(self, page: str) -> None:
        text = " ".join(Reader(page).text.split())
        assert "gamma , round 2: its process ended. The worker process ended. (EFL303)" in text
        assert "gamma , rounds 3–4: did not answer in time. No answer within 600 s. (EFL303)" in text
        assert page.count('class="no" title=') == 3

    def test_time_and_data_are_added_up_per_site(self, page: str) -> None:
        text = " ".join(Reader(page[page.index('id="cost"') :]).text.split())
        assert "alpha 12 22.5 s 17.1 MB 15.2 MB" in text
        assert "The rounds took 1 min 21 s, of which 1.8 s to combine the updates." in text
        assert "In 1 of them missing sites were asked again." in text

    def test_plan_and_provenance_are_there(self, page: str) -> None:
        text = " ".join(Reader(page).text.split())
        assert make().sha256() in text
        assert "Never sent images, labels, clinical values" in text
        assert "0123456789abcdef0123456789abcdef01234567 with local changes" in text
        assert "torch 2.13.0" in text

    def test_nothing_is_fetched_or_executed(self, page: str) -> None:
        assert "http" not in page.replace("http-equiv", "")
        assert "@import" not in page
        assert not re.search(r"url\((?!#)", page)
        for tag, attributes in Reader(page).tags:
            assert tag not in {"script", "link", "iframe", "object", "embed", "base", "form", "a"}
            assert not [name for name in attributes if name.startswith("on")]
            for name in ("src", "href"):
                assert (attributes.get(name) or "#").startswith(("data:image/png;base64,", "#"))

    def test_ids_are_unique(self, page: str) -> None:
        ids = [attributes["id"] for _, attributes in Reader(page).tags if "id" in attributes]
        assert len(ids) == len(set(ids)) > 50

    def test_the_same_input_gives_the_same_bytes(self, page: str) -> None:
        assert report() == page

    def test_the_caption_names_truth_and_prediction_in_the_colours_of_the_pictures(self, page: str) -> None:
        from eucaim_fl.tasks import pictures

        assert (TRUTH_RGB, PREDICTION_RGB) == (pictures.TRUTH_COLOUR, pictures.PREDICTION_COLOUR)
        place = page.index("Truth: the outline")
        assert f"rgb{TRUTH_RGB}" in page[place - 80 : place]
        place = page.index("Prediction of the model")
        assert f"rgb{PREDICTION_RGB}" in page[place - 80 : place]

    def test_without_pictures_there_is_no_gallery(self) -> None:
        page = report(previews={})
        assert "<img" not in page
        assert "Truth:" not in page


class TestHostileText:
    @pytest.fixture
    def page(self) -> str:
        plan = make()
        renamed = plan.model_copy(update={"sites": (HOSTILE, "beta")})
        records = []
        for record in story(plan):
            mine = Participation(HOSTILE, "error", HOSTILE, HOSTILE)
            entry = SiteMetrics("validation", 4, {"dice": 0.5, HOSTILE: 0.25})
            test = SiteMetrics("test", 4, withheld=HOSTILE)
            records.append(
                dataclasses.replace(
                    record, participation=(mine,), metrics={HOSTILE: (entry, test)}, train_loss={HOSTILE: 0.5},
                    pooled={"validation": {"dice": 0.5, HOSTILE: 0.5}},
                )
            )  # fmt: skip
        result = outcome() | {"weights_sha256": HOSTILE}
        provenance = PROVENANCE | {"cohorts": {HOSTILE: HOSTILE}, "packages": {HOSTILE: HOSTILE}}
        return render(renamed, records, result, {HOSTILE: blob_pictures(1)}, provenance)

    def test_it_makes_no_element(self, page: str) -> None:
        allowed = {tag for tag, _ in Reader(report()).tags}
        assert {tag for tag, _ in Reader(page).tags} <= allowed
        assert "<script" not in page
        assert "<img src=//" not in page

    def test_it_is_shown_as_it_is(self, page: str) -> None:
        assert Reader(page).text.count(HOSTILE) > 5


class TestMissingValues:
    def test_a_run_whose_metrics_are_all_withheld_says_so(self) -> None:
        plan = make()
        silent = tuple((site, (SiteMetrics("test", 0, withheld="too few patients"),)) for site in plan.sites)
        records = [dataclasses.replace(r, metrics=dict(silent), pooled={}) for r in story(plan)]
        page = report(plan, records=records, result=outcome() | {"metrics": {"pooled": {}, "sites": {}}})
        assert "<b>withheld</b>" in page
        assert "alpha withheld its metrics: too few patients" in page

    def test_a_run_without_a_completed_round_has_a_report(self) -> None:
        page = report(records=[], result={}, previews={}, provenance={})
        assert "0 of 8 rounds completed" in page
        assert "No site sent metrics of the final model" in page

    def test_a_site_that_missed_the_final_evaluation_gave_no_answer(self) -> None:
        plan = make()
        records = story(plan)
        last = records[-1]
        records[-1] = dataclasses.replace(last, metrics={s: m for s, m in last.metrics.items() if s != "beta"})
        result = outcome()
        del result["metrics"]["sites"]["beta"]
        page = report(plan, records=records, result=result)
        assert re.search(r'<th scope="row">beta</th><td>–</td><td class="none">no answer</td>', page)

    def test_classification_speaks_of_frames_and_its_own_metrics(self) -> None:
        plan = make({"name": "classification", "target": "malignant", "classes": ("no", "yes")})
        result = {"split": "test", "metrics": {"pooled": {"auc": 0.8123, "brier": 0.12, "patients": 40}}}
        page = report(plan, result=result)
        assert "Classification of malignant into no, yes" in page
        assert "0.812" in page
        assert "Blue frame: the likeliest class is the true one." in page


class TestOwnModels:
    def of(self, personal: dict[str, Any], models: tuple[ModelName, ...]) -> tuple[FederationPlan, list[RoundRecord]]:
        plan = make()
        plan = plan.model_copy(update={"method": MethodConfig.model_validate({"personal": personal})})
        records = story(plan)
        records = [
            dataclasses.replace(r, metrics={s: self.measured(ms, models, r.final) for s, ms in r.metrics.items()})
            for r in [*records[:-1], dataclasses.replace(records[-1], final=True)]
        ]
        return plan, records

    def measured(
        self, entries: tuple[SiteMetrics, ...], models: tuple[ModelName, ...], final: bool
    ) -> tuple[SiteMetrics, ...]:
        """The same figures for each model, better by 0.01 from one to the next."""
        return tuple(
            dataclasses.replace(m, model=model, values={n: v + 0.01 * k for n, v in m.values.items()})
            for k, model in enumerate(models if final else models[:1])
            for m in entries
        )

    def result(self, models: tuple[str, ...], chosen: dict[str, str]) -> dict[str, Any]:
        one = {"pooled": {"dice": 0.8, "patients": 15}, "sites": {"alpha": {"dice": 0.9}, "beta": {"dice": 0.7}}}
        return {**outcome(), "models": dict.fromkeys(models, one), "chosen": chosen}

    def test_each_site_s_models_stand_side_by_side_and_the_choice_is_marked(self) -> None:
        plan, records = self.of({"ditto": 0.5, "local": True, "choose": True}, ("common", "personal", "local"))
        result = self.result(("common", "personal", "local", "chosen"), {"alpha": "personal", "beta": "common"})
        page = render(plan, records, result, {}, {})
        section = page[page.index("Which model each site uses") :]
        section = section[: section.index("</section>")]
        assert "Personal (drawn to the common one, λ = 0.5)" in section
        rows = re.findall(r'<tr><th scope="row">(\w+)</th>(.*?)</tr>', section)
        marked = {name: [("chosen" in cell) for cell in re.findall(r"<td.*?</td>", cells)] for name, cells in rows}
        assert marked["alpha"] == [False, True, False]
        assert marked["beta"] == [True, False, False]
        assert "No choice came from delta, gamma." in section
        assert "With the model that each site chose: 0.800 over 15 patients." in section

    def test_curves_and_tables_are_those_of_one_model(self) -> None:
        plan, records = self.of({"local": True}, ("common", "local"))
        page = render(plan, records, {}, {}, {})
        plain = render(make(), story(make()), {}, {}, {})
        figures = [re.findall(r"<figure.*?</figure>", text, re.DOTALL) for text in (page, plain)]
        assert figures[0] == figures[1]
        tables = [re.findall(r"<caption>.*?</table>", text, re.DOTALL) for text in (page, plain)]
        assert tables[0] == tables[1] != []

    def test_a_model_of_which_arrays_stay_at_the_sites_is_called_so(self) -> None:
        plan, records = self.of({"arrays": "normalization"}, ("personal",))
        page = render(plan, records, outcome(), {}, {})
        assert "Some of its arrays stay at the sites" in page
        assert "Which model each site uses" not in page
        assert "Dice on validation patients" in page
        assert "Some of its arrays stay" not in render(make(), story(make()), outcome(), {}, {})


class TestModelWords:
    def test_a_personal_model_is_named_by_how_it_came_about(self) -> None:
        def words(**personal: Any) -> str:
            method = MethodConfig.model_validate({"personal": personal})
            return model_words(make().model_copy(update={"method": method}))["personal"]

        assert words(arrays="head", fine_tune_steps=1) == "Personal (own head, 1 step of fine-tuning)"
        assert words(fine_tune_steps=20) == "Personal (20 steps of fine-tuning)"
        assert words() == "Personal"


class TestCurves:
    def test_many_sites_share_one_colour_and_only_the_extremes_are_named(self) -> None:
        sites = {f"s{i:02d}": [(0, 0.0), (1, i / 40)] for i in range(30)}
        svg = curves_svg("x", sites, [(0, 0.0), (1, 0.4)], 1, unit_range=True)
        names = re.findall(r">(s\d\d|pooled)<", svg)
        assert sorted(names) == ["pooled", "s00", "s29"]
        assert "--site-" not in svg

    def test_gaps_break_the_line_and_values_that_are_not_finite_are_left_out(self) -> None:
        whole = curves_svg("x", {"a": [(0, 0.1), (1, 0.2), (2, 0.3)]}, [], 2)
        broken = curves_svg("x", {"a": [(0, 0.1), (1, float("nan")), (2, float("inf"))]}, [], 2)
        assert "nan" not in broken.lower().replace("dominant", "")
        assert whole != broken
        assert ">a<" in curves_svg("x", {"a": [(1, 0.2)]}, [], 2)

    def test_a_round_that_nobody_measured_is_no_gap(self) -> None:
        every_second = [(0, 0.1), (2, 0.3), (4, 0.2)]
        alone = curves_svg("x", {"a": every_second}, every_second, 4)
        beside = curves_svg("x", {"a": every_second}, [(n, 0.2) for n in range(5)], 4)
        assert beside.count("<use") > alone.count("<use")  # dots between gaps

    def test_names_of_equal_values_do_not_overlap(self) -> None:
        svg = curves_svg("x", {name: [(0, 0.0), (1, 0.9)] for name in "abcdef"}, [(1, 0.9)], 1, unit_range=True)
        places = sorted(float(y) for y, name in re.findall(r'y="([\d.]+)"[^>]*>([a-f]|pooled)<', svg) if name)
        assert len(places) == 7
        assert min(np.diff(places)) > 10

    def test_no_fixed_colour_is_left_and_nothing_points_outside(self) -> None:
        svg = curves_svg("x", {"a": [(0, 0.1), (1, 0.2)]}, [(0, 0.1), (1, 0.2)], 1)
        assert not re.search(r"#[0-9a-f]{6}\b", svg)
        assert "http" not in svg


class TestPng:
    def test_the_pixels_come_back(self) -> None:
        picture = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
        data = base64.b64decode(png_data_uri(picture).removeprefix("data:image/png;base64,"))
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        assert (int.from_bytes(data[16:20]), int.from_bytes(data[20:24])) == (3, 2)
        length = int.from_bytes(data[33:37])
        rows = np.frombuffer(zlib.decompress(data[41 : 41 + length]), np.uint8).reshape(2, 10)
        assert (rows[:, 0] == 0).all()
        assert (rows[:, 1:].reshape(2, 3, 3) == picture).all()
