"""HTTP as bytes, for what no client would send."""

import socket


def post_bytes(path: str, body: bytes, more: str = "") -> bytes:
    """Write a POST of JSON; `more` are header lines."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{more}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def read_to_end(connection: socket.socket) -> bytes:
    """Read until the server has closed."""
    data = b""
    while piece := connection.recv(65536):
        data += piece
    return data


def split_answer(data: bytes) -> tuple[bytes, dict[bytes, bytes], bytes]:
    """Split an answer into its status line, headers and body."""
    head, _, body = data.partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    return status, dict(line.split(b": ", 1) for line in lines), body
