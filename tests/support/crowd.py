"""A crowd: many clients who post to few points at once, at the same milliseconds on purpose, with
and without overwrite, waiting or not, under keys or not, again where they were not answered. What
each was told is held against what is stored, point by point.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPException
from math import inf
from typing import Any

from schemas.samples import Kind
from tests.support.load import Target
from tests.support.orders import Held, Repeated, Request, Row, explained
from tests.support.plant import Client, moment
from tests.support.processes import let_pass, wait_for

CLIENTS, POINTS, PLACES = 20, 10, 8
"""Clients, the points that they share, and the milliseconds of each."""
_REQUESTS = 6
_AGAIN_SECONDS = 60
_FIRST_MS = 1_500_000_000_000
_QUALITIES = (None, None, 0, 1, 3)


class Crowd:
    """One history: `run` has the clients post, `check` says what no order explains.

    Its milliseconds are those of its number, so that many histories share a system.
    """

    def __init__(
        self,
        target: Target,
        points: Sequence[str],
        *,
        seed: int,
        number: int,
        clients: Sequence[Client],
    ) -> None:
        self._target, self._points, self._clients = target, points, clients
        self._seed = f"{seed}/{number}"
        self.start_ms = _FIRST_MS + number * 1_000
        self._lock = threading.Lock()
        self._requests: dict[str, list[Request | Repeated]] = defaultdict(list)
        self._errors: list[BaseException] = []
        self.told: Counter[str] = Counter()

    def run(self, disturb: Callable[[], None] | None = None) -> None:
        """Have everybody post; `disturb` (a kill and a new start) comes into the middle of it."""
        threads = [
            threading.Thread(target=self._guarded, args=(at,), daemon=True)
            for at in range(len(self._clients))
        ]
        for thread in threads:
            thread.start()
        if disturb:
            let_pass(random.Random(f"{self._seed}/disturb").uniform(0.02, 0.2))
            disturb()
        for thread in threads:
            thread.join(2 * _AGAIN_SECONDS)
            assert not thread.is_alive(), "a client never came to an end"
        if self._errors:
            raise self._errors[0]

    def check(self, client: Client) -> list[str]:
        """What is wrong: points whose answers and values no order explains. Asked again for some
        seconds, as what was not answered may still be under way.
        """

        def wrong() -> list[str]:
            return [point for point in self._points if not self._explained(client, point)]

        try:
            wait_for(lambda: not wrong(), seconds=15, what="an order that explains all of it")
        except AssertionError:
            return [self._told(client, point) for point in wrong()]
        return []

    def _explained(self, client: Client, point: str) -> bool:
        sent = self._requests[point]
        if any(isinstance(one, Repeated) and one.lies for one in sent):
            return False
        requests = [one.request if isinstance(one, Repeated) else one for one in sent]
        return explained(requests, self._stored(client, point))

    def _stored(self, client: Client, point: str) -> dict[int, Held]:
        places = {moment(self.start_ms + at): self.start_ms + at for at in range(PLACES)}
        rows = client.values(point, self.start_ms, self.start_ms + PLACES)
        found = {
            places[row["timestamp"]]: (row["value"], row.get("qualityOfValue")) for row in rows
        }
        assert len(found) == len(rows), f"a millisecond twice: {rows}"
        return found

    def _told(self, client: Client, point: str) -> str:
        sent = "\n  ".join(map(repr, self._requests[point]))
        return f"{point} stores {self._stored(client, point)}:\n  {sent}"

    # -- one client

    def _guarded(self, number: int) -> None:
        chance, client = random.Random(f"{self._seed}/{number}"), self._clients[number]
        try:
            for sequence in range(_REQUESTS):
                self._one(client, chance, f"{number + 1}{sequence:02d}")
        except BaseException as error:
            self._errors.append(error)

    def _one(self, client: Client, chance: random.Random, name: str) -> None:
        """One thing to say, until it is answered or given up."""
        point = chance.choice(self._points)
        rows = tuple(
            Row(
                self.start_ms + chance.randrange(PLACES),
                # Now and then a value that others send, too: a repetition is dropped like any.
                "1.5" if chance.random() < 0.2 else f"{name}{at}.5",
                chance.choice(_QUALITIES),
            )
            for at in range(chance.randint(1, 6))
        )
        overwrite, waits = chance.random() < 0.3, chance.random() < 0.8
        if chance.random() < 0.5:
            repeated = Repeated(rows, overwrite)
            key, again = f"{self._seed}/{name}", chance.random() < 0.3
            self._until_answered(client, point, repeated, key, waits)
            if again:
                self._until_answered(client, point, repeated, key, not waits)
            self._note(point, repeated)
            return
        # Without a key what is sent again is another request.
        for _ in range(chance.randint(1, 3)):
            began = time.monotonic()
            sent, dropped, ended = self._attempt(client, point, rows, overwrite, "", waits)
            if sent:
                known = dropped is not None
                self._note(
                    point,
                    Request(
                        rows,
                        overwrite,
                        began,
                        ended if known else inf,
                        tuple(dropped) if dropped is not None else None,
                    ),
                )
            if dropped is not None:
                return
            let_pass(0.2)

    def _until_answered(
        self, client: Client, point: str, repeated: Repeated, key: str, waits: bool
    ) -> None:
        deadline = time.monotonic() + _AGAIN_SECONDS
        while time.monotonic() < deadline:
            began = time.monotonic()
            sent, dropped, ended = self._attempt(
                client, point, repeated.rows, repeated.overwrite, key, waits
            )
            if sent:
                repeated.note(began, ended, dropped)
            if dropped is not None:
                return
            let_pass(0.1)
        raise AssertionError(f"{key} was not answered in {_AGAIN_SECONDS} s")

    def _attempt(
        self,
        client: Client,
        point: str,
        rows: Sequence[Row],
        overwrite: bool,
        key: str,
        waits: bool,
    ) -> tuple[bool, Sequence[int] | None, float]:
        """(whether it may have arrived, dropped rows where that is known, when it had happened)."""
        headers = {"Idempotency-Key": key} if key else {}
        headers |= {} if waits else {"Prefer": "respond-async"}
        values = [(moment(row.ts_ms), row.value, row.quality) for row in rows]
        try:
            status, answer, said = client.exchange(
                values, overwrite=overwrite, point=point, headers=headers
            )
        except OSError as error:
            refused = isinstance(error.__cause__, ConnectionRefusedError)
            self.told["not sent" if refused else "nothing"] += 1
            return not refused, None, inf
        ended = time.monotonic()
        if status == 204:
            self.told["204"] += 1
            return True, (), ended
        if status == 202 and "location" not in said:
            self.told["202"] += 1
            return True, answer["meta"]["droppedIndices"], ended
        if status == 202:
            # It was on the log when it was answered, so that is when it had happened.
            self.told["202 at once"] += 1
            return True, self._receipt(client, said["location"]), ended
        assert status in (401, 429, 503), (status, answer)
        self.told[str(status)] += 1
        return True, None, inf

    def _receipt(self, client: Client, place: str) -> Sequence[int]:
        """The dropped rows of a promised receipt, however often the doors die meanwhile."""

        def meta() -> Mapping[str, Any] | None:
            try:
                status, answer = client.receipt(place)
            except (OSError, HTTPException):
                return None
            assert status in (200, 401, 503), (status, answer)
            return answer.get("meta") if status == 200 else None

        found = wait_for(meta, seconds=_AGAIN_SECONDS, what=f"the receipt {place}")
        assert found is not None
        return list(found["droppedIndices"])

    def _note(self, point: str, request: Request | Repeated) -> None:
        with self._lock:
            self._requests[point].append(request)


def crowds(
    target: Target,
    points: Sequence[str],
    *,
    seed: int,
    count: int,
    disturbances: Sequence[Callable[[], None]],
    every: int = 5,
) -> None:
    """So many histories on one system, every fifth of them disturbed; each is checked when it has
    ended, and all of them once more at the end.
    """
    clients = [Client(target.facts) for _ in range(CLIENTS)]
    for client in clients:
        client.token()
    told, made = Counter[str](), []
    for number in range(count):
        crowd = Crowd(target, points, seed=seed, number=number, clients=clients)
        disturb = disturbances[number // every % len(disturbances)] if number % every == 1 else None
        crowd.run(disturb)
        wrong = crowd.check(Client(target.facts))
        assert not wrong, f"history {number}: no order explains\n" + "\n".join(wrong)
        told += crowd.told
        made.append(crowd)
    for number, crowd in enumerate(made):
        wrong = crowd.check(Client(target.facts))
        assert not wrong, f"history {number}, later: no order explains\n" + "\n".join(wrong)
    print(f"{count} histories: {dict(told)}")
    assert told["202"] and told["204"] and told["202 at once"], told
    assert told["nothing"] or count < every, "no kill came into the middle of anything"


def ten_points(
    target: Target, act: Callable[[str, dict[str, Any]], Mapping[str, str]]
) -> list[str]:
    """The ids of ten new points of the demo plant's device; `act` does control actions."""
    device = target.facts["building_x"]["device_id"]
    return [
        act(
            "add_point",
            {"tenant": "demo", "device": device, "key": f"crowd {at}", "kind": int(Kind.DOUBLE)},
        )["id"]
        for at in range(POINTS)
    ]
