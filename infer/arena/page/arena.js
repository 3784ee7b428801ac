"use strict";
// The arena's page: one ballot after another. What is answered lives on the server; a reload goes on with
// the first ballot that is open.

const base = location.pathname.replace(/\/$/, "");
const $ = (id) => document.getElementById(id);
const videos = [$("left"), $("right")];
const ANSWERS = [["left", "Left is better"], ["same", "Same"], ["right", "Right is better"]];

let criteria = [], ballots = [], at = -1, began = 0, playing = true, sending = false;

async function ask(path, body) {
  const answer = await fetch(base + path, body && {
    method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body),
  });
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) throw Object.assign(new Error(said.error || `error ${answer.status}`), {status: answer.status});
  return said;
}

// Playback: both at once, the shorter one waits at its end for the other.

const length = () => Math.max(...videos.map((v) => v.duration || 0));
const ready = () => videos.every((v) => v.readyState >= 3);

function play() {
  if (!playing || !ready()) return;
  if (videos.every((v) => v.ended || v.currentTime >= v.duration)) videos.forEach((v) => { v.currentTime = 0; });
  for (const v of videos) if (!v.ended) v.play().catch(() => setPlaying(false));
}

function setPlaying(on) {
  playing = on;
  $("play").textContent = on ? "Pause" : "Play";
  if (on) play(); else videos.forEach((v) => v.pause());
}

function restart() {
  videos.forEach((v) => { v.pause(); v.currentTime = 0; });
  setPlaying(true);
}

function follow() {
  const [a, b] = videos;
  const both = !a.ended && !b.ended && !a.paused && !b.paused && !a.seeking && !b.seeking;
  // Half a frame is not seen; beyond it the right one is set to where the left one is.
  if (both && Math.abs(a.currentTime - b.currentTime) > 0.06) b.currentTime = a.currentTime;
  if (length() && document.activeElement !== $("seek")) {
    $("seek").value = Math.max(a.currentTime, b.currentTime) / length();
  }
  requestAnimationFrame(follow);
}

for (const v of videos) {
  v.addEventListener("canplay", play);
  v.addEventListener("waiting", () => videos.forEach((other) => other.pause()));
  v.addEventListener("ended", () => { if (videos.every((other) => other.ended)) play(); });
  v.addEventListener("error", () => {
    if (v.getAttribute("src")) fail("A video does not load; reload the page to try again.");
  });
}

// Ballots.

function build() {
  for (const {id, title} of criteria) {
    const set = document.createElement("fieldset");
    set.id = `set-${id}`;
    const legend = document.createElement("legend");
    legend.textContent = title;
    const row = document.createElement("div");
    row.className = "answers";
    for (const [value, words] of ANSWERS) {
      const label = document.createElement("label");
      const input = document.createElement("input");
      Object.assign(input, {type: "radio", name: id, value, required: true});
      input.addEventListener("change", mark);
      label.append(input, words);
      row.append(label);
    }
    set.append(legend, row);
    $("criteria").append(set);
  }
}

const given = () => Object.fromEntries(criteria.map(({id}) =>
  [id, $("form").querySelector(`input[name="${id}"]:checked`)?.value]).filter(([, value]) => value));

function mark() {
  const said = given();
  const open = criteria.find(({id}) => !(id in said));
  for (const {id} of criteria) $(`set-${id}`).classList.toggle("current", open?.id === id);
  $("next").disabled = Boolean(open) || sending;
  $("back").disabled = at <= 0 || sending;
  return open;
}

function answer(value) {
  const open = mark();
  if (!open) return;
  $("form").querySelector(`input[name="${open.id}"][value="${value}"]`).checked = true;
  const words = ANSWERS.find(([name]) => name === value)[1];
  const next = mark();
  $("status").textContent = `${open.title}: ${words}. ${next ? `Next: ${next.title}` : "Enter goes to the next videos"}`;
}

