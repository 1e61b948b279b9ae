// What the page does beside its widgets: shows when they are ready, signs out, and says when it has lost its server.
"use strict";

(() => {
  const EVERY = 15000; // ms between two looks at whether server, session and kernel are still there
  const SLOW = 4000; // ms after which the loading text says that it takes longer
  let ended = false;
  let failures = 0;

  // voila.js calls this when its styles are loaded, or leaves it to us if the cells come later than the styles.
  window.voila_finish = () => {
    if (!window.cellLoaded || !window.themeLoaded) return;
    document.getElementById("loading")?.remove();
    document.getElementById("rendered_cells").style.display = "";
  };
  document.addEventListener("DOMContentLoaded", () => {
    window.cellLoaded = true;
    window.voila_finish();
  });

  setTimeout(() => {
    const text = document.getElementById("loading_text");
    if (text) text.textContent = "Starting a new workplace and loading the model: this takes some seconds …";
  }, SLOW);

  const kernelId = () => {
    const config = document.getElementById("jupyter-config-data");
    return config && JSON.parse(config.textContent).kernelId;
  };

  const xsrf = () => document.cookie.match(/(?:^|; )_xsrf=([^;]*)/)?.[1] ?? "";

  // Replaces everything, what a patient's screen showed included.
  const end = (title, words, link, label) => {
    ended = true;
    const page = document.createElement("main");
    page.className = "card lost";
    page.setAttribute("role", "alert");
    for (const [tag, text] of [["h1", title], ["p", words]]) {
      const part = document.createElement(tag);
      part.textContent = text;
      page.append(part);
    }
    const way = document.createElement("a");
    way.className = "button";
    way.href = link;
    way.textContent = label;
    page.append(way);
    document.body.className = "plain-page";
    document.body.replaceChildren(page);
    way.focus();
  };

  const warn = (words) => {
    let bar = document.getElementById("connection");
    if (!words) {
      bar?.remove();
      return;
    }
    if (!bar) {
      bar = document.createElement("div");
      bar.id = "connection";
      bar.className = "notice problem";
      bar.setAttribute("role", "alert");
      document.body.prepend(bar);
    }
    bar.textContent = words;
  };

  const look = async () => {
    const id = kernelId();
    if (ended || !id) return;
    let state;
    try {
      const answer = await fetch(`/clinic/there/${id}`, { cache: "no-store" });
      if (!answer.ok) throw new Error(answer.statusText);
      state = (await answer.json()).state;
    } catch {
      failures += 1;
      if (failures > 1) warn("The server cannot be reached. What you enter now is not saved. Trying again …");
      setTimeout(look, 3000);
      return;
    }
    failures = 0;
    warn("");
    if (state === "signed-out") end("You are signed out", "Sign in again to go on.", "/login", "Sign in");
    if (state === "gone") {
      end(
        "This page has ended",
        "It was not used for a while, or its part of the server has stopped. What was saved before is safe.",
        "/",
        "Load the page again",
      );
    }
  };

  setInterval(look, EVERY);
  document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && look());

  // A socket that closes is the first sign of a lost server: look at once.
  const Socket = window.WebSocket;
  window.WebSocket = class extends Socket {
    constructor(...how) {
      super(...how);
      this.addEventListener("close", () => setTimeout(look, 300));
    }
  };

  // A page that the browser kept and shows again has no kernel any more.
  window.addEventListener("pageshow", (event) => event.persisted && window.location.reload());

  document.addEventListener(
    "click",
    (event) => {
      if (!event.target.closest?.(".sign-out")) return;
      event.preventDefault();
      event.stopPropagation();
      ended = true;
      const out = document.createElement("form");
      out.method = "post";
      out.action = "/logout";
      const token = document.createElement("input");
      token.type = "hidden";
      token.name = "_xsrf";
      token.value = xsrf();
      out.append(token);
      document.body.append(out);
      out.submit();
    },
    true,
  );
})();
