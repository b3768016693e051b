"""Downloads against an HTTP server that misbehaves on request, and the cache shared with torch.hub."""

import contextlib
import email
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import urllib.response
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch
import yaml
from http_server import CONTENT, OTHER, Act, Server

from snnzoo.checkpoints import download
from snnzoo.checkpoints.download import DownloadError, cache_dir, cache_path, fetch, is_cached
from snnzoo.checkpoints.files import read_safetensors
from snnzoo.checkpoints.manifest import find, load_manifest

FETCH = """
import sys
from pathlib import Path
from snnzoo.checkpoints import download, manifest
(entry,) = manifest.load_manifest(Path(sys.argv[1]))
print(download.fetch(entry, lambda done, total, text: print(text, flush=True)))
"""


@pytest.fixture
def server():
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.go.set()
        server.shutdown()


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    """An empty cache, no proxies, no waiting."""
    for name in [*os.environ]:
        if name.lower().endswith("_proxy") or name == "SNNZOO_OFFLINE":
            monkeypatch.delenv(name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(download, "BACKOFF", 0.001)
    return tmp_path / "home"


@pytest.fixture
def act(server, monkeypatch):
    """Give the server its acts; where one is slow, the time-out is short."""

    def act(acts):
        server.acts = list(acts)
        if any(act.drip or act.hold is not None for act in acts):
            monkeypatch.setattr(download, "TIMEOUT", 0.4)

    return act


@pytest.fixture
def manifest_file(server, tmp_path):
    """Write a manifest with one entry, for CONTENT on the server; a field changed to None is left out."""

    def write(**changes):
        fields = {
            "model": "resnet18",
            "name": "mine",
            "url": f"{server.url}/files/mine.pth",
            "sha256": hashlib.sha256(CONTENT).hexdigest(),
            "size": round(len(CONTENT) / 2**20, 3),
            "layout": "torchvision",
            "num_classes": 10,
            "preprocess": "digits",
            "license": "MIT",
            "source": "test",
        } | changes
        path = tmp_path / "manifest.yaml"
        path.write_text(yaml.safe_dump([{key: value for key, value in fields.items() if value is not None}]))
        return path

    return write


@pytest.fixture
def entry(manifest_file):
    return lambda **changes: load_manifest(manifest_file(**changes))[0]


def part_of(entry):
    return cache_path(entry).with_name(entry.filename + ".part")


def files():
    """Names in the cache, but for lock files."""
    return sorted(path.name for path in cache_dir().iterdir() if path.suffix != ".lock")


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "this did not come to pass"
        time.sleep(0.01)


# -- What a download gets over -----------------------------------------------------------------------------------------

HALF = Act(drop=100_000)
GETS_THERE = {
    "at once": ([Act()], [0]),
    "after a drop mid-way, where it ended": ([HALF, Act()], [0, 100_000]),
    "after more drops than tries, each further on": ([Act(drop=50_000)] * 5 + [Act()], [*range(0, 300_000, 50_000)]),
    "after a stall": ([Act(hold=100_000), Act()], [0, 100_000]),
    "after errors of the server": ([Act(500), Act(503), Act(429), Act()], [0, 0, 0, 0]),
    "after an error mid-way": ([HALF, Act(502), Act()], [0, 100_000, 100_000]),
    "without Content-Length": ([Act(framing="close")], [0]),
    "without Content-Length after a drop": ([Act(framing="close", drop=100_000), Act(framing="close")], [0, 100_000]),
    "in chunks": ([Act(framing="chunked")], [0]),
    "in chunks after a drop": ([Act(framing="chunked", drop=100_000), Act(framing="chunked")], [0, 100_000]),
    "from a server without Range": ([HALF, Act(ranges=False)], [0, 100_000]),
    "dripping, for longer than the time-out": ([Act(drip=10_000)], [0]),
    "redirected": ([Act(302, b"", location="/elsewhere/x.bin"), Act()], [0, 0]),
    "redirected when resumed": ([HALF, Act(307, b"", location="/x.bin"), Act()], [0, 100_000, 100_000]),
    "anew when the file was another one before": ([Act(body=OTHER, drop=100_000), Act(), Act()], [0, 100_000, 0]),
    "anew when another range comes": ([HALF, Act(shift=1), Act()], [0, 100_000, 0]),
}  # fmt: skip


@pytest.mark.parametrize("case", GETS_THERE)
def test_a_download_gets_there(case, server, act, entry):
    acts, starts = GETS_THERE[case]
    act(acts)
    path = fetch(entry())
    assert path.read_bytes() == CONTENT
    assert server.starts == starts
    assert files() == ["mine.pth"]


def test_the_url_redirected_to_is_the_one_asked_next(server, entry):
    server.acts = [Act(301, b"", location="/elsewhere/x.bin"), Act()]
    assert fetch(entry()) == cache_dir() / "mine.pth"
    assert [path for path, _ in server.requests] == ["/files/mine.pth", "/elsewhere/x.bin"]


def test_a_hash_prefix_is_enough_and_none_is_taken_as_it_comes(server, entry):
    assert fetch(entry(sha256=hashlib.sha256(CONTENT).hexdigest()[:8])).read_bytes() == CONTENT
    assert fetch(entry(sha256=None, size=None, filename="plain.pth")).read_bytes() == CONTENT


def test_without_a_hash_nothing_is_resumed(server, entry):
    server.acts = [HALF, Act()]
    assert fetch(entry(sha256=None)).read_bytes() == CONTENT
    assert server.starts == [0, 0]


# -- What it does not --------------------------------------------------------------------------------------------------

FAILS = {
    "not found": ([Act(404)], {}, "HTTP 404 Not Found", [0], []),
    "forbidden after a part": ([HALF, Act(403)], {}, "HTTP 403 Forbidden", [0, 100_000], ["mine.pth.part"]),
    "errors for ever": ([Act(500)], {}, "HTTP 500 Internal Server Error", [0] * 4, []),
    "no further": ([HALF, Act(drop=0)], {}, "ended after 100000 of 300000", [0, *[100_000] * 3], ["mine.pth.part"]),
    "silence": ([Act(hold=0)], {}, "timed out", [0] * 4, ["mine.pth.part"]),
    "another file": ([Act(body=OTHER)], {}, "its sha256 begins with .*, expected", [0], []),
    "another file by a hash prefix": ([Act()], {"sha256": "0123abcd"}, "begins with .{8}, expected 0123abcd", [0], []),
    "a larger file": ([Act(body=CONTENT * 20)], {}, "larger than the expected 0.286 MiB", [0], []),
    "a larger file of unknown length": ([Act(body=CONTENT * 20, framing="close")], {}, "larger than", [0], []),
    "a smaller file": ([Act(body=CONTENT[:-2000])], {}, "has 298000 bytes, expected 0.286 MiB", [0], []),
    "a larger file after a part": ([HALF, Act(body=CONTENT * 20)], {}, "larger than", [0, 100_000, 0], []),
    "an empty file": ([Act(body=b"")], {"size": None}, "the file is empty", [0], []),
    "a circle": ([Act(302, b"", location="/files/mine.pth")], {}, "HTTP 302 .*infinite loop", None, []),
    "a redirect to a local file": ([Act(302, b"", location="file:///etc/passwd")], {}, "not allowed", [0], []),
}  # fmt: skip


@pytest.mark.parametrize("case", FAILS)
def test_a_download_that_fails_says_why_and_what_to_do_and_never_gives_a_file_its_name(case, server, act, entry):
    acts, changes, message, starts, left = FAILS[case]
    act(acts)
    wanted = entry(**changes)
    seen = []
    with pytest.raises(DownloadError, match=message) as caught:
        fetch(wanted, lambda done, total, text: seen.append(done))
    for part in (wanted.url, str(cache_path(wanted)), "resnet18 --weights digits"):
        assert part in str(caught.value)
    assert str(caught.value).isprintable()
    assert server.starts == (starts or server.starts)
    assert files() == left
    assert max(seen, default=0) <= len(CONTENT) + download.CHUNK + 2**10  # what is too large is not received whole


def test_nobody_at_the_address_is_told_after_some_tries(entry, monkeypatch):
    waits = []
    monkeypatch.setattr(download.time, "sleep", waits.append)
    with pytest.raises(DownloadError, match="Connection refused"):
        fetch(entry(url="http://127.0.0.1:9/files/mine.pth"))
    assert waits == [download.BACKOFF * factor for factor in (1, 2, 4)]


@pytest.mark.parametrize("target", ["http://plain.example/a.pth", "ftp://plain.example/a.pth"])
def test_https_never_leads_to_less(target, entry, monkeypatch):
    """At no step of a redirect, whatever the last one leads to."""

    class Server(urllib.request.HTTPSHandler):
        def https_open(self, request):
            headers = email.message_from_string(f"Location: {target}")
            response = urllib.response.addinfourl(io.BytesIO(), headers, request.full_url, 302)
            response.msg = "Found"
            return response

    opener = urllib.request.build_opener
    monkeypatch.setattr(urllib.request, "build_opener", lambda *handlers: opener(Server, *handlers))
    with pytest.raises(DownloadError, match=f"leads to {target}, which is not https|HTTP 302 .* not allowed"):
        fetch(entry(url="https://safe.example/a.pth"))


def test_a_server_that_cuts_a_step_later_each_time_or_drips_is_not_asked_without_end(server, entry, monkeypatch):
    monkeypatch.setattr(download, "MAX_TRIES", 6)
    server.acts = [Act(drop=1000 * i) for i in range(1, 200)]
    with pytest.raises(DownloadError, match="the connection ended 6 times"):
        fetch(entry())
    assert len(server.requests) == 6
    server.acts = [Act(drip=100)]
    monkeypatch.setattr(download, "SLOW_SECONDS", 0.1)
    monkeypatch.setattr(download, "SLOWEST", 1 << 20)
    monkeypatch.setattr(download, "MAX_TRIES", 2)
    with pytest.raises(DownloadError, match=r"comes with less than 1048576 bytes per second|ended 2 times"):
        fetch(entry())


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Act(body=b"  <!doctype html><html>log in</html>"), "it is a web page, not a checkpoint"),
        (Act(body=b"\x1f\x8b" + CONTENT), "it is compressed by gzip, not a checkpoint"),
        (Act(encoding="gzip"), r"the server sends it compressed \(gzip\)"),
    ],
)
def test_without_a_hash_what_is_no_checkpoint_is_not_taken_for_one(answer, message, server, entry):
    server.acts = [answer]
    with pytest.raises(DownloadError, match=message):
        fetch(entry(sha256=None, size=None))
    assert "mine.pth" not in files()


