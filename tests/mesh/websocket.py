"""An echo server, and a client that checks it, by the library `websockets`: RFC 6455 as neither Ringmesh nor its tests
wrote it. `websocket.py serve ADDRESS` and `websocket.py check URL`."""

import asyncio
import logging
import sys

import websockets
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve


async def echo(connection):
    async for message in connection:
        if message == "close":
            await connection.close(4001, "as you wish")
            return
        await connection.send(message)


async def run_server(address):
    # What the suite does to it is no news.
    logging.getLogger("websockets").setLevel(logging.CRITICAL)
    host, port = address.rsplit(":", 1)
    choose = lambda connection, offered: "chat" if "chat" in offered else None
    async with serve(echo, host, int(port), max_size=None, select_subprotocol=choose, ping_interval=None):
        await asyncio.get_running_loop().create_future()


async def check(url):
    for compression in (None, "deflate"):
        async with connect(url, max_size=None, compression=compression, subprotocols=["chat"]) as connection:
            assert connection.subprotocol == "chat", connection.subprotocol
            agreed = [extension.name for extension in connection.protocol.extensions]
            assert agreed == (["permessage-deflate"] if compression else []), agreed
            for size in (0, 1, 125, 126, 127, 65_535, 65_536, 65_537, 1_000_000):
                text, data = "ä" * (size // 2), bytes(range(256)) * (size // 256) + bytes(size % 256)
                for message in (text, data):
                    await connection.send(message)
                    assert await connection.recv() == message, (compression, size)
            # A message in fragments, with a control frame between them.
            async def fragments():
                for number in range(10):
                    yield f"{number} " * 1000
                    if number == 5:
                        await (await connection.ping(b"between"))
            await connection.send(fragments())
            assert await connection.recv() == "".join(f"{number} " * 1000 for number in range(10))
            for number in range(50):
                latency = await (await connection.ping(bytes([number]) * 125))
                assert latency >= 0
            # Many messages under way at once.
            await asyncio.gather(*(connection.send(str(number)) for number in range(500)))
            got = [await connection.recv() for _ in range(500)]
            assert sorted(got, key=int) == [str(number) for number in range(500)]
            await connection.send("close")
            try:
                await connection.recv()
                raise AssertionError("the server closes")
            except websockets.ConnectionClosed as closed:
                assert (closed.rcvd.code, closed.rcvd.reason) == (4001, "as you wish"), closed
    # The client closes first.
    async with connect(url, subprotocols=["chat"]) as connection:
        await connection.close(1000, "done")
        assert connection.close_code == 1000
    print("all checks passed with websockets", websockets.__version__)


if __name__ == "__main__":
    word, where = sys.argv[1:]
    asyncio.run(asyncio.wait_for(run_server(where) if word == "serve" else check(where), 120))
