"""The rule of the grammar over token ids, where the answers are few: for scoring with torch, and for confidences.

The phone chooses greedily among the tokens that the grammar still allows. `AllowedAnswers` answers the same question
for a Hugging Face vocabulary, so that both sides choose among the same tokens at each step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache


@cache
def _byte_of_character() -> dict[str, int]:
    """Byte-level BPE writes each byte as one printable character (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def token_bytes(token: str) -> bytes:
    """Bytes of a byte-level BPE token. Raises KeyError for a token that is not byte-level."""
    table = _byte_of_character()
    return bytes(table[character] for character in token)


class AllowedAnswers:
    """Which token ids may follow, given the bytes answered so far; no torch."""

    def __init__(self, texts: Sequence[str], vocabulary: Mapping[str, int], special_ids: Sequence[int]) -> None:
        """`texts` are those of a `Choice` (student/tasks/kind.py): the lead is part of them."""
        self._texts = [text.encode() for text in texts]
        special = set(special_ids)
        self._pieces: dict[int, bytes] = {}
        for token, number in vocabulary.items():
            if number not in special and (piece := self._useful(token)):
                self._pieces[number] = piece
        self._cache: dict[bytes, dict[int, bytes]] = {}

    def _useful(self, token: str) -> bytes | None:
        try:
            piece = token_bytes(token)
        except KeyError:
            return None
        return piece if any(piece and piece in text for text in self._texts) else None

    def following(self, answered: bytes) -> dict[int, bytes]:
        """Token id -> answer bytes with it, for every token that the grammar allows next."""
        if answered not in self._cache:
            longer = ((number, answered + piece) for number, piece in self._pieces.items())
            self._cache[answered] = {
                n: text for n, text in longer if any(full.startswith(text) for full in self._texts)
            }
        return self._cache[answered]

    def compatible(self, answered: bytes) -> list[int]:
        """Indices of the texts that can still be answered."""
        return [i for i, text in enumerate(self._texts) if text.startswith(answered)]

    def decided(self, answered: bytes) -> int | None:
        """Index of the text once no other is left, else None.

        A class name that begins another one would only be decided by the end token; `plan` refuses such names
        (student/tasks/label.py).
        """
        left = self.compatible(answered)
        return left[0] if len(left) == 1 else None
