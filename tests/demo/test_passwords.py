"""The file of users: hashes that scrypt of the standard library gives, no password, faults named by their line."""

import hashlib
import stat

import pytest

from genalign.demo.passwords import add_user, checker
from genalign.types import UsageError


@pytest.fixture
def users(tmp_path):
    add_user(tmp_path / "users", "ada", "a long secret")
    add_user(tmp_path / "users", "bob", "another secret")
    return tmp_path / "users"


def test_only_the_right_password_opens(users):
    check = checker(users)
    assert check("ada", "a long secret")
    assert check("bob", "another secret")
    for name, password in (("ada", "another secret"), ("ada", ""), ("eve", "a long secret"), ("nobody", ""), ("", "")):
        assert not check(name, password)


def test_what_is_stored_is_salted_scrypt_and_not_the_password(users):
    assert "secret" not in users.read_text()
    name, salt, found = users.read_text().splitlines()[0].split(":")
    want = hashlib.scrypt(b"a long secret", salt=bytes.fromhex(salt), n=16384, r=8, p=1)
    assert (name, found) == ("ada", want.hex())
    add_user(users.with_name("again"), "ada", "a long secret")
    assert users.with_name("again").read_text() != users.read_text().splitlines()[0] + "\n"
    assert stat.S_IMODE(users.stat().st_mode) == 0o600


def test_a_password_is_replaced(users):
    add_user(users, "ada", "a new secret")
    assert checker(users)("ada", "a new secret")
    assert not checker(users)("ada", "a long secret")
    assert checker(users)("bob", "another secret")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("ada:secret\n", "line 1 of"), ("ada:zz:zz\n", "line 1 of"), ("", "names nobody")],
)
def test_a_file_of_another_form_is_refused(tmp_path, text, sentence):
    (tmp_path / "users").write_text(text)
    with pytest.raises(UsageError, match=sentence):
        checker(tmp_path / "users")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot read the users"):
        checker(tmp_path / "users")


@pytest.mark.parametrize(("name", "password"), [("a:b", "long enough"), ("", "long enough"), ("ada", "short")])
def test_a_user_that_cannot_be_is_refused(tmp_path, name, password):
    with pytest.raises(UsageError):
        add_user(tmp_path / "users", name, password)
