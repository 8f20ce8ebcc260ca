"""What a person meets in JupyterLab, with a real browser in front of a real server."""

import urllib.error
import urllib.request

import psutil
import pytest
from lab import CHROMIUM, jupyterlab

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium here to open JupyterLab in: install Debian's package"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder, home = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("home")
    with jupyterlab(folder, home) as about:
        yield about


def test_make_lab_serves_this_machine_alone_and_only_with_the_token(server):
    listening = [
        connection.laddr.ip
        for connection in psutil.Process(server["pid"]).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening == ["127.0.0.1"]
    contents = f"{server['url']}api/contents"
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(contents)
    with urllib.request.urlopen(f"{contents}?token={server['token']}") as answer:
        assert answer.status == 200
