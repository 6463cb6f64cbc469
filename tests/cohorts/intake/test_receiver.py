"""Senders on this machine: what they send lands, and what they may not do ends with them."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.uid import JPEG2000Lossless, MRImageStorage
from pynetdicom import AE, build_context
from pynetdicom.sop_class import Verification

from eucaim_fl.cohorts.intake.landing import Landing, open_landing
from eucaim_fl.cohorts.intake.query import CohortQuery
from eucaim_fl.cohorts.intake.receiver import Listener, receive, status_of
from eucaim_fl.cohorts.intake.report import Outcome, Reason
from eucaim_fl.errors import ImportFailedError
from eucaim_fl.sitefile import SiteFile

pytestmark = pytest.mark.integration


def send(port: int, files: list[Path], *, caller: str = "MODALITY", called: str = "EUCAIM", **more: Any) -> list[int]:
    """Statuses that the receiver answers; [] if it doesn't take the association."""
    sets = [pydicom.dcmread(file) for file in files]
    for whole in sets:
        for name, value in more.items():
            setattr(whole, name, value)
    ae = AE(ae_title=caller)
    contexts = {(s.SOPClassUID, s.file_meta.TransferSyntaxUID) for s in sets}
    association = ae.associate(
        *("127.0.0.1", port), ae_title=called, contexts=[build_context(c, t) for c, t in sorted(contexts)]
    )
    if not association.is_established:
        return []
    answers = [association.send_c_store(whole) for whole in sets]
    association.release()
    return [int(answer.Status) if "Status" in answer else -1 for answer in answers]


