"""A codec whose tokens are bytes."""

import pytest


class Bytes:
    """Token 256 begins a prompt."""

    def encode_prompt(self, text):
        return (256, *self.encode(text))

    def encode(self, text):
        return tuple(text.encode())

    def decode(self, tokens):
        return bytes(t for t in tokens if t < 256).decode(errors="replace")


@pytest.fixture
def codec():
    return Bytes()
