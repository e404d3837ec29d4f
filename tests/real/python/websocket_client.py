"""Talks to websocket_server.py through a proxy: websocket_client.py URL [CA]. Fails loudly."""

import asyncio
import os
import ssl
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed


async def main():
    options = {"max_size": None, "subprotocols": ["chat.v1"], "proxy": None}
    if len(sys.argv) > 2:
        options["ssl"] = ssl.create_default_context(cafile=sys.argv[2])
    async with connect(sys.argv[1], **options) as socket:
        assert socket.subprotocol == "chat.v1"
        for n in range(100):
            await socket.send(f"hello {n}")
            assert await socket.recv() == f"hello {n}"
        large = os.urandom(3 << 20)
        await socket.send(large)
        assert await socket.recv() == large
        await (await socket.ping())
        await socket.send("close 4001")
        try:
            await socket.recv()
            raise AssertionError("it should be closed")
        except ConnectionClosed as closed:
            assert (closed.rcvd.code, closed.rcvd.reason) == (4001, "as you wish"), closed
    print("all")


asyncio.run(asyncio.wait_for(main(), 60))
