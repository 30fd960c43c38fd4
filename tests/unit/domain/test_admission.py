"""Each rule of the judge as a sentence, on the specification and on the kernels."""

from __future__ import annotations

from schemas.envelope import Position
from schemas.points import PointPolicy
from schemas.samples import Conflict, Kind, Sample, Verdict
from services.domain import admission
from services.domain.memory import Lane
from tests.support.builders import a_block, a_policy, a_sample
from tests.support.reference import ModelStore, ReferenceLane

KEPT, DUPLICATE, CONFLICT = Verdict.KEPT, Verdict.DUPLICATE, Verdict.CONFLICT
OVERWRITE, SUPPRESSED, REFUSED = Verdict.OVERWRITE, Verdict.SUPPRESSED, Verdict.REFUSED
FIRST, LAST = Conflict.FIRST, Conflict.LAST


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
