"""Real servers over a folder: `rclone serve s3` (its folders are buckets) and `rclone serve http`."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

ACCESS_KEY, SECRET_KEY = "access-of-the-test", "secret-of-the-test"
RCLONE = Path(sys.executable).with_name("rclone")


@contextmanager
def serving(kind: Literal["s3", "http"], folder: Path) -> Iterator[str]:
    """`host:port` of a server over the folder, which ends with the context."""
    command = [
        str(RCLONE),
        "serve",
        kind,
        str(folder),
        "--addr",
        "127.0.0.1:0",
        "--config",
        "/dev/null",
        "--buffer-size",
        "0",
    ]
    command += ["--vfs-read-wait", "0"]  # else each read that is out of order waits
    if kind == "s3":
        command += ["--auth-key", f"{ACCESS_KEY},{SECRET_KEY}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        said = []
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"http://(127\.0\.0\.1:\d+)", line):
                break
        else:
            raise AssertionError("rclone ended: " + "".join(said))
        yield found[1]
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def s3_environment(endpoint: str, secret: str = SECRET_KEY) -> dict[str, str]:
    """What boto3 must find to speak with the server, and nothing of the person at the keyboard."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
