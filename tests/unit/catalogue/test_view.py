"""The view as a fold: what counts, what compaction may take away, who sees what."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.catalogue import (
    FIRST_SIGNING_KEY,
    THINGS,
    Binding,
    Device,
    Equipment,
    Key,
    Point,
    Revocation,
    SigningKey,
    Tenant,
    Trigger,
    User,
)
from schemas.envelope import Change, Envelope, decode, encode
from schemas.points import lane_of
from schemas.samples import Kind
from services.catalogue import View, first, new_point, series_id
from services.catalogue._points import PENDING_MS, PointIndex
from services.dialects import Lookup
from services.errors import Malformed
from tests.support.catalogue import a_view, put, skipped

T0 = 1_700_000_000_000
DEVICE = "0d4f9f5e-5d3b-4b6f-9f0a-0a8b7a4f4b01"
OTHER_DEVICE = "0d4f9f5e-5d3b-4b6f-9f0a-0a8b7a4f4b02"

# -- histories -------------------------------------------------------------------------------------

_points = st.builds(
    lambda point, key, origin, locked, created_ms, band: new_point(
        "acme",
        DEVICE,
        key,
        id=point,
        origin=origin,
        locked=locked,
        kind=0,
        created_ms=created_ms,
        band=band,
    ),
    st.sampled_from(["p1", "p2", "p3"]),
    st.sampled_from(["speed", "heat"]),
    st.sampled_from(["", "", "speed", "old"]),
    st.booleans(),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.5]),
)
_keys = st.builds(
    lambda key, secret: Key(key, tenant="acme", secrets=((f"{key}{secret}", 0),)),
    st.sampled_from(["k1", "k2"]),
    st.integers(0, 3),
)
_tenants = st.builds(
    lambda tenant, number: Tenant(tenant, name=f"{number}", uuid=f"{tenant}-{number}"),
    st.sampled_from(["acme", "beta"]),
    st.integers(0, 2),
)
_signing_keys = st.builds(
    lambda key, signs_ms: SigningKey(key, created_ms=signs_ms, signs_ms=signs_ms),
    st.sampled_from(["s1", "s2"]),
    st.integers(0, 2),
)
_revocations = st.builds(
    Revocation,
    st.sampled_from(["k1", "k2", *map(Revocation.signing_key_id, ("first", "s1", "s2"))]),
)
_things = st.one_of(_points, _keys, _tenants, _signing_keys, _revocations)


@st.composite
def _histories(draw: st.DrawFn) -> list[Change]:
    """Changes in the order of the log, each claim with a name of its own."""
    history = []
    for number in range(draw(st.integers(0, 12))):
        thing = draw(_things)
        body: dict[str, Any] | None = json.loads(json.dumps(thing.body()))
        match draw(st.sampled_from(["first", "first", "set", "delete", "broken"])):
            case "first":
                history.append(Change(thing.KIND, thing.id, body, True, f"{number}"))
            case "set":
                history.append(Change(thing.KIND, thing.id, body))
            case "delete":
                history.append(Change(thing.KIND, thing.id, None))
            case "broken":
                claim = draw(st.booleans())
                broken = {"tenant": 5, "uuid": 5}
                history.append(Change(thing.KIND, thing.id, broken, claim, f"{number}"))
    return history


def folded(history: Sequence[tuple[int, Change]]) -> View:
    """The view of (offset, change) pairs."""
    view = View()
    for offset, change in history:
        view.apply(change, offset)
    return view


def picture(view: View) -> dict[str, Any]:
    """All that can be asked of a view of these histories."""
    points = dict(view.points("acme", DEVICE))
    return {
        "things": {
            (kind, thing): view.thing(kind, thing)
            for kind in THINGS
            for thing in ("p1", "p2", "p3", "k1", "k2", "s1", "s2", "acme", "beta")
        },
        "points": list(points.items()),
        "known": [view.known("acme", DEVICE, key) for key in ("speed", "heat")],
        "crowded": [view.crowded("acme", DEVICE, key) for key in ("speed", "heat")],
        "seen": [view.point("acme", point) for point in ("p1", "p2", "p3")],
        "policies": [view.policy(point) for point in points.values()],
        "free": view.free_policy("acme"),
        "secrets": [view.key_of_secret(f"k{key}{n}") for key in (1, 2) for n in range(4)],
        "uuids": [view.tenant_of(f"{name}-{n}") for name in ("acme", "beta") for n in range(3)],
        "signing": view.signing_keys(),
        "collisions": view.collisions,
    }


def compacted(history: Sequence[tuple[int, Change]]) -> list[tuple[int, Change]]:
    """What a compacted topic keeps: the last record of each key, at its offset."""
    last = {change.key: offset for offset, change in history}
    return [(offset, change) for offset, change in history if last[change.key] == offset]


@given(_histories())
def test_what_compaction_leaves_gives_the_same_view(history: list[Change]) -> None:
    whole = list(enumerate(history))

    assert picture(folded(compacted(whole))) == picture(folded(whole))


@given(_histories(), st.integers(0, 12))
def test_compaction_of_a_beginning_does_not_change_the_end(history: list[Change], cut: int) -> None:
    whole = list(enumerate(history))

    assert picture(folded(compacted(whole[:cut]) + whole[cut:])) == picture(folded(whole))


@given(_histories(), st.integers(0, 12), st.integers(0, 12))
def test_records_that_are_read_again_change_nothing(
    history: list[Change], stopped: int, resumed: int
) -> None:
    whole = list(enumerate(history))
    again = whole[:stopped] + whole[min(stopped, resumed) :]

    assert picture(folded(again)) == picture(folded(whole))


@given(_histories())
def test_a_view_follows_the_plain_rule(history: list[Change]) -> None:
    things: dict[tuple[str, str], dict[str, Any]] = {}
    for change in history:
        place = (change.kind, change.id)
        good = change.body is not None and "id" in change.body
        if change.kind == Revocation.KIND:
            things[place] = {"id": change.id}
        elif not change.first or place not in things:
            things.pop(place, None)
            if good:
                things[place] = dict(change.body or {})

    view = folded(list(enumerate(history)))

    for kind in THINGS:
        for thing in ("p1", "p2", "p3", "k1", "k2", "acme", "beta"):
            found = view.thing(kind, thing)
            expected = things.get((kind, thing))
            if found is None or expected is None:
                assert found is None and expected is None
            elif kind == Key.KIND:
                revoked = (Revocation.KIND, thing) in things
                assert (found.revoked, found.secrets == ()) == (revoked, revoked)  # type: ignore[attr-defined]
            else:
                assert found == THINGS[kind].of(expected)


@given(_histories())
def test_the_stamps_of_a_device_are_those_of_its_points_after_every_change(
    history: list[Change],
) -> None:
    view = View()
    for offset, change in enumerate(history):
        view.apply(change, offset)
        points = view.points("acme", DEVICE)
        expected = {key: (point.series, view.policy(point)) for key, point in points.items()}
        assert dict(view.stamps("acme", DEVICE)) == expected
    assert dict(view.stamps("beta", DEVICE)) == {}


@given(_points | _keys)
def test_a_thing_survives_the_log(thing: Point | Key) -> None:
    change = first(thing)
    value, headers = encode(Envelope(change, key=change.key))
    read = decode(value, headers)
    assert isinstance(read, Envelope) and isinstance(read.record, Change)

    view = folded([(0, read.record)])

    assert view.thing(thing.KIND, thing.id) == thing


# -- what counts -----------------------------------------------------------------------------------


def test_of_two_claims_the_first_wins() -> None:
    one, other = (first(Device("d", tenant="acme", name=name)) for name in ("one", "other"))

    view = folded([(0, one), (1, other)])

    assert view.device("acme", "d") == Device("d", tenant="acme", name="one")


def test_a_record_from_before_the_revision_is_passed_over() -> None:
    now, before = (Tenant("acme", name=name) for name in ("now", "before"))

    view = folded([(5, first(now)), (3, Change("tenant", "acme", before.body()))])

    assert (view.tenant("acme"), view.revision) == (now, 5)


def test_members_and_kinds_of_a_newer_version_are_passed_over() -> None:
    body = Tenant("acme", name="Acme").body() | {"colour": "green"}
    before = skipped("undecodable")

    view = folded([(0, Change("tenant", "acme", body)), (1, Change("robot", "r1", {"id": "r1"}))])

    assert view.tenant("acme") == Tenant("acme", name="Acme")
    assert (view.revision, skipped("undecodable") - before) == (1, 0)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("key", {"revoked": "no"}),
        ("key", {"scopes": "ingest"}),
        ("key", {"secrets": [["aa", "0"]]}),
        ("user", {"tenants": {"acme": "read"}}),
        ("point", {"kind": 17}),
        ("point", {"tenant": "acme", "device": "d", "key": "k", "series": 1}),
        ("tenant", []),
    ],
)
def test_a_body_that_cannot_be_read_leaves_nothing_standing(kind: str, body: Any) -> None:
    good = THINGS[kind].of({"id": "x"})
    if isinstance(good, Point):
        good = new_point("acme", "d", "k", id="x")
    before = skipped("undecodable")

    view = folded([(0, Change(kind, "x", good.body())), (1, Change(kind, "x", body))])

    assert (view.thing(kind, "x"), skipped("undecodable") - before) == (None, 1)


def test_a_revocation_outlasts_every_later_edit_of_the_key() -> None:
    key = Key("k", tenant="acme", secrets=(("digest", 0),))
    revocation = Change(Revocation.KIND, "k", {"id": "k"})

    made = Change(Key.KIND, key.id, key.body())
    for history in ([made, revocation, made], [revocation, made], [made, revocation]):
        view = folded(list(enumerate(history)))
        assert view.key("k") == replace(key, revoked=True, secrets=())
        assert view.key_of_secret("digest") is None


def test_signing_keys_follow_each_record_and_are_in_their_order_when_they_are_asked_for() -> None:
    later, sooner = (SigningKey(f"{ms}", created_ms=1, signs_ms=ms) for ms in (20, 10))
    view = View()
    assert view.signing_keys() == (FIRST_SIGNING_KEY,)

    put(view, later)
    put(view, sooner)
    assert view.signing_keys() == (FIRST_SIGNING_KEY, sooner, later)
    assert view.signing_keys() is view.signing_keys()

    sooner = replace(sooner, signs_ms=30)
    put(view, sooner)
    assert view.signing_keys() == (FIRST_SIGNING_KEY, later, sooner)

    put(view, Revocation(Revocation.signing_key_id("first")))
    assert view.signing_keys() == (later, sooner)

    view.apply(Change(SigningKey.KIND, later.id, None), view.revision + 1)
    assert view.signing_keys() == (sooner,)

    put(view, Revocation(Revocation.signing_key_id(later.id)))
    put(view, later)
    assert view.signing_keys() == (sooner,)


def test_subscribers_hear_of_changes_that_counted_and_of_keys_that_were_revoked() -> None:
    view, heard = View(), list[tuple[str, str, bool]]()
    end = view.on_change(lambda change: heard.append((change.kind, change.id, change.first)))

    view.apply(first(Tenant("acme")), 0)
    view.apply(first(Tenant("acme")), 1)
    view.apply(Change("key", "k", Key("k", tenant="acme").body()), 2)
    view.apply(Change("revocation", "k", {"id": "k"}), 3)
    end()
    view.apply(Change("tenant", "acme", None), 4)

    assert heard == [
        ("tenant", "acme", True),
        ("key", "k", False),
        ("revocation", "k", False),
        ("key", "k", False),
    ]


# -- series and points -----------------------------------------------------------------------------


def test_series_ids_are_those_that_are_on_disk() -> None:
    assert series_id("acme", "boiler", "temperature") == 0xBCDDD4FEE666B739
    assert series_id("acme", "boiler", "\ud800") == 0xBCDD089CE61F533E


def test_all_series_of_a_device_share_a_lane() -> None:
    lanes = {lane_of(series_id("acme", DEVICE, f"key {n}"), 16) for n in range(100)}
    devices = {lane_of(series_id("acme", f"{n}", "key"), 16) for n in range(100)}

    assert (len(lanes), len(devices)) == (1, 16)


def test_points_come_in_the_order_of_their_creation_as_a_picture_of_the_moment() -> None:
    view = a_view(
        *(new_point("acme", DEVICE, key, created_ms=at) for at, key in [(2, "b"), (1, "c")])
    )
    before = view.points("acme", DEVICE)

    put(view, new_point("acme", DEVICE, "a", created_ms=2))

    assert list(before) == ["c", "b"]
    assert list(view.points("acme", DEVICE)) == ["c", "a", "b"]


def test_of_two_points_for_one_series_the_older_stands_until_it_goes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    older = Point("older", tenant="acme", device="d", key="k", series=7, created_ms=1)
    newer = Point("newer", tenant="beta", device="e", key="l", series=7, created_ms=2)

    for points in ((older, newer), (newer, older)):
        index = PointIndex()
        for point in points:
            index.put(point)
        assert (index.get("older"), index.get("newer"), index.shadowed) == (older, None, 1)
        assert (index.at("beta", "e", "l"), index.count("beta", "e")) == (None, 0)
        index.remove(older)
        assert (index.get("older"), index.get("newer"), index.shadowed) == (None, newer, 0)

    assert "point newer (beta, e, 'l') is passed over" in caplog.text


# -- policies --------------------------------------------------------------------------------------


def test_a_point_takes_its_series_along_to_another_key_and_a_new_one_gets_another() -> None:
    point = new_point("acme", DEVICE, "heat", created_ms=1)
    view = a_view(point)
    put(view, replace(point, key="oven", origin="heat"))

    assert view.series("acme", DEVICE, "oven") == point.series
    assert view.series("acme", DEVICE, "heat") != point.series
    change = view.creation("acme", DEVICE, "heat", T0)
    assert change is not None and change.body is not None
    view.apply(change, view.revision + 1)
    second = view.known("acme", DEVICE, "heat")
    assert second is not None and second.id != point.id
    assert second.series == view.series("acme", DEVICE, "heat") != point.series

    put(view, replace(second, key="saw"))
    assert view.origin("acme", DEVICE, "heat") not in ("", "heat", second.origin)


def test_of_two_points_at_one_key_the_older_has_it_until_it_goes() -> None:
    older = new_point("acme", DEVICE, "heat", origin="old", id="p1", created_ms=1)
    younger = new_point("acme", DEVICE, "heat", id="p2", created_ms=2)
    for points in ((older, younger), (younger, older)):
        view = a_view(*points)
        assert view.known("acme", DEVICE, "heat") == older
        assert dict(view.points("acme", DEVICE)) == {"heat": older}
        assert view.point("acme", "p2") == younger
        assert view.crowded("acme", DEVICE, "heat")
        put(view, replace(older, key="oven"))
        assert dict(view.points("acme", DEVICE)) == {
            "oven": replace(older, key="oven"),
            "heat": younger,
        }
        assert not view.crowded("acme", DEVICE, "heat")


def test_a_picture_that_a_slow_reader_takes_is_not_kept_beyond_a_change() -> None:
    index = PointIndex()
    index.put(new_point("acme", DEVICE, "a"))

    class Slow(dict[str, Point]):
        """While it is looked through, the index changes."""

        def values(self) -> Any:
            found = list(super().values())
            index.put(new_point("acme", DEVICE, "b"))
            return found

    place = ("acme", DEVICE)
    index._by_device[place] = Slow(index._by_device[place])
    assert list(index.of(*place)) == ["a"]
    index._by_device[place] = dict(index._by_device[place])
    assert list(index.of(*place)) == ["a", "b"]


def test_the_api_server_is_there_on_the_log_or_not() -> None:
    view = a_view(Tenant("acme"))
    server = view.api_server("acme")
    assert view.device("acme", server.id) == server
    assert view.device("beta", server.id) is None
    assert view.devices("acme") == [server]

    put(view, replace(server, disabled=True))
    assert view.api_server("acme").disabled
    assert [device.disabled for device in view.devices("acme")] == [True]


def test_a_device_of_another_tenant_is_never_the_api_server() -> None:
    view = a_view(Tenant("acme"), Tenant("globex"))
    server = view.api_server("acme")
    theirs = replace(server, tenant="globex", name="theirs")
    put(view, theirs)
    assert view.api_server("acme") == view.device("acme", server.id) == server
    assert view.devices("acme") == [server]
    assert view.device("globex", server.id) == theirs


def test_what_is_tied_to_a_point_is_found_from_both_ends_as_long_as_they_are_there() -> None:
    point = new_point("acme", DEVICE, "strokes")
    press, saw = Equipment("e1", "acme", "Press", 1), Equipment("e2", "acme", "Saw", 2)
    bindings = [
        Binding("b1", "acme", point.id, "e1"),
        Binding("b2", "acme", point.id, "e2", "counter", 5),
    ]
    trigger = Trigger("t1", "acme", point.id, bound=5)
    view = a_view(point, saw, press, *bindings, trigger)

    assert view.all_equipment("acme") == [press, saw]
    assert view.bindings("acme", point=point.id) == bindings
    assert view.bindings("acme", equipment="e2") == bindings[1:]
    assert view.triggers("acme", point.id) == [trigger]
    assert [rule.id for rule in view.policy(point).rules] == ["t1"]
    for tenant in ("beta",):
        assert view.all_equipment(tenant) == view.bindings(tenant, point=point.id) == []
        assert view.triggers(tenant, point.id) == []
        found = (
            view.equipment(tenant, "e1"),
            view.binding(tenant, "b1"),
            view.trigger(tenant, "t1"),
        )
        assert found == (None, None, None)

    put(view, replace(bindings[1], equipment="e1"))
    assert view.bindings("acme", equipment="e2") == []
    put(view, replace(trigger, disabled=True))
    assert view.policy(point).rules == ()
    view.apply(Change("equipment", "e1", None), view.revision + 1)
    assert view.bindings("acme", point=point.id) == [] and view.binding("acme", "b1") is None
    view.apply(Change("point", point.id, None), view.revision + 1)
    assert view.trigger("acme", "t1") is None and view.triggers("acme", point.id) == []


def test_points_that_are_judged_alike_share_one_policy() -> None:
    locked = [new_point("acme", DEVICE, key, kind=1, locked=True, band=0.5) for key in "abc"]
    view = a_view(*locked, new_point("acme", DEVICE, "free"))

    policies = [view.policy(point) for point in locked]

    assert all(policy is policies[0] for policy in policies)
    assert (policies[0].kind, policies[0].band, policies[0].tenant) == (Kind.LONG, 0.5, "acme")
    free = view.policy(new_point("acme", DEVICE, "free"))
    assert free is view.free_policy("acme")
    assert (free.kind, free.band) == (None, 0.0)


def test_an_unlocked_kind_is_no_policy_but_its_deadband_is() -> None:
    point = new_point("acme", DEVICE, "k", kind=0, band_percent=1.5, heartbeat_ms=60_000)
    policy = a_view(point).policy(point)

    assert (policy.kind, policy.band_percent, policy.heartbeat_ms) == (None, 1.5, 60_000)


def test_keys_that_appear_by_first_use_leave_the_free_policy_as_it_is() -> None:
    view = a_view(Tenant("acme"), new_point("acme", DEVICE, "locked", locked=True, kind=0))
    before = view.free_policy("acme")

    for offset in range(10, 20):
        view.apply(first(new_point("acme", DEVICE, f"key {offset}")), offset)

    assert view.free_policy("acme") is before


@pytest.mark.parametrize("loosened", [True, False])
def test_a_newer_policy_has_the_higher_revision_also_where_a_lock_goes_away(
    loosened: bool,
) -> None:
    locked = new_point("acme", DEVICE, "k", locked=True, kind=0)
    free = replace(locked, locked=False)
    view = a_view(Tenant("acme"))
    revisions = [view.free_policy("acme").revision]

    view.apply(first(locked), 5)
    revisions.append(view.policy(locked).revision)
    view.apply(Change("point", locked.id, free.body() if loosened else None), 6)
    if not loosened:
        view.apply(first(free), 7)
    revisions.append(view.policy(free).revision)

    assert view.policy(free).kind is None
    assert revisions == sorted(set(revisions))


# -- creation --------------------------------------------------------------------------------------


def test_a_burst_with_a_new_key_makes_one_claim() -> None:
    view = View()
    claims = [view.creation("acme", DEVICE, "k", T0 + n) for n in range(1000)]

    made = [claim for claim in claims if claim is not None]
    assert len(made) == 1
    view.apply(made[0], 0)
    assert view.known("acme", DEVICE, "k") == new_point("acme", DEVICE, "k", created_ms=T0)
    assert view.creation("acme", DEVICE, "k", T0 + 10 * PENDING_MS) is None


def test_a_claim_that_did_not_get_through_can_be_made_again() -> None:
    view = View()
    one = view.creation("acme", DEVICE, "k", T0)
    assert view.creation("acme", DEVICE, "k", T0 + PENDING_MS - 1) is None

    again = view.creation("acme", DEVICE, "k", T0 + PENDING_MS)

    assert one is not None and again is not None
    assert (one.id, one.first, again.first) == (again.id, True, True)
    assert one.claim != again.claim


def test_two_doors_that_make_the_same_point_name_it_alike() -> None:
    claims = [View().creation("acme", DEVICE, "k", T0 + n, kind=Kind(n)) for n in range(2)]
    view = View()
    for offset, claim in enumerate(claims):
        assert claim is not None
        view.apply(claim, offset)

    assert len(view.points("acme", DEVICE)) == 1
    known = view.known("acme", DEVICE, "k")
    assert known is not None and known.declared is Kind.DOUBLE


def test_a_device_may_have_so_many_keys_and_no_more() -> None:
    view = a_view(new_point("acme", DEVICE, "k0"), keys_per_device_max=2)
    assert view.creation("acme", DEVICE, "k1", T0) is not None

    with pytest.raises(Malformed) as refused:
        view.creation("acme", DEVICE, "k2", T0)

    assert refused.value.code == "too_many_keys"
    assert view.creation("acme", OTHER_DEVICE, "k2", T0) is not None
    # The claim for k1 never got through, so there is room again.
    assert view.creation("acme", DEVICE, "k2", T0 + PENDING_MS) is not None


# -- tenants ---------------------------------------------------------------------------------------


def test_what_belongs_to_another_tenant_does_not_exist() -> None:
    point = new_point("acme", DEVICE, "k", locked=True, kind=0)
    view = a_view(
        Tenant("acme", uuid="uuid of acme"),
        Tenant("beta", uuid="uuid of beta"),
        Device(DEVICE, tenant="acme"),
        point,
        Key("key of acme", tenant="acme"),
        User("anna", tenants={"acme": ("read",)}),
    )
    lookup: Lookup = view

    assert lookup.point("acme", point.id) == lookup.known("acme", DEVICE, "k") == point
    assert lookup.device("acme", DEVICE) is not None

    assert lookup.point("beta", point.id) is None
    assert lookup.known("beta", DEVICE, "k") is None
    assert lookup.points("beta", DEVICE) == {}
    assert lookup.device("beta", DEVICE) is None
    assert view.keys("beta") == []
    assert view.devices("beta") == [view.api_server("beta")]
    assert lookup.series("beta", DEVICE, "k") != lookup.series("acme", DEVICE, "k")
    assert lookup.free_policy("beta").tenant == "beta"
    made = lookup.creation("beta", DEVICE, "k", T0)
    assert made is not None and made.body is not None
    assert (made.body["tenant"], made.id == point.id) == ("beta", False)


def test_points_that_are_not_kept_for_ever_are_known_and_all_are_found_by_their_series() -> None:
    kept = new_point("acme", "d1", "kept", keep_minutes=60)
    for_ever = new_point("acme", "d1", "for ever")
    view = a_view(kept, for_ever)
    assert view.retained() == [kept]
    assert [view.point_of(each.series) for each in (kept, for_ever)] == [kept, for_ever]
    assert view.point_of(7) is None
    put(view, replace(kept, keep_minutes=0))
    assert view.retained() == []


def test_a_series_leads_to_its_point_for_its_own_tenant_only() -> None:
    point = new_point("acme", "d1", "temperature")
    view = a_view(point)
    assert view.of_series("acme", point.series) == point
    assert view.of_series("bolt", point.series) is None
    assert view.of_series("acme", point.series + 1) is None


def test_a_point_that_is_made_again_after_a_deletion_has_none_of_the_old_ones_values() -> None:
    view = a_view()

    def make() -> Point:
        change = view.creation("acme", DEVICE, "k", T0)
        assert change is not None
        view.apply(change, view.revision + 1)
        point = view.known("acme", DEVICE, "k")
        assert point is not None
        return point

    old = make()
    view.apply(Change("point", old.id, None), view.revision + 1)
    new = make()
    assert (new.key, new.id == old.id, new.series == old.series) == ("k", False, False)
    assert view.series("acme", DEVICE, "k") == new.series
    view.apply(Change("point", new.id, None), view.revision + 1)
    assert make().series not in (old.series, new.series)
