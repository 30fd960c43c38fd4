"""Each rule of the judge as a sentence, on the specification and on the kernels."""

from __future__ import annotations

import pytest

from schemas.envelope import Position
from schemas.points import PointPolicy
from schemas.queries import LatestQuery, TakenQuery
from schemas.samples import Conflict, Kind, Sample, Value, Verdict
from services.domain import admission
from services.domain.memory import Lane
from tests.support.builders import a_block, a_policy, a_sample
from tests.support.reference import ModelStore, ReferenceLane

KEPT, DUPLICATE, CONFLICT = Verdict.KEPT, Verdict.DUPLICATE, Verdict.CONFLICT
OVERWRITE, SUPPRESSED, REFUSED = Verdict.OVERWRITE, Verdict.SUPPRESSED, Verdict.REFUSED
FIRST, LAST, RENEW = Conflict


def verdicts(
    *samples: Sample, policy: PointPolicy | None = None, policies: list[PointPolicy] | None = None
) -> list[Verdict]:
    """The verdicts on one record of these samples, on which both forms of the judge agree."""
    given = policies or [policy or a_policy()] * len(samples)
    items = list(zip(samples, given, strict=True))
    reference, _ = ReferenceLane(ModelStore(), whole=True).judge(Position(1, 0), items)
    judged = Lane(whole=True).judge(a_block(*samples, policies=given), Position(1, 0))
    assert reference == list(judged.verdicts)
    return reference


def test_a_new_time_is_kept_and_a_repetition_is_a_duplicate() -> None:
    assert verdicts(a_sample(1.0, 5), a_sample(1.0, 5), a_sample(1.0, 6)) == [KEPT, DUPLICATE, KEPT]


def test_another_value_is_a_conflict_where_the_first_wins() -> None:
    assert verdicts(a_sample(1.0, 5), a_sample(2.0, 5), a_sample(1.0, 5)) == [
        KEPT,
        CONFLICT,
        DUPLICATE,
    ]


def test_another_value_overwrites_where_the_last_wins() -> None:
    samples = [a_sample(value, 5, rule=LAST) for value in (1.0, 2.0, 2.0, 1.0)]
    assert verdicts(*samples) == [KEPT, OVERWRITE, DUPLICATE, OVERWRITE]


def test_the_rule_is_that_of_the_later_sample() -> None:
    assert verdicts(a_sample(1.0, 5, rule=LAST), a_sample(2.0, 5)) == [KEPT, CONFLICT]
    assert verdicts(a_sample(1.0, 5), a_sample(2.0, 5, rule=LAST)) == [KEPT, OVERWRITE]


def test_quality_and_type_belong_to_the_value() -> None:
    other_quality = a_sample(1.0, 5, quality=0)
    other_type = a_sample(1, 5, kind=Kind.LONG)
    assert verdicts(a_sample(1.0, 5), other_quality, other_type) == [KEPT, CONFLICT, CONFLICT]


def test_minus_zero_is_another_value_than_zero() -> None:
    assert verdicts(a_sample(0.0, 5), a_sample(-0.0, 5)) == [KEPT, CONFLICT]


def test_a_late_time_that_is_free_is_kept_and_taken_from_there_on() -> None:
    assert verdicts(a_sample(1.0, 9), a_sample(1.0, 5), a_sample(2.0, 5)) == [KEPT, KEPT, CONFLICT]


def test_series_do_not_know_one_another() -> None:
    assert verdicts(a_sample(1.0, 5), a_sample(2.0, 5, series=2)) == [KEPT, KEPT]


def test_another_type_than_the_locked_one_is_refused_and_forgotten() -> None:
    policy = a_policy(kind=Kind.DOUBLE)
    assert verdicts(a_sample("x", 5, kind=Kind.STRING), a_sample(1.0, 5), policy=policy) == [
        REFUSED,
        KEPT,
    ]


