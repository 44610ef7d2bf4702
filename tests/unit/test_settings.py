"""Settings: which source wins, and that every mistake is one clear line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr

from services.errors import SettingsError
from services.settings import KafkaSettings, Settings, load_settings


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("CMT_"):
            monkeypatch.delenv(name)


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "cmt.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _file(tmp_path, "kafka: {topic: from-file, group_id: from-file, partitions: 7}\n")
    monkeypatch.setenv("CMT_KAFKA__TOPIC", "from-env")
    monkeypatch.setenv("CMT_KAFKA__GROUP_ID", "from-env")
    kafka = load_settings(kafka__topic="from-flag").kafka
    assert (kafka.topic, kafka.group_id, kafka.partitions, kafka.embedded_port) == ("from-flag", "from-env", 7, 19092)


def test_flag_that_was_not_given_changes_nothing() -> None:
    assert load_settings(kafka__topic=None).kafka.topic == "documents"


def test_file_named_by_variable_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "other.yaml"
    elsewhere.write_text("serve: {port: 9123}\n")
    monkeypatch.setenv("CMT_CONFIG", str(elsewhere))
    assert load_settings().serve.port == 9123


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kafka: {topc: x}\n", "kafka.topc: no such setting"),
        ("kafak: {topic: x}\n", "kafak: no such setting"),
        ("serve: {port: eighty}\n", "serve.port"),
        ("kafka: [1, 2\n", "line 2: not valid YAML"),
        ("- a\n- b\n", "expected keys and values"),
        ("serve: {port: 70000}\n", "serve.port"),
    ],
)
def test_broken_file_is_one_line_that_names_the_place(tmp_path: Path, text: str, expected: str) -> None:
    path = _file(tmp_path, text)
    with pytest.raises(SettingsError) as raised:
        load_settings(path)
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)


def test_missing_file_is_named() -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.yaml does not exist"):
        load_settings(Path("nowhere.yaml"))


@pytest.mark.parametrize("name", ["CMT_KAFKA__TOPC", "CMT_KAFAK__TOPIC", "CMT_TOPIC"])
def test_unknown_environment_variable_is_an_error(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "x")
    with pytest.raises(SettingsError, match="no such setting"):
        load_settings()


def test_unreadable_json_in_environment_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMT_KAFKA__FIELD_MAP", "{broken")
    with pytest.raises(SettingsError) as raised:
        load_settings()
    assert "\n" not in str(raised.value)


def test_secrets_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMT_CLIENT__API_KEY", "swordfish")
    monkeypatch.setenv("CMT_BANK__STORAGE_OPTIONS", '{"aws_secret_access_key": "swordfish"}')
    settings = load_settings()
    assert settings.client.api_key is not None
    assert settings.client.api_key.get_secret_value() == "swordfish"
    assert "swordfish" not in str(settings.masked())
    assert "swordfish" not in repr(settings)


def test_dead_letter_topic_follows_the_topic() -> None:
    assert load_settings(kafka__topic="news").kafka.dlq_topic == "news.dlq"


def test_settings_built_in_code_keep_their_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMT_KAFKA__TOPIC", "from-env")
    assert Settings(kafka=KafkaSettings(topic="from-code")).kafka.topic == "from-code"


# (a group as JSON, one key of it, another of it): what the environment of compose.s3.yaml has, and its like
_GROUPS = [
    ("CMT_BANK__STORAGE_OPTIONS", {"region": "r", "access_key_id": "old"}, "ACCESS_KEY_ID", "new"),
    ("CMT_KAFKA__FIELD_MAP", {"id": "guid", "text": "body"}, "TEXT", "content"),
    ("CMT_KAFKA", {"topic": "news", "group_id": "old"}, "GROUP_ID", "new"),
    ("CMT_SERVE__API_KEYS", {"a": "0" * 64, "b": "1" * 64}, "B", "2" * 64),
]


@pytest.mark.parametrize("last", ["the group", "the key"])
@pytest.mark.parametrize(("group", "values", "key", "value"), _GROUPS)
def test_one_key_wins_over_its_group_in_whatever_order_the_environment_has_them(
    monkeypatch: pytest.MonkeyPatch, group: str, values: dict[str, str], key: str, value: str, last: str
) -> None:
    both = [(group, json.dumps(values)), (f"{group}__{key}", value)]
    for name, text in both if last == "the key" else reversed(both):
        monkeypatch.setenv(name, text)
    assert list(os.environ).index(group) < list(os.environ).index(f"{group}__{key}") or last == "the group"
    found: Any = load_settings()
    for name in group.removeprefix("CMT_").lower().split("__"):
        found = getattr(found, name)
    found = found.model_dump() if isinstance(found, BaseModel) else found
    shown = {name: one.get_secret_value() if isinstance(one, SecretStr) else one for name, one in found.items()}
    assert {name: shown[name] for name in values} == values | {key.lower(): value}
