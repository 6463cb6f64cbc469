"""Signatures: one text for a key and a signature, bound to purpose and value; documents and key files from anywhere."""

from __future__ import annotations

import base64
import json
import stat
import string
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from eucaim_fl.errors import EnrolmentError, KeyFileError, PermitError
from eucaim_fl.signing import (
    LARGEST_DOCUMENT_BYTES,
    PrivateKey,
    canonical_json,
    certificate_facts,
    fingerprint,
    is_node_key,
    load_document,
    load_node_key,
    new_node_key,
    node_key_line,
    open_document,
    sign_document,
    verify,
    write_private,
)

KEY = PrivateKey(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
OTHER = PrivateKey(Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33))))
VALUE = {"site": "a", "round": 3}
SIGNATURE = KEY.sign("reply", VALUE)
ALPHABET = string.ascii_letters + string.digits + "-_"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


def endless() -> list[Any]:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    return value


def text_of(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


class TestCanonicalJson:
    def test_the_order_of_keys_does_not_matter(self) -> None:
        assert canonical_json({"b": 1, "a": "é"}) == canonical_json({"a": "é", "b": 1}) == '{"a":"é","b":1}'.encode()

    @given(JSON)
    def test_reading_it_gives_the_value_back(self, value: object) -> None:
        try:
            text = canonical_json(value)
        except UnicodeEncodeError:  # a lone surrogate
            return
        assert json.loads(text) == value
        assert canonical_json(json.loads(text)) == text

    @pytest.mark.parametrize("value", [float("nan"), [float("inf")]])
    def test_numbers_are_finite(self, value: object) -> None:
        with pytest.raises(ValueError, match="Out of range"):
            canonical_json(value)

    def test_a_value_inside_itself_or_nested_without_end_is_refused(self) -> None:
        circle: list[Any] = []
        circle.append(circle)
        with pytest.raises(ValueError, match="Circular"):
            canonical_json(circle)
        with pytest.raises(ValueError, match="nested too deep"):
            canonical_json(endless())

    def test_text_is_unicode(self) -> None:
        with pytest.raises(ValueError, match="surrogates"):
            canonical_json("\ud800")

    def test_what_is_no_json_is_refused(self) -> None:
        with pytest.raises(TypeError, match="not JSON serializable"):
            canonical_json({"a": b"bytes"})


class TestSignatures:
    def test_they_are_the_same_each_time(self) -> None:
        assert KEY.sign("reply", {"round": 3, "site": "a"}) == SIGNATURE
        assert verify(KEY.public, "reply", VALUE, SIGNATURE)

    def test_one_for_another_purpose_does_not_fit(self) -> None:
        assert not verify(KEY.public, "permit", VALUE, SIGNATURE)

    def test_one_of_another_key_does_not_fit(self) -> None:
        assert not verify(OTHER.public, "reply", VALUE, SIGNATURE)

    @pytest.mark.parametrize("value", [{**VALUE, "round": 4}, {**VALUE, "round": 3.0}, {"site": "a"}, [VALUE], None])
    def test_one_over_another_value_does_not_fit(self, value: object) -> None:
        assert not verify(KEY.public, "reply", value, SIGNATURE)

    @given(st.integers(0, 85), st.sampled_from(ALPHABET))
    def test_every_character_counts(self, place: int, character: str) -> None:
        changed = SIGNATURE[:place] + character + SIGNATURE[place + 1 :]
        assert verify(KEY.public, "reply", VALUE, changed) == (changed == SIGNATURE)

    def test_a_signature_has_one_spelling_only(self) -> None:
        spellings = [SIGNATURE[:-1] + c for c in ALPHABET] + [SIGNATURE + "=", SIGNATURE + "==", SIGNATURE + "\n"]
        assert [s for s in spellings if verify(KEY.public, "reply", VALUE, s)] == [SIGNATURE]
        seeds = range(40)  # among so many there are both kinds of letters that base64 and base64url spell differently
        other = [(n, KEY.sign("n", n), KEY.sign("n", n).replace("-", "+").replace("_", "/")) for n in seeds]
        assert any("+" in twin for _, _, twin in other)
        assert any("/" in twin for _, _, twin in other)
        assert all(verify(KEY.public, "n", n, twin) == (twin == own) for n, own, twin in other)

    def test_a_key_has_one_spelling_only(self) -> None:
        spellings = [KEY.public[:-1] + c for c in ALPHABET] + [KEY.public + "=", KEY.public + "\n"]
        assert [s for s in spellings if verify(s, "reply", VALUE, SIGNATURE)] == [KEY.public]

    @pytest.mark.parametrize("sign_bit", [0, 0x80])
    @pytest.mark.parametrize(
        "point",
        [
            "00" * 32,
            "01" + "00" * 31,
            "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
            "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
            "ec" + "ff" * 30 + "7f",
            "ed" + "ff" * 30 + "7f",
            "ee" + "ff" * 30 + "7f",
        ],
    )
    def test_a_key_that_everybody_can_sign_for_is_none(self, point: str, sign_bit: int) -> None:
        raw = bytes.fromhex(point)
        public = "ed25519:" + text_of(raw[:31] + bytes([raw[31] | sign_bit]))
        neutral = bytes([1]) + bytes(31)
        for first in (neutral, raw):  # with s = 0, a point of small order fits one message in eight, or all
            forged = text_of(first + bytes(32))
            assert not any(verify(public, "permit", n, forged) for n in range(16))

    @given(st.text(max_size=100), st.text(max_size=100))
    def test_garbage_is_false(self, public: str, signature: str) -> None:
        assert not verify(public, "reply", VALUE, signature)
        assert not verify(KEY.public, "reply", VALUE, signature)
        assert not verify(public, "reply", VALUE, SIGNATURE)

    @pytest.mark.parametrize("value", [float("nan"), "\ud800", b"bytes", endless()])
    def test_a_value_that_can_not_be_signed_is_false(self, value: object) -> None:
        assert not verify(KEY.public, "reply", value, SIGNATURE)


class TestFingerprint:
    def test_it_is_eight_groups_of_four(self) -> None:
        groups = fingerprint(KEY.public).split(" ")
        assert [len(group) for group in groups] == [4] * 8
        assert fingerprint(OTHER.public) != fingerprint(KEY.public)


class TestKeyFiles:
    def test_a_key_comes_back_from_its_file_which_only_its_owner_reads(self, tmp_path: Path) -> None:
        path = tmp_path / "key.pem"
        KEY.save(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert PrivateKey.load(path).public == KEY.public

    def test_new_keys_differ(self) -> None:
        assert PrivateKey.create().public != PrivateKey.create().public

    def test_a_key_is_never_replaced(self, tmp_path: Path) -> None:
        path = tmp_path / "key.pem"
        KEY.save(path)
        with pytest.raises(KeyFileError, match="never replaced") as caught:
            OTHER.save(path)
        assert str(path) in caught.value.local_detail
        assert str(path) not in str(caught.value)
        with pytest.raises(KeyFileError, match="can't be made"):
            write_private(path, b"")
        with pytest.raises(KeyFileError, match="can't be made"):
            new_node_key(path)
        assert PrivateKey.load(path).public == KEY.public

    def test_a_full_disk_leaves_no_part_of_a_key(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("eucaim_fl.signing.os.fsync", full)
        with pytest.raises(KeyFileError, match="disk full"):
            write_private(tmp_path / "key.pem", b"secret")
        assert not any(tmp_path.iterdir())

    @pytest.mark.parametrize("load", [PrivateKey.load, node_key_line, load_node_key])
    def test_a_missing_file_is_named_locally_only(self, tmp_path: Path, load: Any) -> None:
        with pytest.raises(KeyFileError, match=r"^A key file can't be read\. Check its name and owner\.$"):
            load(tmp_path / "none.pem")

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
    def test_a_file_that_others_can_read_is_refused(self, tmp_path: Path, mode: int) -> None:
        path = tmp_path / "key.pem"
        KEY.save(path)
        path.chmod(mode)
        with pytest.raises(KeyFileError, match="read by others"):
            PrivateKey.load(path)

    def test_other_files_are_refused(self, tmp_path: Path) -> None:
        curve = ec.generate_private_key(ec.SECP256R1())
        locked = Ed25519PrivateKey.generate().private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"word")
        )
        plain = curve.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        for number, content in enumerate((b"", b"no key", plain, locked)):
            path = tmp_path / f"{number}.pem"
            write_private(path, content)
            with pytest.raises(KeyFileError, match="holds no Ed25519 key"):
                PrivateKey.load(path)
            with pytest.raises(KeyFileError, match="P-384 key"):
                node_key_line(path)
            with pytest.raises(KeyFileError, match="P-384 key"):
                load_node_key(path)


class TestNodeKeys:
    def test_the_line_of_a_new_key_is_a_node_key(self, tmp_path: Path) -> None:
        path = tmp_path / "node.pem"
        line = new_node_key(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert is_node_key(line)
        assert node_key_line(path) == line
        assert load_node_key(path)[0].curve.name == "secp384r1"

    def test_another_text_is_none(self, tmp_path: Path) -> None:
        line = new_node_key(tmp_path / "node.pem")
        spare = line[:-3] + chr(ord(line[-3]) + 1) + "=="  # the same bytes, spelled otherwise
        off_curve = line[:-6] + ("AAAA" if line[-6:-2] != "AAAA" else "BBBB") + "=="
        point = base64.b64decode(line.split()[1])
        long = base64.b64encode(point + b"\0" * 3).decode()
        other = ec.generate_private_key(ec.SECP256R1()).public_key()
        for text in (
            "",
            spare,
            off_curve,
            f"{line} a comment",
            f"{line}\n",
            f" {line}",
            line.replace("nistp384 ", "nistp256 "),
            f"ecdsa-sha2-nistp384 {long}",
            other.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode(),
            KEY.public,
        ):
            assert not is_node_key(text), text

    @given(st.text(max_size=250))
    def test_garbage_is_none(self, text: str) -> None:
        assert not is_node_key(text)


class TestCertificateFacts:
    def test_they_are_what_the_certificate_says(self) -> None:
        key = ec.generate_private_key(ec.SECP384R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a")])
        start, end = datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)
        made = (
            x509.CertificateBuilder(name, name, key.public_key(), 7, start, end)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("hub.example")]), critical=False)
            .sign(key, SHA256())
        )
        facts = certificate_facts(made.public_bytes(Encoding.PEM))
        assert (facts.not_before, facts.not_after, facts.names) == (start, end, ("hub.example",))
        assert len(facts.fingerprint) == 39
        assert facts.not_after - facts.not_before == timedelta(days=365)

    def test_what_is_no_certificate_is_refused(self) -> None:
        with pytest.raises(KeyFileError, match="no certificate"):
            certificate_facts(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")


class TestDocuments:
    DOCUMENT = sign_document("permit", {"id": "P-1", "rounds": 5}, KEY)

    def test_one_says_what_was_signed_and_by_which_key(self) -> None:
        opened = open_document("permit", self.DOCUMENT, PermitError)
        assert opened == ({"id": "P-1", "rounds": 5}, KEY.public, True)
        assert open_document("permit", json.loads(json.dumps(self.DOCUMENT)), PermitError) == opened

    @pytest.mark.parametrize(
        "change",
        [
            {"permit": {"id": "P-2", "rounds": 5}},
            {"permit": {"id": "P-1"}},
            {"key": OTHER.public},
            {"signature": OTHER.sign("permit", {})},
            {"signature": ""},
            {"key": ""},
        ],
    )
    def test_the_signature_of_an_altered_one_does_not_fit(self, change: dict[str, Any]) -> None:
        assert not open_document("permit", {**self.DOCUMENT, **change}, PermitError).fits

    def test_one_for_another_purpose_is_another(self) -> None:
        renamed = {("request" if name == "permit" else name): value for name, value in self.DOCUMENT.items()}
        renamed["schema"] = "eucaim-fl-request/1"
        assert not open_document("request", renamed, EnrolmentError).fits

    @pytest.mark.parametrize(
        ("document", "complaint"),
        [
            (None, "not a signed permit"),
            ([], "not a signed permit"),
            ({}, "not a signed permit"),
            ({**DOCUMENT, "more": 1}, "not a signed permit"),
            ({**DOCUMENT, "schema": "eucaim-fl-permit/2"}, "another version"),
            ({**DOCUMENT, "schema": 1}, "another version"),
            ({**DOCUMENT, "permit": []}, "wrong kind"),
            ({**DOCUMENT, "key": None}, "wrong kind"),
            ({**DOCUMENT, "signature": 5}, "wrong kind"),
            ({**DOCUMENT, "permit": {"a": float("nan")}}, "not JSON"),
            ({**DOCUMENT, "permit": {"a": endless()}}, "not JSON"),
            ({**DOCUMENT, "permit": {"a": b"bytes"}}, "not JSON"),
            ({**DOCUMENT, "permit": {"a": "x" * LARGEST_DOCUMENT_BYTES}}, "longer than 65536 bytes"),
        ],
    )
    def test_a_malformed_one_is_refused(self, document: object, complaint: str) -> None:
        with pytest.raises(PermitError, match=complaint):
            open_document("permit", document, PermitError)

    def test_one_comes_back_from_its_file(self, tmp_path: Path) -> None:
        path = tmp_path / "permit.json"
        path.write_text(json.dumps(self.DOCUMENT, indent=2))
        assert load_document(path, "permit", PermitError) == self.DOCUMENT

    @pytest.mark.parametrize(
        ("content", "complaint"),
        [
            (b"{", "holds no JSON"),
            (b"\xff\xfe\x00", "holds no JSON"),
            (b"[" * 200_000, "holds no JSON"),
            (b" " * (4 * LARGEST_DOCUMENT_BYTES + 1), "too long"),
        ],
    )
    def test_another_file_is_refused_and_named_locally_only(
        self, tmp_path: Path, content: bytes, complaint: str
    ) -> None:
        path = tmp_path / "P007.json"
        path.write_bytes(content)
        with pytest.raises(PermitError, match=complaint) as caught:
            load_document(path, "permit", PermitError)
        assert "P007" not in str(caught.value)
        assert "P007" in caught.value.local_detail

    def test_a_missing_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(EnrolmentError, match="file of the invitation can't be read"):
            load_document(tmp_path / "none.json", "invitation", EnrolmentError)
