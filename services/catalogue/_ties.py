"""Control's actions on equipment, on what feeds it (bindings), and on triggers of points."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4, uuid5

from schemas.catalogue import ROLES_OF_A_BINDING, Binding, Equipment, Point, Trigger
from schemas.points import WHENS
from schemas.samples import Kind, Value
from services.catalogue._checks import check, room, text, uuid_text, web_address
from services.catalogue._part import Part
from services.catalogue._secrets import webhook_secret
from services.errors import Taken, Unknown

EQUIPMENT_MAX = 10_000
"""Of a tenant."""
BINDINGS_MAX = 100
"""Of a point."""
TRIGGERS_MAX = 20
"""Of a point: its rules travel with its samples."""
DELAY_MS_MAX = 86_400_000

_BINDINGS = UUID("b5a4c1de-6d5b-5d0a-8f60-0d2b3c0f7a53")
"""Namespace of the ids of bindings: the same one made twice is one."""
_NUMBERS = (Kind.DOUBLE, Kind.LONG)
_ORDERED = frozenset({">", ">=", "<", "<="})
_WHOLE = range(-(2**63), 2**63)
_TEXT_CHARACTERS_MAX = 1_024


class Ties(Part):
    """Equipment, bindings, triggers."""

    async def add_equipment(self, tenant: str, name: str, *, id: str | None = None) -> Equipment:
        """Make a machine, a cell, a line; without `id` it gets a random UUID."""
        self._tenant(tenant)
        room(len(self._view.all_equipment(tenant)), EQUIPMENT_MAX, "a tenant", "equipment")
        equipment = Equipment(
            str(uuid4()) if id is None else uuid_text(id),
            tenant=tenant,
            name=text(name, "name"),
            created_ms=self._clock.now_ms(),
        )
        return await self._changes.make(equipment)

    async def change_equipment(self, tenant: str, id: str, *, name: str) -> Equipment:
        """Give equipment another name."""
        self._equipment(tenant, id)
        said = text(name, "name")
        return await self._changes.edit(Equipment, id, lambda now: replace(now, name=said))

    async def delete_equipment(self, tenant: str, id: str) -> None:
        """Delete equipment with its bindings."""
        equipment = self._equipment(tenant, id)
        bindings = self._view.bindings(tenant, equipment=id)
        await self._changes.delete([*bindings, equipment])

    async def add_binding(
        self, tenant: str, point: str, equipment: str, *, role: str = "value"
    ) -> Binding:
        """Have a point feed equipment."""
        self._tenant(tenant)
        found = self._point(tenant, point, "point")
        self._equipment(tenant, equipment, "equipment")
        check(role in ROLES_OF_A_BINDING, "role", f"one of {', '.join(ROLES_OF_A_BINDING)}")
        check(role != "counter" or found.declared in _NUMBERS, "role", "counters are numbers")
        room(len(self._view.bindings(tenant, point=point)), BINDINGS_MAX, "a point", "bindings")
        name = "\0".join((point, equipment, role)).encode("utf-8", "surrogatepass").hex()
        binding = Binding(
            str(uuid5(_BINDINGS, name)),
            tenant=tenant,
            point=point,
            equipment=equipment,
            role=role,
            created_ms=self._clock.now_ms(),
        )
        if self._view.binding(tenant, binding.id) is not None:
            raise Taken(f"the point feeds that equipment as {role} already", where="role")
        await self._changes.make(binding)
        if self._view.binding(tenant, binding.id) is None:
            await self._changes.delete([binding])
            raise Unknown("point or equipment was deleted at the same moment", where="point")
        return binding

    async def delete_binding(self, tenant: str, id: str) -> None:
        """Have a point feed that equipment no more."""
        if (binding := self._view.binding(tenant, id)) is None:
            raise Unknown(f"no binding {id!r} in {tenant}", where="id")
        await self._changes.delete([binding])

    async def add_trigger(
        self,
        tenant: str,
        point: str,
        *,
        when: str,
        bound: Value,
        url: str,
        name: str = "",
        hysteresis: float = 0.0,
        delay_ms: int = 0,
        on_clear: bool = False,
        disabled: bool = False,
    ) -> tuple[Trigger, str]:
        """Have a webhook called when a point's values begin to satisfy a rule; (trigger, the secret
        that signs the calls).
        """
        self._tenant(tenant)
        found = self._point(tenant, point, "point")
        room(len(self._view.triggers(tenant, point)), TRIGGERS_MAX, "a point", "triggers")
        trigger = Trigger(
            str(uuid4()),
            tenant=tenant,
            point=point,
            name=name and text(name, "name"),
            when=when,
            bound=bound,
            hysteresis=hysteresis,
            delay_ms=delay_ms,
            on_clear=bool(on_clear),
            url=url,
            disabled=bool(disabled),
            created_ms=self._clock.now_ms(),
        )
        await self._changes.make(_checked(trigger, found))
        if self._view.trigger(tenant, trigger.id) is None:
            await self._changes.delete([trigger])
            raise Unknown("the point was deleted at the same moment", where="point")
        return trigger, webhook_secret(self._secret, trigger.id)

    async def change_trigger(
        self,
        tenant: str,
        id: str,
        *,
        name: str | None = None,
        when: str | None = None,
        bound: Value | None = None,
        hysteresis: float | None = None,
        delay_ms: int | None = None,
        on_clear: bool | None = None,
        url: str | None = None,
        disabled: bool | None = None,
    ) -> Trigger:
        """Change what is given of a trigger."""
        point = self._point(tenant, self._trigger(tenant, id).point)
        given = {
            "name": name and text(name, "name"),
            "when": when,
            "bound": bound,
            "hysteresis": hysteresis,
            "delay_ms": delay_ms,
            "on_clear": on_clear,
            "url": url,
            "disabled": disabled,
        }
        changes: dict[str, Any] = {k: value for k, value in given.items() if value is not None}
        return await self._changes.edit(
            Trigger, id, lambda now: _checked(replace(now, **changes), point)
        )

    async def delete_trigger(self, tenant: str, id: str) -> None:
        """Delete a trigger."""
        await self._changes.delete([self._trigger(tenant, id)])

    def _equipment(self, tenant: str, id: str, where: str = "id") -> Equipment:
        if (found := self._view.equipment(tenant, id)) is None:
            raise Unknown(f"no equipment {id!r} in {tenant}", where=where)
        return found

    def _trigger(self, tenant: str, id: str) -> Trigger:
        if (found := self._view.trigger(tenant, id)) is None:
            raise Unknown(f"no trigger {id!r} in {tenant}", where="id")
        return found


def _checked(trigger: Trigger, point: Point) -> Trigger:
    """The trigger, its numbers as doubles, if it makes sense on values of the point. Raises
    Malformed.
    """
    check(trigger.when in WHENS, "when", f"one of {' '.join(WHENS)}")
    bound, ordered = trigger.bound, trigger.when in _ORDERED
    number = isinstance(bound, int | float) and not isinstance(bound, bool)
    hysteresis, delay_ms = trigger.hysteresis, trigger.delay_ms
    whole = isinstance(delay_ms, int) and not isinstance(delay_ms, bool)
    if point.declared in _NUMBERS:
        check(number, "bound", "a number, as the point's values are")
    elif point.declared is Kind.BOOL:
        check(isinstance(bound, bool), "bound", "true or false, as the point's values are")
    elif point.declared is Kind.DATE:
        check(number and isinstance(bound, int), "bound", "a moment, as the point's values are")
    else:
        short = isinstance(bound, str) and len(bound) <= _TEXT_CHARACTERS_MAX
        check(number or short or isinstance(bound, bool), "bound", "a text, number or boolean")
    numbers = point.declared in _NUMBERS or (point.declared is None and number)
    check(numbers or not ordered, "when", "= or !=: only numbers are more or less")
    check(bound is not None and _in_64_bits(bound), "bound", "a number of 64 bits")
    check(_in_64_bits(hysteresis) and hysteresis >= 0, "hysteresis", "a number, 0 or more")
    check(not hysteresis or ordered, "hysteresis", "0 where numbers are not ordered")
    check(whole and 0 <= delay_ms <= DELAY_MS_MAX, "delay_ms", f"0 to {DELAY_MS_MAX}")
    web_address(trigger.url)
    return replace(trigger, hysteresis=float(hysteresis))


def _in_64_bits(value: Value) -> bool:
    """Whether a value is none of the numbers that no double and no 64-bit integer is."""
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, int) or value in _WHOLE
