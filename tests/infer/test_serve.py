"""The server, with a maker of nothing for networks: what it answers, and does with jobs."""

import base64
import io
import json
import threading
from types import SimpleNamespace

import numpy as np
import openai
import pytest
from PIL import Image
from serving import frames, png

from mv2_jax.infer import generate, media
from mv2_jax.infer.serve import worker
from mv2_jax.infer.serve.store import ATTEMPTS

PROMPT = "a red ball bouncing over the meadow"


def test_a_video_from_prompt_to_file(served):
    asked = served.post(prompt=PROMPT, seed=3, num_inference_steps=2, mv2={"v2v_strength": 0.4})
    video = asked.json()
    assert asked.status_code == 200 and video["status"] == "queued" and video["progress"] == 0
    assert served.get(video["id"], "/content").status_code == 409
    assert served.work() == 1
    done = served.get(video["id"]).json()
    assert done["status"] == "completed" and done["progress"] == 100 and done["size"] == "32x32"
    assert set(done["mv2"]["durations"]) >= {"t2i", "i2v", "v2v", "vfi"}
    assert done["mv2"]["num_frames"] == 10 and done["mv2"]["fps"] == 8 and done["seconds"] == "1.25"
    content = served.get(video["id"], "/content")
    assert content.headers["content-type"] == "video/mp4" and len(frames(content.content)) == 10
    side = served.get(video["id"], "/content?variant=sidecar").json()
    assert side["seed"] == 3 and side["settings"]["v2v"]["strength"] == 0.4
    assert [side["settings"][stage]["steps"] for stage in ("t2i", "i2v", "v2v")] == [2, 2, 2]
    for variant in ("thumbnail", "spritesheet", "picture"):
        shown = served.get(video["id"], f"/content?variant={variant}")
        assert Image.open(io.BytesIO(shown.content)).width > 16
    assert len(frames(served.get(video["id"], "/content?variant=keyframes").content)) == 4


@pytest.mark.parametrize("said, frames_made", [
    ({"num_frames": 9}, 9), ({"num_frames": 1}, 1), ({"seconds": "0.5", "fps": 6}, 3),
    ({"seconds": 3}, 24),
])  # fmt: skip
def test_a_video_is_as_long_as_asked_for(served, said, frames_made):
    video = served.post(prompt=PROMPT, **said).json()
    served.work()
    done = served.get(video["id"]).json()
    assert done["status"] == "completed", done["error"]
    assert done["mv2"]["num_frames"] == video["mv2"]["num_frames"] == frames_made
    assert len(frames(served.get(video["id"], "/content").content)) == frames_made


def test_pictures_and_clips_start_a_video(served, tmp_path):
    clip = np.random.default_rng(0).integers(0, 255, (6, 48, 64, 3), np.uint8)
    media.write_video(tmp_path / "clip.mp4", clip, 8)
    data = "data:image/png;base64," + base64.b64encode(png()).decode()
    forms = [
        {"files": {"input_reference": ("x.png", png())}, "data": {"prompt": PROMPT}},
        {"json": {"prompt": PROMPT, "input_reference": {"image_url": data}}},
        {"files": {"input_reference": ("x.png", (tmp_path / "clip.mp4").read_bytes())},
         "data": {"prompt": PROMPT}},
    ]  # fmt: skip
    names = []
    for form in forms:
        answer = served.client.post("/v1/videos", **form)
        assert answer.status_code == 200, answer.text
        names.append(answer.json()["id"])
    served.work()
    sides = [served.get(name, "/content?variant=sidecar").json() for name in names]
    assert [bool(side["from_image"]) for side in sides] == [True, True, False]
    assert sides[2]["from_video"] and served.get(names[0]).json()["mv2"]["previews"] == [
        "keyframes", "refined"]  # fmt: skip


def test_pages_of_videos(served):
    names = [served.post(prompt=PROMPT, seed=k).json()["id"] for k in range(5)]
    seen, after = [], ""
    while True:
        page = served.client.get(f"/v1/videos?limit=2&order=asc{after}").json()
        seen += [video["id"] for video in page["data"]]
        if not page["has_more"]:
            break
        after = f"&after={page['last_id']}"
    assert seen == names
    newest = served.client.get("/v1/videos?limit=1").json()
    assert newest["data"][0]["id"] == names[-1] and newest["has_more"]
    assert [served.get(name).json()["mv2"]["ahead"] for name in names] == [0, 1, 2, 3, 4]


def test_a_deleted_video_stops_at_its_next_step_and_leaves_nothing(served, monkeypatch):
    name = served.post(prompt=PROMPT).json()["id"]
    steps, whole = [], worker.Report.__call__

    def watched(report, stage, done, total):
        steps.append((stage, done))
        if (stage, done) == ("t2i", 2):
            assert served.get(name).json()["status"] == "in_progress"
            assert served.client.delete(f"/v1/videos/{name}").json()["deleted"] is True
            assert served.get(name).status_code == 404
        whole(report, stage, done, total)

    monkeypatch.setattr(worker.Report, "__call__", watched)
    served.work()
    assert steps[-1] == ("t2i", 2)
    assert served.store.counts() == {} and list(served.store.files.iterdir()) == []
    assert served.client.delete(f"/v1/videos/{name}").status_code == 404


