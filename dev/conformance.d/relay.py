"""Relays TCP connections to a Unix socket: h2spec speaks TCP only. Prints the port it took on 127.0.0.1."""

import asyncio
import sys


async def copy(reader, writer):
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        pass


async def relay(reader, writer):
    try:
        far_reader, far_writer = await asyncio.open_unix_connection(sys.argv[1])
    except OSError:
        writer.close()
        return
    # The end of the server's side ends the connection; the suite waits for that.
    await asyncio.wait(
        [asyncio.create_task(copy(reader, far_writer)), asyncio.create_task(copy(far_reader, writer))],
        return_when=asyncio.FIRST_COMPLETED,
    )
    far_writer.close()
    writer.close()


async def main():
    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(main())
