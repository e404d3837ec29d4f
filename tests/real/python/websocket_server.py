"""Echoes WebSocket messages; `close CODE` closes with that code."""

import asyncio

from websockets.asyncio.server import serve


async def echo(connection):
    async for message in connection:
        if isinstance(message, str) and message.startswith("close "):
            await connection.close(int(message[6:]), "as you wish")
        else:
            await connection.send(message)


async def main():
    async with serve(echo, "127.0.0.1", 0, subprotocols=["chat.v1"], max_size=None) as server:
        print(f"port={server.sockets[0].getsockname()[1]}")
        await asyncio.get_running_loop().create_future()


asyncio.run(main())