def test_queued_and_completed_videos_are_deleted_with_their_files(served):
    name = served.post(prompt=PROMPT).json()["id"]
    served.client.delete(f"/v1/videos/{name}")
    assert served.work() == 0
    name = served.post(prompt=PROMPT).json()["id"]
    served.work()
    served.client.delete(f"/v1/videos/{name}")
    assert list(served.store.files.iterdir()) == []


def test_a_full_disk_fails_the_job_with_a_reason_and_the_next_is_made(served, monkeypatch):
    names = [served.post(prompt=PROMPT).json()["id"] for _ in range(2)]
    errors, whole = [OSError(28, "No space left on device")], generate.finish

    def full(*given):
        if errors:
            raise errors.pop()
        return whole(*given)

    monkeypatch.setattr(generate, "finish", full)
    served.work()
    first, second = (served.get(name).json() for name in names)
    assert first["status"] == "failed" and first["error"]["code"] == "disk"
    assert "no space left" in first["error"]["message"] and second["status"] == "completed"


def test_what_a_dead_worker_had_in_hand_is_queued_again(served):
    name = served.post(prompt=PROMPT).json()["id"]
    for k in range(ATTEMPTS):
        assert served.store.claim(f"w{k}").id == name
        assert served.get(name).json()["status"] == "in_progress"
        served.store.recover(f"w{k}")
    video = served.get(name).json()
    assert video["status"] == "failed" and video["error"]["code"] == "worker_died"


def test_a_video_that_was_made_before_the_kill_is_not_made_again(served):
    name = served.post(prompt=PROMPT).json()["id"]
    job = served.store.claim("first")
    served.maker.make(job, _folder(served, name), worker.Report(served.store, job))
    before = (_folder(served, name) / "video.mp4").stat().st_mtime_ns
    served.store.recover()
    assert not served.store.complete(job, {})  # the first one, had it only been slow
    served.maker = SimpleNamespace(found=served.maker.found)
    served.work("second")
    assert served.get(name).json()["status"] == "completed"
    assert (_folder(served, name) / "video.mp4").stat().st_mtime_ns == before


def _folder(served, name):
    folder = served.store.place(name)
    folder.mkdir(exist_ok=True)
    return folder


def test_models_health_and_metrics(served):
    assert served.client.get("/v1/models").json()["data"][0]["id"] == "tiny"
    served.post(prompt=PROMPT)
    served.work()
    assert served.client.get("/health").json() == {"status": "ok", "queued": 0}
    told = served.client.get("/metrics").text
    assert 'mv2_jobs_completed_total{kind="video"} 1.0' in told
    assert 'mv2_jobs{status="completed"} 1.0' in told
    assert 'route="/v1/videos",status="200"' in told
    served.server.ready = lambda: False
    assert served.client.get("/health").status_code == 503


