"""The report of a check: JSON without names, a page for local eyes that needs nothing from elsewhere."""

from __future__ import annotations

import json
import re
import stat
from html.parser import HTMLParser

import pytest

from eucaim_fl.cohorts.findings import Finding
from eucaim_fl.cohorts.quality_clinical import Column
from eucaim_fl.errors import SiteFileError
from eucaim_fl.site.check_report import (
    CheckReport,
    Picture,
    SetAside,
    amount,
    named,
    printable,
    render_html,
    sections,
    severity_word,
    shown,
    to_json,
    write_page,
)

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def finding(rule: str = "quality.same_pixels", **changes: object) -> Finding:
    values = {"severity": "blocks", "count": 2, "unit": "patients", "says": "Says.", "do": "Do.", "subjects": ()}
    return Finding(rule, **{**values, **changes})  # type: ignore[arg-type]


def report(**changes: object) -> CheckReport:
    values: dict[str, object] = {
        "site": "a",
        "title": "Hospital <A>",
        "counts": {"images": 5, "usable_images": 3},
        "modalities": {"CT": 3, "": 1, "EVIL VALUE": 1},
        "findings": (finding(subjects=("P1", "P2")), finding("deid.person_name"), finding("layout.x", unit="cells")),
        "set_aside": (SetAside("EFL204", "A file is broken.", ("P7", "Rossi_Maria"), "Copy it again."),),
        "dropped": (("EFL203", "A label does not fit.", 1),),
        "usable": ("P3", "P4", "P5"),
        "columns": (
            Column("grade", 4, 1, 2, (("high <b>", 3), ("low", 1))),
            Column("Rossi, Maria", 1, 4, 1, (), False),
        ),
        "pictures": (Picture("P3", "CT", PNG, ("liver", "<script>")),),
    }
    return CheckReport(**{**values, **changes})  # type: ignore[arg-type]


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


class TestToJson:
    def test_it_holds_counts_and_no_patient_value_or_odd_name(self):
        value = to_json(report())
        text = json.dumps(value)
        assert value["counts"] == {"patients": 5, "usable_patients": 3, "images": 5, "usable_images": 3}
        assert value["set_aside"] == [
            {"code": "EFL204", "reason": "A file is broken.", "patients": 2, "do": "Copy it again."}
        ]
        assert value["modalities"] == {"CT": 3, "not stated": 1, "other": 1}
        assert value["columns"] == [{"name": "grade", "missing_share": 0.2, "distinct": 2}]
        assert not re.search(r"P\d|Rossi|high|EVIL|Hospital|liver", text)

    def test_its_version_is_stated(self):
        assert to_json(report())["schema"] == 1

    def test_an_obstacle_means_it_cannot_train(self):
        assert to_json(report())["can_train"] is True
        assert to_json(report(obstacles=("Too few.",)))["can_train"] is False


class TestSections:
    def test_every_finding_stands_in_one(self):
        found = sections(report(findings=(finding(), finding("deid.x"), finding("codes.x"), finding("odd.x"))))
        assert [(s.title, [f.rule for f in s.findings]) for s in found] == [
            ("Cohort", []),
            ("De-identification", ["deid.x"]),
            ("Quality", ["quality.same_pixels"]),
            ("Tables and files", ["codes.x"]),
            ("Others", ["odd.x"]),
        ]


class TestWords:
    def test_ten_patients_are_named_at_most(self):
        assert named([f"P{n}" for n in range(13)]).endswith("P9 and 3 more")
        assert named(["P1", "P2"]) == "P1, P2"

    def test_a_name_of_a_person_is_masked(self):
        assert "Rossi" not in named(["Rossi_Maria"])

    def test_what_could_steer_a_terminal_is_not_printed(self):
        assert printable("a\x1b[31m\nb") == "a?[31m?b"
        assert "\x1b" not in named(["P\x1b]0;x"])

    @pytest.mark.parametrize(
        ("count", "unit", "text"),
        [
            (1, "patients", "1 patient"),
            (1, "series", "1 series"),
            (1200, "cells", "1,200 cells"),
            (1, "cohort", "the cohort"),
        ],
    )
    def test_amounts_are_read_as_people_say_them(self, count, unit, text):
        assert amount(finding(count=count, unit=unit)) == text

    def test_severities_have_words(self):
        assert [severity_word(s) for s in ("blocks", "warns", "informs")] == ["blocks", "look at", "for information"]


