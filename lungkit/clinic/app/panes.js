// What the viewers of one image and of a series share: pictures of values, a canvas to zoom and move in, and controls.

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
  const image = (target.values ??= new ImageData(target.width, target.height)); // one for all slices of a stack
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

function button(text, label, onclick) {
  return element("button", { type: "button", "aria-label": label, title: label, onclick }, text);
}

// --- a canvas to zoom and move in

// Shows a picture of width x height as large as `stage` allows. paint(pen, place, scale): draws it into place (left, top,
// width, height) at so many pixels of the screen for each of its own. drag(across, down, event): what a pointer does that
// is held down, where it does not move the picture; wheel(event): likewise. hover(event): the pointer is somewhere.
function zoomable(stage, screen, { width, height, paint, drag, wheel, hover = () => {} }) {
  const view = { zoom: 1, x: 0.5, y: 0.5 }; // x, y: the point of the picture, 0 to 1, in the middle of the view
  const zoomed = element("output", { className: "viewer-zoomed", "aria-label": "Zoom" });

  const scale = () => Math.min(stage.clientWidth / width, stage.clientHeight / height) * view.zoom;

  function draw() {
    const ratio = window.devicePixelRatio || 1;
    const [across, down] = [stage.clientWidth, stage.clientHeight];
    if (!across || !down) return;
    if (screen.width !== Math.round(across * ratio) || screen.height !== Math.round(down * ratio)) {
      screen.width = Math.round(across * ratio);
      screen.height = Math.round(down * ratio);
    }
    const size = scale();
    for (const [axis, shown, whole] of [["x", across, width * size], ["y", down, height * size]]) {
      const margin = Math.min(0.5, shown / whole / 2);
      view[axis] = Math.min(1 - margin, Math.max(margin, view[axis]));
    }
    const pen = screen.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, across, down);
    pen.imageSmoothingQuality = "high";
    pen.imageSmoothingEnabled = size * ratio < 4; // at a high zoom, show single pixels
    paint(pen, [across / 2 - view.x * width * size, down / 2 - view.y * height * size, width * size, height * size]);
    stage.style.touchAction = view.zoom > 1 || drag ? "none" : "pan-x pan-y";
    stage.classList.toggle("zoomed", view.zoom > 1);
    zoomed.value = `${Math.round(100 * view.zoom)} %`;
  }

  // Zoom by a factor around a point of the stage, in its pixels; the picture there does not move.
  function zoom(factor, left = stage.clientWidth / 2, top = stage.clientHeight / 2) {
    const before = scale();
    view.zoom = Math.min(MOST_ZOOM, Math.max(1, view.zoom * factor));
    const gained = 1 / before - 1 / scale();
    view.x += ((left - stage.clientWidth / 2) * gained) / width;
    view.y += ((top - stage.clientHeight / 2) * gained) / height;
    draw();
  }

  function move(across, down) {
    view.x -= across / scale() / width;
    view.y -= down / scale() / height;
    draw();
  }

  function fit() {
    Object.assign(view, { zoom: 1, x: 0.5, y: 0.5 });
    draw();
  }

  // The point of the picture under the pointer, 0 to 1 inside of it.
  const at = (event) => [
    (event.offsetX - stage.clientWidth / 2) / scale() / width + view.x,
    (event.offsetY - stage.clientHeight / 2) / scale() / height + view.y,
  ];

  const fingers = new Map();
  const place = (event) => ({ x: event.offsetX, y: event.offsetY });
  const apart = ([a, b]) => Math.hypot(a.x - b.x, a.y - b.y);
  screen.addEventListener("wheel", (event) => {
    event.preventDefault();
    if (wheel && !event.ctrlKey) wheel(event);
    else zoom(Math.exp(-Math.sign(event.deltaY) * 0.2), event.offsetX, event.offsetY);
  }, { passive: false });
  screen.addEventListener("dblclick", fit);
  screen.addEventListener("pointerdown", (event) => {
    screen.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, place(event));
  });
  screen.addEventListener("pointermove", (event) => {
    hover(event);
    const before = fingers.get(event.pointerId);
    if (!before) return;
    const pair = fingers.size === 2 && apart([...fingers.values()]);
    fingers.set(event.pointerId, place(event));
    const [across, down] = [event.offsetX - before.x, event.offsetY - before.y];
    if (pair) {
      const [a, b] = fingers.values();
      zoom(apart([a, b]) / pair, (a.x + b.x) / 2, (a.y + b.y) / 2);
    } else if (!drag?.(across, down, event)) move(across, down);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    screen.addEventListener(end, (event) => fingers.delete(event.pointerId));
  }
  const controls = element("div", { className: "viewer-zoom", role: "group", "aria-label": "Zoom" },
    button("−", "Zoom out", () => zoom(0.8)), zoomed, button("+", "Zoom in", () => zoom(1.25)),
    button("Fit", "Fit the whole image", fit));
  return { view, draw, zoom, move, fit, at, controls };
}

// --- controls

// Which class's heat map is shown, and how strongly. state: { selected, opacity }. changed(): after each change.
function heatControls(classes, state, colours, changed) {
  const choice = element("select", {
    onchange: () => { state.selected = Number(choice.value); show(); changed(); },
  }, ...classes.map((name, i) => new Option(name, i)), new Option("None (image only)", -1));
  choice.value = state.selected;
  const opacity = element("input", {
    type: "range", min: 0, max: 100, value: 100 * state.opacity,
    oninput: () => { state.opacity = opacity.value / 100; shade.value = `${opacity.value} %`; changed(); },
  });
  const shade = element("output", {}, `${opacity.value} %`);
  const legend = element("div", { className: "viewer-legend", role: "img",
    "aria-label": "Colours of the heat map: dark violet for little influence, then red, then yellow for most influence" },
    element("span", {}, "little"), element("span", { className: "viewer-colours" }), element("span", {}, "most influence"));
  legend.querySelector(".viewer-colours").style.background = `linear-gradient(to right, ${colours})`;
  function show() {
    opacity.disabled = state.selected < 0;
    legend.hidden = state.selected < 0;
  }
  show();
  const labels = [
    element("label", {}, element("span", {}, "Heat map of"), choice),
    element("label", {}, element("span", {}, "Opacity"), opacity, shade)];
  return { labels, legend };
}

// Presets, level and width. state: { level, width }, in HU; changed(): after each change, and show(): after one elsewhere.
function windowControls(state, changed) {
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
  const show = () => {
    fields.forEach((each) => each());
    presets.forEach((preset, i) => preset.setAttribute(
      "aria-pressed", state.level === PRESETS[i][1] && state.width === PRESETS[i][2]));
  };
  const refresh = () => { show(); changed(); };
  const controls = element("div", { className: "viewer-window", role: "group", "aria-label": "Window" },
    element("div", { className: "viewer-presets" }, element("span", {}, "Window"), ...presets),
    field("Level", "level", -1000, 1500), field("Width", "width", 10, 4000));
  show();
  return { controls, show };
}

