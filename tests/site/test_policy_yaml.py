"""Only plain YAML is read: what could grow, refer, or be understood in two ways is refused before it is built."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.errors import PolicyError
from eucaim_fl.site.policy_yaml import LARGEST_POLICY_BYTES, read_yaml


class TestValues:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("3", 3),
            ("-3", -3),
            ("0.5", 0.5),
            ("1.0e-5", 1e-5),
            ("true", True),
            ("no", False),
            ("~", None),
            ("20:00", "20:00"),
            ("2027-12-31", "2027-12-31"),
            ("0x10", "0x10"),
            ("010", "010"),
            ("1_000", "1_000"),
            (".nan", ".nan"),
            ("9" * 5000, "9" * 5000),
            ("[a, 1]", ["a", 1]),
            ("{b: {c: d}}", {"b": {"c": "d"}}),
            ("[[[[[[[1]]]]]]]", [[[[[[[1]]]]]]]),
        ],
    )
    def test_they_are_plain(self, text, value):
        assert read_yaml(f"a: {text}".encode())[0] == {"a": value}


class TestLines:
    def test_keys_and_items_have_theirs(self):
        _, lines = read_yaml(b"# a comment\na:\n  b: 1\n\nc:\n  - x\n  - d: 2\n    e: 3\n")
        assert lines == {"a": 2, "a.b": 3, "c": 5, "c.0": 6, "c.1": 7, "c.1.d": 7, "c.1.e": 8}


class TestRefusals:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (b"a: !!int 3", "a tag at line 1"),
            (b"a: 1\nb: !x 3", "a tag at line 2"),
            (b"a: &x 1", "an anchor or an alias at line 1"),
            (b"a: &x [1]\nb: *x", "an anchor or an alias at line 1"),
            (b"a: 1\nb: 2\na: 3", "a key twice, the second time at line 3"),
            (b"a:\n  b: 1\n  b: 1", "a key twice, the second time at line 3"),
            (b"? [a, b]\n: 1", "a key that is no text at line 1"),
            (b"a: " + b"[" * 30_000, "nested too deep at line 1"),
            (b"- a", "no mapping"),
            (b"", "no mapping"),
            (b"a: 1\n---\nb: 2", "as YAML at line 2"),
            (b"a: [1\nb: 2", "as YAML at line 2"),
            (b"a: \x00", "as YAML"),
            (b"a: \xff", "not UTF-8"),
            (b"#" * (LARGEST_POLICY_BYTES + 1), "longer than"),
        ],
    )
    def test_each_names_its_line(self, text, message):
        with pytest.raises(PolicyError, match=message):
            read_yaml(text)

    @given(st.text(alphabet="abc:-[]{}&*!#'\"\n ~?|>", max_size=60))
    def test_anything_is_read_or_refused(self, text):
        try:
            values, lines = read_yaml(text.encode())
        except PolicyError:
            return
        assert set(values) <= set(lines)
