from __future__ import annotations

import json

from eucaim_fl.cohorts.intake.report import Outcome, Reason, Tally
from eucaim_fl.errors import ImportFailedError


def tally() -> Tally:
    made = Tally()
    made.add(Outcome("brought_in", size=1_500_000), 2)
    made.add(Outcome("brought_in", size=500_000))
    made.add(Outcome("already_there"), 3)
    made.add(Outcome("refused", Reason.BROKEN))
    made.add(Outcome("left", Reason.NOT_ASKED_FOR), 4)
    made.add(Outcome("left", Reason.NOT_DICOM), 0)
    made.belongs("P1", "1.2")
    made.belongs("P1", "1.3")
    made.belongs("", "")
    return made


class TestTally:
    def test_what_was_found_is_the_sum(self) -> None:
        report = tally().report()
        assert (report.found, report.brought_in, report.already_there) == (11, 3, 3)
        assert (report.refused, report.left) == ({Reason.BROKEN: 1}, {Reason.NOT_ASKED_FOR: 4})
        assert (report.patients, report.series) == (1, 2)
        assert tally().done() == 11


class TestImportReport:
    def test_as_json_it_has_all_counts_and_the_safe_text_of_a_problem(self) -> None:
        problem = ImportFailedError("The archive was lost.", local_detail="/home/x")
        values = json.loads(json.dumps(tally().report(problem=problem).as_dict()))
        assert values["found"] == 11
        assert values["problem"] == {"code": "EFL207", "says": "The archive was lost."}
        assert "/home" not in json.dumps(values)

    def test_in_lines_each_reason_has_its_count(self) -> None:
        text = "\n".join(tally().report(new_rows=2).lines())
        assert "found          11" in text
        assert "brought in     3 (1 patient, 2 series" in text
        assert "       4  not asked for by the query" in text
        assert "2 rows added" in text
        assert "would be brought in 3" in "\n".join(tally().report(dry_run=True).lines())

    def test_where_nothing_fits_it_says_so_and_names_no_zeros(self) -> None:
        text = "\n".join(Tally().report(dry_run=True).lines())
        assert "Nothing there fits what was asked for." in text
        assert "patients)" not in text
        stopped = Tally().report(problem=ImportFailedError("The archive can't be reached."))
        assert "Nothing there fits" not in "\n".join(stopped.lines())


class TestReason:
    def test_each_fits_into_a_status_comment(self) -> None:
        texts = [value for name, value in vars(Reason).items() if name.isupper()]
        assert len(texts) > 15
        assert len(set(texts)) == len(texts)
        assert max(map(len, texts)) <= 64
