"""The studio's page in Chromium, over a server whose networks are stood in for."""

import browser as browsers
import pytest
from serving import png

from mv2_jax import cli
from mv2_jax.infer.serve import studio


@pytest.fixture
def page_of(served):
    """The page, with a worker behind it that makes what is asked for."""
    browsers.needed()
    studio.add(served.app, served.admission.model, served.admission.tokenizer)


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
        page.click("button[type=submit]")
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
        page.click("button[type=submit]")
        seen.until("document.querySelector('#error').textContent !== ''")


@pytest.mark.slow
def test_dark_and_narrow(page_of, live):
    with browsers.browser() as chromium:
        seen = browsers.Page(chromium, live, color_scheme="dark",
                             viewport={"width": 360, "height": 740})  # fmt: skip
        seen.page.goto(live)
        seen.page.wait_for_selector("#examples button")
        assert seen.faults() == [] and seen.wrong == []
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= 360


def test_the_studio_is_for_this_machine(capsys):
    assert cli.main(["studio", "--host", "0.0.0.0"]) == 2
    assert "this machine alone" in capsys.readouterr().err