def test_a_full_disk_is_told_as_such(entry, server):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    cache_dir().mkdir(parents=True)
    part_of(entry()).symlink_to("/dev/full")
    with pytest.raises(DownloadError, match=r"cannot write .*mine.pth: No space left on device"):
        fetch(entry())
    assert server.starts == [0]


def test_a_cache_folder_that_cannot_be_made_is_named(entry, home, server):
    home.write_bytes(b"")
    with pytest.raises(DownloadError, match=f"cannot write to the cache folder {home}/hub/checkpoints: "):
        fetch(entry())
    assert server.requests == []


# -- Partial files and the cache ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "starts"),
    [
        (CONTENT[:123_456], [123_456]),
        (CONTENT, [300_000]),
        (CONTENT + b"more", [300_004, 0]),
        (OTHER[:100], [100, 0]),
        (b"", [0]),
    ],
)
def test_a_later_call_resumes_a_partial_file_or_begins_anew_if_it_is_wrong(part, starts, server, entry):
    cache_dir().mkdir(parents=True)
    part_of(entry()).write_bytes(part)
    assert fetch(entry()).read_bytes() == CONTENT
    assert server.starts == starts
    assert files() == ["mine.pth"]


def test_a_cached_file_is_used_without_the_network(server, entry, monkeypatch):
    wanted = entry()
    assert not is_cached(wanted)
    path = fetch(wanted)
    monkeypatch.setenv("SNNZOO_OFFLINE", "1")
    assert is_cached(wanted)
    assert fetch(wanted) == path
    assert len(server.requests) == 1


