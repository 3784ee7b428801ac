"use strict";
// The studio: a page over the server's own API. What is made is the server's; a reload loses nothing.

const $ = (id) => document.getElementById(id);
const STAGES = [["picture", "Picture"], ["keyframes", "Keyframes"], ["refined", "Refined"], ["video", "Video"]];
const SETTINGS = ["negative_prompt", "num_frames", "fps", "num_inference_steps", "guidance_scale"];
let videos = [], chosen = null, stage = null, picked = null, events = null, known = null, more = false;

async function ask(path, options) {
  const answer = await fetch(path, options);
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(said.error?.message || `error ${answer.status}`);
  return said;
}

const make = (tag, fields = {}, ...inside) => {
  const made = Object.assign(document.createElement(tag), fields);
  made.append(...inside);
  return made;
};
const content = (id, variant) => `/v1/videos/${id}/content?variant=${variant}`;
const put = (video) => {
  const at = videos.findIndex((one) => one.id === video.id);
  if (at >= 0) videos[at] = video; else videos.unshift(video);
};

function there(video) {
  if (video.status !== "completed") return STAGES.filter(([name]) => video.mv2.previews.includes(name));
  return STAGES.filter(([name]) => name === "video" || video.mv2.previews.includes(name));
}

let drawn = "";
function gallery() {
  const key = JSON.stringify([$("search").value, chosen, more, videos.map((v) => [v.id, v.status, v.progress])]);
  if (key === drawn) return;
  drawn = key;
  const focused = document.activeElement?.dataset?.id;
  const wanted = $("search").value.toLowerCase();
  const shown = videos.filter((v) => (v.prompt || "a clip").toLowerCase().includes(wanted));
  $("gallery").replaceChildren(...shown.map((v) => {
    const button = make("button", {type: "button"});
    button.dataset.id = v.id;
    if (v.status === "completed") button.append(make("img", {src: content(v.id, "thumbnail"), alt: "", loading: "lazy"}));
    button.append(make("span", {textContent: v.prompt || "a clip, made smoother"}),
      v.status === "completed" ? "" : ` (${v.status === "in_progress" ? `${v.progress}%` : v.status})`);
    button.addEventListener("click", () => choose(v.id));
    return make("li", {}, button);
  }));
  $("more").hidden = !more;
  if (focused) $("gallery").querySelector(`[data-id="${focused}"]`)?.focus();
  const other = $("other"), before = other.value;
  other.replaceChildren(make("option", {value: "", textContent: "nothing"}), ...videos
    .filter((v) => v.status === "completed" && v.id !== chosen)
    .map((v) => make("option", {value: v.id, textContent: v.prompt ? `${v.prompt} (seed ${v.mv2.seed})` : "a clip, made smoother"})));
  other.value = before;
  if (other.selectedIndex < 0) other.value = "";
}

function choose(id) {
  chosen = id; stage = null; picked = null;
  $("other").value = "";
  events?.close();
  const video = videos.find((v) => v.id === id);
  show(video);
  gallery();
  $("title").focus({preventScroll: true});
  $("shown").scrollIntoView({block: "nearest"});
  if (!video || !["queued", "in_progress"].includes(video.status)) return;
  events = new EventSource(`/v1/videos/${id}/events`);
  events.addEventListener("video", (e) => { const now = JSON.parse(e.data); put(now); show(now); gallery(); });
  events.addEventListener("done", () => events.close());
}

function show(video) {
  $("shown").hidden = !video;
  if (!video || video.id !== chosen) return;
  $("title").textContent = video.prompt || "A clip, made smoother";
  const now = video.mv2;
  const doing = now.stage ? `${now.stage}, step ${now.done} of ${now.total}${now.compiling ? ", compiling" : ""}` : "";
  const text = {queued: `waits; ${now.ahead} ahead`, in_progress: doing || "begins", completed: "done",
    failed: video.error?.message}[video.status];
  if ($("state").textContent !== text) $("state").textContent = text;
  $("progress").value = video.progress;
  $("progress").hidden = video.status === "completed" || video.status === "failed";
  const took = Object.entries(now.durations).map(([name, s]) => `${name} ${s.toFixed(1)} s`).join(", ");
  $("facts").textContent = [now.seed === null ? "" : `seed ${now.seed}`, video.size, `${now.num_frames} frames`, took, ...now.notes].filter(Boolean).join(" · ");
  for (const name of ["download", "sidecar"]) $(name).hidden = video.status !== "completed";
  $("download").href = content(video.id, "video");
  $("sidecar").href = content(video.id, "sidecar");
  const found = there(video), newest = found.at(-1)?.[0] || null;
  const names = found.map(([name]) => name).join();
  if ($("stages").dataset.names !== `${video.id}${names}`) {
    $("stages").dataset.names = `${video.id}${names}`;
    $("stages").replaceChildren(...found.map(([name, title]) => {
      const button = make("button", {type: "button", textContent: title});
      button.dataset.name = name;
      button.addEventListener("click", () => { picked = name; look(video.id, name); });
      return button;
    }));
  }
  look(video.id, picked || newest);
}

function look(id, name) {
  for (const b of $("stages").children) b.setAttribute("aria-pressed", String(b.dataset.name === name));
  const other = $("other").value, wanted = `${id} ${name} ${other}`;
  if (stage === wanted) return;
  stage = wanted;
  const views = [];
  if (name) views.push(view(id, name));
  if (name && other) {
    const over = view(other, name === "picture" ? "thumbnail" : "video");
    over.classList.add("over");
    const wipe = make("input", {id: "wipe", type: "range", min: 0, max: 100, value: 50});
    wipe.setAttribute("aria-label", "Where the other video begins");
    wipe.addEventListener("input", () => over.style.setProperty("--wipe", `${wipe.value}%`));
    views.push(over, wipe);
  }
  $("stage").replaceChildren(...views);
  $("scrubber").hidden = !name || name === "picture";
}

