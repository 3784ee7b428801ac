"use strict";
// Hands in the token of the address (#token=...), or the one that was typed.
const form = document.getElementById("enter"), field = document.getElementById("token");

async function enter() {
  const answer = await fetch(form.action, {method: "POST", body: new URLSearchParams({token: field.value})});
  if (answer.ok) { location.replace("/"); return; }
  document.getElementById("error").textContent = answer.status === 429
    ? "Too many tries; wait a minute." : "That is not the token.";
  field.focus();
}

form.addEventListener("submit", (event) => { event.preventDefault(); enter(); });
function given() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!token) return;
  history.replaceState(null, "", "/");
  field.value = token;
  enter();
}
addEventListener("hashchange", given);
given();