@pytest.mark.parametrize("content", [OTHER, CONTENT[:-5000], b""])
def test_a_cached_file_that_is_another_one_is_refused_and_left_alone(content, server, entry):
    wanted = entry()
    cache_dir().mkdir(parents=True)
    cache_path(wanted).write_bytes(content)
    with pytest.raises(
        DownloadError, match=f"{cache_path(wanted)} is not resnet18.mine: .*; delete it, then try again"
    ):
        fetch(wanted)
    assert cache_path(wanted).read_bytes() == content
    assert server.requests == []


def test_offline_names_the_url_the_place_for_the_file_and_the_weights_that_need_no_network(server, entry, monkeypatch):
    wanted = entry()
    monkeypatch.setenv("SNNZOO_OFFLINE", "1")
    with pytest.raises(DownloadError) as caught:
        fetch(wanted)
    assert str(caught.value) == (
        f"{wanted.url} is not in the cache, and SNNZOO_OFFLINE is set: put it at {cache_path(wanted)} by hand, "
        f"or use resnet18 --weights digits, which needs no network"
    )
    assert server.requests == []
    monkeypatch.setenv("SNNZOO_OFFLINE", "0")
    assert fetch(wanted).read_bytes() == CONTENT


def test_the_real_cifar_checkpoint_put_there_by_hand_is_the_manifests(resnet20_checkpoint):
    wanted = find("resnet20", "CIFAR10", load_manifest())
    cache_dir().mkdir(parents=True)
    shutil.copy(resnet20_checkpoint, cache_path(wanted))
    assert fetch(wanted) == cache_path(wanted)


