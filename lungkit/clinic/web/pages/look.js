// Light or dark, as this browser was told or as its system is, before anything is painted; and the landmarks of the
// page, which widgets cannot have themselves. The choice is kept in this browser; it says nothing of a patient. Below:
// pictures on paper, and the end of all tabs when their user signs out.
"use strict";

(() => {
  const KEPT = "lungkit-look";
  const dark = window.matchMedia("(prefers-color-scheme: dark)");

  const chosen = () => {
    try {
      return localStorage.getItem(KEPT) ?? "system";
    } catch {
      return "system"; // a browser that keeps nothing
    }
  };

  const apply = () => {
    const look = chosen();
    const isDark = look === "dark" || (look !== "light" && dark.matches);
    document.documentElement.dataset.look = isDark ? "dark" : "light";
    if (document.body) document.body.dataset.jpThemeLight = String(!isDark); // tables look at this
    for (const choice of document.querySelectorAll(".look-choice")) choice.value = look;
  };

  document.addEventListener("change", (event) => {
    if (!event.target.matches?.(".look-choice")) return;
    try {
      localStorage.setItem(KEPT, event.target.value);
    } catch {
      // the choice holds for no page but this one
    }
    apply();
  });
  dark.addEventListener("change", apply);
  window.addEventListener("storage", (event) => event.key === KEPT && apply());
  apply();

  const LANDMARKS = [
    [".clinic-head", "banner"], [".clinic-nav", "navigation"], [".clinic-screen", "main"],
    [".clinic-foot", "contentinfo"],
  ];
  const current = (nav) => {
    for (const entry of nav.querySelectorAll(".nav-entry")) {
      if (!entry.classList.contains("current")) entry.removeAttribute("aria-current");
      else if (!entry.hasAttribute("aria-current")) {
        entry.setAttribute("aria-current", "page");
        const from = nav.getBoundingClientRect().left + (nav.clientWidth - entry.offsetWidth) / 2;
        nav.scrollLeft += entry.getBoundingClientRect().left - from; // on a phone not all entries are in view
      }
    }
  };
  const mark = () => {
    for (const [part, role] of LANDMARKS) {
      for (const found of document.querySelectorAll(`${part}:not([role])`)) {
        found.setAttribute("role", role);
        if (role !== "navigation") continue;
        found.setAttribute("aria-label", "Screens");
        const watch = () => current(found);
        new MutationObserver(watch).observe(found, { subtree: true, attributeFilter: ["class"] });
        watch();
      }
    }
    if (document.querySelector(".look-choice:not([data-set])")) {
      apply();
      for (const choice of document.querySelectorAll(".look-choice")) choice.dataset.set = "";
    }
  };
  document.addEventListener("DOMContentLoaded", () => {
    apply();
    mark();
    new MutationObserver(mark).observe(document.body, { childList: true, subtree: true });
  });
})();

// On paper: the image as it is on the screen, without and with its heat map, as in the report.
(() => {
  const copy = (canvas, words) => {
    const figure = document.createElement("figure");
    const picture = document.createElement("canvas");
    Object.assign(picture, { width: canvas.width, height: canvas.height });
    picture.getContext("2d").drawImage(canvas, 0, 0);
    const caption = document.createElement("figcaption");
    caption.textContent = words;
    figure.append(picture, caption);
    return figure;
  };
  const turn = (slider, value) => {
    slider.value = value;
    slider.dispatchEvent(new Event("input", { bubbles: true }));
  };

  const lengths = new Map(); // of tables: on paper as many rows as there can be
  window.addEventListener("beforeprint", () => {
    for (const rows of document.querySelectorAll(".dt-length select")) {
      lengths.set(rows, rows.value);
      rows.selectedIndex = rows.options.length - 1;
      rows.dispatchEvent(new Event("change", { bubbles: true }));
    }
    for (const viewer of document.querySelectorAll(".clinic-viewer .viewer")) {
      const canvas = viewer.querySelector(".viewer-canvas");
      const label = [...viewer.querySelectorAll("label")].find((one) => one.textContent.startsWith("Opacity"));
      const slider = label?.querySelector("input[type=range]");
      const pictures = document.createElement("div");
      pictures.className = "print-pictures";
      if (slider && !slider.disabled) {
        const shown = slider.value;
        turn(slider, 0);
        pictures.append(copy(canvas, "The image that was read, as it was on the screen"));
        turn(slider, Number(shown) ? shown : 50);
        const of = viewer.querySelector("select")?.selectedOptions[0]?.textContent ?? "";
        pictures.append(copy(canvas, `Heat map: areas that support “${of}”`));
        turn(slider, shown);
      } else {
        pictures.append(copy(canvas, "The image, as it was on the screen"));
      }
      viewer.append(pictures);
    }
  });
  window.addEventListener("afterprint", () => {
    for (const [rows, value] of lengths) {
      rows.value = value;
      rows.dispatchEvent(new Event("change", { bubbles: true }));
    }
    lengths.clear();
    for (const pictures of document.querySelectorAll(".print-pictures")) pictures.remove();
  });
})();

// Signing out in one tab signs the person out in all tabs of the browser, and removes their drafts there.
(() => {
  const DRAFTS = "lungkit-drafts"; // {user, texts}: see app/browser.js
  new BroadcastChannel("lungkit-sign-out").addEventListener("message", ({ data: user }) => {
    document.dispatchEvent(new Event("lungkit-sign-out")); // an open page ends first (clinic.js): no one types on
    try {
      if (JSON.parse(sessionStorage.getItem(DRAFTS))?.user === user) sessionStorage.removeItem(DRAFTS);
    } catch {
      // a browser that keeps nothing
    }
  });
})();
