"""The studio's page in Chromium, over a server whose networks are stood in for."""

import os
from pathlib import Path

import browser as browsers
import numpy as np
import pytest
from serving import Served, png

from mv2_jax.infer import media
from mv2_jax.infer.serve import command

TOKEN = "a secret & more"
SHOTS = os.environ.get("MV2_SCREENSHOTS")  # a folder, for somebody who wants to look at the pages


def shot(seen, name):
    if SHOTS:
        Path(SHOTS).mkdir(parents=True, exist_ok=True)
        seen.page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)


@pytest.fixture
def page_of(served, monkeypatch):
    """The page, with a worker behind it that makes what is asked for."""
    browsers.needed()
    monkeypatch.setattr(
        "mv2_jax.infer.explain.explain", lambda four, prompt, *_: f"<h1>{prompt}</h1>"
    )


@pytest.mark.slow
def test_a_video_from_the_prompt_to_the_gallery(page_of, live, served, tmp_path):
    with browsers.browser() as chromium:
        seen = browsers.Page(chromium, live)
        page = seen.page
        page.goto(live)
        page.wait_for_selector("#examples button")
        assert seen.faults() == []
        page.fill("#prompt", "a red zebra bouncing")
        assert "zebra" in page.text_content("#hint")
        page.click("#examples button >> nth=0")
        assert page.text_content("#hint") == ""
        page.check("#lock")
        page.fill("#seed", "3")
        page.fill("#variations", "2")
        (tmp_path / "mine.png").write_bytes(png())
        page.click("#make button[type=submit]")
        seen.until("document.querySelectorAll('#gallery li img').length === 2", 60)
        seen.until("document.querySelector('#state').textContent === 'done'")
        names = page.locator("#stages button").all_text_contents()
        assert names[-1] == "Video" and "Picture" in names and "Keyframes" in names
        assert {job.asked["seed"] for job in served.store.page(None, 9, True)[0]} == {3, 4}
        page.click("#stages button >> text=Picture")
        seen.until("document.querySelector('#stage img')?.naturalWidth > 0")
        page.click("#stages button >> text=Video")
        seen.until("document.querySelector('#stage video')?.readyState >= 2")
        page.locator("#scrub").fill("0.5")
        seen.until("document.querySelector('#stage video').paused")
        page.select_option("#other", index=1)
        seen.until("document.querySelectorAll('#stage video').length === 2")
        assert seen.faults() == []
        page.fill("#search", "nothing like it")
        assert page.locator("#gallery li").count() == 0
        page.fill("#search", "")
        page.click("#again")
        assert page.input_value("#seed") in ("3", "4") and page.input_value("#prompt")
        page.reload()
        seen.until("document.querySelectorAll('#gallery li').length === 2")
        page.click("#gallery button >> nth=0")
        page.click("#delete")
        seen.until("document.querySelectorAll('#gallery li').length === 1")
        assert len(served.store.page(None, 9, True)[0]) == 1 and seen.wrong == []
        page.fill("#prompt", "a ball")
        page.set_input_files("#reference", {"name": "x.png", "mimeType": "image/png",
                                            "buffer": b"no picture"})  # fmt: skip
        page.click("#make button[type=submit]")
        seen.until("document.querySelector('#error').textContent !== ''")


