"""What the server refuses, and how it says so."""

import io

import pytest
from fastapi.testclient import TestClient
from PIL import Image
from serving import Served, png

from mv2_jax import cli
from mv2_jax.errors import InputError
from mv2_jax.infer.serve import app, guard, maker

PROMPT = "a red ball bouncing over the meadow"


@pytest.mark.parametrize("said, param, words", [
    ({}, "prompt", "missing"),
    ({"prompt": " "}, "prompt", "takes what the video is to show"),
    ({"prompt": PROMPT, "sed": 3}, "sed", "did you mean 'seed'"),
    ({"prompt": PROMPT, "seed": -1}, "seed", "from 0 to"),
    ({"prompt": PROMPT, "seed": True}, "seed", "a whole number"),
    ({"prompt": PROMPT, "size": "33x32"}, "size", "multiple of 8"),
    ({"prompt": PROMPT, "size": "4000x4000"}, "size", "too large"),
    ({"prompt": PROMPT, "seconds": 60}, "seconds", "too many"),
    ({"prompt": PROMPT, "seconds": 1, "num_frames": 8}, "num_frames", "not both"),
    ({"prompt": PROMPT, "mv2": {"i2v_step": 3}}, "mv2.i2v_step", "did you mean 'i2v_steps'"),
    ({"prompt": PROMPT, "mv2": {"i2v_steps": 0}}, "i2v_steps", "from 1 to 1000"),
    ({"prompt": PROMPT, "mv2": {"image": "/etc/passwd"}}, "mv2.image", "no option"),
    ({"prompt": PROMPT, "mv2": {"vfi": "os:system"}}, "mv2.vfi", "one of rife"),
    ({"prompt": PROMPT, "mv2": {"i2v_sampler": "os:system"}}, "mv2.i2v_sampler", "one of ddim"),
    ({"prompt": PROMPT, "mv2": {"frames": 1000}}, "mv2.frames", "too many"),
    ({"prompt": PROMPT, "mv2": 3}, "mv2", "JSON object"),
    ({"prompt": PROMPT, "input_reference": "http://169.254.169.254/"}, "input_reference", "data:"),
    ({"prompt": PROMPT, "input_reference": "data:image/png;base64,AAAA"}, "input_reference",
     "neither a picture"),
    ({"prompt": "a\0b"}, None, "NUL"),
])  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(served, said, param, words):
    answer = served.post(**said)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["type"] == "invalid_request_error"
    assert words in error["message"] and "\n" not in error["message"] and error["param"] == param
    assert served.store.waiting() == 0 and list(served.store.files.iterdir()) == []


def test_other_refusals(served):
    client = served.client
    assert served.post(prompt=PROMPT, model="sora-2").json()["error"]["code"] == "model_not_found"
    assert client.post("/v1/videos", content=b"x").status_code == 415
    assert client.post("/v1/videos", content=b"[1]", headers={
        "content-type": "application/json"}).status_code == 400  # fmt: skip
    for path in ("/v1/videos/video_0", "/v1/videos/video_0/content", "/nowhere"):
        answer = client.get(path)
        assert answer.status_code == 404 and "message" in answer.json()["error"]
    assert client.put("/v1/videos").status_code == 405
    limit = client.get("/v1/videos?limit=0")
    assert limit.status_code == 400 and limit.json()["error"]["param"] == "limit"


def _sized(width, height):
    """A PNG of a head that promises so many pixels, which nobody sent."""
    made = io.BytesIO()
    Image.new("1", (width, height)).save(made, "PNG")
    return made.getvalue()


@pytest.mark.parametrize("content, words", [
    (b"", "empty"),
    (b"no picture", "neither"),
    (png()[:60], "damaged"),
    (_sized(20_000, 16), "too many"),
    (_sized(16_000, 16_000), "too"),
    (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "neither"),
    (b"\0\0\0\x18ftypmp42" + bytes(100), "no clip"),
], ids=["empty", "text", "truncated", "wide", "bomb", "playlist", "headless"])  # fmt: skip
def test_bad_uploads_are_refused(served, content, words):
    form = {"files": {"input_reference": ("a.png", content)}, "data": {"prompt": PROMPT}}
    answer = served.client.post("/v1/videos", **form)
    assert answer.status_code == 400 and words in answer.json()["error"]["message"], answer.text
    assert list(served.store.files.iterdir()) == []


def test_too_large_requests_are_refused_while_they_come(tmp_path, tiny_weights):
    served = Served(tmp_path, tiny_weights, upload=1000)
    form = {"files": {"input_reference": ("a.png", bytes(2000))}, "data": {"prompt": PROMPT}}
    assert served.client.post("/v1/videos", **form).status_code == 413
    chunks = (b" " * 400 for _ in range(5))  # without a length
    sent = served.client.post("/v1/videos", content=chunks, headers={
        "content-type": "application/json"})  # fmt: skip
    assert sent.status_code == 413


def test_limits_answer_429_with_the_time_to_wait(tmp_path, tiny_weights):
    served = Served(tmp_path / "a", tiny_weights, rate=2)
    codes = [served.post(prompt=PROMPT).status_code for _ in range(3)]
    last = served.post(prompt=PROMPT)
    assert codes == [200, 200, 429] and 1 <= int(last.headers["retry-after"]) <= 30
    assert last.json()["error"]["type"] == "rate_limit_error"
    served = Served(tmp_path / "b", tiny_weights, client=1)
    assert [served.post(prompt=PROMPT).status_code for _ in range(2)] == [200, 429]


def test_a_rate_fills_again():
    now = [0.0]
    rate = guard.Rate(6, lambda: now[0])
    for _ in range(6):
        rate.take("a")
    with pytest.raises(app.Refused):
        rate.take("a")
    rate.take("b")
    now[0] = 10.1
    rate.take("a")


def test_a_token_is_needed_where_one_is_set(served):
    client = TestClient(app.build(served.server, "secret"), base_url="http://elsewhere")
    assert client.get("/health").status_code == 200
    assert client.get("/v1/videos").status_code == 401
    wrong = client.get("/v1/videos", headers={"authorization": "Bearer secrets"})
    assert wrong.status_code == 401 and wrong.headers["www-authenticate"] == "Bearer"
    assert client.get("/v1/videos", headers={"authorization": "Bearer secret"}).status_code == 200


def test_pages_of_other_sites_are_kept_out(served):
    assert served.client.get("/v1/videos", headers={"host": "evil.example"}).status_code == 403
    other = {"origin": "http://evil.example"}
    assert served.client.post("/v1/videos", data={"prompt": "x"}, headers=other).status_code == 403
    own = {"origin": "http://127.0.0.1"}
    assert served.client.get("/v1/videos", headers=own).status_code == 200


@pytest.mark.parametrize("host, own", [
    ("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.9.9.9", True),
    ("0.0.0.0", False), ("10.0.0.1", False), ("127.0.0.1.evil.example", False),
])  # fmt: skip
def test_loopback(host, own):
    assert guard.is_loopback(host) is own


def test_a_mesh_of_several_processes_is_refused(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    assert cli.main(["serve", "--mesh", "auto"]) == 2
    assert "one of 2" in capsys.readouterr().err
    monkeypatch.delenv("JAX_NUM_PROCESSES")
    monkeypatch.setattr("jax.process_count", lambda: 3)  # a pod's host, whose metadata says it
    with pytest.raises(InputError, match="one of 3"):
        maker.Cascade(None, "auto").warm()
