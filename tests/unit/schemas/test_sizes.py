"""What a block takes on the log, as far as whoever fills it can tell."""

from __future__ import annotations

import random

from schemas.blocks import BLOCK_BYTES_MAX, Block
from schemas.samples import Kind
from tests.support.builders import a_block, a_sample


def test_a_piece_of_a_block_of_wide_characters_is_within_the_bound() -> None:
    chance = random.Random(1)
    texts = [
        "".join(chr(chance.randrange(0x10000, 0x20000)) for _ in range(1000)) for _ in "a" * 300
    ]
    block = a_block(*(a_sample(text, at, kind=Kind.STRING) for at, text in enumerate(texts)))
    pieces = block.pieces()
    assert sum(map(len, pieces)) == 300
    assert max(len(piece.encode()) for piece in pieces) < 1.1 * BLOCK_BYTES_MAX


def test_the_estimate_stays_the_same_over_cutting_joining_and_the_log() -> None:
    block = a_block(*(a_sample("ä" * 9, at, kind=Kind.STRING) for at in range(4)))
    assert block.text_bytes == 4 * 18
    for same in (Block.decode(block.encode()), Block.join([block.take([0, 1]), block.slice(2, 4)])):
        assert same.bytes_estimate == block.bytes_estimate