@pytest.mark.slow
def test_made_again_explained_and_smoothed(page_of, live, served, tmp_path):
    clip = np.random.default_rng(0).integers(0, 255, (6, 48, 64, 3), np.uint8)
    media.write_video(tmp_path / "clip.mp4", clip, 8)
    with browsers.browser() as chromium:
        seen = browsers.Page(chromium, live)
        page = seen.page
        page.goto(live)
        page.click("#settings summary")
        assert page.get_attribute("#set_v2v_strength", "placeholder") == "0.5"
        assert page.get_attribute("#num_frames", "placeholder") == "10"
        assert seen.faults() == []
        shot(seen, "settings")
        page.fill("#prompt", "a red ball bouncing")
        page.fill("#negative_prompt", "a blue cube")
        page.fill("#num_frames", "7")
        page.fill("#set_v2v_strength", "0.25")
        page.select_option("#set_i2v_sampler", "euler")
        page.fill("#others", '{"t2i_negative": "a green ring"}')
        page.set_input_files("#reference", {"name": "x.png", "mimeType": "image/png",
                                            "buffer": png()})  # fmt: skip
        page.click("#make button[type=submit]")
        seen.until("document.querySelector('#error').textContent.includes('t2i')")  # has no effect
        page.fill("#others", '{"i2v_negative": "a green ring"}')
        page.click("#make button[type=submit]")
        seen.until("document.querySelector('#state').textContent === 'done'", 60)
        assert not page.is_visible("#explain")  # it began from a picture
        page.click("#clear")
        assert page.input_value("#set_v2v_strength") == ""
        page.click("#again")
        seen.until("document.querySelector('#reference').files.length === 1")
        page.click("#make button[type=submit]")
        seen.until("document.querySelectorAll('#gallery li img').length === 2", 60)
        jobs = served.store.page(None, 9, True)[0]
        assert jobs[0].asked == jobs[1].asked and jobs[0].asked["line"]["v2v_strength"] == "0.25"
        pictures = [(served.store.place(job.id) / "picture.png").read_bytes() for job in jobs]
        assert pictures[0] == pictures[1]

        page.click("#clear")
        page.click("#make button[type=submit]")
        seen.until("document.querySelector('#state').textContent === 'done'", 60)
        page.click("#explain")
        with page.context.expect_page() as opened:
            page.click("#explaining a")
        assert "a red ball bouncing" in opened.value.text_content("h1")
        page.click("#smooth")
        seen.until("document.querySelector('#clip').files.length === 1")
        page.set_input_files("#clip", tmp_path / "clip.mp4")
        page.select_option("#s_model", "none")
        page.fill("#s_times", "3")
        page.click("#smoother button[type=submit]")
        seen.until("document.querySelector('#facts').textContent.includes('16 frames')", 60)
        seen.until("document.querySelector('#state').textContent === 'done'", 60)
        page.fill("#s_times", "4")
        page.click("#again")
        seen.until("document.querySelector('#clip').files[0].size === "
                   f"{(tmp_path / 'clip.mp4').stat().st_size}")  # fmt: skip
        assert page.input_value("#s_times") == "3" and page.input_value("#s_model") == "none"
        assert seen.faults() == []
        shot(seen, "wide")
        page.set_viewport_size({"width": 360, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        shot(seen, "narrow")
        page.emulate_media(color_scheme="dark")
        assert seen.faults() == []
        shot(seen, "dark")
        wrong = [line for line in seen.wrong if "400" not in line]  # Chromium tells of each
        assert wrong == []


@pytest.mark.slow
def test_dark_and_narrow(page_of, live):
    with browsers.browser() as chromium:
        seen = browsers.Page(chromium, live, color_scheme="dark",
                             viewport={"width": 360, "height": 740})  # fmt: skip
        seen.page.goto(live)
        seen.page.wait_for_selector("#examples button")
        seen.page.click("#settings summary")
        assert seen.faults() == [] and seen.wrong == []
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.fixture
def locked(tmp_path, tiny_weights, step_by_step):
    """A server that wants a token."""
    made = Served(tmp_path / "served", tiny_weights, token=TOKEN)
    made.client.base_url = "http://elsewhere:80"
    return made


def test_a_browser_is_let_in_by_its_token(locked):
    client = locked.client
    assert "needs its token" in client.get("/").text
    assert client.get("/static/studio.js").status_code == 200
    for path in ("/v1/videos", "/studio/about", "/v1/videos/x/content", "/metrics"):
        assert client.get(path).status_code == 401
    assert client.post("/studio/enter", data={"token": "another"}).status_code == 401
    assert client.post("/studio/enter", data={"token": "x" * 5000}).status_code == 413
    assert client.get("/v1/videos").status_code == 401
    entered = client.post("/studio/enter", data={"token": TOKEN}, follow_redirects=False)
    cookie = entered.headers["set-cookie"].lower()
    assert entered.status_code == 303 and "httponly" in cookie and "samesite=strict" in cookie
    assert TOKEN not in cookie and client.get("/v1/videos").status_code == 200
    assert "mv2 studio</h1>" in client.get("/").text and "needs its" not in client.get("/").text
    other = client.post("/v1/videos", json={"prompt": "a red ball"}, headers={"Origin": "http://x"})
    assert other.status_code == 403 and other.json()["error"]["code"] == "wrong_origin"
    name, value = cookie.partition(";")[0].split("=")
    client.cookies.clear()
    bad = client.get("/v1/videos", headers={"Cookie": f"{name}={'0' * len(value)}"})
    assert bad.status_code == 401
    bearer = client.get("/v1/videos", headers={"Authorization": f"Bearer {TOKEN}"})
    assert bearer.status_code == 200


def test_guesses_at_the_token_are_limited(tmp_path, tiny_weights):
    few = Served(tmp_path / "served", tiny_weights, token=TOKEN, rate=3)
    codes = [few.client.post("/studio/enter", data={"token": "x"}).status_code for _ in range(4)]
    assert codes == [401, 401, 401, 429]


def test_the_link_that_is_printed_holds_the_token():
    assert command._link("127.0.0.1", 8000, None) == "http://127.0.0.1:8000/"
    assert command._link("::1", 80, "a&b") == "http://[::1]:80/#token=a%26b"
    assert "0.0.0.0" not in command._link("0.0.0.0", 80, "a")


@pytest.mark.slow
def test_the_page_behind_a_token(locked):
    browsers.needed()
    with browsers.serving(locked.app) as address, browsers.browser() as chromium:
        seen = browsers.Page(chromium, address)
        seen.page.goto(address)
        assert seen.faults() == []
        seen.page.fill("#token", "wrong")
        seen.page.click("button")
        seen.until("document.querySelector('#error').textContent !== ''")
        shot(seen, "enter")
        seen.page.fill("#token", TOKEN)
        seen.page.click("button")
        seen.page.wait_for_selector("#examples button")
        link = command._link("127.0.0.1", int(address.rsplit(":", 1)[1]), TOKEN)
        other = browsers.Page(chromium, address)
        other.page.goto(link)
        other.page.wait_for_selector("#examples button")
        assert "token" not in other.page.url
        other.page.fill("#prompt", "a red ball")
        other.page.click("#make button[type=submit]")
        other.until("document.querySelectorAll('#gallery li').length === 1")
        locked.work()
        other.until("document.querySelector('#stage video')?.readyState >= 2", 30)
        assert other.wrong == []