class TestReceive:
    def test_what_is_sent_lands_before_its_sender_is_told_so(
        self, listen: Any, series: Callable[..., list[Path]], landed: Callable[[], dict[str, bytes]]
    ) -> None:
        files = series("P1")
        receiver = listen()
        assert send(receiver.port, files) == [0, 0, 0]
        assert [pydicom.dcmread(f).PixelData for f in files] == [
            pydicom.dcmread(receiver.landing.folder / place).PixelData for place in landed()
        ]
        report = receiver.stop()
        assert (report.found, report.brought_in, report.patients) == (3, 3, 1)

    def test_what_is_sent_again_is_there_already(
        self, listen: Any, series: Callable[..., list[Path]], landed: Callable[[], dict[str, bytes]]
    ) -> None:
        files = series("P1")
        receiver = listen()
        send(receiver.port, files)
        before = landed()
        assert send(receiver.port, files) == [0, 0, 0]
        assert landed() == before
        assert receiver.stop().already_there == 3

    def test_compressed_images_stay_compressed(
        self, listen: Any, series: Callable[..., list[Path]], landed: Callable[[], dict[str, bytes]]
    ) -> None:
        (file,) = series("P1", slices=1, size=64)
        whole = pydicom.dcmread(file)
        whole.compress(JPEG2000Lossless, generate_instance_uid=False)
        whole.save_as(file)
        receiver = listen()
        assert send(receiver.port, [file]) == [0]
        (place,) = landed()
        arrived = pydicom.dcmread(receiver.landing.folder / place)
        assert arrived.file_meta.TransferSyntaxUID == JPEG2000Lossless
        assert arrived.PixelData == pydicom.dcmread(file).PixelData

    def test_what_the_query_does_not_ask_for_is_refused_and_counted(
        self, listen: Any, series: Callable[..., list[Path]], landed: Callable[[], dict[str, bytes]]
    ) -> None:
        receiver = listen(CohortQuery(body_parts=("BREAST",)))
        assert send(receiver.port, series("P1", slices=1)) == [0xA900]
        assert receiver.stop().left == {Reason.NOT_ASKED_FOR: 1}
        assert landed() == {}

    def test_another_image_under_the_same_uid_is_refused(self, listen: Any, series: Callable[..., list[Path]]) -> None:
        files = series("P1", slices=1)
        receiver = listen()
        assert send(receiver.port, files) == [0]
        assert send(receiver.port, files, SliceThickness=9) == [0xC000]
        assert receiver.stop().refused == {Reason.OTHER_CONTENT: 1}

    def test_a_message_that_contradicts_its_data_set_is_refused(
        self, listen: Any, series: Callable[..., list[Path]]
    ) -> None:
        (file,) = series("P1", slices=1)
        receiver = listen()
        association = AE(ae_title="X").associate(
            *("127.0.0.1", receiver.port), contexts=[build_context(MRImageStorage)], ae_title="EUCAIM"
        )
        whole = pydicom.dcmread(file)
        original = association.dimse.send_msg

        def lie(message: Any, context: int) -> Any:
            message.AffectedSOPInstanceUID = "1.2.3.4.5"
            return original(message, context)

        association.dimse.send_msg = lie
        assert association.send_c_store(whole).Status == 0xC000
        association.release()
        assert receiver.stop().refused == {Reason.CONTRADICTION: 1}

    def test_an_echo_is_answered(self, listen: Any) -> None:
        association = AE().associate(
            *("127.0.0.1", listen().port), contexts=[build_context(Verification)], ae_title="EUCAIM"
        )
        assert association.send_c_echo().Status == 0
        association.release()

    def test_reports_and_documents_find_no_service(self, listen: Any) -> None:
        association = AE().associate(
            *("127.0.0.1", listen().port),
            contexts=[build_context("1.2.840.10008.5.1.4.1.1.88.11"), build_context(Verification)],
            ae_title="EUCAIM",
        )
        assert [str(c.abstract_syntax) for c in association.rejected_contexts] == ["1.2.840.10008.5.1.4.1.1.88.11"]
        association.release()

    @pytest.mark.parametrize(
        ("options", "sender"),
        [
            ({}, {"called": "OTHER"}),
            ({"callers": ("PACS",)}, {"caller": "PACSX"}),
            ({"peers": ("10.0.0.0/8",)}, {}),
        ],
    )
    def test_who_may_not_send_gets_no_association(
        self, listen: Any, series: Callable[..., list[Path]], options: dict[str, Any], sender: dict[str, str]
    ) -> None:
        receiver = listen(**options)
        assert send(receiver.port, series("P1", slices=1), **sender) == []
        assert receiver.stop().found == 0

    def test_who_may_send_does(self, listen: Any, series: Callable[..., list[Path]]) -> None:
        receiver = listen(callers=("PACS",), peers=("127.0.0.0/8",))
        assert send(receiver.port, series("P1", slices=1), caller="PACS") == [0]

    def test_an_instance_larger_than_it_may_be_ends_the_association(
        self, listen: Any, series: Callable[..., list[Path]], landed: Callable[[], dict[str, bytes]]
    ) -> None:
        files = series("P1", slices=1, size=256)
        receiver = listen(message_bytes=50_000)
        assert send(receiver.port, files) == [-1]
        small = series("P2", slices=4, size=64)
        assert send(receiver.port, small) == [0, 0, 0, 0]  # 33 kB altogether, but each one counts on its own
        assert receiver.stop().refused == {Reason.TOO_LARGE: 1}
        assert len(landed()) == 4

    def test_a_file_larger_than_the_landing_takes_is_refused(
        self, listen: Any, series: Callable[..., list[Path]]
    ) -> None:
        receiver = listen(limit=1000)
        assert send(receiver.port, series("P1", slices=1, size=64)) == [0xA700]

    def test_a_claim_of_four_gigabytes_is_not_believed(self, listen: Any, series: Callable[..., list[Path]]) -> None:
        receiver = listen()
        with socket.create_connection(("127.0.0.1", receiver.port), timeout=10) as wire:
            wire.sendall(struct.pack(">BBL", 1, 0, 0xFFFFFFF0) + b"x" * 1000)
            with contextlib.suppress(ConnectionResetError):
                assert wire.recv(100)[:1] in (b"", b"\x07")
        assert send(receiver.port, series("P1", slices=1)) == [0]
        assert receiver.stop().found == 1

    @pytest.mark.parametrize("noise", [b"GET / HTTP/1.1\r\n\r\n", b"\x01\x00\x00\x00\x00\x04abcd", b"\x04" + bytes(9)])
    def test_noise_does_not_end_the_service(self, listen: Any, series: Callable[..., list[Path]], noise: bytes) -> None:
        receiver = listen()
        with socket.create_connection(("127.0.0.1", receiver.port), timeout=10) as wire:
            wire.sendall(noise)
        assert send(receiver.port, series("P1", slices=1)) == [0]

    def test_it_ends_when_nothing_comes(self, site: SiteFile) -> None:
        with open_landing(site, CohortQuery()) as landing:
            receive(Listener(port=0), landing, lambda done, total: None, idle_s=0.05)
            assert landing.tally.done() == 0

    def test_a_port_that_is_taken_is_reported(self, site: SiteFile) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken, open_landing(site, CohortQuery()) as landing:
            listener = Listener(port=taken.getsockname()[1])
            with pytest.raises(ImportFailedError, match="port can't be listened on"):
                receive(listener, landing, lambda done, total: None, idle_s=0.05)

    def test_a_full_disk_ends_it_and_the_sender_knows(
        self, listen: Any, series: Callable[..., list[Path]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        receiver = listen()

        def full(self: Landing) -> Path:
            raise ImportFailedError("The disk is full.")

        monkeypatch.setattr(Landing, "temporary", full)
        assert send(receiver.port, series("P1", slices=1)) == [0xA700]
        time.sleep(0.1)
        report = receiver.stop()
        assert "disk is full" in str(report.problem)
        assert report.left == {Reason.NOT_REACHED: 1}


class TestListener:
    @pytest.mark.parametrize("title", ["", "A" * 17, "a\\b", "ä", "a\n"])
    def test_ae_titles(self, title: str) -> None:
        with pytest.raises(ImportFailedError, match="AE title"):
            Listener(ae_title=title)

    @pytest.mark.parametrize("options", [{"address": "pacs"}, {"peers": ("10.0.0.0/99",)}])
    def test_addresses(self, options: dict[str, Any]) -> None:
        with pytest.raises(ImportFailedError, match="no IP address"):
            Listener(**options)

    def test_a_door_to_the_network_needs_a_list_of_guests(self) -> None:
        with pytest.raises(ImportFailedError, match="Anyone on the network"):
            Listener(address="192.0.2.1")
        assert Listener(address="192.0.2.1", callers=("PACS",)).admits("10.1.2.3")

    def test_who_is_admitted(self) -> None:
        listener = Listener(peers=("10.0.0.0/24", "::1"))
        assert [listener.admits(a) for a in ("10.0.0.7", "::ffff:10.0.0.7", "::1", "10.0.1.7", "x")] == [
            *(True, True, True),
            *(False, False),
        ]


class TestStatusOf:
    def test_each_outcome_has_its_status(self) -> None:
        assert status_of(Outcome("brought_in")) == status_of(Outcome("already_there")) == 0
        assert status_of(Outcome("left", Reason.NOT_ASKED_FOR)) == 0xA900
        assert status_of(Outcome("refused", Reason.TOO_LARGE)) == 0xA700
        assert status_of(Outcome("refused", Reason.BROKEN)) == 0xC000