def test_the_newest_policy_seen_counts_whatever_became_of_its_sample() -> None:
    open_, locked = a_policy(revision=1), a_policy(revision=2, kind=Kind.DOUBLE)
    text = [a_sample("x", ts, kind=Kind.STRING) for ts in (1, 2, 3, 4)]
    reopened = a_policy(revision=3)
    assert verdicts(*text, policies=[open_, locked, open_, reopened]) == [
        KEPT,
        REFUSED,
        REFUSED,
        KEPT,
    ]


def test_of_policies_with_one_revision_the_first_counts() -> None:
    first, second = a_policy(kind=Kind.DOUBLE), a_policy(kind=Kind.LONG)
    assert verdicts(a_sample(1.0, 1), a_sample(1.0, 2), policies=[first, second]) == [KEPT, KEPT]


def test_the_deadband_measures_from_the_last_kept_value() -> None:
    samples = [a_sample(value, ts) for ts, value in enumerate((1.0, 1.6, 2.2, 1.4))]
    assert verdicts(*samples, policy=a_policy(band=1.0)) == [KEPT, SUPPRESSED, KEPT, SUPPRESSED]


def test_a_late_sample_bypasses_the_deadband_and_leaves_its_base_alone() -> None:
    samples = [a_sample(1.0, 10), a_sample(9.0, 5), a_sample(1.1, 11)]
    assert verdicts(*samples, policy=a_policy(band=1.0)) == [KEPT, KEPT, SUPPRESSED]


def test_a_suppressed_sample_holds_its_time_while_it_is_the_newest() -> None:
    policy = a_policy(band=1.0)
    samples = [a_sample(1.0, 1), a_sample(1.1, 2), a_sample(1.1, 2), a_sample(1.2, 2)]
    assert verdicts(*samples, policy=policy) == [KEPT, SUPPRESSED, DUPLICATE, CONFLICT]


def test_a_suppressed_time_is_free_once_a_newer_sample_came() -> None:
    samples = [a_sample(1.0, 1), a_sample(1.1, 2), a_sample(5.0, 3), a_sample(1.2, 2)]
    assert verdicts(*samples, policy=a_policy(band=1.0)) == [KEPT, SUPPRESSED, KEPT, KEPT]


def test_overwriting_a_suppressed_sample_stores_it_and_makes_it_the_base() -> None:
    samples = [
        a_sample(1.0, 1),
        a_sample(1.1, 2),
        a_sample(1.5, 2, rule=LAST),
        a_sample(2.2, 3),
        a_sample(1.2, 2),
    ]
    assert verdicts(*samples, policy=a_policy(band=1.0)) == [
        KEPT,
        SUPPRESSED,
        OVERWRITE,
        SUPPRESSED,
        CONFLICT,
    ]


def test_overwriting_the_base_moves_it() -> None:
    samples = [
        a_sample(1.0, 1),
        a_sample(1.1, 2),
        a_sample(5.0, 1, rule=LAST),
        a_sample(5.1, 3),
    ]
    assert verdicts(*samples, policy=a_policy(band=1.0)) == [
        KEPT,
        SUPPRESSED,
        OVERWRITE,
        SUPPRESSED,
    ]


def test_overwriting_any_other_sample_leaves_the_base_alone() -> None:
    samples = [a_sample(1.0, 10), a_sample(9.0, 5), a_sample(8.0, 5, rule=LAST), a_sample(1.1, 11)]
    assert verdicts(*samples, policy=a_policy(band=1.0)) == [KEPT, KEPT, OVERWRITE, SUPPRESSED]


