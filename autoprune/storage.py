"""Where a ledger lies: a journal file, a database that several machines reach, or Optuna's gRPC proxy before one.

Nothing that is said or written down of a database holds its password.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from autoprune.errors import UserError
from autoprune.journal import open_journal

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from sqlalchemy.engine import URL

HIDDEN = "***"
"""Stands for a password."""

ANSWER = 10.0  # seconds that a server may take to accept a connection
PATIENCE = 60.0  # seconds that a server may be away from a search that runs
PROXY_PORT = 13000  # Optuna's own default

# By database: the modules that can talk to it, the best first, each with SQLAlchemy's name for it.
DRIVERS = {
    "postgresql": {"psycopg": "psycopg", "psycopg2": "psycopg2"},
    "mysql": {"pymysql": "pymysql", "MySQLdb": "mysqldb"},
}
DRIVERS["mariadb"] = DRIVERS["mysql"]
EXTRAS = {"postgresql": "postgresql", "mysql": "mysql", "mariadb": "mysql"}

# A machine that is gone says nothing: without these a connection to it is waited for from minutes to hours.
LIBPQ = {
    "connect_timeout": int(ANSWER),
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": int(1000 * PATIENCE),
}
MYSQL = {"connect_timeout": int(ANSWER), "read_timeout": int(PATIENCE), "write_timeout": int(PATIENCE)}
TIMEOUTS: dict[str, dict[str, int]] = {
    "psycopg": LIBPQ,
    "psycopg2": LIBPQ,
    "pymysql": MYSQL,
    "mysqldb": MYSQL,
    "pysqlite": {"timeout": int(PATIENCE)},  # for the others that write to the file
}


def open_storage(where: Path | str | None) -> BaseStorage:
    """Optuna's storage behind a journal file, a URL (a database, or ``grpc://host:port``), or memory for None.

    Tables, a SQLite file and a journal are made where they are missing; the database of a server must be there.
    """
    from optuna.storages import InMemoryStorage

    if where is None:
        return InMemoryStorage()
    if is_path(where):
        return open_journal(Path(where))
    return _open_proxy(str(where)) if str(where).startswith("grpc:") else _open_database(str(where))


def is_path(where: Path | str) -> bool:
    """Whether this names a journal file, and not a URL."""
    return isinstance(where, Path) or "://" not in where


def is_remote(where: Path | str | None) -> bool:
    """Whether a server is asked, which may be away for a while and come back."""
    return where is not None and not is_path(where) and not str(where).startswith("sqlite")


def exists(where: Path | str) -> bool:
    """Whether there is such a file; of a server only asking tells, so True."""
    if is_path(where):
        return Path(where).is_file()
    file = _sqlite_file(str(where))
    return file is None or file.is_file()


def place(where: Path | str) -> str:
    """Where a ledger is, for logs and records: an absolute path, or a URL without its password."""
    if is_path(where):
        return str(Path(where).resolve())
    # Up to the last @, for whoever forgot to write one in the password as %40.
    shown = re.sub(r"(://[^/:]*:).*@", rf"\1{HIDDEN}@", str(where))
    shown = re.sub(r"([?&](?:\w*password|passwd|pwd|\w*token|\w*secret)=)[^&]*", rf"\1{HIDDEN}", shown)
    file = _sqlite_file(shown)
    return shown if file is None else re.sub(r":///[^?]+", lambda _: f":///{file.resolve()}", shown, count=1)


def _sqlite_file(url: str) -> Path | None:
    """The file of a SQLite URL; None for other URLs, and for what SQLite itself would take apart."""
    found = re.match(r"sqlite(?:\+\w+)?:///([^?]+)", url)
    return None if found is None or found[1].startswith(("file:", ":memory:")) else Path(found[1])


def faults() -> tuple[type[Exception], ...]:
    """What a file or a server that fails raises."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    kinds: list[type[Exception]] = [OSError, StorageInternalError, SQLAlchemyError]
    if importlib.util.find_spec("grpc") is not None:
        kinds.append(importlib.import_module("grpc").RpcError)
    return tuple(kinds)


def reason(error: BaseException, where: Path | str | None) -> str:
    """Why it failed, in one line: the first cause, without the password."""
    while error.__cause__ is not None:
        error = error.__cause__
    error = getattr(error, "orig", None) or error  # the driver's own, without the statement it was about
    details = getattr(error, "details", None)  # of gRPC
    text = " ".join(str(details() if callable(details) else error).split()) or type(error).__name__
    if where is None or is_path(where):
        return text
    for secret in _secrets(str(where)):
        text = text.replace(secret, HIDDEN)
    return text if len(text) <= 400 else f"{text[:400]} ..."