def test_a_builder_is_run_once_and_needs_no_network(monkeypatch):
    train = MagicMock(return_value={"fc.bias": torch.arange(10.0)})
    monkeypatch.setattr("snnzoo.data.digits.train_resnet18", train)
    monkeypatch.setenv("SNNZOO_OFFLINE", "1")
    wanted = find("resnet18", "digits", load_manifest())
    assert fetch(wanted) == fetch(wanted) == cache_dir() / "snnzoo-resnet18-digits.safetensors"
    assert train.call_count == 1
    assert torch.equal(read_safetensors(cache_path(wanted))[0]["fc.bias"], torch.arange(10.0))


ENVIRONMENTS = [
    {},
    {"TORCH_HOME": "/somewhere"},
    {"TORCH_HOME": "~/torch"},
    {"XDG_CACHE_HOME": "/cache"},
    {"XDG_CACHE_HOME": "/cache", "TORCH_HOME": "/somewhere"},
]


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=str)
def test_the_cache_folder_is_torch_hubs_whether_torch_is_imported_or_not(environment, monkeypatch):
    for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    expected = Path(torch.hub.get_dir()) / "checkpoints"
    assert cache_dir() == expected
    monkeypatch.delitem(sys.modules, "torch.hub")
    assert cache_dir() == expected


def test_the_cache_folder_that_torch_hub_was_told_is_taken(tmp_path):
    torch.hub.set_dir(tmp_path / "told")
    assert cache_dir() == tmp_path / "told" / "checkpoints"


@pytest.mark.parametrize("first", ["torch.hub", "snnzoo"])
def test_a_file_that_torch_hub_fetched_is_reused_and_the_other_way_round(first, server, entry):
    saved = io.BytesIO()
    torch.save({"fc.bias": torch.arange(10.0)}, saved)
    digest = hashlib.sha256(saved.getvalue()).hexdigest()
    server.acts = [Act(body=saved.getvalue())]
    wanted = entry(url=f"{server.url}/models/net-{digest[:8]}.pth", sha256=digest[:8], size=None)
    if first == "snnzoo":
        fetch(wanted)
    state = torch.hub.load_state_dict_from_url(wanted.url, progress=False, check_hash=True, weights_only=True)
    assert torch.equal(torch.load(fetch(wanted), weights_only=True)["fc.bias"], state["fc.bias"])
    assert len(server.requests) == 1


# -- Proxies and progress ----------------------------------------------------------------------------------------------


def test_http_proxy_is_asked_for_the_whole_url_and_no_proxy_goes_past_it(server, entry, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url)
    fetch(entry(url="http://weights.invalid/a.pth"))
    assert server.requests == [("http://weights.invalid/a.pth", 0)]
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert fetch(entry()).read_bytes() == CONTENT


def test_https_proxy_is_asked_for_a_tunnel(server, entry, monkeypatch):
    monkeypatch.setenv("https_proxy", server.url)
    with pytest.raises(DownloadError, match="Tunnel connection failed: 403"):
        fetch(entry(url="https://weights.invalid/a.pth"))
    assert server.requests[0] == ("weights.invalid:443", 0)


def test_progress_counts_up_to_the_whole_also_when_resumed(server, entry):
    server.acts = [HALF, Act()]
    seen = []
    fetch(entry(), lambda *report: seen.append(report))
    assert [done for done, _, _ in seen] == sorted({done for done, _, _ in seen})
    assert {report[1:] for report in seen} == {(300_000, "downloading mine.pth")}
    assert seen[-1][0] == 300_000
    assert any(done <= 100_000 for done, _, _ in seen)


