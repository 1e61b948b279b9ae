// What the viewers of one image and of a series share: pictures of values, a canvas to zoom and move in, and controls.

// What is black and what is white: the presets (name, level, width; the first one is where it begins), the least and the
// most of level and width, a step of the fields, of the keys, and of a pixel of a drag. An intensity is a percentage.
const WINDOWS = {
  HU: { unit: "HU", presets: [["Lung", -600, 1500], ["Mediastinum", 40, 400], ["Bone", 300, 1500]],
    level: [-1000, 1500], width: [10, 4000], step: 10, key: 50, drag: 4 },
  intensity: { unit: "%", presets: [["Full", 50, 100], ["Dark parts", 25, 50], ["Bright parts", 75, 50]],
    level: [0, 100], width: [2, 200], step: 1, key: 5, drag: 0.4 },
};
const MOST_ZOOM = 12;
const UPRIGHT = [1, 0, 0, 1]; // from across and down in the picture to across and down on the screen, as stored

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const minus = (text) => String(text).replace("-", "−");

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

// The image on the screen: black at level - width / 2, white at level + width / 2, or the other way round if inverted.
function drawImage(target, pixels, table) {
  const image = (target.values ??= new ImageData(target.width, target.height)); // one for all slices of a stack
  const colours = new Uint32Array(image.data.buffer);
  const offset = pixels instanceof Int16Array ? 32768 : 0;
  for (let i = 0; i < pixels.length; i++) colours[i] = 0xff000000 | (table[pixels[i] + offset] * 0x010101);
  target.getContext("2d").putImageData(image, 0, 0);
}

