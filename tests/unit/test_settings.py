"""Settings from the environment: what is no value of a setting's type stops the start."""

from __future__ import annotations

import pytest

from services.catalogue.commands import POINT_COMMANDS_MAX
from services.settings import BadSetting, load


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("True", True), ("1", True), ("false", False), ("0", False)]
)
def test_yes_and_no(text: str, value: bool) -> None:
    assert load({"LINESHAFT_WEBHOOK_PRIVATE": text}).webhook_private is value


@pytest.mark.parametrize("text", ["", "no", "yes", "2", "falsch"])
def test_what_is_neither_yes_nor_no_is_refused(text: str) -> None:
    with pytest.raises(BadSetting, match="LINESHAFT_WEBHOOK_PRIVATE"):
        load({"LINESHAFT_WEBHOOK_PRIVATE": text})


def test_a_bound_is_kept() -> None:
    assert load({"LINESHAFT_WEBHOOK_SECONDS_MAX": "2.5"}).webhook_seconds_max == 2.5
    with pytest.raises(BadSetting, match="LINESHAFT_WEBHOOK_SECONDS_MAX"):
        load({"LINESHAFT_WEBHOOK_SECONDS_MAX": "0"})


def test_a_command_does_not_outlive_what_the_log_keeps() -> None:
    assert load({"LINESHAFT_COMMAND_SECONDS": "3600", "LINESHAFT_RETENTION_HOURS": "1"})
    with pytest.raises(BadSetting, match="LINESHAFT_COMMAND_SECONDS"):
        load({"LINESHAFT_COMMAND_SECONDS": "3601", "LINESHAFT_RETENTION_HOURS": "1"})


def test_links_begin_with_an_address_or_the_requests_own() -> None:
    for good in ("", "host", "https://lineshaft.example"):
        assert load({"LINESHAFT_LINKS_BASE": good}).links_base == good
    with pytest.raises(BadSetting, match="LINESHAFT_LINKS_BASE"):
        load({"LINESHAFT_LINKS_BASE": "lineshaft.example"})


def test_no_more_may_wait_for_a_device_than_a_point_holds() -> None:
    most = {"LINESHAFT_DEVICE_COMMANDS_MAX": str(POINT_COMMANDS_MAX)}
    assert load(most).device_commands_max == POINT_COMMANDS_MAX
    with pytest.raises(BadSetting, match="LINESHAFT_DEVICE_COMMANDS_MAX"):
        load({"LINESHAFT_DEVICE_COMMANDS_MAX": str(POINT_COMMANDS_MAX + 1)})