@pytest.mark.parametrize(
    ("kind", "value", "other"),
    [
        (Kind.DOUBLE, 1.0, 1.5),
        (Kind.DOUBLE, 0.0, -0.0),
        (Kind.DOUBLE, float("nan"), 1.0),
        (Kind.LONG, 2**60, 2**60 + 1),
        (Kind.BOOL, True, False),
        (Kind.STRING, "on", "off"),
        (Kind.JSON, "{}", "[]"),
        (Kind.DATE, 5, 6),
    ],
)
def test_with_on_change_an_equal_value_does_not_count(
    kind: Kind, value: Value, other: Value
) -> None:
    samples = [a_sample(v, ts, kind=kind) for ts, v in enumerate((value, value, other, value))]
    assert verdicts(*samples, policy=a_policy(on_change=True)) == [KEPT, SUPPRESSED, KEPT, KEPT]
    assert verdicts(*samples, policy=a_policy()) == [KEPT] * 4


def test_with_on_change_the_same_bits_of_another_kind_are_a_change() -> None:
    samples = [a_sample(1, 1, kind=Kind.LONG), a_sample(True, 2, kind=Kind.BOOL)]
    assert verdicts(*samples, policy=a_policy(on_change=True)) == [KEPT, KEPT]


def test_an_unchanged_value_is_kept_once_a_heartbeat() -> None:
    policy = a_policy(on_change=True, heartbeat_ms=3)
    samples = [a_sample("on", ts, kind=Kind.STRING) for ts in range(7)]
    assert verdicts(*samples, policy=policy) == [
        *(KEPT, SUPPRESSED, SUPPRESSED),
        *(KEPT, SUPPRESSED, SUPPRESSED),
        KEPT,
    ]


def test_a_late_value_is_not_measured_against_the_last_one() -> None:
    samples = [a_sample(1.0, 5), a_sample(1.0, 4)]
    assert verdicts(*samples, policy=a_policy(on_change=True)) == [KEPT, KEPT]


def test_a_policy_that_no_longer_says_on_change_lets_everything_through() -> None:
    samples = [a_sample(1.0, ts) for ts in range(3)]
    policies = [a_policy(on_change=True), a_policy(on_change=True), a_policy(revision=2)]
    assert verdicts(*samples, policies=policies) == [KEPT, SUPPRESSED, KEPT]


def test_a_renewal_is_kept_whatever_holds_its_time() -> None:
    for held in (a_sample(1.0, 5), a_sample(2.0, 5), a_sample(2.0, 5, rule=LAST)):
        newer = a_sample(9.0, 9)
        assert verdicts(held, newer, a_sample(2.0, 5, rule=RENEW)) == [KEPT] * 3
        assert verdicts(held, a_sample(2.0, 5, rule=RENEW)) == [KEPT] * 2


def test_a_renewed_time_is_held_by_the_renewal() -> None:
    samples = [a_sample(1.0, 5), a_sample(9.0, 9), a_sample(2.0, 5, rule=RENEW)]
    after = [a_sample(2.0, 5), a_sample(1.0, 5), a_sample(1.0, 5, rule=LAST)]
    assert verdicts(*samples, *after)[3:] == [DUPLICATE, CONFLICT, OVERWRITE]
    assert verdicts(*samples[2:], *after) == [KEPT, DUPLICATE, CONFLICT, OVERWRITE]


def test_a_renewal_of_the_newest_or_the_base_moves_it() -> None:
    policy = a_policy(band=1.0)
    renewed = a_sample(5.0, 1, rule=RENEW)
    for between in ([], [a_sample(1.1, 2)]):
        samples = [a_sample(1.0, 1), *between, renewed, a_sample(5.1, 3)]
        assert verdicts(*samples, policy=policy)[-2:] == [KEPT, SUPPRESSED]
    suppressed = [a_sample(1.0, 1), a_sample(1.1, 2), a_sample(1.5, 2, rule=RENEW)]
    after = [a_sample(2.2, 3), a_sample(1.2, 2)]
    assert verdicts(*suppressed, *after, policy=policy)[2:] == [KEPT, SUPPRESSED, CONFLICT]


