"""The validation's page: the answer first, everything named, nothing from elsewhere, nothing that runs."""

from __future__ import annotations

import re
import time
from html import unescape
from html.parser import HTMLParser
from typing import Any

import pytest

from eucaim_fl.errors import DataError
from eucaim_fl.plan import FederationPlan
from eucaim_fl.validation.group_words import group_name
from eucaim_fl.validation.page import About, Signature, render_validation
from eucaim_fl.validation.page.drawing import wrapped
from eucaim_fl.validation.page.mapping import FRAMEWORKS, mapped
from eucaim_fl.validation.page.names import figure_name, parsed
from eucaim_fl.validation.result_schema import ScopeResult, ValidationResult, Verdict
from tests.validation.page_story import OUTLINES, SUPPRESSED, about_of, hospitals, plan_of, result_of

HOSTILE = '<script>alert("x")</script><img src=//evil.example onerror=alert(1)>&"\'</style></svg>'
SEGMENTATION = {"name": "segmentation", "spatial_dims": 3, "labels": ["lesion"]}
_EMPTY = {"meta", "img", "br"}


class _Reader(HTMLParser):
    """Tags, attributes and texts; faults where tags do not close in their order."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.faults: list[str] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)

    def all_words(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.text))


def page_of(plan: FederationPlan, result: ValidationResult | None = None, **about: Any) -> str:
    return render_validation(result or result_of(plan), plan, about_of(plan, **about))


@pytest.fixture(scope="module")
def found() -> ValidationResult:
    """30 hospitals, 2 models, 6 rules of groups."""
    return result_of(plan_of(hospitals(30)))


@pytest.fixture(scope="module")
def large(found: ValidationResult) -> tuple[FederationPlan, str]:
    """The plan and the page of it."""
    plan = plan_of(hospitals(30))
    return plan, page_of(plan, found)


@pytest.fixture(scope="module")
def words(large: tuple[FederationPlan, str]) -> str:
    return _Reader(large[1]).all_words()


def section(page: str, anchor: str) -> str:
    """A part of the page, as words."""
    found = re.search(rf'<section id="{anchor}".*?</section>', page, re.DOTALL)
    assert found, anchor
    return _Reader(found[0]).all_words()


class TestFirstPage:
    def test_it_answers_with_the_results_own_sentences(self, large, found):
        _, page = large
        first = _Reader(page[page.index("<header") : page.index("</header>")]).all_words()
        for verdict in found.verdicts:
            assert verdict.sentence in first
        for question in ("Does it work?", "Where?", "For whom?", "How sure is this?"):
            assert question in first

    def test_it_names_model_hash_use_patients_and_hospitals(self, large, found):
        plan, page = large
        first = _Reader(page[page.index("<header") : page.index("</header>")]).all_words()
        assert plan.validation is not None
        for model in plan.validation.models:
            for said in (model.name, model.sha256, model.intended_use):
                assert said in first
        assert f"{found.models[0].scopes[0].patients:,}" in first
        assert "25 of 30" in first
        assert "27 of 29" in first  # signatures

    def test_bad_news_has_a_word_and_not_a_colour_only(self, large):
        assert '<span class="tone bad">Bad</span>' in large[1]

    def test_a_question_without_a_sentence_says_so(self):
        plan = plan_of(hospitals(3))
        result = result_of(plan).model_copy(update={"verdicts": ()})
        assert page_of(plan, result).count("The result says nothing on this.") == 4


class TestHowItWasAsked:
    def test_everything_that_was_fixed_is_there(self, large):
        plan, page = large
        asked = section(page, "asked")
        times = ("2026-11-02 09:14 UTC", "2026-11-09 16:40 UTC")
        for said in (plan.sha256(), *times, "0.3, 0.6", "not worse by 0.05 or more", "below 50", "± 0.02"):
            assert said in asked
        assert "Nothing was changed after the plan was fixed." in asked

    def test_a_change_is_a_notice_on_the_first_page_and_here(self):
        plan = plan_of(hospitals(3))
        page = page_of(plan, changes=("The threshold 0.7 was looked at.",))
        assert "The threshold 0.7 was looked at." in section(page, "asked")
        assert "Something speaks against a plan that came before any result" in page[: page.index("</header>")]
        assert "Nothing was changed" not in page

    def test_a_result_of_another_plan_is_a_notice(self):
        plan = plan_of(hospitals(3))
        result = result_of(plan).model_copy(update={"plan_sha256": "f" * 64})
        page = page_of(plan, result)
        assert "their hashes differ" in page[: page.index("</header>")]
        assert "Nothing was changed" not in page

    def test_an_unknown_time_is_no_praise(self):
        page = page_of(plan_of(hospitals(3)), fixed_at="")
        assert "Nothing was changed" not in page
        assert "not when" in section(page, "asked")


class TestSections:
    def test_they_come_in_their_order(self, large):
        found = re.findall(r'<section id="(\w+)"', large[1])
        assert found == ["asked", "data", "results", "between", "groups", "calibration", "comparison", "sample",
                         "suppressed", "limits", "signatures", "provenance", "mapping"]  # fmt: skip

    def test_every_address_within_the_page_exists_once(self, large):
        reader = _Reader(large[1])
        ids = [attrs["id"] for _, attrs in reader.tags if "id" in attrs]
        assert len(ids) == len(set(ids))
        for tag, attrs in reader.tags:
            if tag == "a":
                assert (attrs["href"] or "").removeprefix("#") in ids
            for name in (attrs.get("aria-labelledby") or "").split():
                assert name in ids

    def test_every_hospital_is_named_whether_it_answered_or_not(self, large, words):
        plan, _ = large
        for site in plan.sites:
            assert site in words
        assert "did not answer" in words

    def test_more_sentences_than_the_first_page_holds_leave_out_good_news_first_and_stand_in_the_results(self):
        plan = plan_of(hospitals(2), models=1, rules=0)
        tones = ("plain", "good", "good", "bad", "good", "warning", "good", "good")
        told = tuple(
            Verdict(question="does_it_work", tone=tone, sentence=f"Said {at}.") for at, tone in enumerate(tones)
        )
        page = page_of(plan, result_of(plan).model_copy(update={"verdicts": told}))
        top = page[page.index('id="top"') : page.index("<nav")]
        assert [at for at in range(8) if f"Said {at}." in top] == [0, 1, 2, 3, 5]
        assert "3 more sentences on this" in top
        assert " ".join(f"Said {at}." for at in range(8)) in section(page, "results")

    def test_groups_of_which_no_hospital_tells_share_a_row_that_names_them(self):
        plan = plan_of(hospitals(3), models=1, rules=3)
        result = result_of(plan)
        scopes = result.models[0].scopes
        hidden = next(one for one in scopes if one.scope == SUPPRESSED)
        more = tuple(hidden.model_copy(update={"scope": f"manufacturer={name}"}) for name in ("Agfa", "Bruker"))
        model = result.models[0].model_copy(update={"scopes": (*scopes, *more)})
        page = page_of(plan, result.model_copy(update={"models": (model,)}))
        assert section(page, "groups").count("3 other groups") == 3  # one row in each of three plots
        assert "Agfa" not in section(page, "groups")
        assert "ge, Agfa and Bruker suppressed or none 0" in section(page, "data")
        assert "manufacturer: ge, Agfa and Bruker" in section(page, "suppressed")

    def test_a_class_of_which_a_hospital_tells_nobody_is_not_called_zero(self):
        plan = plan_of(hospitals(2), models=1, rules=0)
        result = result_of(plan)
        scope = result.models[0].scopes[0]
        none = scope.sites[0].thresholds[0].model_copy(update={"true_positives": 0, "false_negatives": 0})
        site = scope.sites[0].model_copy(update={"thresholds": (none,)})
        model = result.models[0].model_copy(update={"scopes": (scope.model_copy(update={"sites": (site,)}),)})
        data = section(page_of(plan, result.model_copy(update={"models": (model,)})), "data")
        assert "none told can't be told" in data
        assert "nobody with it, or there are too few to be told" in data

    def test_figures_are_explained_in_words(self, words):
        assert "Share of patients with it whom the model finds at this threshold." in words
        assert "share of the variance between hospitals' estimates that is more than chance" in words

    def test_two_models_with_long_names_can_be_told_apart_at_every_hospital(self):
        heads = wrapped("mammography-triage-network-1", 70) + wrapped("mammography-triage-network-2", 70)
        assert "".join(heads) == "mammography-triage-network-1mammography-triage-network-2"
        assert all(len(one) <= 70 / (12 * 0.56) for one in heads)

    def test_a_suppressed_group_is_named_in_groups_and_among_the_suppressed(self, large):
        _, page = large
        assert "suppressed: too few patients, or the sites' rules let none leave" in section(page, "groups")
        assert f"Scanner's manufacturer: {group_name(SUPPRESSED)}" in section(page, "suppressed")

    def test_a_group_of_the_plan_that_nobody_told_of_is_named(self):
        plan = plan_of(hospitals(4))
        result = result_of(plan)
        models = tuple(
            model.model_copy(update={"scopes": tuple(one for one in model.scopes if one.scope != "age>=70")})
            for model in result.models
        )
        page = page_of(plan, result.model_copy(update={"models": models}))
        assert "no site told of this group" in section(page, "groups")

    def test_figures_have_their_intervals(self, large):
        assert "0.840 (0.829 to 0.851)" in section(large[1], "results")

    def test_forests_have_heterogeneity_and_prediction(self, large):
        between = section(large[1], "between")
        assert "I² 62 % (40 % to 77 %)" in between
        assert "A new hospital" in between

    def test_non_inferiority_is_said_in_the_results_sentence(self, large):
        assert "The first model is not worse by 0.05 or more." in section(large[1], "comparison")

    def test_signatures_say_which_were_verified(self):
        plan = plan_of(hospitals(3))
        broken = (Signature(plan.sites[0], "broken", "ab cd"), Signature(plan.sites[1], "verified", "ef 01"))
        page = page_of(plan, signatures=broken)
        assert "DOES NOT FIT the record" in section(page, "signatures")
        assert plan.sites[0] in page[: page.index("</header>")]
        assert "1 of 2 signatures were verified" in section(page, "signatures")

    def test_without_any_signature_the_page_says_what_that_means(self):
        plan = plan_of(hospitals(3))
        alone = tuple(Signature(site, "missing", said="A run on one machine.") for site in plan.sites)
        words = section(page_of(plan, signatures=alone), "signatures")
        assert "None of the 2 records is signed" in words
        assert "A run on one machine." in words
        assert "were verified" not in words

    def test_outlines_have_agreement_and_lesions_and_no_calibration(self):
        plan = plan_of(hospitals(5), task=SEGMENTATION)
        page = page_of(plan, result_of(plan, OUTLINES))
        results = section(page, "results")
        assert "No patient is drawn as a point: only sums leave a hospital." in results
        assert "612" in results
        assert "no calibration" in section(page, "calibration")
        assert "roc-0" not in page

    def test_one_hospital_and_one_model_without_groups_is_a_page(self):
        plan = plan_of(hospitals(1), models=1, rules=0)
        page = page_of(plan)
        assert "The plan asked for no groups." in section(page, "groups")
        assert "The plan asked for no comparison." in section(page, "comparison")
        assert "fewer than three hospitals" in section(page, "limits")

    def test_nobody_told_anything_and_the_page_says_so(self):
        plan = plan_of(hospitals(3))
        result = result_of(plan)
        empty = ScopeResult(
            scope="all", patients=0, figures={}, thresholds=(), curves=(), volumes=(), lesions=(), confusion=(),
            undefined={}, sites=(), withheld=(), between=(),
        )  # fmt: skip
        models = tuple(model.model_copy(update={"scopes": (empty,)}) for model in result.models)
        silent = tuple(site.model_copy(update={"patients": None, "withheld": "too_few"}) for site in result.sites)
        changed = {"models": models, "sites": silent, "differences": (), "comparisons": ()}
        page = page_of(plan, result.model_copy(update=changed))
        assert "none told" in page[: page.index("</header>")]
        assert "No figures were told." in section(page, "results")


class TestMapping:
    def test_every_place_is_a_section_of_the_page(self, large):
        anchors = set(re.findall(r'<(?:section|header) id="(\w+)"', large[1]))
        for topics in FRAMEWORKS.values():
            for _, where, _ in topics:
                assert set(where or ()) <= anchors

    def test_what_is_not_answered_is_said_to_be_the_providers(self, large):
        found = section(large[1], "mapping")
        assert "Explainability – Not answered here, by the provider" in found
        assert "It is no claim that" in found
        assert "compliant" not in found
        assert "complies" not in found

    def test_a_section_without_an_answer_is_no_place(self):
        titles = {"groups": "Groups of patients", "asked": "How it was asked"}
        rows = dict(mapped(titles, {"asked"}))["FUTURE-AI, principles"]
        assert rows[0].where == ()
        assert rows[0].words.startswith("Not in this report")
        assert dict(mapped(titles, {"asked", "groups"}))["FUTURE-AI, principles"][0].where == (
            ("groups", "Groups of patients"),
        )

    def test_the_six_principles_and_nine_points_are_all_there(self):
        assert [row[0] for row in FRAMEWORKS["FUTURE-AI, principles"]] == [
            "Fairness", "Universality", "Traceability", "Usability", "Robustness", "Explainability",
        ]  # fmt: skip
        assert [row[0][:2] for row in FRAMEWORKS["AI Act, Annex IV"]] == [f"{n}." for n in range(1, 10)]


class TestSafety:
    def test_the_page_is_well_formed_and_needs_nothing_from_elsewhere(self, large):
        _, page = large
        reader = _Reader(page)
        assert (reader.faults, reader.open) == ([], [])
        assert not {"script", "link", "iframe", "object", "img", "form"} & {tag for tag, _ in reader.tags}
        for _, attrs in reader.tags:
            assert not [name for name in attrs if name.startswith("on") or name == "src"]
        assert "://" not in page
        assert "@import" not in page
        assert "url(" not in page
        assert "default-src 'none'" in unescape(page)

    def test_hostile_words_from_everywhere_stay_words(self):
        plan = plan_of(hospitals(4), intended_use=HOSTILE, trained_on=HOSTILE)
        result = result_of(plan)
        scopes = []
        for scope in result.models[0].scopes:
            withheld = tuple(cell.model_copy(update={"reason": HOSTILE}) for cell in scope.withheld)
            figures = {name: one.model_copy(update={"reason": HOSTILE}) for name, one in scope.figures.items()}
            figures[HOSTILE] = next(iter(figures.values()), None)
            between = tuple(
                one.model_copy(update={"worst_site": HOSTILE, "reason": HOSTILE, "figure": HOSTILE,
                                       "rows": tuple(r.model_copy(update={"site": HOSTILE}) for r in one.rows)})
                for one in scope.between
            )  # fmt: skip
            told = tuple(one.model_copy(update={"site": HOSTILE}) for one in scope.sites)
            scopes.append(
                scope.model_copy(update={
                    "scope": scope.scope if scope.scope == "all" else f"manufacturer={HOSTILE}{len(scopes)}",
                    "withheld": withheld, "figures": {k: v for k, v in figures.items() if v}, "between": between,
                    "sites": told, "undefined": {HOSTILE: 3},
                    "curves": tuple(c.model_copy(update={"label": HOSTILE}) for c in scope.curves),
                })
            )  # fmt: skip
        first = result.models[0].model_copy(update={"scopes": tuple(scopes)})
        result = result.model_copy(
            update={
                "models": (first, *result.models[1:]),
                "counted_in": HOSTILE,
                "sites": tuple(
                    one.model_copy(update={"site": HOSTILE, "withheld": HOSTILE, "failed": {HOSTILE: 1}})
                    for one in result.sites
                ),
                "verdicts": tuple(one.model_copy(update={"sentence": HOSTILE}) for one in result.verdicts),
                "comparisons": tuple(
                    one.model_copy(update={"sentence": HOSTILE, "reason": HOSTILE}) for one in result.comparisons
                ),
                "differences": tuple(
                    one.model_copy(update={"group": HOSTILE, "rule": HOSTILE}) for one in result.differences
                ),
                "half_widths": tuple(one.model_copy(update={"sentence": HOSTILE}) for one in result.half_widths),
            }
        )
        about = About(
            HOSTILE, HOSTILE, HOSTILE, (HOSTILE,), (Signature(HOSTILE, "broken", HOSTILE, HOSTILE),),
            ((HOSTILE, HOSTILE, HOSTILE),), ((HOSTILE, HOSTILE),), (HOSTILE,),
        )  # fmt: skip
        page = render_validation(result, plan, about)
        reader = _Reader(page)
        assert (reader.faults, reader.open) == ([], [])
        assert not {"script", "img"} & {tag for tag, _ in reader.tags}
        for _, attrs in reader.tags:
            assert not [name for name in attrs if name.startswith("on")]
        assert reader.all_words().count("alert(1)") > 20

    def test_the_same_values_give_the_same_page(self):
        plan = plan_of(hospitals(3))
        assert page_of(plan) == page_of(plan)

    def test_it_is_small_and_quick(self, large, found):
        plan, page = large
        assert len(page.encode()) < 2_000_000
        start = time.process_time()
        render_validation(found, plan, about_of(plan))
        assert time.process_time() - start < 10

    def test_render_validation_refuses_a_plan_that_trains(self):
        plan = plan_of(hospitals(3))
        training = FederationPlan.model_validate({**plan.model_dump(), "validation": None})
        with pytest.raises(DataError, match="asks for no validation"):
            render_validation(result_of(plan), training, about_of(plan))

    def test_render_validation_refuses_a_result_of_other_models(self):
        plan = plan_of(hospitals(3))
        with pytest.raises(DataError, match="other models"):
            render_validation(result_of(plan_of(hospitals(3), models=1)), plan, about_of(plan))


class TestNames:
    def test_a_label_that_is_called_like_a_metric_is_no_label_of_it(self):
        assert parsed("surface_dice", ("dice",)).label == ""
        assert parsed("surface_dice_dice", ("dice",)) == ("surface_dice", "", "dice")

    def test_an_unknown_figure_keeps_its_name(self):
        assert figure_name("something_new@0.5") == "something new at 0.5"

    def test_words_with_a_hyphen_are_no_range(self):
        assert group_name("manufacturer=a-b") == "a-b"
        assert group_name("sex=unknown") == "unknown"
