// What pages do with a script. Every page works without it.
"use strict";

// On a phone the sections are a line that is longer than the screen: the one that is open comes into sight.
const here = document.querySelector(".top nav [aria-current]");
function showSection() {
  const line = here.parentElement;
  line.scrollLeft = here.offsetLeft - line.offsetLeft - (line.clientWidth - here.offsetWidth) / 2;
}
if (here) {
  showSection();
  addEventListener("resize", showSection);
}

// A question before what cannot be taken back: <form data-confirm="...">.
document.addEventListener("submit", (event) => {
  const question = event.target.dataset.confirm;
  if (question && !window.confirm(question)) event.preventDefault();
});

// Parts that change: <section id="..." data-refresh="2"> is fetched anew every two seconds with the page that it is on.
// A part that somebody works in is left alone, and so is a page that nobody sees.
const busy = new Set();
async function refresh(id) {
  const part = document.getElementById(id);
  if (!part || document.hidden || part.contains(document.activeElement) || busy.has(id)) return;
  busy.add(id);
  try {
    const answer = await fetch(location.href, { headers: { "x-refresh": id }, redirect: "error" });
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = page.getElementById(id);
    if (answer.ok && fresh && !part.contains(document.activeElement)) {
      part.replaceWith(document.adoptNode(fresh));
      if (!fresh.dataset.refresh) return stop(id);
    }
    document.body.removeAttribute("data-stale");
  } catch {
    document.body.setAttribute("data-stale", "");
  } finally {
    busy.delete(id);
  }
}
const timers = new Map();
function stop(id) {
  clearInterval(timers.get(id));
  timers.delete(id);
}
for (const part of document.querySelectorAll("[data-refresh][id]")) {
  const { id } = part;
  timers.set(id, setInterval(() => refresh(id), 1000 * Number(part.dataset.refresh)));
}

// Keys: / searches, g and a letter goes to a section. None of it while somebody types.
let going = 0;
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, textarea, select, [contenteditable]")) return;
  if (event.key === "/") {
    const search = document.querySelector("[data-search]");
    if (search) {
      event.preventDefault();
      search.focus();
      search.select();
    }
  } else if (event.key === "g") {
    going = Date.now();
  } else if (Date.now() - going < 1500) {
    going = 0;
    const link = document.querySelector(`[data-go="${CSS.escape(event.key)}"]`);
    if (link) link.click();
  }
});

// Previews that follow the writing: <form data-preview> with <iframe name data-action>. The form is sent into each frame, and by
// fetch for what there is to say about it. A frame is made anew each time, or the way back would lead through all of them.
document.documentElement.classList.add("has-script");
for (const form of document.querySelectorAll("form[data-preview]")) {
  let waiting = 0;
  let asked = 0;
  function show() {
    const action = form.getAttribute("action");
    for (const old of form.querySelectorAll("iframe[data-action]")) {
      const frame = old.cloneNode();
      frame.removeAttribute("src");
      old.replaceWith(frame);
      form.setAttribute("action", frame.dataset.action);
      form.target = frame.name;
      form.submit();
    }
    form.setAttribute("action", action);
    form.removeAttribute("target");
  }
  async function judge() {
    const now = ++asked;
    const body = new URLSearchParams(new FormData(form));
    try {
      const answer = await fetch(form.getAttribute("action"), { method: "POST", body, redirect: "error" });
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const fresh = page.getElementById("verdict");
      const verdict = document.getElementById("verdict");
      if (now === asked && fresh && verdict) verdict.replaceChildren(...fresh.childNodes);
      document.body.removeAttribute("data-stale");
    } catch {
      document.body.setAttribute("data-stale", "");
    }
  }
  form.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      show();
      judge();
    }, 400);
  });
  // What was not saved has no address that its frames could begin with.
  if (!form.querySelector("iframe[src]")) show();
}
