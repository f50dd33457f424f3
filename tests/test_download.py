"""The downloader, the unpacker and the WikiText conversion, against a server on this machine."""
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from minibert.errors import UserError

REPO = Path(__file__).parents[1]
sys.path.insert(0, str(REPO / "data"))
from download import extract, fetch, write_aside  # noqa: E402
from wikitext2 import wikitext  # noqa: E402

BODY = bytes(range(256)) * 1000  # several blocks
SHA256 = hashlib.sha256(BODY).hexdigest()
ENDLESS = 64 << 20  # "endless" has an end here, so that a test that goes wrong still ends


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        folder = self.path.split("/")[1]
        if self.headers["User-Agent"].startswith("Python-urllib") or folder == "missing":
            self.send_error(403 if folder != "missing" else 404)
        elif folder == "moved":
            self.send_response(302)
            self.send_header("Location", "/good/a.zip")
            self.end_headers()
        elif folder == "endless":
            self.send_response(200)
            self.end_headers()
            while self.server.sent < ENDLESS:
                self.wfile.write(bytes(1 << 16))
                self.server.sent += 1 << 16
        else:
            body = {"good": BODY, "wrong": BODY[::-1], "short": BODY[:-1], "stalled": BODY[:70000]}
            self.send_response(200)
            self.send_header("Content-Length", str(len(BODY)))
            self.end_headers()
            self.wfile.write(body[folder])
            if folder == "stalled":
                self.server.released.wait(10)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("MINIBERT_MIRROR", raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.handle_error = lambda *args: None  # a client that hangs up is part of these tests
        server.url = f"http://127.0.0.1:{server.server_port}"
        server.asked, server.sent, server.released = [], 0, threading.Event()
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


def get(server, *folders, to, **options):
    urls = [f"{server.url}/{folder}/a.zip" for folder in folders]
    return fetch(urls, SHA256, len(BODY), to, **options)


def test_right_hash_is_kept_and_not_downloaded_again(server, tmp_path):
    """Would catch: bytes lost between blocks, urllib's own User-Agent, a download on every run."""
    path = get(server, "good", to=tmp_path)
    assert path == tmp_path / "a.zip" and path.read_bytes() == BODY
    assert get(server, "good", to=tmp_path) == path
    assert len(server.asked) == 1
    assert os.listdir(tmp_path) == ["a.zip"]


def test_file_with_another_hash_is_replaced(server, tmp_path):
    """Would catch: trusting a file because of its name."""
    (tmp_path / "a.zip").write_bytes(BODY[:-1])
    assert get(server, "good", to=tmp_path).read_bytes() == BODY


@pytest.mark.parametrize("folder, says", [("wrong", "SHA-256"), ("short", f"{len(BODY) - 1} bytes"),
                                          ("missing", "404")])
def test_bad_download_leaves_nothing(server, tmp_path, folder, says):
    """Would catch: no check of the hash or the length, a file left behind, an unclear message."""
    with pytest.raises(UserError, match=says) as error:
        get(server, folder, to=tmp_path)
    assert f"{server.url}/{folder}/a.zip" in str(error.value)
    assert "MINIBERT_MIRROR" in str(error.value) and "\n" not in str(error.value)
    assert os.listdir(tmp_path) == []


def test_cut_short_is_said_as_such(server, tmp_path):
    """Would catch: a length checked against the server's word, or reported as a wrong hash."""
    with pytest.raises(UserError) as error:
        get(server, "short", to=tmp_path)
    assert "SHA-256" not in str(error.value)


def test_no_server_is_a_user_error(tmp_path, monkeypatch):
    """Would catch: a refused connection, or a URL that is none, that ends in a traceback."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("MINIBERT_MIRROR", raising=False)
    with pytest.raises(UserError, match="refused.*unknown url"):
        fetch(["http://127.0.0.1:1/a.zip", "no-url"], SHA256, len(BODY), tmp_path)


def test_stalled_server_is_given_up(server, tmp_path):
    """Would catch: a socket without a timeout, which waits for ever."""
    start = time.monotonic()
    with pytest.raises(UserError, match="timed out"):
        get(server, "stalled", to=tmp_path, timeout=0.3)
    assert time.monotonic() - start < 3
    assert os.listdir(tmp_path) == []


def test_redirect_is_followed(server, tmp_path):
    """Would catch: an opener that takes a 302 for the file."""
    assert get(server, "moved", to=tmp_path).read_bytes() == BODY
    assert server.asked == ["/moved/a.zip", "/good/a.zip"]


def test_server_that_never_ends_is_stopped(server, tmp_path):
    """Would catch: reading on past the expected size, until the disk is full."""
    with pytest.raises(UserError, match="bytes where"):
        get(server, "endless", to=tmp_path)
    assert server.sent < ENDLESS
    assert os.listdir(tmp_path) == []


def test_second_url_is_used_when_the_first_fails(server, tmp_path):
    """Would catch: giving up at the first failure, of the network or of the hash."""
    assert get(server, "missing", "wrong", "good", to=tmp_path).read_bytes() == BODY
    assert len(server.asked) == 3


@pytest.mark.parametrize("kind", ["folder", "relative folder", "url"])
def test_mirror_takes_the_place_of_the_urls(server, tmp_path, monkeypatch, kind):
    """Would catch: a mirror that is ignored, or of which only one kind works."""
    mirror = tmp_path / "a mirror"
    mirror.mkdir()
    (mirror / "a.zip").write_bytes(BODY)
    monkeypatch.chdir(tmp_path)
    value = {"folder": str(mirror), "relative folder": "a mirror", "url": f"{server.url}/good/"}
    monkeypatch.setenv("MINIBERT_MIRROR", value[kind])
    to = tmp_path / "to"
    to.mkdir()
    assert get(server, "missing", to=to).read_bytes() == BODY
    assert server.asked == (["/good/a.zip"] if kind == "url" else [])


def test_mirror_is_checked_too(server, tmp_path, monkeypatch):
    """Would catch: a mirror that is trusted, or left for the real URLs when its file is wrong."""
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "a.zip").write_bytes(BODY[::-1])
    monkeypatch.setenv("MINIBERT_MIRROR", str(tmp_path / "mirror"))
    to = tmp_path / "to"
    to.mkdir()
    with pytest.raises(UserError, match="SHA-256"):
        get(server, "good", to=to)
    assert server.asked == [] and os.listdir(to) == []


def make_zip(path, *members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def test_only_named_members_are_unpacked(tmp_path):
    """Would catch: `extractall`, or paths that come back in another order."""
    archive = make_zip(tmp_path / "a.zip", ("in/a.txt", b"A"), ("in/b.txt", b"B"), ("c.txt", b"C"))
    paths = extract(archive, ["c.txt", "in/a.txt"], tmp_path / "out")
    assert [path.read_bytes() for path in paths] == [b"C", b"A"]
    assert not (tmp_path / "out" / "in" / "b.txt").exists()


def test_file_is_never_half_written(tmp_path):
    """Would catch: writing under the final name, a failure that eats the file that was there, one
    `.part` file for two processes."""
    def blocks():
        yield b"new"
        assert path.read_bytes() == b"old"
        assert sorted(os.listdir(tmp_path)) == ["a.txt", f"a.txt.{os.getpid()}.part"]
        raise OSError("disk full")

    path = tmp_path / "a.txt"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="disk full"):
        write_aside(path, blocks())
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.txt"]


TRAIN = (" \n = First = \n \n One paragraph , with @-@ signs . \n Another  paragraph . \n"
         " \n = = Section = = \n \n Text : \n = x + y = \n more\u2028text . \n \n \n"
         " = Second = \n \n Last . \n \n")
VALID = " \n = Third = \n \n \u00c4 paragraph . \n"
EXPECTED = """= First =
One paragraph , with @-@ signs .
Another paragraph .
= = Section = =
Text :
= x + y =
more text .

= Second =
Last .

= Third =
\u00c4 paragraph .
"""


@pytest.fixture
def small_wikitext(tmp_path, monkeypatch):
    """A made-up archive in a mirror, and what `wikitext` takes."""
    (tmp_path / "mirror").mkdir()
    (tmp_path / "data").mkdir()
    archive = make_zip(tmp_path / "mirror" / "small.zip", ("small/wiki.train.raw", TRAIN.encode()),
                       ("small/wiki.valid.raw", VALID.encode()), ("small/wiki.test.raw", b"test"))
    monkeypatch.setenv("MINIBERT_MIRROR", str(tmp_path / "mirror"))
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    return (tmp_path / "data" / "small.txt", ["http://127.0.0.1:1/small.zip"], digest,
            archive.stat().st_size, ["small/wiki.train.raw", "small/wiki.valid.raw"])


def test_wikitext_documents_and_paragraphs(small_wikitext, capsys):
    """Would catch: sections or formulas taken for articles, articles of two files run together,
    lost or doubled blank lines, a character inside a line that some readers take for its end."""
    path = small_wikitext[0]
    wikitext(*small_wikitext)
    assert path.read_text(encoding="utf-8") == EXPECTED
    assert sorted(os.listdir(path.parent)) == ["small.txt", "small.zip"]
    path.write_text("mine")
    wikitext(*small_wikitext)
    assert path.read_text() == "mine" and "already there" in capsys.readouterr().out


def test_wikitext_failure_leaves_no_text(small_wikitext):
    """Would catch: a text made of the train part alone because the valid part was not there."""
    path, *rest, members = small_wikitext
    with pytest.raises(KeyError):
        wikitext(path, *rest, [*members, "small/gone.raw"])
    assert os.listdir(path.parent) == ["small.zip"]


def test_what_is_there_is_checked_before_it_is_opened(small_wikitext):
    """Would catch: an archive in data/ that somebody exchanged, unpacked because its name is right.
    """
    path, *rest = small_wikitext
    (path.parent / "small.zip").write_bytes(b"another archive")
    wikitext(path, *rest)
    assert path.read_text(encoding="utf-8") == EXPECTED


@pytest.mark.parametrize("name, size", [("wikitext2", "4721645"), ("wikitext103", "191984949")])
def test_script_ends_in_one_line(tmp_path, name, size):
    """Would catch: a script that works in one folder only, or a traceback for a bad mirror."""
    # A copy: the outputs of the real folder are not a test's to touch. The package in it is only
    # what the scripts need, because the real one takes seconds to import torch.
    for script in (REPO / "data").glob("*.py"):
        shutil.copy(script, tmp_path)
    (tmp_path / "minibert").mkdir()
    (tmp_path / "minibert" / "__init__.py").touch()
    shutil.copy(REPO / "minibert" / "errors.py", tmp_path / "minibert")
    archive = name.replace("wikitext", "wikitext-") + "-raw-v1.zip"
    (tmp_path / archive).write_bytes(b"short")
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "MINIBERT_MIRROR": str(tmp_path)}
    command = dict(args=[sys.executable, tmp_path / f"{name}.py"], cwd="/", env=environment,
                   capture_output=True, text=True)
    ran = subprocess.run(**command)
    assert ran.returncode == 2 and ran.stderr.count("\n") == 1
    assert ran.stderr.startswith(f"error: cannot get {archive}: ")
    assert f"gave 5 bytes where {size}" in ran.stderr
    assert not list(tmp_path.glob("*.txt")) and not list(tmp_path.glob("*.part"))
    (tmp_path / f"{name}.txt").write_text("mine")
    assert "already there" in subprocess.run(**command, check=True).stdout
