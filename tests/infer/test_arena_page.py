"""The arena's page in Chromium: keys and buttons, reloads, playback, and what axe finds."""

import arena as made
import browser as browsers
import pytest

from mv2_jax.infer.arena import app

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def chromium():
    browsers.needed()
    with browsers.browser() as found:
        yield found


def answers(arena):
    return [tuple(row) for row in arena.rows("SELECT criterion, answer FROM votes ORDER BY at")]


def test_a_rater_from_the_link_to_the_end(chromium, tmp_path):
    arena = made.arena(tmp_path)
    token = arena.add_rater(100)
    with browsers.serving(app.build(arena)) as address:
        seen = browsers.Page(chromium, address)
        page = seen.page
        page.goto(f"{address}/r/{token}")
        page.wait_for_selector("#task:not([hidden])")
        assert page.text_content("#count") == "0 of 4" and page.is_disabled("#next")
        seen.until("[...document.querySelectorAll('video')].every(v => v.currentTime > 0)")
        assert seen.faults() == []
        page.keyboard.press("Space")
        seen.until("[...document.querySelectorAll('video')].every(v => v.paused)")
        page.locator("#seek").fill("0.5")
        seen.until("[...document.querySelectorAll('video')].every(v => !v.seeking)")
        times = page.evaluate("[...document.querySelectorAll('video')].map(v => v.currentTime)")
        assert times[0] == times[1] and 0.3 < times[0] < 0.45
        # By keys: three questions, a reload that keeps the ballot, then all four.
        page.locator("body").press("1")
        prompt = page.text_content("#prompt")
        page.reload()
        page.wait_for_selector("fieldset.current")
        assert page.text_content("#prompt") == prompt and not answers(arena)
        for key in ("1", "2", "3"):
            page.keyboard.press(key)
        page.keyboard.press("Enter")  # the last question is open
        assert not answers(arena)
        page.keyboard.press("1")
        page.keyboard.press("Enter")
        seen.until("document.querySelector('#count').textContent === '1 of 4'")
        assert dict(answers(arena)) == {"quality": "left", "consistency": "same",
                                        "structure": "right", "overall": "left"}  # fmt: skip
        # By mouse: back, another mind.
        page.click("#back")
        page.wait_for_selector("#form input[name=overall][value=left]:checked")
        page.check("#form input[name=overall][value=right]")
        page.click("#next")
        seen.until("!document.querySelector('#form input:checked')")
        assert dict(answers(arena))["overall"] == "right" and len(answers(arena)) == 4
        for done in range(2, 5):
            for _ in range(4):
                page.keyboard.press("2")
            page.keyboard.press("Enter")
            seen.until(f"document.querySelector('#count').textContent === '{done} of 4'")
        page.wait_for_selector("#done:not([hidden])")
        assert seen.faults() == [] and seen.wrong == [] and len(answers(arena)) == 16
        page.reload()
        page.wait_for_selector("#done:not([hidden])")
    arena.close()


def test_dark_narrow_and_without_a_server(chromium, tmp_path):
    arena = made.arena(tmp_path)
    token = arena.add_rater(100)
    with browsers.serving(app.build(arena)) as address:
        narrow = {"width": 360, "height": 740}
        seen = browsers.Page(chromium, address, color_scheme="dark", viewport=narrow)
        page = seen.page
        page.goto(f"{address}/r/{token}")
        page.wait_for_selector("fieldset.current")
        assert seen.faults() == []
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        for _ in range(4):
            page.keyboard.press("3")
        page.context.set_offline(True)
        page.keyboard.press("Enter")
        page.wait_for_selector("#error:not(:empty)")
        assert "cannot be reached" in page.text_content("#error") and not answers(arena)
        page.context.set_offline(False)
        page.click("#next")
        seen.until("document.querySelector('#count').textContent === '1 of 4'")
        assert {answer for _, answer in answers(arena)} == {"right"}
    arena.close()