class TestRenderHtml:
    def test_it_needs_nothing_from_elsewhere_and_runs_nothing(self):
        text = render_html(report())
        page = _Page()
        page.feed(text)
        names = {tag for tag, _ in page.tags}
        assert not names & {"script", "link", "iframe", "object", "form", "base"}
        links = [v for _, attrs in page.tags for k, v in attrs.items() if k in ("src", "href", "srcset", "action")]
        assert links
        assert all(link is not None and link.startswith("data:image/png;base64,") for link in links)
        policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
        assert policy is not None
        assert "default-src 'none'" in policy
        assert "script-src" not in policy
        assert "@import" not in text
        assert "url(" not in text

    def test_what_came_from_the_cohort_is_escaped_and_masked(self):
        text = render_html(report())
        assert "<script>" not in text
        assert "high <b>" not in text
        assert "Hospital &lt;A&gt;" in text
        assert "Rossi_Maria" not in text

    def test_it_says_what_to_do(self):
        text = render_html(report(obstacles=("Too few patients.",)))
        assert "3</b>" in text
        assert "of 5 patients can be used" in text
        assert "Too few patients." in text
        assert "Copy it again." in text
        assert "For eyes at this hospital only" in text

    def test_an_empty_report_is_a_page_too(self):
        text = render_html(CheckReport("a", pixels_read=False))
        assert "Pixels were not read" in text
        assert "A few images" not in text

    def test_the_same_report_gives_the_same_page(self):
        assert render_html(report()) == render_html(report())


class TestWritePage:
    def test_only_its_owner_may_read_it(self, tmp_path):
        (tmp_path / "page.html").write_text("old")
        (tmp_path / "page.html").chmod(0o644)
        write_page("new", tmp_path / "page.html", tmp_path / "cohort")
        assert (tmp_path / "page.html").read_text() == "new"
        assert stat.S_IMODE((tmp_path / "page.html").stat().st_mode) == 0o600
        assert [p.name for p in tmp_path.iterdir()] == ["page.html"]

    @pytest.mark.parametrize(
        "way", ["cohort/page.html", "cohort/deep/page.html", "link/page.html", "x/../cohort/p.html"]
    )
    def test_it_never_lies_in_the_cohort(self, tmp_path, way):
        (tmp_path / "cohort" / "deep").mkdir(parents=True)
        (tmp_path / "x").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "cohort")
        with pytest.raises(SiteFileError, match="inside the cohort"):
            write_page("text", tmp_path / way, tmp_path / "cohort")

    def test_a_folder_that_is_not_there_is_an_error(self, tmp_path):
        with pytest.raises(SiteFileError, match="can't be written"):
            write_page("text", tmp_path / "missing" / "page.html", tmp_path / "cohort")


class TestShown:
    def test_what_looks_like_a_person_is_masked_and_what_steers_a_terminal_is_not_printed(self) -> None:
        assert shown("Rossi, Maria").startswith("#")
        assert shown("psa\x1b[31m\ud800") == "psa?[31m?"

    def test_columns_modalities_and_names_of_labels_are_shown_so_on_the_page(self) -> None:
        page = render_html(
            report(
                modalities={"Rossi Maria": 1},
                columns=(Column("Bianchi Carlo", 2, 0, 1, (("Verdi Anna", 2),)),),
                pictures=(Picture("P1", "Neri Luca", PNG, ("Gallo Sara",)),),
            )
        )
        assert not {"Rossi", "Bianchi", "Verdi", "Neri", "Gallo"} & set(re.findall(r"\w+", page))