def _secrets(url: str) -> list[str]:
    """The password of a URL as it is written and as it is meant, if it is long enough to be told from a word."""
    found = re.match(r"\w[\w+]*://[^/:]*:(.*)@", url)
    written = found[1] if found else ""
    from urllib.parse import unquote

    return [secret for secret in dict.fromkeys((written, unquote(written))) if len(secret) >= 3]


# -- databases -------------------------------------------------------------------------------------


def _open_database(where: str) -> BaseStorage:
    from sqlalchemy.exc import NoSuchModuleError, SQLAlchemyError

    from autoprune.database import open_database

    url = _url(where)
    kind = url.get_backend_name()
    if kind == "sqlite":
        _check_sqlite(where)
    elif "+" not in url.drivername:
        url = _with_driver(url, place(where))
    timeouts = {name: value for name, value in _timeouts(url).items() if name not in url.query}
    options: dict[str, Any] = {"connect_args": timeouts}
    if kind != "sqlite":
        options["pool_pre_ping"] = True  # between two candidates a server may have closed the connection
    try:
        return open_database(url.render_as_string(hide_password=False), options)
    except (ImportError, NoSuchModuleError) as error:
        raise UserError(f"ledger {place(where)!r}: {_missing(kind, url.drivername)}") from error
    except (SQLAlchemyError, OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        remedy = (
            "name a file in a folder that can be written"
            if kind == "sqlite"
            else f"check that the server runs and lets this machine in (it has {ANSWER:g} s to answer), and the host, "
            "port, user, password and database in the URL; the database must be there, an empty one will do"
        )
        raise UserError(f"ledger {place(where)!r} cannot be opened: {reason(error, where)}; {remedy}") from error


def _url(where: str) -> URL:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(where)
    except (ArgumentError, ValueError):
        url = None
    # The parts of a URL that was taken apart in the wrong places may hold the password: nothing of it is said.
    if url is None or "@" in (url.host or "") or url.port == 0:
        raise UserError(
            f"ledger {place(where)!r} cannot be read as a URL: write kind://user:password@host:port/database, and "
            "in the password %40 for @, %3A for :, %2F for / and %25 for %"
        )
    return url


def _check_sqlite(where: str) -> None:
    if _sqlite_file(where) is None and "file:" not in where:
        raise UserError(f"ledger {where!r} would be lost with this process: name a file, as in sqlite:///ledger.db")
    file = _sqlite_file(where)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)


def _with_driver(url: URL, shown: str) -> URL:
    """The URL with a driver that is installed, where it names none."""
    drivers = DRIVERS.get(url.get_backend_name(), {})
    for module, name in drivers.items():
        if importlib.util.find_spec(module) is not None:
            return url.set(drivername=f"{url.drivername}+{name}")
    if drivers:
        raise UserError(f"ledger {shown!r}: {_missing(url.drivername, url.drivername)}")
    return url


def _missing(kind: str, drivername: str) -> str:
    extra = EXTRAS.get(kind)
    if extra is None:
        return f"no driver for {drivername!r} is installed; sqlite, postgresql, mysql and grpc are known to work"
    return f"no driver for {drivername} is installed: pip install 'autoprune[{extra}]', and write {kind}:// in the URL"


def _timeouts(url: URL) -> dict[str, int]:
    return TIMEOUTS.get(url.drivername.partition("+")[2] or "pysqlite", {})


# -- Optuna's proxy --------------------------------------------------------------------------------


def _open_proxy(where: str) -> BaseStorage:
    from optuna.exceptions import ExperimentalWarning
    from optuna.storages import GrpcStorageProxy

    parts = urlsplit(where)
    try:
        host, port = parts.hostname, PROXY_PORT if parts.port is None else parts.port
    except ValueError:
        host, port = None, 0
    if not host or "@" in parts.netloc or parts.path.strip("/") or parts.query:
        raise UserError(f"ledger {place(where)!r} cannot be read: write grpc://host:port, the port being {PROXY_PORT}")
    try:
        importlib.import_module("grpc")
        importlib.import_module("google.protobuf")
    except ImportError as error:
        raise UserError(f"ledger {where!r}: gRPC is not installed: pip install 'autoprune[grpc]'") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        proxy = GrpcStorageProxy(host=f"[{host}]" if ":" in host else host, port=port)
    try:
        proxy.wait_server_ready(timeout=ANSWER)
    except ConnectionError as error:
        proxy.close()
        raise UserError(
            f"ledger {where!r} cannot be opened: nobody answered within {ANSWER:g} s; start Optuna's "
            "run_grpc_proxy_server there, or check the host, the port and the firewall"
        ) from error
    return proxy