function greys(units, { level, width, inverted }) {
  const low = level - width / 2;
  const values = units === "HU"
    ? Uint8ClampedArray.from({ length: 65536 }, (_, i) => ((i - 32768 - low) / width) * 255)
    : Uint8ClampedArray.from({ length: 256 }, (_, i) => ((i / 2.55 - low) / width) * 255);
  return inverted ? values.map((grey) => 255 - grey) : values;
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

// --- a canvas to zoom, move and turn in

// Shows a picture of width x height as large as `stage` allows. paint(pen, place): draws it into place (left, top, width,
// height), turned as the view is; over(pen, point): draws what stays upright, where point(x, y) is a point of the picture on
// the stage. press, release, hover(event): of a pointer. drag(across, down, event): what a held pointer does; false: it
// moves the picture. holds(): whether a finger's drag is for the viewer, not for the page; clicks(): likewise
// for a double click, which else fits the picture. wheel(event): instead of zoom.
// changed(): someone zoomed, moved or turned the picture here.
function zoomable(stage, screen, { width, height, paint, over = () => {}, drag = () => false, press = () => {},
  release = () => {}, hover = () => {}, wheel, holds = () => false, clicks = () => false, changed = () => {} }) {
  // x, y: the point of the picture, 0 to 1, in the middle of the view. matrix: see UPRIGHT.
  const view = { zoom: 1, x: 0.5, y: 0.5, matrix: UPRIGHT };
  const zoomed = element("output", { className: "viewer-zoomed", "aria-label": "Zoom" });

  const lies = () => view.matrix[0] === 0; // its rows run up and down the screen
  const onScreen = (x, y) => [view.matrix[0] * x + view.matrix[1] * y, view.matrix[2] * x + view.matrix[3] * y];
  const inPicture = (x, y) => [view.matrix[0] * x + view.matrix[2] * y, view.matrix[1] * x + view.matrix[3] * y];
  function scale() {
    const [across, down] = lies() ? [height, width] : [width, height];
    return Math.min(stage.clientWidth / across, stage.clientHeight / down) * view.zoom;
  }

  // A point of the picture, 0 to 1, in pixels of the stage, and back.
  function point(x, y) {
    const [across, down] = onScreen((x - view.x) * width * scale(), (y - view.y) * height * scale());
    return [stage.clientWidth / 2 + across, stage.clientHeight / 2 + down];
  }
  function at(event) {
    const [x, y] = inPicture(event.offsetX - stage.clientWidth / 2, event.offsetY - stage.clientHeight / 2);
    return [x / scale() / width + view.x, y / scale() / height + view.y];
  }

  function draw() {
    const ratio = window.devicePixelRatio || 1;
    const [across, down] = [stage.clientWidth, stage.clientHeight];
    if (!across || !down) return;
    if (screen.width !== Math.round(across * ratio) || screen.height !== Math.round(down * ratio)) {
      screen.width = Math.round(across * ratio);
      screen.height = Math.round(down * ratio);
    }
    const size = scale();
    const [alongX, alongY] = lies() ? [down, across] : [across, down];
    for (const [axis, shown, whole] of [["x", alongX, width * size], ["y", alongY, height * size]]) {
      const margin = Math.min(0.5, shown / whole / 2);
      view[axis] = clamp(view[axis], margin, 1 - margin);
    }
    const pen = screen.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, across, down);
    pen.imageSmoothingQuality = "high";
    pen.imageSmoothingEnabled = size * ratio < 4; // at a high zoom, show single pixels
    const [a, b, c, d] = view.matrix.map((part) => part * ratio);
    pen.setTransform(a, c, b, d, (ratio * across) / 2, (ratio * down) / 2);
    paint(pen, [-view.x * width * size, -view.y * height * size, width * size, height * size]);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    over(pen, point);
    stage.style.touchAction = view.zoom > 1 || holds() ? "none" : "pan-x pan-y";
    stage.classList.toggle("zoomed", view.zoom > 1);
    zoomed.value = `${Math.round(100 * view.zoom)} %`;
  }

  function change(next) {
    Object.assign(view, next);
    draw();
    changed();
  }

  // Zoom by a factor around a point of the stage, in its pixels; the picture there does not move.
  function zoom(factor, left = stage.clientWidth / 2, top = stage.clientHeight / 2) {
    const before = scale();
    view.zoom = clamp(view.zoom * factor, 1, MOST_ZOOM);
    const gained = 1 / before - 1 / scale();
    const [x, y] = inPicture(left - stage.clientWidth / 2, top - stage.clientHeight / 2);
    change({ x: view.x + (x * gained) / width, y: view.y + (y * gained) / height });
  }

  function move(across, down) {
    const [x, y] = inPicture(across, down);
    change({ x: view.x - x / scale() / width, y: view.y - y / scale() / height });
  }

  const fit = () => change({ zoom: 1, x: 0.5, y: 0.5 });

  // Turn what is on the screen by a matrix, such as a quarter to the right.
  function turn([a, b, c, d]) {
    const [e, f, g, h] = view.matrix;
    change({ matrix: [a * e + b * g, a * f + b * h, c * e + d * g, c * f + d * h] });
  }

  // The zoom, and how far the middle is from the picture's, across and down on the screen: for a linked view.
  const lookedAt = () => ({ zoom: view.zoom, middle: onScreen(view.x - 0.5, view.y - 0.5) });
  function lookAt({ zoom: factor, middle }) {
    const [x, y] = inPicture(...middle);
    Object.assign(view, { zoom: factor, x: x + 0.5, y: y + 0.5 });
    draw();
  }

  const fingers = new Map();
  const place = (event) => ({ x: event.offsetX, y: event.offsetY });
  const apart = ([a, b]) => Math.hypot(a.x - b.x, a.y - b.y);
  const middle = ([a, b]) => [(a.x + b.x) / 2, (a.y + b.y) / 2];
  screen.addEventListener("wheel", (event) => {
    event.preventDefault();
    if (wheel && !event.ctrlKey) wheel(event);
    else zoom(Math.exp(-Math.sign(event.deltaY) * 0.2), event.offsetX, event.offsetY);
  }, { passive: false });
  screen.addEventListener("dblclick", () => { if (!clicks()) fit(); });
  screen.addEventListener("contextmenu", (event) => event.preventDefault()); // the right button sets the window
  screen.addEventListener("pointerdown", (event) => {
    screen.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, place(event));
    press(event, fingers.size);
  });
  screen.addEventListener("pointermove", (event) => {
    hover(event);
    const before = fingers.get(event.pointerId);
    if (!before) return;
    const pair = fingers.size === 2 && [...fingers.values()];
    fingers.set(event.pointerId, place(event));
    const [across, down] = [event.offsetX - before.x, event.offsetY - before.y];
    if (pair) {
      const now = [...fingers.values()];
      const [from, to] = [middle(pair), middle(now)];
      zoom(apart(now) / Math.max(1, apart(pair)), ...to);
      move(to[0] - from[0], to[1] - from[1]);
    } else if (!drag(across, down, event)) move(across, down);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    screen.addEventListener(end, (event) => {
      fingers.delete(event.pointerId);
      release(event);
    });
  }
  return { view, draw, zoom, move, fit, turn, change, lookedAt, lookAt, at, point, zoomed };
}

