// Fetches the parts of the page in advance while name and password are typed. Warns if no answer comes after they
// were sent.
"use strict";

(async () => {
  const limit = () => AbortSignal.timeout(30000);
  const { parts } = await (await fetch("/clinic/parts", { signal: limit() })).json();
  await Promise.all(parts.map((part) => fetch(part, { priority: "low", signal: limit() })));
})().catch(() => {}); // the page itself fetches what is missing

const form = document.querySelector("form");

form.addEventListener("submit", () => {
  form.action = `/login${window.location.hash}`; // browsers keep it on the way: the page opens that screen
  const waiting = setTimeout(() => {
    const words = document.getElementById("problem") ?? document.createElement("p");
    Object.assign(words, { id: "problem", className: "notice problem" });
    words.setAttribute("role", "alert");
    words.textContent = "The clinic is not answering yet. Wait a moment, or sign in again.";
    document.querySelector("h1").after(words);
  }, 8000);
  window.addEventListener("pagehide", () => clearTimeout(waiting));
});
