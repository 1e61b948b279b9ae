// Shows one image with a heat map over it. Everything happens in the browser and is immediate: the kernel sends pixels
// and heat once and is not asked again.

const PRESETS = [["Lung", -600, 1500], ["Mediastinum", 40, 400], ["Bone", 300, 1500]]; // name, level, width in HU
const MOST_ZOOM = 12;

// The colour of a heat from 0 to 1, between even steps such as "#2b0b57": [red, green, blue].
function heatColour(heat, steps) {
  const at = heat * (steps.length - 1);
  const below = Math.min(Math.floor(at), steps.length - 2);
  const channel = (step, i) => parseInt(step.slice(1 + 2 * i, 3 + 2 * i), 16);
  return [0, 1, 2].map((i) => {
    const low = channel(steps[below], i);
    return Math.round(low + (at - below) * (channel(steps[below + 1], i) - low));
  });
}

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("aria-") || name === "role") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

function canvas(width, height) {
  return element("canvas", { width, height });
}

// The bytes of a binary trait as numbers; a view may start at an odd byte, which 16-bit arrays cannot.
function numbers(view, Kind) {
  return new Kind(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
}

// --- pictures

// The image on the screen. HU: black at level - width / 2, white at level + width / 2. Intensities: as sent.
function drawImage(target, pixels, table) {
  const image = new ImageData(target.width, target.height);
  const colours = new Uint32Array(image.data.buffer);
  const offset = pixels instanceof Int16Array ? 32768 : 0;
  for (let i = 0; i < pixels.length; i++) colours[i] = 0xff000000 | (table[pixels[i] + offset] * 0x010101);
  target.getContext("2d").putImageData(image, 0, 0);
}

function greys(units, level, width) {
  if (units !== "HU") return Uint8Array.from({ length: 256 }, (_, value) => value);
  const low = level - width / 2;
  return Uint8ClampedArray.from({ length: 65536 }, (_, i) => ((i - 32768 - low) / width) * 255);
}

// Heat as colours; no heat is transparent.
function drawHeat(target, heat, steps) {
  const colours = Array.from({ length: 256 }, (_, value) => heatColour(value / 255, steps));
  const image = new ImageData(target.width, target.height);
  heat.forEach((value, i) => image.data.set([...colours[value], value], 4 * i));
  target.getContext("2d").putImageData(image, 0, 0);
}

// --- the widget

function render({ model, el }) {
  const [width, height] = [model.get("width"), model.get("height")];
  const units = model.get("units");
  const classes = model.get("classes");
  const pixels = numbers(model.get("pixels"), units === "HU" ? Int16Array : Uint8Array);
  const heats = numbers(model.get("heat"), Uint8Array);
  const [heatWidth, heatHeight] = [model.get("heat_width"), model.get("heat_height")];

  const picture = canvas(width, height);
  const overlay = canvas(heatWidth, heatHeight);
  const screen = element("canvas", { tabIndex: 0, role: "img", className: "viewer-canvas" });
  const stage = element("div", { className: "viewer-stage" }, screen);
  const state = { selected: model.get("selected"), opacity: 0.6, level: PRESETS[0][1], width: PRESETS[0][2] };
  const view = { zoom: 1, x: 0.5, y: 0.5 }; // x, y: the point of the image, 0 to 1, in the middle of the view

  // --- drawing

  function fitted() {
    return Math.min(stage.clientWidth / width, stage.clientHeight / height);
  }

  function draw() {
    const ratio = window.devicePixelRatio || 1;
    const [across, down] = [stage.clientWidth, stage.clientHeight];
    if (!across || !down) return;
    if (screen.width !== Math.round(across * ratio) || screen.height !== Math.round(down * ratio)) {
      screen.width = Math.round(across * ratio);
      screen.height = Math.round(down * ratio);
    }
    const scale = fitted() * view.zoom;
    for (const [axis, shown, whole] of [["x", across, width * scale], ["y", down, height * scale]]) {
      const margin = Math.min(0.5, shown / whole / 2);
      view[axis] = Math.min(1 - margin, Math.max(margin, view[axis]));
    }
    const pen = screen.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, across, down);
    const place = [across / 2 - view.x * width * scale, down / 2 - view.y * height * scale, width * scale, height * scale];
    pen.imageSmoothingQuality = "high";
    pen.imageSmoothingEnabled = scale * ratio < 4; // at a high zoom, show single pixels
    pen.drawImage(picture, ...place);
    if (state.selected >= 0) {
      pen.globalAlpha = state.opacity;
      pen.imageSmoothingEnabled = true;
      pen.drawImage(overlay, ...place);
      pen.globalAlpha = 1;
    }
    stage.style.touchAction = view.zoom > 1 ? "none" : "pan-x pan-y";
    stage.classList.toggle("zoomed", view.zoom > 1);
    zoomed.value = `${Math.round(100 * view.zoom)} %`;
  }

  function window_() {
    drawImage(picture, pixels, greys(units, state.level, state.width));
    draw();
  }

  function heat() {
    if (state.selected >= 0) {
      const size = heatWidth * heatHeight;
      drawHeat(overlay, heats.subarray(state.selected * size, (state.selected + 1) * size), model.get("colours"));
    }
    const shown = state.selected >= 0 ? `Overlay: ${classes[state.selected]}.` : "No overlay.";
    screen.setAttribute("aria-label", `${model.get("label")}. ${shown} Plus and minus zoom, arrows move, 0 fits.`);
    opacity.disabled = state.selected < 0;
    legend.hidden = state.selected < 0;
    draw();
  }

  // Zoom by a factor around a point of the stage, in its pixels; the image there does not move.
  function zoom(factor, left = stage.clientWidth / 2, top = stage.clientHeight / 2) {
    const before = fitted() * view.zoom;
    view.zoom = Math.min(MOST_ZOOM, Math.max(1, view.zoom * factor));
    const gained = 1 / before - 1 / (fitted() * view.zoom);
    view.x += ((left - stage.clientWidth / 2) * gained) / width;
    view.y += ((top - stage.clientHeight / 2) * gained) / height;
    draw();
  }

  function move(across, down) {
    const scale = fitted() * view.zoom;
    view.x -= across / scale / width;
    view.y -= down / scale / height;
    draw();
  }

  function fit() {
    Object.assign(view, { zoom: 1, x: 0.5, y: 0.5 });
    draw();
  }

  // --- mouse, fingers and keys

  const fingers = new Map();
  const place = (event) => ({ x: event.offsetX, y: event.offsetY });
  const apart = ([a, b]) => Math.hypot(a.x - b.x, a.y - b.y);

  screen.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(-Math.sign(event.deltaY) * 0.2), event.offsetX, event.offsetY);
  }, { passive: false });
  screen.addEventListener("dblclick", fit);
  screen.addEventListener("pointerdown", (event) => {
    screen.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, place(event));
  });
  screen.addEventListener("pointermove", (event) => {
    readOut(event);
    const before = fingers.get(event.pointerId);
    if (!before) return;
    const pair = fingers.size === 2 && apart([...fingers.values()]);
    fingers.set(event.pointerId, place(event));
    if (pair) {
      const [a, b] = fingers.values();
      zoom(apart([a, b]) / pair, (a.x + b.x) / 2, (a.y + b.y) / 2);
    } else move(event.offsetX - before.x, event.offsetY - before.y);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    screen.addEventListener(end, (event) => fingers.delete(event.pointerId));
  }
  const keys = {
    "+": () => zoom(1.25), "=": () => zoom(1.25), "-": () => zoom(0.8), 0: fit,
    ArrowLeft: () => move(40, 0), ArrowRight: () => move(-40, 0), ArrowUp: () => move(0, 40), ArrowDown: () => move(0, -40),
  };
  screen.addEventListener("keydown", (event) => {
    if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key.startsWith("Arrow") && view.zoom === 1) return; // nothing to move, so the page scrolls
    event.preventDefault();
    keys[event.key]();
  });

  // The value under the pointer, for HU only.
  function readOut(event) {
    if (units !== "HU") return;
    const scale = fitted() * view.zoom;
    const column = Math.floor((event.offsetX - stage.clientWidth / 2) / scale + view.x * width);
    const row = Math.floor((event.offsetY - stage.clientHeight / 2) / scale + view.y * height);
    const inside = column >= 0 && row >= 0 && column < width && row < height;
    under.textContent = inside ? `${pixels[row * width + column]} HU`.replace("-", "−") : "";
  }
  screen.addEventListener("pointerleave", () => { under.textContent = ""; });

  // --- controls

  const button = (text, label, onclick) => element("button", { type: "button", "aria-label": label, title: label, onclick }, text);
  const zoomed = element("output", { className: "viewer-zoomed", "aria-label": "Zoom" });
  const under = element("span", { className: "viewer-under", "aria-hidden": "true" });
  stage.append(
    under,
    element("div", { className: "viewer-zoom", role: "group", "aria-label": "Zoom" },
      button("−", "Zoom out", () => zoom(0.8)), zoomed, button("+", "Zoom in", () => zoom(1.25)),
      button("Fit", "Fit the whole image", fit)),
  );

  const choice = element("select", {
    onchange: () => { state.selected = Number(choice.value); heat(); },
  }, ...classes.map((name, i) => new Option(name, i)), new Option("None (image only)", -1));
  choice.value = state.selected;
  const opacity = element("input", {
    type: "range", min: 0, max: 100, value: 100 * state.opacity,
    oninput: () => { state.opacity = opacity.value / 100; shade.value = `${opacity.value} %`; draw(); },
  });
  const shade = element("output", {}, `${opacity.value} %`);
  const legend = element("div", { className: "viewer-legend", role: "img",
    "aria-label": "Colours of the heat map: dark violet for little influence, then red, then yellow for most influence" },
    element("span", {}, "little"), element("span", { className: "viewer-colours" }), element("span", {}, "most influence"));
  legend.querySelector(".viewer-colours").style.background = `linear-gradient(to right, ${model.get("colours")})`;
  const controls = element("div", { className: "viewer-controls" },
    element("label", {}, element("span", {}, "Heat map of"), choice),
    element("label", {}, element("span", {}, "Opacity"), opacity, shade));
  stage.append(legend);
  el.append(element("div", { className: "viewer" }, stage, controls));

  if (units === "HU") {
    const fields = [];
    const field = (label, name, min, max) => {
      const slider = element("input", { type: "range", min, max, step: 10, "aria-label": `${label} in HU` });
      const number = element("input", { type: "number", min, max, step: 10, "aria-label": `${label} in HU, as a number` });
      const set = (value) => {
        if (!Number.isFinite(value)) return;
        state[name] = Math.min(max, Math.max(min, value));
        refresh();
      };
      slider.oninput = () => set(slider.valueAsNumber);
      number.onchange = () => set(number.valueAsNumber);
      fields.push(() => { slider.value = state[name]; number.value = state[name]; });
      return element("div", { className: "viewer-field" }, element("span", {}, label), slider, number, element("span", {}, "HU"));
    };
    const presets = PRESETS.map(([name, level, span]) => {
      const label = `${name} window: level ${level}, width ${span} HU`;
      return button(name, label, () => { Object.assign(state, { level, width: span }); refresh(); });
    });
    const refresh = () => {
      fields.forEach((show) => show());
      presets.forEach((preset, i) => preset.setAttribute(
        "aria-pressed", state.level === PRESETS[i][1] && state.width === PRESETS[i][2]));
      window_();
    };
    controls.append(element("div", { className: "viewer-window", role: "group", "aria-label": "Window" },
      element("div", { className: "viewer-presets" }, element("span", {}, "Window"), ...presets),
      field("Level", "level", -1000, 1500), field("Width", "width", 10, 4000)));
    refresh();
  } else window_();
  stage.style.aspectRatio = `${width} / ${height}`;
  heat();
  const resized = new ResizeObserver(draw);
  resized.observe(stage);
  return () => resized.disconnect();
}

export default { render };
