"""Secrets: where they may lie, what counts as one, who may listen, and that none is ever shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from config_room import PIPELINE, REFERENCE_SECRETS, RUST, SECRETS, TRADES, Room, make_room

from replicator.config import VARIABLES
from replicator.config.values import Auth, ServeTokens
from replicator.errors import ConfigError

ADMIN, READ = "admin-token-0123456789", "read-token-0123456789"
TOKENS = {"REPLICATOR_ADMIN_TOKEN": ADMIN, "REPLICATOR_READ_TOKEN": READ}


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return make_room(tmp_path)


# Files of secrets


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o644, 0o777])
def test_a_secrets_file_open_to_others_is_refused(room: Room, mode: int) -> None:
    path = room.write(SECRETS, "[auth]\nclickhouse_password = 'pw'\n", mode=mode)
    problem = room.problem()
    assert f"{path}: other users can use it (mode {mode:04o}); run: chmod 600 {path}" in problem
    assert "pw" not in problem.replace(str(path), "")


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_a_private_secrets_file_is_read(room: Room, mode: int) -> None:
    room.write(
        SECRETS,
        "[auth]\nclickhouse_user = 'u'\nclickhouse_password = 'pw'\n[redis]\nusername = 'r'\npassword = 'rp'\n"
        f"[serve]\nadmin_token = '{ADMIN}'\nread_token = '{READ}'\n",
        mode=mode,
    )
    settings = room.load()
    assert (settings.clickhouse.user, settings.clickhouse.password) == ("u", "pw")
    assert (settings.redis.username, settings.redis.password) == ("r", "rp")
    assert (settings.serve.admin_token, settings.serve.read_token) == (ADMIN, READ)


@pytest.mark.parametrize("variable", [v for v in VARIABLES if v.secret and v.key != "url"], ids=lambda v: v.name)
def test_every_secret_has_a_file_form(room: Room, variable: object, tmp_path: Path) -> None:
    mounted = tmp_path / "mounted"
    mounted.write_text("a-secret-of-20-chars\n")
    mounted.chmod(0o400)
    settings = room.load(**{f"{variable.name}_FILE": str(mounted)})
    used = settings.clickhouse, settings.redis, settings.serve
    values = {
        "CLICKHOUSE_USER": used[0].user,
        "CLICKHOUSE_PASSWORD": used[0].password,
        "REDIS_USERNAME": used[1].username,
        "REDIS_PASSWORD": used[1].password,
        "REPLICATOR_ADMIN_TOKEN": used[2].admin_token,
        "REPLICATOR_READ_TOKEN": used[2].read_token,
    }
    assert values[variable.name] == "a-secret-of-20-chars"
    (row,) = (r for r in settings.explain() if r.source.startswith("env"))
    assert row.source == f"env {variable.name}_FILE"


def test_a_mounted_secret_open_to_others_is_only_warned_of(room: Room, tmp_path: Path) -> None:
    mounted = tmp_path / "mounted"
    mounted.write_bytes(b"  pass word \r\n")
    mounted.chmod(0o644)
    settings = room.load(CLICKHOUSE_PASSWORD_FILE="mounted")
    assert settings.clickhouse.password == "  pass word "
    assert any("CLICKHOUSE_PASSWORD_FILE" in w and "mode 0644" in w for w in settings.warnings)


def test_a_secret_given_twice_in_one_layer_is_a_contradiction(room: Room, tmp_path: Path) -> None:
    (tmp_path / "mounted").write_text("x")
    problem = room.problem({"CLICKHOUSE_PASSWORD": "x", "CLICKHOUSE_PASSWORD_FILE": "mounted"})
    assert "CLICKHOUSE_PASSWORD: is set together with CLICKHOUSE_PASSWORD_FILE" in problem


def test_a_secret_in_the_environment_wins_over_a_mounted_one_in_dotenv(room: Room) -> None:
    room.write(".env", "CLICKHOUSE_PASSWORD_FILE=/nowhere\n")
    assert room.load(CLICKHOUSE_PASSWORD="x").clickhouse.password == "x"


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "cannot be read"),
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"\xff", "not UTF-8"),
        (b"x" * 2_000_000, "larger"),
    ],
)
def test_a_mounted_secret_that_cannot_be_used_names_its_variable(
    room: Room, tmp_path: Path, content: bytes | None, part: str
) -> None:
    if content is not None:
        (tmp_path / "mounted").write_bytes(content)
        (tmp_path / "mounted").chmod(0o600)
    problem = room.problem({"REDIS_PASSWORD_FILE": "mounted"})
    assert "REDIS_PASSWORD_FILE" in problem
    assert part in problem


def test_a_dotenv_with_a_secret_open_to_others_is_warned_of(room: Room) -> None:
    path = room.write(".env", "CLICKHOUSE_PASSWORD=pw\n", mode=0o644)
    assert any(f"chmod 600 {path}" in warning for warning in room.load().warnings)
    room.write(".env", "REDIS_URL=redis://localhost\n", mode=0o644)
    assert not any("chmod" in warning for warning in room.load().warnings)


# Placeholders and the master key


def test_placeholders_beside_a_remote_server_are_an_error(room: Room) -> None:
    room.write(SECRETS, REFERENCE_SECRETS)
    problems = room.problems({"CLICKHOUSE_ENDPOINT": "https://ch.example.com:8443"})
    assert len(problems) == 2
    assert all("placeholder" in problem and "ch.example.com" in problem for problem in problems)


@pytest.mark.parametrize("endpoint", ["http://localhost:1", "http://127.9.9.9:1", "http://[::1]:1"])
def test_placeholders_beside_this_machine_count_as_unset(room: Room, endpoint: str) -> None:
    room.write(SECRETS, REFERENCE_SECRETS)
    assert room.load(CLICKHOUSE_ENDPOINT=endpoint).clickhouse.user == "default"


def test_a_placeholder_is_one_wherever_it_is_written(room: Room) -> None:
    settings = room.load(REDIS_PASSWORD="your-secure-password", REPLICATOR_READ_TOKEN="your-secure-password")
    assert (settings.redis.password, settings.serve.read_token) == (None, None)
    remote = {"REDIS_PASSWORD": "your-secure-password", "REDIS_URL": "redis://redis.example.com"}
    assert "redis.example.com" in room.problem(remote)


def test_admin_with_a_real_password_is_a_real_user(room: Room) -> None:
    settings = room.load(CLICKHOUSE_USER="admin", CLICKHOUSE_PASSWORD="real")
    assert (settings.clickhouse.user, settings.clickhouse.password) == ("admin", "real")


def test_a_real_master_key_is_refused_with_the_reason(room: Room) -> None:
    problem = room.problem_with(SECRETS, "[encryption]\nmaster_key = 'real-key-material'\n")
    assert "master_key" in problem
    assert "encrypt the disk" in problem
    assert "real-key" not in problem


# Redis credentials, whichever way they come


def test_credentials_in_the_redis_url_are_taken_out_of_it(room: Room) -> None:
    redis = room.load(REDIS_URL="rediss://us%40er:p%2Fw@redis.example.com:6380/2?ssl_ca_certs=/ca.pem").redis
    assert (redis.username, redis.password) == ("us@er", "p/w")
    assert redis.url == "rediss://redis.example.com:6380/2?ssl_ca_certs=/ca.pem"
    unix = room.load(REDIS_URL="unix://:pw@/run/redis.sock?db=1").redis
    assert (unix.username, unix.password, unix.url) == (None, "pw", "unix:///run/redis.sock?db=1")


def test_a_redis_url_may_itself_be_mounted(room: Room, tmp_path: Path) -> None:
    (tmp_path / "url").write_text("redis://:pw@localhost:7\n")
    settings = room.load(REDIS_URL_FILE="url")
    assert (settings.redis.url, settings.redis.password) == ("redis://localhost:7", "pw")


def test_two_different_redis_passwords_are_a_contradiction(room: Room) -> None:
    problem = room.problem({"REDIS_URL": "redis://:one@localhost", "REDIS_PASSWORD": "two"})
    assert "contradicts" in problem
    assert "one@" not in problem
    assert "two" not in problem.replace("the two", "")
    assert room.load(REDIS_URL="redis://:same@localhost", REDIS_PASSWORD="same").redis.password == "same"


def test_a_password_in_a_committed_file_or_in_the_clear_is_warned_of(room: Room) -> None:
    room.write(PIPELINE, "[redis]\nurl = 'redis://:pw@redis.example.com'\n" + TRADES)
    settings = room.load(CLICKHOUSE_PASSWORD="pw", CLICKHOUSE_ENDPOINT="http://ch.example.com:8123")
    for part in ("move it to secrets.toml", "Redis password travels unencrypted", "ClickHouse password travels"):
        assert any(part in warning for warning in settings.warnings)


# Who may listen


def _certificates(room: Room) -> str:
    for name in ("cert.pem", "key.pem"):
        (room.base / name).write_text("x")
    return 'tls_cert = "cert.pem"\ntls_key = "key.pem"\n'


def test_another_host_than_loopback_needs_tls_and_both_tokens(room: Room) -> None:
    room.write(PIPELINE, '[serve]\nhost = "0.0.0.0"\n' + TRADES)
    problem = room.problem()
    for part in ('host = "0.0.0.0"', "tls_cert", "tls_key", "admin_token", "read_token", "127.0.0.1"):
        assert part in problem
    tls = _certificates(room)
    room.write(PIPELINE, f'[serve]\nhost = "0.0.0.0"\n{tls}' + TRADES)
    assert "set read_token" in room.problem({"REPLICATOR_ADMIN_TOKEN": ADMIN})
    assert room.load(**TOKENS).serve.tls_cert == room.base / "cert.pem"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "::1"])
def test_loopback_needs_nothing(room: Room, host: str) -> None:
    room.write(PIPELINE, f'[serve]\nhost = "{host}"\n' + TRADES)
    assert room.load().serve.host == host


def test_a_certificate_without_its_key_is_a_contradiction(room: Room) -> None:
    tls_cert = _certificates(room).splitlines()[0]
    assert "without tls_key" in room.problem_with(PIPELINE, f"[serve]\n{tls_cert}\n")


def test_an_authority_for_an_unencrypted_endpoint_is_a_contradiction(room: Room) -> None:
    _certificates(room)
    assert "https://" in room.problem_with(PIPELINE, '[clickhouse]\nca_cert = "cert.pem"\n')
    room.write(RUST, "[sync]\nclickhouse_endpoint = 'https://localhost:8443'\n")
    assert room.load().clickhouse.ca_cert == room.base / "cert.pem"


def test_one_token_for_both_uses_is_refused(room: Room) -> None:
    same = {"REPLICATOR_ADMIN_TOKEN": ADMIN, "REPLICATOR_READ_TOKEN": ADMIN}
    assert "same as admin_token" in room.problem(same)


@pytest.mark.parametrize("token", ["short", "with space 0123456789", "tökén-0123456789abc", "x" * 600])
def test_a_token_that_is_too_weak_or_fits_no_header_is_refused_unshown(room: Room, token: str) -> None:
    problem = room.problem({"REPLICATOR_ADMIN_TOKEN": token})
    assert "REPLICATOR_ADMIN_TOKEN = (hidden)" in problem
    assert "16 to 512" in problem
    assert token not in problem


# Nothing shows a secret

_PLANTED = "PLANTED-0123456789"


def test_no_secret_shows_in_settings_explanations_or_warnings(room: Room) -> None:
    room.write(PIPELINE, f"[redis]\nurl = 'redis://u:{_PLANTED}@redis.example.com'\n" + TRADES)
    settings = room.load(
        CLICKHOUSE_PASSWORD=_PLANTED,
        CLICKHOUSE_ENDPOINT="http://ch.example.com",
        REPLICATOR_ADMIN_TOKEN=f"{_PLANTED}a",
        REPLICATOR_READ_TOKEN=f"{_PLANTED}r",
    )
    assert settings.redis.password == settings.clickhouse.password == _PLANTED
    for text in (repr(settings), str(settings), repr(settings.explain()), repr(settings.warnings)):
        assert _PLANTED not in text
    assert _PLANTED not in repr([Auth(clickhouse_password=_PLANTED), ServeTokens(admin_token=_PLANTED)])
    hidden = {(r.section, r.key) for r in settings.explain() if r.value == "(hidden)"}
    assert hidden == {
        ("auth", "clickhouse_password"),
        ("redis", "password"),
        ("serve", "admin_token"),
        ("serve", "read_token"),
    }


@pytest.mark.parametrize(
    "content",
    [
        f"[auth]\nclickhouse_password = ['{_PLANTED}']\n",
        f"[auth]\nclickhouse_pasword = '{_PLANTED}'\n",
        f"[auth]\nclickhouse_password = '{_PLANTED}\\n\n",
        f'[auth]\nclickhouse_password = "{_PLANTED}\\u0001"\n',
        f"auth = '{_PLANTED}'\n",
        f"clickhouse_password = '{_PLANTED}'\n",
        f"[serve]\nadmin_token = '{_PLANTED} x'\n",
        f"[other]\nx = '{_PLANTED}'\n",
    ],
)
def test_no_secret_shows_in_the_problems_of_its_file(room: Room, content: str) -> None:
    assert _PLANTED not in room.problem_with(SECRETS, content)


@pytest.mark.parametrize(
    "url",
    [f"redis://u:{_PLANTED}@h/x", f"u:{_PLANTED}@h", f"redis://u:{_PLANTED}/@h", f"redis://h?password={_PLANTED}"],
)
def test_no_secret_shows_in_the_problem_of_a_url(room: Room, url: str) -> None:
    assert _PLANTED not in room.problem({"REDIS_URL": url})


def test_an_error_carries_no_other_error_that_shows_more(room: Room) -> None:
    room.write(SECRETS, f"x = '{_PLANTED}\n")
    try:
        room.load()
    except ConfigError as error:
        assert error.__cause__ is None
        assert error.__context__ is None
        assert _PLANTED not in str(error)
    else:
        pytest.fail("a broken secrets.toml was accepted")
