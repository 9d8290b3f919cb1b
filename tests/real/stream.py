"""A client of exec, attach and port-forward URLs that needs nothing but Python: WebSocket, as kubectl speaks it.

usage: stream.py echo URL BYTES          sends that many bytes to stdin, wants the same back from stdout
       stream.py run URL TEXT [COLUMNS ROWS]  sends the text to stdin, prints what comes back; with a size of the
                                         terminal, if given
       stream.py say URL TEXT ANSWER     sends the text to stdin, prints what comes back until it is that answer
       stream.py hold URL                prints `open` with the first output, `ended` with the end of the stream
       stream.py get URL PORT PATH       an HTTP request through a port-forward
       stream.py status URL              the HTTP status of an upgrade request

The first byte of a message is its channel: 0 stdin, 1 stdout, 2 stderr, 3 the outcome as JSON, 4 the terminal's
size. Of a port-forward 0 is data and 1 is errors, and each begins with the port.
"""

import base64
import hashlib
import json
import os
import socket
import struct
import sys
import threading
import urllib.parse

SECONDS = 240
CHUNK = 32 * 1024
ACCEPT = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def ask(url, query=""):
    """Sends the upgrade request; returns the connection, its buffered reader, the status and the headers."""
    parts = urllib.parse.urlsplit(url)
    key = base64.b64encode(os.urandom(16))
    connection = socket.create_connection((parts.hostname, parts.port), timeout=SECONDS)
    connection.sendall(
        f"GET {parts.path}{query} HTTP/1.1\r\nHost: {parts.netloc}\r\nOrigin: http://{parts.netloc}\r\n"
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Protocol: v4.channel.k8s.io\r\nSec-WebSocket-Key: {key.decode()}\r\n\r\n".encode()
    )
    reader = connection.makefile("rb")
    status = int(reader.readline().split()[1])
    headers = {}
    for line in iter(reader.readline, b"\r\n"):
        name, value = line.decode().split(":", 1)
        headers[name.lower()] = value.strip()
    expected = base64.b64encode(hashlib.sha1(key + ACCEPT).digest()).decode()
    assert status != 101 or headers["sec-websocket-accept"] == expected, "this answers another request"
    return connection, reader, status, headers


def upgrade(url, query=""):
    connection, reader, status, headers = ask(url, query)
    if status != 101:
        sys.exit(f"the server answered {status}: {reader.read(200)!r}")
    assert headers["sec-websocket-protocol"] == "v4.channel.k8s.io", headers
    return connection, reader


def send(connection, channel, data):
    """One binary message. A client must mask; the mask of zeros leaves the bytes as they are."""
    length = len(data) + 1
    if length < 126:
        head = struct.pack("!BB", 0x82, 0x80 | length)
    elif length < 65536:
        head = struct.pack("!BBH", 0x82, 0x80 | 126, length)
    else:
        head = struct.pack("!BBQ", 0x82, 0x80 | 127, length)
    connection.sendall(head + b"\0\0\0\0" + bytes([channel]) + data)


def messages(reader):
    """Channel and data of each message, until the server is done."""
    while True:
        head = reader.read(2)
        if len(head) < 2 or head[0] & 0x0F == 8:
            return
        length = head[1] & 0x7F
        if length == 126:
            (length,) = struct.unpack("!H", reader.read(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", reader.read(8))
        data = reader.read(length)
        if len(data) < length:
            return
        if head[0] & 0x0F in (0, 1, 2) and data:
            yield data[0], data[1:]


def outcome(data):
    """Fails as the command failed."""
    status = json.loads(data)
    if status["status"] != "Success":
        sys.exit(f"the command failed: {status.get('message')}")


def block(number):
    """Bytes that differ from block to block, so that a lost or repeated one shows."""
    seed = hashlib.sha256(str(number).encode()).digest()
    return (seed * (CHUNK // len(seed) + 1))[number % 31 :][:CHUNK]


def echo(url, count):
    blocks, rest = divmod(int(count), CHUNK)
    assert rest == 0, f"BYTES must be a multiple of {CHUNK}"
    connection, reader = upgrade(url)

    def speak():
        for number in range(blocks):
            send(connection, 0, block(number))

    speaker = threading.Thread(target=speak, daemon=True)
    speaker.start()
    received, checked, done = bytearray(), 0, False
    for channel, data in messages(reader):
        if channel == 3:
            outcome(data)
            done = True
            break
        if channel == 2 and data:
            sys.exit(f"stderr: {data!r}")
        received += data
        while len(received) >= CHUNK:
            assert received[:CHUNK] == block(checked), f"block {checked} differs"
            del received[:CHUNK]
            checked += 1
    assert not received and checked == blocks, f"{checked} of {blocks} blocks and {len(received)} bytes came back"
    assert done, "the stream ended without an outcome"
    print(f"{checked * CHUNK} bytes came back")


def run(url, text, columns=None, rows=None):
    connection, reader = upgrade(url)
    if columns:
        send(connection, 4, json.dumps({"Width": int(columns), "Height": int(rows)}).encode())
    if text:
        send(connection, 0, text.encode())
    for channel, data in messages(reader):
        if channel == 3:
            outcome(data)
            return
        (sys.stderr if channel == 2 else sys.stdout).buffer.write(data)
    sys.exit("the stream ended without an outcome")


def say(url, text, answer):
    connection, reader = upgrade(url)
    send(connection, 0, text.encode())
    heard = ""
    for _, data in messages(reader):
        heard += data.decode()
        if heard == answer:
            print(heard, end="")
            return
    sys.exit(f"the stream ended after {heard!r}")


def hold(url):
    _, reader = upgrade(url)
    first = True
    try:
        for channel, data in messages(reader):
            if data and first:
                print("open", flush=True)
                first = False
    except OSError as error:
        print(error)
    print("ended", flush=True)


def get(url, port, path):
    connection, reader = upgrade(url, f"?port={port}")
    send(connection, 0, f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
    begun, reply = set(), b""
    for channel, data in messages(reader):
        if channel not in begun:
            begun.add(channel)
            assert data[:2] == struct.pack("<H", int(port)), data
            data = data[2:]
        if channel == 1 and data:
            sys.exit(f"port-forward: {data!r}")
        reply += data
        # The server of a port-forward keeps the stream open after the pod has closed the connection.
        head, _, body = reply.partition(b"\r\n\r\n")
        length = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
        if length and len(body) >= int(length[0]):
            assert head.split(b" ")[1] == b"200", head
            sys.stdout.buffer.write(body)
            return
    sys.exit(f"the stream ended after {reply!r}")


def status(url):
    print(ask(url)[2])


{"echo": echo, "run": run, "say": say, "hold": hold, "get": get, "status": status}[sys.argv[1]](*sys.argv[2:])
