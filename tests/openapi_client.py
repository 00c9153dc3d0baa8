"""What tests/test_openapi_client.py does with a client that openapi-python-client has made.

The first function is the example of docs/how-to/openapi.rst.
"""

from typing import TypeVar
from uuid import uuid4

from shop_client import AuthenticatedClient, Client
from shop_client.api.auth import (
    check_token,
    end_session,
    list_sessions,
    login,
    logout,
    refresh_token,
    register,
    update_account,
)
from shop_client.models import (
    AuthAccount,
    AuthCheck,
    AuthLogin,
    AuthLogin401Error,
    AuthLogin401ErrorCode,
    AuthLogout,
    AuthNotFoundError,
    AuthRefresh,
    AuthRegister,
    AuthRegister400Error,
    AuthRegister400ErrorCode,
    AuthRegistration,
    AuthTokenPair,
    AuthUnauthorizedError,
    AuthUnauthorizedErrorCode,
    AuthUpdateAccount400Error,
)


# client begin
def log_in(site: str, username: str, password: str) -> AuthTokenPair | AuthLogin401Error:
    body = AuthLogin(username=username, password=password)
    answer = login.sync(client=Client(base_url=site), body=body)
    if isinstance(answer, (AuthTokenPair, AuthLogin401Error)):
        return answer
    raise RuntimeError(f"not now: {answer}")


# client end

T = TypeVar("T")


def expect(kind: type[T], answer: object) -> T:
    assert isinstance(answer, kind), answer
    return answer


def run(site: str) -> None:
    """Register, log in, check, refresh, list, end, log out; and be refused."""
    anybody = Client(base_url=site, raise_on_unexpected_status=True)
    person = AuthRegister(username="ada", email="ada@example.org", password="correct horse 1")

    made = expect(AuthRegistration, register.sync(client=anybody, body=person))
    assert made.user.username == "ada"
    taken = expect(AuthRegister400Error, register.sync(client=anybody, body=person))
    assert taken.code is AuthRegister400ErrorCode.USERNAME_TAKEN

    refused = expect(AuthLogin401Error, log_in(site, "ada", "wrong"))
    assert refused.code is AuthLogin401ErrorCode.INVALID_CREDENTIALS
    pair = expect(AuthTokenPair, log_in(site, "ADA@example.org", person.password))

    next_ = expect(
        AuthTokenPair,
        refresh_token.sync(client=anybody, body=AuthRefresh(refresh_token=pair.refresh_token)),
    )
    signed_in = AuthenticatedClient(base_url=site, token=next_.access_token)
    seen = expect(AuthCheck, check_token.sync(client=signed_in))
    assert (seen.user.id, seen.email_confirmed) == (made.user.id, False)
    assert 0 < seen.expires_in <= next_.expires_in
    # The types know that this needs a token.
    refusal = check_token.sync(client=anybody)  # type: ignore[arg-type]
    nobody = expect(AuthUnauthorizedError, refusal)
    assert nobody.code is AuthUnauthorizedErrorCode.TOKEN_REQUIRED

    listed = expect(list, list_sessions.sync(client=signed_in))
    (other,) = [x for x in listed if not x.current]
    assert other.expires_at is None
    assert end_session.sync_detailed(other.id, client=signed_in).status_code == 204
    expect(AuthNotFoundError, end_session.sync(uuid4(), client=signed_in))

    change = AuthAccount(username="lovelace", current_password="wrong")
    wrong = expect(AuthUpdateAccount400Error, update_account.sync(client=signed_in, body=change))
    assert wrong.errors
    assert [x.code for x in wrong.errors["current_password"]] == ["password_incorrect"]

    assert logout.sync_detailed(client=signed_in, body=AuthLogout()).status_code == 204
    gone = expect(AuthUnauthorizedError, check_token.sync(client=signed_in))
    assert gone.code is AuthUnauthorizedErrorCode.INVALID_TOKEN
