"""Address and errors of the server of the web page."""

from __future__ import annotations

import logging
import socket

from salience_detr.utils.errors import one_line


class ServerErrors(logging.Filter):
    """Filter that turns the traceback of a request that the server cannot answer into one line."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], Exception):
            record.msg = f"a request failed: {one_line(record.exc_info[1])}"
            record.args = None
            record.exc_info = None
        return True


def free_port(host: str, port: int) -> int:
    """Return the port, or a free one for 0; raise OSError if the address cannot be used."""
    # gradio would report a busy port by a traceback.
    try:
        with socket.create_server((host, port)) as server:
            return int(server.getsockname()[1])
    except (OSError, OverflowError) as error:
        message = f"cannot listen at {host}, port {port}: {error}; choose another --port or --host"
        raise OSError(message) from error
