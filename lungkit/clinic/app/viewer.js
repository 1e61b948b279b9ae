// Shows one image with a heat map over it. Everything happens in the browser and is immediate: the kernel sends pixels
// and heat once and is not asked again. panes.js comes before this in the same module.

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

  function paint(pen, place) {
    pen.drawImage(picture, ...place);
    if (state.selected < 0) return;
    pen.globalAlpha = state.opacity;
    pen.imageSmoothingEnabled = true;
    pen.drawImage(overlay, ...place);
    pen.globalAlpha = 1;
  }

  // The value under the pointer, for HU only.
  function readOut(event) {
    if (units !== "HU") return;
    const [x, y] = pane.at(event);
    const inside = x >= 0 && y >= 0 && x < 1 && y < 1;
    const value = inside && pixels[Math.floor(y * height) * width + Math.floor(x * width)];
    under.textContent = inside ? `${value} HU`.replace("-", "−") : "";
  }
  const under = element("span", { className: "viewer-under", "aria-hidden": "true" });
  screen.addEventListener("pointerleave", () => { under.textContent = ""; });

  const pane = zoomable(stage, screen, { width, height, paint, hover: readOut });
  const keys = {
    "+": () => pane.zoom(1.25), "=": () => pane.zoom(1.25), "-": () => pane.zoom(0.8), 0: pane.fit,
    ArrowLeft: () => pane.move(40, 0), ArrowRight: () => pane.move(-40, 0),
    ArrowUp: () => pane.move(0, 40), ArrowDown: () => pane.move(0, -40),
  };
  screen.addEventListener("keydown", (event) => {
    if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key.startsWith("Arrow") && pane.view.zoom === 1) return; // nothing to move, so the page scrolls
    event.preventDefault();
    keys[event.key]();
  });

  function heat() {
    if (state.selected >= 0) {
      const size = heatWidth * heatHeight;
      drawHeat(overlay, heats.subarray(state.selected * size, (state.selected + 1) * size), model.get("colours"));
    }
    const shown = state.selected >= 0 ? ` Overlay: ${classes[state.selected]}.` : classes.length ? " No overlay." : "";
    screen.setAttribute("aria-label", `${model.get("label")}.${shown} Plus and minus zoom, arrows move, 0 fits.`);
    pane.draw();
  }

  function window_() {
    drawImage(picture, pixels, greys(units, state.level, state.width));
    pane.draw();
  }

  const { labels, legend } = heatControls(classes, state, model.get("colours"), heat);
  const controls = element("div", { className: "viewer-controls" }, ...(classes.length ? labels : []));
  stage.append(under, pane.controls, legend);
  el.append(element("div", { className: "viewer" }, stage, controls));
  if (units === "HU") controls.append(windowControls(state, window_).controls);
  window_();
  stage.style.aspectRatio = `${width} / ${height}`;
  heat();
  const resized = new ResizeObserver(pane.draw);
  resized.observe(stage);
  return () => resized.disconnect();
}

export default { render };
