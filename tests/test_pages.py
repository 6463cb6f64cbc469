"""Whatever stands in a value, it stays text; and a value that is forgotten is noticed."""

from __future__ import annotations

from pathlib import Path

import jinja2
import pytest

from eucaim_fl.pages import filled


@pytest.fixture
def template(tmp_path: Path) -> Path:
    (tmp_path / "part.jinja").write_text("<i>{{ names|length }}</i>")
    path = tmp_path / "page.html.jinja"
    lines = ("{% for one in names %}", "  {% if one %}", "<b>{{ one }}</b>", "  {% endif %}", "{% endfor %}")
    path.write_text("\n".join([*lines, '{% include "part.jinja" %}']))
    return path


class TestFilled:
    def test_values_are_escaped_and_statements_leave_no_lines(self, template: Path) -> None:
        page = filled(template, names=["a", "<script>alert('b')</script>"])
        assert page == "<b>a</b>\n<b>&lt;script&gt;alert(&#39;b&#39;)&lt;/script&gt;</b>\n<i>2</i>"

    def test_a_value_may_be_called_like_anything(self, tmp_path: Path) -> None:
        (tmp_path / "one.jinja").write_text("{{ template }} & {{ self_ }}")
        assert filled(tmp_path / "one.jinja", template="<t>", self_="s") == "&lt;t&gt; & s"

    def test_a_value_that_is_missing_is_an_error(self, template: Path) -> None:
        with pytest.raises(jinja2.UndefinedError, match="names"):
            filled(template)
