"""A child process whose streams never block its parent and never grow without bound."""

import os
import selectors
import subprocess
from collections.abc import Mapping, Sequence

TAIL_BYTES = 4096
CHUNK_BYTES = 65536
CLOSED_POLL_S = 0.01
"""How often to look at a process that has closed its streams and not ended."""


class Child:
    """A process with pipes. `pump` moves the bytes; look at the attributes afterwards."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], *, max_out_bytes: int
    ) -> None:
        # Without the parent's variables, which may hold secrets, and without its terminal.
        self._process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,
        )
        streams = (self._process.stdin, self._process.stdout, self._process.stderr)
        self._streams = [stream for stream in streams if stream is not None]
        self._in, self._out, self._err = (stream.fileno() for stream in self._streams)
        for stream in self._streams:
            os.set_blocking(stream.fileno(), False)
        self._open = {self._in, self._out, self._err}
        self._pending = bytearray()
        self._max_out_bytes = max_out_bytes
        self._closing = False
        self.out = bytearray()
        self.err_tail = bytearray()
        self.overflowed = False
        """More was written than `max_out_bytes`; nothing more is read."""

    def send(self, data: bytes, *, last: bool = False) -> None:
        """Queue bytes for the child's stdin; with `last` it is closed after them."""
        self._pending += data
        self._closing = last
        self._write()

    def take_line(self) -> bytes | None:
        """The first complete line of stdout, or None."""
        end = self.out.find(b"\n")
        if end < 0:
            return None
        line = bytes(self.out[:end])
        del self.out[: end + 1]
        return line

    @property
    def return_code(self) -> int | None:
        """Negative: killed by that signal. None while it runs."""
        return self._process.poll()

    @property
    def ended(self) -> bool:
        """Whether it has ended and everything it wrote has been read."""
        return not self._open & {self._out, self._err} and self.return_code is not None

    @property
    def error_text(self) -> str:
        """The end of what it wrote to stderr."""
        return self.err_tail.decode(errors="replace")

    def kill(self) -> None:
        """End it now and let go of its streams."""
        self._process.kill()
        self._process.wait()
        for stream in self._streams:
            stream.close()
        self._open.clear()

    def interests(self) -> dict[int, int]:
        """Open descriptors, and what they should be watched for."""
        wanted = dict.fromkeys(self._open - {self._in}, selectors.EVENT_READ)
        if self._in in self._open and self._pending:
            wanted[self._in] = selectors.EVENT_WRITE
        return wanted

    def move(self, descriptor: int) -> None:
        """Read or write what `descriptor` is ready for."""
        if descriptor == self._in:
            self._write()
            return
        try:
            data = os.read(descriptor, CHUNK_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._open.discard(descriptor)
        elif descriptor == self._err:
            self.err_tail = (self.err_tail + data)[-TAIL_BYTES:]
        else:
            self.out += data
            if len(self.out) > self._max_out_bytes:
                self.overflowed = True
                self._open.discard(descriptor)

    def _write(self) -> None:
        try:
            while self._pending:
                del self._pending[: os.write(self._in, self._pending[:CHUNK_BYTES])]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._pending.clear()
            self._open.discard(self._in)
        if self._closing:
            self._open.discard(self._in)
            self._streams[0].close()


def pump(children: Sequence[Child], timeout_s: float) -> None:
    """Wait until a child can be read from or written to, or `timeout_s`, and move what there is."""
    owners = {fd: (child, events) for child in children for fd, events in child.interests().items()}
    if any(not child.ended and not child.interests() for child in children):
        timeout_s = min(timeout_s, CLOSED_POLL_S)
    with selectors.DefaultSelector() as selector:
        for descriptor, (_, events) in owners.items():
            selector.register(descriptor, events)
        for key, _ in selector.select(max(0.0, timeout_s)):
            owners[key.fd][0].move(key.fd)
