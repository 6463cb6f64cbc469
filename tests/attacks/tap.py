"""A tap between the sites and the proxy: what passes, decrypted."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from typing import Any

__all__ = ["Tap"]


class Tap:
    """Ends the sites' TLS with the federation's own certificate, notes both directions, and passes them to nginx."""

    def __init__(self, port: int, target: int, home: Any) -> None:
        self.taken: list[tuple[str, bytearray]] = []
        self._ends: list[asyncio.StreamWriter] = []
        self._target, self._loop = target, asyncio.new_event_loop()
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.minimum_version = ssl.TLSVersion.TLSv1_3
        server.load_cert_chain(home.server_file)
        self._client = ssl.create_default_context(cafile=str(home.ca_file))
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        listening = asyncio.start_server(self._carry, "127.0.0.1", port, ssl=server)
        asyncio.run_coroutine_threadsafe(listening, self._loop).result(10)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            far = await asyncio.open_connection(
                "127.0.0.1", self._target, ssl=self._client, server_hostname="localhost"
            )
            await asyncio.gather(self._pass(reader, far[1], "up"), self._pass(far[0], writer, "down"))

    async def _pass(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, way: str) -> None:
        note = bytearray()
        self.taken.append((way, note))
        self._ends.append(target)
        with contextlib.suppress(OSError):
            while piece := await source.read(65536):
                note += piece
                target.write(piece)
                await target.drain()
        target.close()

    async def _end(self) -> None:
        for end in self._ends:
            with contextlib.suppress(AttributeError):  # what early releases of Python 3.11 say of one that is closed
                end.transport.abort()
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True)

    def close(self) -> None:
        with contextlib.suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