// --- controls

// Which class's heat map is shown, and how strongly. state: { selected, opacity }. changed(): after each change.
// toggle(): hide it, or show the last one again.
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
  let last = Math.max(0, state.selected);
  function show() {
    if (state.selected >= 0) last = state.selected;
    opacity.disabled = state.selected < 0;
    legend.hidden = state.selected < 0;
  }
  function toggle() {
    choice.value = state.selected = state.selected < 0 ? last : -1;
    show();
    changed();
  }
  show();
  const labels = [
    element("label", {}, element("span", {}, "Heat map of"), choice),
    element("label", {}, element("span", {}, "Opacity"), opacity, shade)];
  return { labels, legend, toggle };
}

// Presets, level and width. state: { level, width }; changed(): after each change, and show(): after one elsewhere.
// set(level, width), preset(place): as from outside.
function windowControls(units, state, changed) {
  const { unit, presets, step, ...limits } = WINDOWS[units];
  const fields = [];
  function set(level, width) {
    if (!Number.isFinite(level) || !Number.isFinite(width)) return;
    Object.assign(state, { level: clamp(level, ...limits.level), width: clamp(width, ...limits.width) });
    show();
    changed();
  }
  const field = (label, name) => {
    const [min, max] = limits[name];
    const slider = element("input", { type: "range", min, max, step, "aria-label": `${label} in ${unit}` });
    const number = element("input", { type: "number", min, max, step, "aria-label": `${label} in ${unit}, as a number` });
    const enter = (value) => { set(...(name === "level" ? [value, state.width] : [state.level, value])); show(); };
    slider.oninput = () => enter(slider.valueAsNumber);
    number.onchange = () => enter(number.valueAsNumber);
    fields.push(() => { slider.value = state[name]; number.value = Math.round(state[name]); });
    return element("div", { className: "viewer-field" }, element("span", {}, label), slider, number, element("span", {}, unit));
  };
  const preset = (place) => presets[place] && set(...presets[place].slice(1));
  const buttons = presets.map(([name, level, width], place) =>
    button(name, `${name} window: level ${level}, width ${width} ${unit} (key ${place + 1})`, () => preset(place)));
  function show() {
    fields.forEach((each) => each());
    buttons.forEach((each, i) => each.setAttribute(
      "aria-pressed", state.level === presets[i][1] && state.width === presets[i][2]));
  }
  const controls = element("div", { className: "viewer-window", role: "group", "aria-label": "Window" },
    element("div", { className: "viewer-presets" }, element("span", {}, "Window"), ...buttons),
    field("Level", "level"), field("Width", "width"));
  show();
  return { controls, show, set, preset };
}

const windowWords = (units, { level, width }) =>
  minus(`Level ${Math.round(level)}, width ${Math.round(width)} ${WINDOWS[units].unit}`);

