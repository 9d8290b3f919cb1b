"""A CRI client on gRPC's C core that knows neither tonic nor the .proto files: it runs one pod and removes it.

usage: client.py SOCKET HANDLER LOG_DIRECTORY; prints `all fine` at its end.
"""

import sys
import uuid

import grpc

socket, handler, logs = sys.argv[1:]
# gRPC's C core names the socket's path as authority, percent-encoded.
channel = grpc.insecure_channel("unix://" + socket)
SECONDS = 30


def varint(number):
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def field(number, value):
    """One field: text, bytes and nested messages with their length, numbers as varints."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, str):
        value = value.encode()
    return varint(number << 3 | 2) + varint(len(value)) + value


def fields(message):
    """The fields of a message, as a list of values per number."""
    out, at = {}, 0

    def read():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7

    while at < len(message):
        key = read()
        if key & 7 == 0:
            value = read()
        elif key & 7 == 2:
            length = read()
            value = message[at : at + length]
            at += length
        else:
            raise ValueError(f"wire type {key & 7}")
        out.setdefault(key >> 3, []).append(value)
    return out


def call(service, method, request=b""):
    return fields(channel.unary_unary(f"/runtime.v1.{service}/{method}")(request, timeout=SECONDS))


def refused(method, request=b""):
    try:
        call("RuntimeService", method, request)
    except grpc.RpcError as error:
        return error.code()
    return None


def check(what, holds):
    if not holds:
        sys.exit(f"client.py: {what}")


version = call("RuntimeService", "Version", field(1, "v1"))
check("Version names the API", version[4] == [b"v1"])

uid = str(uuid.uuid4())
metadata = field(1, "python") + field(2, uid) + field(3, "default")
sandbox_config = field(1, metadata) + field(3, f"{logs}/{uid}")
image = field(1, "docker.io/library/busybox:latest")

run = field(1, sandbox_config) + field(2, handler)
# A field of a newer API than anyone here knows must not hurt.
sandbox = call("RuntimeService", "RunPodSandbox", run + field(2047, "future"))[1][0]
pulled = call("ImageService", "PullImage", field(1, image) + field(3, sandbox_config))[1][0]
check("PullImage names the image", pulled.startswith(b"sha256:"))

container_config = field(1, field(1, "main")) + field(2, image) + field(3, "sleep") + field(3, "600")
create = field(1, sandbox) + field(2, container_config) + field(3, sandbox_config)
container = call("RuntimeService", "CreateContainer", create)[1][0]
call("RuntimeService", "StartContainer", field(1, container))

command = b"".join(field(2, word) for word in ["sh", "-c", "echo hello; exit 5"])
said = call("RuntimeService", "ExecSync", field(1, container) + command + field(3, SECONDS))
check("ExecSync returns the output", said[1] == [b"hello\n"])
check("ExecSync returns the exit code", said[3] == [5])

listed = [fields(item)[1][0] for item in call("RuntimeService", "ListPodSandbox")[1]]
check("the sandbox is listed once", listed.count(sandbox) == 1)

call("RuntimeService", "StopPodSandbox", field(1, sandbox))
call("RuntimeService", "RemovePodSandbox", field(1, sandbox))
check("a removed sandbox is not found", refused("PodSandboxStatus", field(1, sandbox)) == grpc.StatusCode.NOT_FOUND)
check("a removed container is not found", refused("ContainerStatus", field(1, container)) == grpc.StatusCode.NOT_FOUND)
check("an unknown method is not implemented", refused("NoSuchMethod") == grpc.StatusCode.UNIMPLEMENTED)
print("all fine")
