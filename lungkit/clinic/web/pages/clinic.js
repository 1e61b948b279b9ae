// The page around the widgets: shows them when they are ready, signs out, and warns when the server is gone.
"use strict";

(() => {
  const EVERY = 15000; // ms between checks that server, session and kernel are still there
  const SLOW = 4000; // ms after which the loading text says that it takes longer
  const PATIENCE = 8000; // ms that the server may take to answer
  const AGAIN = 3000; // ms until the next check while something is wrong
  const LOST = 120000; // ms without a connection to the kernel after which the page gives up
  const HERE = "What you typed is still on this page, but nothing is saved until it is back. Trying again …";
  let ended = false;
  let checking = false;
  let checked = 0; // time of the last check
  let planned;
  let failures = 0;
  let lostSince = 0; // when the last connection to the kernel closed; 0: it is open, or was never opened

  // voila.js calls this when its styles are loaded; when the cells come later than the styles, we call it.
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
    if (text) text.textContent = "Starting a new session and loading the model. This takes a few seconds …";
  }, SLOW);

  const kernelId = () => {
    const config = document.getElementById("jupyter-config-data");
    return config && JSON.parse(config.textContent).kernelId;
  };

  const xsrf = () => document.cookie.match(/(?:^|; )_xsrf=([^;]*)/)?.[1] ?? "";

  // Replaces the whole page, including patient data on it.
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
    if (bar.textContent !== words) bar.textContent = words; // otherwise screen readers would announce it again
  };

  // A warning about the server, or nothing if all is well.
  const trouble = async (id) => {
    let answer;
    try {
      answer = await fetch(`/clinic/there/${id}`, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
      if (!answer.ok) throw new Error(answer.statusText);
      const { state } = await answer.json();
      failures = 0;
      if (state === "signed-out") end("You are signed out", "Sign in again to continue.", "/login", "Sign in");
      if (state === "gone" || (lostSince && Date.now() - lostSince > LOST)) {
        end(
          "This page has ended",
          "It was not used for a while, or its part of the server has stopped. What was saved before is safe.",
          "/",
          "Load the page again",
        );
      }
    } catch (problem) {
      failures += 1;
      if (problem.name === "TimeoutError") return `The clinic is not answering. ${HERE}`;
      return failures > 1 ? "The server cannot be reached. What you enter now is not saved. Trying again …" : "";
    }
    return lostSince && Date.now() - lostSince > AGAIN ? `The connection to this page was lost. ${HERE}` : "";
  };

  const check = async () => {
    const id = kernelId();
    if (ended || checking || !id) return;
    checking = true;
    const words = await trouble(id);
    checking = false;
    checked = Date.now();
    if (ended) return;
    warn(words);
    if (words || failures || lostSince) setTimeout(check, AGAIN);
  };

  setInterval(check, EVERY);
  document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && check());
  // After an action, check soon: the user must learn whether it arrived.
  const checkSoon = () => {
    planned ??= setTimeout(() => {
      planned = undefined;
      check();
    }, Math.max(0, checked + AGAIN - Date.now()));
  };
  for (const action of ["click", "change"]) document.addEventListener(action, checkSoon, true);

  // A socket that closes is the first sign of a lost server: check at once.
  const Socket = window.WebSocket;
  window.WebSocket = class extends Socket {
    constructor(...how) {
      super(...how);
      this.addEventListener("open", () => { lostSince = 0; });
      this.addEventListener("close", () => {
        lostSince ||= Date.now();
        setTimeout(check, 300);
      });
    }
  };

  // A page that the browser restores from its cache no longer has a kernel.
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
