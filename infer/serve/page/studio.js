"use strict";
// The studio: a page over the server's own API. What is made is the server's; a reload loses nothing.

const $ = (id) => document.getElementById(id);
const STAGES = [["picture", "Picture"], ["keyframes", "Keyframes"], ["refined", "Refined"], ["video", "Video"]];
const PLAIN = ["negative_prompt", "size", "num_frames"];  // fields of the API; the other settings are mv2's
const SMOOTH = ["model", "times", "fps", "slow"];
const GROUPS = {t2i: "Picture (T2I)", i2v: "Keyframes (I2V)", v2v: "Refined (V2V)", vfi: "Smooth video (VFI)", several: "Several stages"};
const WAITING = ["queued", "in_progress"];
let videos = [], chosen = null, stage = null, picked = null, events = null, known = null, more = false, settings = [];

async function ask(path, options) {
  const answer = await fetch(path, options);
  if (answer.status === 401) location.reload();  // the token is asked for there
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
  $("explaining").replaceChildren();
  $("title").focus({preventScroll: true});
  $("shown").scrollIntoView({block: "nearest"});
  if (!video || !WAITING.includes(video.status)) return;
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
  for (const name of ["download", "sidecar", "smooth"]) $(name).hidden = video.status !== "completed";
  $("sidecar").hidden ||= now.kind !== "video";
  $("explain").hidden = video.status !== "completed" || !now.explained;
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

// A form's field of a setting; what may be given and what is taken without it stand in it.
function field(one) {
  const several = one.stages.length > 1 || one.stage === "several";
  let input;
  if (one.known) input = make("select", {}, ...[["", one.default], ...one.known.map((x) => [x, x])]
    .map(([value, text]) => make("option", {value, textContent: value ? text : `${text} (default)`})));
  else if (one.low !== undefined) input = make("input", {type: "number", min: one.low, max: one.high, step: one.whole ? 1 : "any", placeholder: one.default});
  else input = make("input", {placeholder: one.default});
  Object.assign(input, {id: `set_${one.name}`});
  const help = make("small", {id: `help_${one.name}`, textContent: `${several ? `${one.stages.join(", ")}: ` : ""}${one.help}`});
  input.setAttribute("aria-describedby", help.id);
  return make("div", {}, make("label", {}, one.label, input), help);
}

function layOut(said) {
  settings = said.settings;
  for (const [stage, title] of Object.entries(GROUPS)) {
    const fields = make("div", {className: "fields"}, ...settings.filter((one) => one.stage === stage).map(field));
    if (stage === "several") $("groups").append(make("details", {id: "more_settings"}, make("summary", {textContent: title}), fields));
    else $("groups").append(make("fieldset", {}, make("legend", {textContent: title}), fields));
  }
  for (const name of ["size", "num_frames"]) $(name).placeholder = said[name];
  $("s_model").append(...said.interpolators.map((name) => make("option", {value: name, textContent: name})));
}

// A value that no option stands for (several words with commas, say) gets one.
function fill(input, value) {
  const text = Array.isArray(value) ? value.join() : String(value ?? "");
  if (input.tagName === "SELECT" && ![...input.options].some((o) => o.value === text)) input.append(make("option", {value: text, textContent: text}));
  input.value = text;
}

function options(id) {
  const text = $(id).value.trim();
  if (!text) return {};
  let made = null;
  try { made = JSON.parse(text); } catch { /* said below */ }
  if (made === null || typeof made !== "object" || Array.isArray(made)) throw new Error('Other options take a JSON object, such as {"i2v_steps": 8}');
  return made;
}

async function send(path, form) {
  const video = await ask(path, {method: "POST", body: form});
  put(video);
  return video;
}

async function submit(event) {
  event.preventDefault();
  $("error").textContent = "";
  const seed = $("seed").value, count = Number($("variations").value) || 1;
  try {
    let first = null;
    for (let n = 0; n < count; n++) {
      const form = new FormData(), own = options("others");
      form.append("prompt", $("prompt").value);
      if (seed !== "") form.append("seed", (Number(seed) + n) % 2 ** 32);
      for (const name of PLAIN) if ($(name).value !== "") form.append(name, $(name).value);
      for (const one of settings) if ($(`set_${one.name}`).value !== "") own[one.name] = $(`set_${one.name}`).value;
      if (Object.keys(own).length) form.append("mv2", JSON.stringify(own));
      if ($("reference").files[0]) form.append("input_reference", $("reference").files[0]);
      const video = await send("/v1/videos", form);
      first ??= video;
    }
    if (!$("lock").checked) $("seed").value = "";
    else if (seed === "") $("seed").value = first.mv2.seed;
    choose(first.id);
  } catch (error) { $("error").textContent = error.message; }
}

async function smoother(event) {
  event.preventDefault();
  $("s_error").textContent = "";
  try {
    const form = new FormData(), own = options("s_others");
    form.append("video", $("clip").files[0]);
    for (const name of SMOOTH) if ($(`s_${name}`).value !== "") form.append(name, $(`s_${name}`).value);
    if (Object.keys(own).length) form.append("mv2", JSON.stringify(own));
    choose((await send("/v1/interpolations", form)).id);
  } catch (error) { $("s_error").textContent = error.message; }
}

function clear() {
  for (const name of [...PLAIN, "others", "seed", ...settings.map((one) => `set_${one.name}`)]) $(name).value = "";
  for (const name of SMOOTH.slice(1)) $(`s_${name}`).value = "";
  $("s_model").selectedIndex = 0;
  $("reference").value = $("s_others").value = "";
  $("variations").value = 1;
}

// Puts a file of the server's into a field, as if it had been chosen.
async function lend(input, id, variant) {
  const answer = await fetch(content(id, variant));
  if (!answer.ok) throw new Error(`the ${variant} cannot be had: error ${answer.status}`);
  const blob = await answer.blob(), files = new DataTransfer();
  files.items.add(new File([blob], `${variant}.${blob.type.split("/")[1] || "bin"}`, {type: blob.type}));
  input.files = files.files;
}

// Everything that the video was asked for with, its picture or clip included.
async function again() {
  const video = videos.find((v) => v.id === chosen), asked = video.mv2.asked, own = {...asked.mv2};
  const smooth = video.mv2.kind === "interpolation", error = $(smooth ? "s_error" : "error");
  error.textContent = "";
  clear();
  try {
    if (smooth) {
      for (const name of SMOOTH) if (name in asked) fill($(`s_${name}`), asked[name]);
      $("s_others").value = Object.keys(own).length ? JSON.stringify(own) : "";
      $("smoothing").open = true;
      $("clip").focus();
      await lend($("clip"), video.id, "reference");
      return;
    }
    $("prompt").value = asked.prompt;
    $("seed").value = asked.seed ?? "";
    for (const name of PLAIN) $(name).value = asked[name] ?? "";
    if ("fps" in asked) own.fps = asked.fps;
    for (const one of settings) if (one.name in own) { fill($(`set_${one.name}`), own[one.name]); delete own[one.name]; }
    $("others").value = Object.keys(own).length ? JSON.stringify(own) : "";
    if (Object.keys(asked).some((name) => !["prompt", "seed"].includes(name))) $("settings").open = true;
    if (settings.some((one) => one.stage === "several" && $(`set_${one.name}`).value !== "")) $("more_settings").open = true;
    hint();
    $("prompt").focus();
    if (video.mv2.reference) await lend($("reference"), video.id, "reference");
  } catch (fault) { error.textContent = fault.message; }
}

async function smoothThis() {
  $("s_error").textContent = "";
  $("smoothing").open = true;
  $("clip").focus();
  try { await lend($("clip"), chosen, "video"); } catch (error) { $("s_error").textContent = error.message; }
}

// The page that explains a video is made once, as a job like others; a link to it appears.
async function explain() {
  const id = chosen, said = $("explaining");
  try {
    let job = await ask(`/v1/videos/${id}/explanation`, {method: "POST"});
    while (chosen === id) {
      if (job.status === "completed") {
        said.replaceChildren(make("a", {href: content(job.id, "explanation"), target: "_blank", rel: "noopener", textContent: "What each stage and each mechanism did"}));
        return;
      }
      if (job.status === "failed") throw new Error(job.error.message);
      const now = job.mv2, text = job.status === "queued" ? `The explanation waits; ${now.ahead} ahead`
        : `The explanation is being made: ${now.stage || "begins"}${now.total ? `, step ${now.done} of ${now.total}` : ""}`;
      if (said.textContent !== text) said.textContent = text;
      await new Promise((done) => setTimeout(done, 500));
      job = await ask(`/v1/videos/${job.id}`);
    }
  } catch (error) { if (chosen === id) said.textContent = error.message; }
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
  if (!document.hidden && videos.some((v) => WAITING.includes(v.status))) {
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
$("smoother").addEventListener("submit", smoother);
$("clear").addEventListener("click", clear);
$("explain").addEventListener("click", explain);
$("smooth").addEventListener("click", smoothThis);
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
    const said = await ask("/studio/about");
    $("model").textContent = said.model;
    known = said.words && new Set(said.words);
    layOut(said);
    $("examples").append(...said.examples.map((text) => {
      const button = make("button", {type: "button", textContent: text});
      button.addEventListener("click", () => { $("prompt").value = text; hint(); $("prompt").focus(); });
      return button;
    }));
    await page();
    look_after();
  } catch (error) { $("error").textContent = error.message; }
})();
