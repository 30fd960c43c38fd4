"""A process to be killed: appends numbered records to all lanes and says which ones are durable.

`python -m tests.contract.eventlog._child URL PREFIX LANES`. Each line of the output is a number, a
lane and an offset.
"""

from __future__ import annotations

import asyncio
import sys

from schemas.topics import SAMPLES_RECEIVED, TOPICS
from services.eventlog import open_eventlog
from tests.contract.eventlog._records import a_record


async def main(url: str, prefix: str, lanes: int) -> None:
    """Append until somebody ends this process."""
    async with open_eventlog(url, lanes=lanes, prefix=prefix) as log:
        await log.create(TOPICS)

        async def one(number: int) -> None:
            lane = number % lanes
            [offset] = await log.append([(SAMPLES_RECEIVED, lane, a_record(number))])
            sys.stdout.write(f"{number} {lane} {offset}\n")
            sys.stdout.flush()

        number = 0
        while True:
            await asyncio.gather(*(one(n) for n in range(number, number + 8)))
            number += 8


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