def test_events_tell_of_every_change(served):
    name = served.post(prompt=PROMPT).json()["id"]
    threading.Timer(0.3, served.work).start()
    events = []
    with served.client.stream("GET", f"/v1/videos/{name}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for line in stream.iter_lines():
            if line.startswith("data: "):
                events.append(json.loads(line.removeprefix("data: ")))
    assert events[0]["status"] == "queued" and events[-1]["status"] == "completed"


@pytest.mark.filterwarnings("ignore:The Sora API")
def test_openais_client_works_unmodified(live, tmp_path):
    videos = openai.OpenAI(base_url=f"{live}/v1", api_key="none", max_retries=0).videos
    made = videos.create_and_poll(
        prompt=PROMPT,
        size="32x32",
        seconds="1",
        extra_body={"seed": 3, "mv2": {"i2v_steps": 2, "v2v_strength": 0.4}},
        poll_interval_ms=50,
    )
    assert made.status == "completed" and made.seconds == "1" and made.size == "32x32"
    again = videos.retrieve(made.id)
    assert again.progress == 100 and again.completed_at >= again.created_at
    videos.download_content(made.id).write_to_file(tmp_path / "a.mp4")
    assert len(frames((tmp_path / "a.mp4").read_bytes())) == 8
    sheet = videos.download_content(made.id, variant="spritesheet").read()
    assert Image.open(io.BytesIO(sheet)).width > 32
    started = videos.create(prompt=PROMPT, input_reference=("a.png", png(), "image/png"))
    assert {video.id for video in videos.list(limit=1)} == {made.id, started.id}
    assert videos.delete(made.id).deleted is True
    with pytest.raises(openai.NotFoundError):
        videos.retrieve(made.id)
    with pytest.raises(openai.BadRequestError, match="multiple of 8"):
        videos.create(prompt=PROMPT, size="33x32")


def test_a_video_at_once(live):
    import httpx

    answer = httpx.post(f"{live}/v1/videos/sync", json={"prompt": PROMPT}, timeout=60)
    assert answer.status_code == 200 and len(frames(answer.content)) == 10
    assert answer.headers["x-video-id"].startswith("video_")
    part = httpx.get(
        f"{live}/v1/videos/{answer.headers['x-video-id']}/content", headers={"range": "bytes=0-9"}
    )
    assert part.status_code == 206 and part.content == answer.content[:10]


def test_a_clip_is_made_smoother(served, tmp_path):
    clip = np.random.default_rng(0).integers(0, 255, (3, 48, 64, 3), np.uint8)
    media.write_video(tmp_path / "clip.mp4", clip, 8)
    form = {"files": {"video": ("a", (tmp_path / "clip.mp4").read_bytes())}}
    answer = served.client.post("/v1/interpolations", data={"model": "none", "times": "3"}, **form)
    assert answer.status_code == 200, answer.text
    served.work()
    video = served.get(answer.json()["id"]).json()
    assert video["status"] == "completed", video["error"]
    assert video["mv2"]["num_frames"] == 7 and video["mv2"]["fps"] == 24
    assert video["size"] == "64x48" and video["seconds"] == "0.375"
    for name in ("seconds", "size"):
        assert answer.json()[name] == video[name]
    bad = served.client.post("/v1/interpolations", files={"video": ("a", png())})
    assert bad.status_code == 400 and bad.json()["error"]["param"] == "video"
    typo = served.client.post("/v1/interpolations", data={"tims": "3"}, **form)
    assert "did you mean 'times'" in typo.json()["error"]["message"]


def test_what_was_asked_for_makes_the_same_again(served, tmp_path):
    fields = {"prompt": PROMPT, "negative_prompt": "dark", "size": "48x32", "num_frames": 9,
              "fps": 6, "mv2": {"v2v_strength": 0.4, "i2v_sampler": "euler"}}  # fmt: skip
    first = served.post(**fields, num_inference_steps=2).json()
    asked = first["mv2"]["asked"]
    assert {**fields, "mv2": asked["mv2"]} == {k: v for k, v in asked.items() if k != "seed"}
    assert asked["mv2"] == {**fields["mv2"], "t2i_steps": 2, "i2v_steps": 2, "v2v_steps": 2}
    again = served.post(**asked).json()
    lines = [served.store.get(video["id"]).asked for video in (first, again)]
    assert lines[0] == lines[1] and again["mv2"]["asked"] == asked
    assert served.get(first["id"], "/content?variant=reference").status_code == 409
    form = {"files": {"input_reference": ("x.png", png())}, "data": {"prompt": PROMPT}}
    pictured = served.client.post("/v1/videos", **form).json()
    assert pictured["mv2"]["reference"] and "image" not in pictured["mv2"]["asked"].get("mv2", {})
    lent = served.get(pictured["id"], "/content?variant=reference")
    assert np.array_equal(np.array(Image.open(io.BytesIO(lent.content)))[0, 0], [90, 90, 90])
    clip = np.random.default_rng(0).integers(0, 255, (3, 48, 64, 3), np.uint8)
    media.write_video(tmp_path / "clip.mp4", clip, 8)
    content, said = (tmp_path / "clip.mp4").read_bytes(), {"model": "none", "times": "3"}
    said["mv2"] = '{"crf": 12}'
    files = {"files": {"video": ("a", content)}}
    smooth = served.client.post("/v1/interpolations", data=said, **files).json()
    assert smooth["mv2"]["asked"] == {"model": "none", "times": 3, "mv2": {"crf": 12}}
    assert served.get(smooth["id"], "/content?variant=reference").content == content


def test_a_video_is_explained_on_a_page_of_its_own(served, monkeypatch):
    told = []

    def explain(four, prompt, numbers, seed, negative, progress, made_with):
        progress("i2v", 0, 2)
        told.append((prompt, seed, negative, numbers["v2v"]["strength"]))
        return f"<html>{prompt}</html>"

    monkeypatch.setattr("mv2_jax.infer.explain.explain", explain)
    video = served.post(prompt=PROMPT, seed=3, negative_prompt="a cube",
                        mv2={"v2v_strength": 0.4}).json()  # fmt: skip
    served.work()
    asked = [served.client.post(f"/v1/videos/{video['id']}/explanation").json() for _ in range(2)]
    assert asked[0]["id"] == asked[1]["id"] and asked[0]["mv2"]["kind"] == "explanation"
    assert served.work() == 1 and told == [(PROMPT, 3, "a cube", 0.4)]
    page = served.get(asked[0]["id"], "/content?variant=explanation")
    assert PROMPT in page.text and page.headers["content-disposition"].startswith("inline")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert [v["id"] for v in served.client.get("/v1/videos").json()["data"]] == [video["id"]]
    refused = served.client.post(f"/v1/videos/{asked[0]['id']}/explanation")
    assert refused.status_code == 400 and "explanation itself" in refused.text
    served.client.delete(f"/v1/videos/{video['id']}")
    assert served.store.counts() == {} and list(served.store.files.iterdir()) == []
    form = {"files": {"input_reference": ("x.png", png())}, "data": {"prompt": PROMPT}}
    pictured = served.client.post("/v1/videos", **form).json()
    refused = served.client.post(f"/v1/videos/{pictured['id']}/explanation")
    assert refused.status_code == 400 and "from a prompt alone" in refused.text