# -- Processes ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def process(*arguments):
    """A Python process, killed at the end."""
    with subprocess.Popen(
        [sys.executable, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def test_processes_that_want_the_same_file_at_once_fetch_it_once(server, manifest_file, entry):
    server.acts = [Act(hold=100_000)]
    with process("-c", FETCH, manifest_file()) as one:
        wait_until(lambda: server.requests)
        with process("-c", FETCH, manifest_file()) as two:
            assert two.stdout.readline() == "waiting for another process that fetches mine.pth\n"
            server.go.set()
            for running in (one, two):
                out, err = running.communicate(timeout=60)
                assert (running.returncode, out.splitlines()[-1], err) == (0, str(cache_path(entry())), "")
    assert server.starts == [0]
    assert cache_path(entry()).read_bytes() == CONTENT


def test_a_process_that_waits_for_one_that_is_killed_goes_on_where_that_ended(server, manifest_file, entry):
    server.acts = [Act(hold=200_000), Act()]
    with process("-c", FETCH, manifest_file()) as one:
        wait_until(lambda: part_of(entry()).exists() and part_of(entry()).stat().st_size > 190_000)
        with process("-c", FETCH, manifest_file()) as two:
            assert two.stdout.readline().startswith("waiting")
            one.kill()
            two.communicate(timeout=60)
            assert two.returncode == 0
    assert server.starts[0] == 0
    assert server.starts[1] > 190_000
    assert cache_path(entry()).read_bytes() == CONTENT


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_download_leaves_only_the_partial_file_which_is_resumed(number, server, manifest_file, entry):
    server.acts = [Act(hold=200_000), Act()]
    part = part_of(entry())
    with process("-m", "snnzoo.cli", "download", "resnet18.mine", "--manifest", manifest_file()) as running:
        wait_until(lambda: part.exists() and part.stat().st_size > 190_000)
        running.send_signal(number)
        _, err = running.communicate(timeout=60)
    assert running.returncode == (130 if number == signal.SIGINT else -number)
    assert "Traceback" not in err
    assert files() == ["mine.pth.part"]
    have = part.stat().st_size
    assert fetch(entry()).read_bytes() == CONTENT
    assert server.starts == [0, have]


# -- The command -------------------------------------------------------------------------------------------------------


def snnzoo_download(*arguments):
    """Run `snnzoo download`; its last word on standard error is whether it imported torch."""
    script = (
        "import sys; from snnzoo.cli import main\n"
        "try: main.main()\n"
        "finally: sys.stderr.write('torch' if 'torch' in sys.modules else 'no torch')"
    )
    with process("-c", script, "download", *arguments) as running:
        out, err = running.communicate(timeout=60)
    return running.returncode, out, err


def test_the_command_fetches_each_name_once_prints_where_it_is_and_does_not_import_torch(server, manifest_file, entry):
    names = ("resnet18.mine", "resnet18", "resnet18.MINE")
    path = cache_path(entry())
    manifest = manifest_file(default=True)
    assert snnzoo_download(*names, "--manifest", manifest) == (0, f"resnet18.mine  {path}\n", "no torch")
    code, out, _ = snnzoo_download(*names, "--manifest", manifest, "--json", "-")
    assert (code, json.loads(out)) == (0, {"files": [{"tag": "resnet18.mine", "path": str(path), "size": 300_000}]})
    assert server.starts == [0]


def test_the_command_fails_in_one_line(server, manifest_file, entry):
    server.acts = [Act(404)]
    code, out, err = snnzoo_download("resnet18.mine", "--manifest", manifest_file())
    assert (code, out) == (1, "")
    assert re.fullmatch(rf"Error: cannot download {entry().url}: HTTP 404 .*--weights digits.*\nno torch", err)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["resnet18.mine", "resnet18.mien"], "no weights called 'mien': did you mean mine"),
        (["resnet18.mine", "resnet81"], "unknown model 'resnet81': did you mean resnet18"),
        ([], "Missing argument"),
    ],
)
def test_a_wrong_name_is_a_usage_error_before_anything_is_fetched(names, message, server, manifest_file):
    code, out, err = snnzoo_download(*names, "--manifest", manifest_file())
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"Error: .*{message}.*\nno torch", err)
    assert server.requests == []
