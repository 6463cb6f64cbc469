"""Instructions that a site has seen before: an old one that is played back is not worked on again."""

from __future__ import annotations

import json
from pathlib import Path

from eucaim_fl.durable import write_json
from eucaim_fl.errors import SealError

__all__ = ["Nonces"]

_REMEMBERED_S = 48 * 3600
_OLDEST_S = 24 * 3600
_FUTURE_S = 3600
_MOST_TIMES = 3


class Nonces:
    """Numbers of the instructions of the last two days, in a file of the site.

    An instruction may come three times: when the line or the client fails, the coordinator sends it again, and the
    answer has the same bits. Older ones than a day are refused whatever their number.
    """

    def __init__(self, path: Path) -> None:
        """Read the file; there may be none yet. Raises SealError if it is damaged: then nobody knows what came."""
        self._path = path
        self._seen: dict[str, tuple[int, int]] = {}
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            self._seen = {str(n): (int(at), int(times)) for n, (at, times) in values.items()}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            raise SealError(
                "The site's memory of instructions can't be read.",
                fix="Restore the file from a backup; without it old instructions could be played back for a day.",
                local_detail=str(path),
            ) from None

    def accept(self, nonce: str, issued_at: int, now: int) -> None:
        """Note that an instruction is worked on. Times are seconds since 1970.

        Raises SealError if it is too old, from the future, or came too often; JournalError if it can't be noted.
        """
        if issued_at < now - _OLDEST_S:
            raise SealError("The instruction is older than a day: it may be played back.")
        if issued_at > now + _FUTURE_S:
            raise SealError("The instruction is from the future: the clocks differ by more than an hour.")
        _, times = self._seen.get(nonce, (issued_at, 0))
        if times >= _MOST_TIMES:
            raise SealError("The instruction came before: it may be played back.")
        seen = {n: entry for n, entry in self._seen.items() if entry[0] > now - _REMEMBERED_S}
        seen[nonce] = (issued_at, times + 1)
        write_json(self._path, {n: list(entry) for n, entry in seen.items()})
        self._seen = seen
