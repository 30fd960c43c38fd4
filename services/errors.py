"""The errors of the pipeline, by what the caller shall do.

PipelineError
├── Refused           the sender's fault: answer it or dead-letter it; never retry
│   ├── Malformed     400  the body, a parameter or the payload cannot be used
│   ├── Unauthorized  401  no credential, or not a valid one
│   ├── Forbidden     403  a valid credential without this right
│   ├── Unknown       404  what is addressed does not exist (for this tenant)
│   ├── Taken         409  what shall be made, or its new name, is there already
│   ├── Conflicting   409  it does not fit what is there: needed by others, of another type
│   ├── WrongMethod   405  the door is there, this method of it is not
│   ├── TooSlow       408  the body did not arrive in time
│   ├── TooLarge      413  over a limit of size
│   └── Unsupported   415  another content type than the contract's
├── Unavailable       503  the world's fault: carries retry_after_ms; do not commit, try again
│   └── OverQuota     429  the sender is faster than it may be
└── Broken            our fault: log, crash, let the supervisor restart
"""

from __future__ import annotations


class PipelineError(Exception):
    """Base of everything raised on purpose."""


class Refused(PipelineError):
    """The sender's fault. `where` is the place: a JSON pointer ("/data/0/type"), or "?name" for a
    parameter ("?": the query as a whole).

    `code` names the case within the vendor's own list where it has one.
    """

    status = 400

    def __init__(self, message: str, *, where: str = "", code: str = "") -> None:
        super().__init__(message)
        self.message, self.where, self.code = message, where, code


class Malformed(Refused):
    """The body, a parameter or the payload cannot be used."""


class Unauthorized(Refused):
    """No credential, or none that is valid. Says nothing of which."""

    status = 401


class Forbidden(Refused):
    """A valid credential without this right."""

    status = 403


class Unknown(Refused):
    """What is addressed does not exist, or belongs to somebody else."""

    status = 404


class Taken(Refused):
    """What shall be made, or a name that shall be given, is there already."""

    status = 409

    def __init__(self, message: str, *, where: str = "", code: str = "taken") -> None:
        super().__init__(message, where=where, code=code)


class Conflicting(Refused):
    """What is asked for does not fit what is there: what shall be deleted is needed by others, or
    what shall be made or changed is of another type or id.
    """

    status = 409


class WrongMethod(Refused):
    """The door is there, this method of it is not."""

    status = 405


class TooSlow(Refused):
    """The body did not arrive in time."""

    status = 408


class TooLarge(Refused):
    """Over a limit of size."""

    status = 413


class Unsupported(Refused):
    """Another content type than the contract's."""

    status = 415


class Unavailable(PipelineError):
    """The world's fault: nothing is known to be wrong with the request; try again after
    `retry_after_ms`.
    """

    status = 503

    def __init__(self, message: str, *, retry_after_ms: int = 1000) -> None:
        super().__init__(message)
        self.message, self.retry_after_ms = message, retry_after_ms


class OverQuota(Unavailable):
    """The sender is faster than it may be."""

    status = 429


class Broken(PipelineError):
    """Our fault: an invariant does not hold. Log, crash, let the supervisor restart."""

    status = 500