def test_a_renewal_bypasses_the_deadband_and_after_the_newest_it_is_the_base() -> None:
    samples = [a_sample(1.0, 1), a_sample(1.5, 2, rule=RENEW), a_sample(2.2, 3), a_sample(1.4, 1)]
    assert verdicts(*samples, policy=a_policy(band=1.0)) == [KEPT, KEPT, SUPPRESSED, CONFLICT]


def test_a_renewal_of_another_time_leaves_the_base_alone() -> None:
    samples = [a_sample(9.0, 5), a_sample(1.0, 10), a_sample(8.0, 5, rule=RENEW)]
    assert verdicts(*samples, a_sample(1.1, 11), policy=a_policy(band=1.0)) == [
        *(KEPT, KEPT, KEPT),
        SUPPRESSED,
    ]


def test_a_renewal_of_another_type_than_the_locked_one_is_refused() -> None:
    samples = [a_sample(1.0, 5), a_sample("x", 5, kind=Kind.STRING, rule=RENEW), a_sample(2.0, 5)]
    assert verdicts(*samples, policy=a_policy(kind=Kind.DOUBLE)) == [KEPT, REFUSED, CONFLICT]


def test_a_renewal_counts_above_what_is_there_and_is_decided_alike_again() -> None:
    store, lane = ModelStore(), Lane(whole=True, rows_max=0)
    blocks = [
        a_block(a_sample(1.0, 5, rule=LAST), a_sample(9.0, 9)),
        a_block(a_sample(2.0, 5, rule=RENEW)),
        a_block(a_sample(3.0, 5)),
    ]
    want = [[KEPT, KEPT], [KEPT], [CONFLICT]]
    for again in range(2):
        for offset, block in enumerate(blocks):
            position = Position(1, offset)
            unknown, times = lane.questions(block)
            if unknown:
                lane.learn(store.answer(LatestQuery(series=tuple(unknown))), position, unknown)
            if times:
                lane.learn(store.answer(TakenQuery(*zip(*times, strict=True))), position)
            judgement = lane.judge(block, position)
            assert list(judgement.verdicts) == want[offset], (again, offset)
            store.insert(judgement.stored(block))
            lane.forget(offset)
            lane = Lane.unpack(lane.pack(), rows_max=0)
        found = store.at(1, 5)
        assert found is not None and found[1].value == 2.0
        lane = Lane(whole=False, rows_max=0)


def test_a_forgotten_time_is_asked_and_an_answered_one_is_taken() -> None:
    state, policy = admission.Series(), a_policy()
    for ts in (1, 2, 3):
        state, _ = admission.step(state, a_sample(float(ts), ts), policy)
    state = admission.forget(state, 2)
    assert [admission.must_ask(state, ts) for ts in (0, 1, 2, 3)] == [True, False, True, False]
    state = admission.learn(state, a_sample(2.0, 2))
    assert admission.step(state, a_sample(2.0, 2), policy)[1] == DUPLICATE
    assert admission.step(state, a_sample(7.0, 2), policy)[1] == CONFLICT


def test_a_learned_row_that_is_newer_than_all_is_newest_and_base() -> None:
    state = admission.learn(admission.Series(), a_sample(1.0, 5))
    policy = a_policy(band=1.0)
    assert admission.step(state, a_sample(1.5, 6), policy)[1] == SUPPRESSED
    assert admission.step(state, a_sample(1.5, 4), policy)[1] == KEPT


def test_a_late_sample_behind_the_base_has_the_next_one_count() -> None:
    """What readers see as newest is the late one, until the next sample says otherwise."""
    policy = a_policy(band=0.01)
    state, verdicts = admission.Series(), []
    for value, ts_ms in ((10.0, 0), (10.0, 2), (55.0, 1), (10.0, 3), (10.0, 4)):
        state, verdict = admission.step(state, a_sample(value, ts_ms), policy)
        verdicts.append(verdict)
    assert verdicts == [
        Verdict.KEPT,
        Verdict.SUPPRESSED,
        Verdict.KEPT,
        Verdict.KEPT,
        Verdict.SUPPRESSED,
    ]