function fail(text) { $("error").textContent = text; }

async function show(index) {
  at = index;
  const ballot = ballots[at], done = ballots.filter((b) => b.done).length;
  $("progress").max = ballots.length;
  $("progress").value = done;
  $("count").textContent = `${done} of ${ballots.length}`;
  $("task").hidden = !ballot;
  $("done").hidden = Boolean(ballot);
  fail("");
  videos.forEach((v) => v.pause());
  if (!ballot) {
    for (const v of videos) { v.removeAttribute("src"); v.load(); }
    $("done").querySelector("h2").focus();
    return;
  }
  $("prompt").textContent = ballot.prompt;
  $("form").reset();
  videos[0].src = `${base}/ballots/${ballot.id}/left`;
  videos[1].src = `${base}/ballots/${ballot.id}/right`;
  for (const v of videos) v.playbackRate = v.defaultPlaybackRate = Number($("speed").value);
  setPlaying(true);
  began = performance.now();
  if (ballot.done) {
    const {answers} = await ask(`/ballots/${ballot.id}`);
    for (const [id, value] of Object.entries(answers)) {
      $("form").querySelector(`input[name="${id}"][value="${value}"]`).checked = true;
    }
  }
  mark();
  $("status").textContent = `Videos ${at + 1} of ${ballots.length}: ${ballot.prompt}`;
}

function open(from) {
  const later = ballots.findIndex((b, i) => i >= from && !b.done);
  return later >= 0 ? later : ballots.findIndex((b) => !b.done);
}

async function send(event) {
  event?.preventDefault();
  if (sending || mark()) return;
  const ballot = ballots[at];
  sending = true;
  mark();
  try {
    const seconds = (performance.now() - began) / 1000;
    await ask(`/ballots/${ballot.id}`, {answers: given(), seconds, change: ballot.done});
    ballot.done = true;
  } catch (error) {
    if (error.status !== 409) {  // it was answered in another window
      sending = false;
      fail(`${error.message === "Failed to fetch" ? "The server cannot be reached" : error.message}. Your answers are still here: press Next to try again.`);
      return mark();
    }
    ballot.done = true;
  }
  sending = false;
  await show(open(at + 1));
}

const back = () => { if (at > 0) return show(at - 1); if (at < 0) return show(ballots.length - 1); };

$("form").addEventListener("submit", send);
$("back").addEventListener("click", back);
$("again").addEventListener("click", back);
$("play").addEventListener("click", () => setPlaying(!playing));
$("replay").addEventListener("click", restart);
$("speed").addEventListener("change", (e) => videos.forEach((v) => { v.playbackRate = v.defaultPlaybackRate = Number(e.target.value); }));
$("seek").addEventListener("input", (e) => {
  setPlaying(false);
  const time = Number(e.target.value) * length();
  videos.forEach((v) => { v.currentTime = Math.min(time, v.duration || 0); });
});

document.addEventListener("keydown", (e) => {
  if (e.ctrlKey || e.metaKey || e.altKey || $("task").hidden) return;
  const on = e.target.tagName, control = on === "BUTTON" || on === "SELECT" || on === "SUMMARY";
  if (["1", "2", "3"].includes(e.key) && on !== "SELECT") answer(ANSWERS[Number(e.key) - 1][0]);
  else if (e.key === " " && !control && e.target.type !== "radio") setPlaying(!playing);
  else if (e.key === "r" && on !== "SELECT") restart();
  else if (e.key === "b" && on !== "SELECT") back();
  else if (e.key === "Enter" && !control && e.target.type !== "radio") send();
  else return;
  e.preventDefault();
});

(async () => {
  try {
    ({criteria, ballots} = await ask("/state"));
    build();
    await show(open(0));
    requestAnimationFrame(follow);
  } catch (error) {
    document.body.append(Object.assign(document.createElement("p"), {className: "error", textContent: error.message}));
  }
})();
