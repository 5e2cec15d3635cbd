"""Objects of S3 and whatever speaks its language, opened by smart_open.

Credentials, region and endpoint are botocore's own business: the environment (AWS_ENDPOINT_URL for a
server that is not Amazon's), ~/.aws, or the role of the machine. smart_open and botocore would both try
again by themselves, smart_open after whole seconds; both are kept from it here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import smart_open
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    IncompleteReadError,
    SSLError,
)
from botocore.loaders import Loader, create_loader
from botocore.session import Session
from urllib3.exceptions import HTTPError

from pipeline.data.store.address import refuse_internal_host
from pipeline.data.store.transport import Doing, Part, Transient, chunks, promised, reason, refusal
from pipeline.errors import PipelineError, WorldStateError, without_credentials

KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_ENDPOINT_URL for a server of your own)"
MAY_PASS = (HTTPClientError, ConnectionError, IncompleteReadError, HTTPError, OSError)
_CONNECTIONS = 64
_AMAZON = (".amazonaws.com", ".amazonaws.com.cn")


def s3_client(timeout_s: float) -> Any:  # noqa: ANN401 - its class is made at run time
    """A client that never tries again by itself; raises WorldStateError where there is no way to one."""
    config = Config(
        connect_timeout=timeout_s,
        read_timeout=timeout_s,
        retries={"total_max_attempts": 1},
        max_pool_connections=_CONNECTIONS,
        tcp_keepalive=True,
    )
    try:
        session = Session()
        session.register_component("data_loader", _models())
        client: Any = session.create_client("s3", config=config)
    except (BotoCoreError, ValueError) as error:
        raise WorldStateError(f"s3:// cannot be opened ({reason(error)}): check {KEYS}") from error
    endpoint = str(client.meta.endpoint_url)
    host = urlsplit(endpoint).hostname or ""
    if not host.endswith(_AMAZON):  # a typed one
        refuse_internal_host(host, f"AWS_ENDPOINT_URL={endpoint}")
    return client


class S3Transport:
    """Ranged GET, HEAD and multipart uploads of s3:// addresses."""

    def __init__(self, timeout_s: float) -> None:
        self._client = s3_client(timeout_s)

    def get(self, url: str, offset: int, num_bytes: int) -> Part:
        """The range, by one GET of exactly it; raises Transient or a PipelineError."""
        one = _OneGet(self._client, url, offset, num_bytes)
        parameters = {
            "client": one,
            "defer_seek": True,  # else opening alone is a GET of the whole object
            "range_chunk_size": num_bytes,
            "buffer_size": num_bytes,  # a larger one would be filled by a second GET
        }
        try:
            with smart_open.open(url, "rb", compression="disable", transport_params=parameters) as file:
                file.seek(offset)
                data = file.read(num_bytes)
        except _PastEnd:
            return Part(b"", 0)
        return Part(data, one.total_bytes)

    def size(self, url: str) -> int | None:
        """The object's bytes, None where there is none."""
        bucket, _, key = url.removeprefix("s3://").partition("/")
        try:
            return int(self._client.head_object(Bucket=bucket, Key=key)["ContentLength"])
        except (BotoCoreError, ClientError) as error:
            if isinstance(error, ClientError) and status_of(error) == 404:
                return None
            raise sorted_error(url, error) from error

    def put(self, url: str, path: Path) -> None:
        """Write a whole file by a multipart upload, which is aborted where something fails."""
        parameters = {"client": _Uploads(self._client, url)}
        with smart_open.open(url, "wb", compression="disable", transport_params=parameters) as target:
            for chunk in chunks(path, url):
                target.write(chunk)

    def close(self) -> None:
        """Close the idle connections."""
        self._client.close()


@cache
def _models() -> Loader:
    """Botocore's description of S3, which is large; read once a process."""
    return create_loader()


class _PastEnd(Exception):  # noqa: N818 - an answer
    """The range begins where the object has ended."""


class _OneGet:
    """A client that smart_open may use for a single GET.

    What fails in the middle of a body leaves as an exception that smart_open does not know, so that it
    neither waits nor asks again.
    """

    def __init__(self, client: Any, url: str, offset: int, num_bytes: int) -> None:  # noqa: ANN401 - see above
        self._client = client
        self._url = url
        self._offset = offset
        self._num_bytes = num_bytes
        self._used = False
        self.total_bytes = 0

    def get_object(self, **request: Any) -> dict[str, Any]:  # noqa: ANN401 - boto3's keywords
        if self._used:
            raise Transient("the answer ended early")
        self._used = True
        try:
            answer: dict[str, Any] = self._client.get_object(**request)
        except (BotoCoreError, ClientError) as error:
            if isinstance(error, ClientError) and status_of(error) == 416:
                raise _PastEnd from error
            raise sorted_error(self._url, error) from error
        span, content_bytes = str(answer.get("ContentRange") or ""), int(answer["ContentLength"])
        try:
            length, self.total_bytes = promised(self._url, span, content_bytes, self._offset, self._num_bytes)
        except BaseException:
            answer["Body"].close()
            raise
        # rclone's server says 200 with a range, and smart_open would skip the bytes before it again.
        partial = answer["ResponseMetadata"] | {"HTTPStatusCode": 206}
        span = f"bytes {self._offset}-{self._offset + length - 1}/{self.total_bytes}"
        return answer | {"ContentRange": span, "ResponseMetadata": partial, "Body": _Body(answer["Body"])}


class _Uploads:
    """A client whose failures are sorted before smart_open sees them, which would wait and ask again."""

    def __init__(self, client: Any, url: str) -> None:  # noqa: ANN401 - see above
        self._client = client
        self._url = url

    def __getattr__(self, name: str) -> Callable[..., Any]:
        request = getattr(self._client, name)

        def sorting(**parameters: Any) -> Any:  # noqa: ANN401 - boto3's keywords and answers
            try:
                return request(**parameters)
            except (BotoCoreError, ClientError) as error:
                raise sorted_error(self._url, error, "written") from error

        return sorting


class _Body:
    """The bytes of an answer as they arrive."""

    def __init__(self, body: Any) -> None:  # noqa: ANN401 - botocore's StreamingBody, which has no types
        self._body = body

    def read(self, num_bytes: int | None = None) -> bytes:
        try:
            return bytes(self._body.read(num_bytes))
        except MAY_PASS as error:
            raise Transient(reason(error)) from error

    def close(self) -> None:
        self._body.close()


def status_of(error: ClientError) -> int:
    """The HTTP status of an answer that boto3 raised."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def sorted_error(url: str, error: Exception, doing: Doing = "read") -> Transient | PipelineError:
    """Transient, or the error to show, for what boto3 raised."""
    if isinstance(error, ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        return refusal(url, status_of(error), "" if code.isdigit() else code, KEYS, doing)
    if isinstance(error, MAY_PASS) and not isinstance(error, SSLError):
        return Transient(reason(error))
    return WorldStateError(f"{without_credentials(url)} cannot be {doing} ({reason(error)}): check {KEYS}")