function view(id, name) {
  const title = STAGES.find(([one]) => one === name)?.[1] || "Picture";
  if (name === "picture" || name === "thumbnail") return make("img", {src: content(id, name), alt: title});
  const video = make("video", {src: content(id, name), muted: true, loop: true, autoplay: true, playsInline: true});
  video.setAttribute("aria-label", title);
  video.addEventListener("timeupdate", () => {
    const [first, other] = playing();
    if (video !== first || !video.duration || video.paused) return;
    $("scrub").value = video.currentTime / video.duration;
    if (other && !other.paused && Math.abs(other.currentTime - first.currentTime) > 0.1) other.currentTime = first.currentTime;
  });
  video.addEventListener("click", toggle);
  return video;
}

const playing = () => [...$("stage").querySelectorAll("video")];
function toggle() {
  const on = playing().some((v) => v.paused);
  for (const v of playing()) if (on) v.play(); else v.pause();
}

function hint() {
  if (!known) return;
  const strange = ($("prompt").value.toLowerCase().match(/[\p{L}\p{N}']+/gu) || []).filter((word) => !known.has(word));
  $("hint").textContent = strange.length ? `The model does not know: ${[...new Set(strange)].join(", ")}` : "";
}

async function submit(event) {
  event.preventDefault();
  $("error").textContent = "";
  const seed = $("seed").value, count = Number($("variations").value) || 1;
  try {
    let first = null;
    for (let n = 0; n < count; n++) {
      const form = new FormData();
      form.append("prompt", $("prompt").value);
      if (seed !== "") form.append("seed", (Number(seed) + n) % 2 ** 32);
      for (const name of SETTINGS) if ($(name).value !== "") form.append(name, $(name).value);
      if ($("reference").files[0]) form.append("input_reference", $("reference").files[0]);
      const video = await ask("/v1/videos", {method: "POST", body: form});
      put(video);
      first ??= video;
    }
    if (!$("lock").checked) $("seed").value = "";
    else if (seed === "") $("seed").value = first.mv2.seed;
    choose(first.id);
  } catch (error) { $("error").textContent = error.message; }
}

async function smoother() {
  const file = $("clip").files[0];
  if (!file) return;
  $("error").textContent = "";
  const form = new FormData();
  form.append("video", file);
  try {
    const video = await ask("/v1/interpolations", {method: "POST", body: form});
    put(video);
    choose(video.id);
  } catch (error) { $("error").textContent = error.message; }
  $("clip").value = "";
}

async function again() {
  const video = videos.find((v) => v.id === chosen);
  $("prompt").value = video.prompt || "";
  $("seed").value = video.mv2.seed ?? "";
  hint();
  $("prompt").focus();
}

async function remove() {
  try { await ask(`/v1/videos/${chosen}`, {method: "DELETE"}); } catch (error) { $("error").textContent = error.message; return; }
  events?.close();
  videos = videos.filter((v) => v.id !== chosen);
  chosen = null;
  $("shown").hidden = true;
  gallery();
  $("search").focus();
}

async function page() {
  const after = videos.length ? `&after=${videos.at(-1).id}` : "";
  const said = await ask(`/v1/videos?limit=50${after}`);
  videos.push(...said.data.filter((v) => !videos.some((one) => one.id === v.id)));
  more = said.has_more;
  gallery();
}

// The chosen video tells of itself; the others that wait or run are asked for now and then.
async function look_after() {
  if (!document.hidden && videos.some((v) => ["queued", "in_progress"].includes(v.status))) {
    const said = await ask("/v1/videos?limit=50").catch(() => ({data: []}));
    for (const video of said.data.reverse()) put(video);
    const now = videos.find((v) => v.id === chosen);
    if (now) show(now);
    gallery();
  }
  setTimeout(look_after, 1000);
}

$("make").addEventListener("submit", submit);
$("prompt").addEventListener("input", hint);
$("clip").addEventListener("change", smoother);
$("again").addEventListener("click", again);
$("delete").addEventListener("click", remove);
$("more").addEventListener("click", page);
$("search").addEventListener("input", gallery);
$("other").addEventListener("change", () => show(videos.find((v) => v.id === chosen)));
$("scrub").addEventListener("input", (e) => playing().forEach((v) => {
  v.pause();
  v.currentTime = Number(e.target.value) * (v.duration || 0);
}));
document.addEventListener("keydown", (e) => {
  if (e.target.id === "prompt" && e.key === "Enter" && (e.ctrlKey || e.metaKey)) $("make").requestSubmit();
  if (["INPUT", "TEXTAREA", "SELECT", "BUTTON", "SUMMARY", "A"].includes(e.target.tagName)) return;
  if (e.key === " " && playing().length) { toggle(); e.preventDefault(); }
});

(async () => {
  try {
    const said = await ask("/studio/words");
    $("model").textContent = said.model;
    known = said.words && new Set(said.words);
    $("examples").append(...said.examples.map((text) => {
      const button = make("button", {type: "button", textContent: text});
      button.addEventListener("click", () => { $("prompt").value = text; hint(); $("prompt").focus(); });
      return button;
    }));
    await page();
    look_after();
  } catch (error) { $("error").textContent = error.message; }
})();
