"""The floor of signalling: a picows server that passes each frame to the others of its room, and nothing else.

``python -m benchmarks.signalling_relay PORT``; rooms are paths.
"""

from __future__ import annotations

import sys
from collections import defaultdict

import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

_rooms: dict[bytes, list[Peer]] = defaultdict(list)


class Peer(WSListener):
    """One connection."""

    def __init__(self, request: WSUpgradeRequest) -> None:
        super().__init__()
        self._room = _rooms[request.path]

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport
        self._room.append(self)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            transport.disconnect()
            return
        data = frame.get_payload_as_bytes()
        for peer in self._room:
            if peer is not self:
                peer.transport.send(WSMsgType.TEXT, data)

    def on_ws_disconnected(self, _transport: WSTransport) -> None:
        self._room.remove(self)


async def _serve(port: int) -> None:
    server = await ws_create_server(Peer, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
