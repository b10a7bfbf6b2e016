"use strict";
// The before/after slider: two versions of a picture on top of each other, a divider between them, zoom and pan for both.
// Pointer, touch, pinch, wheel and keyboard all end in `draw`, the only function that touches the layers.

function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function chips(what, names, choose) {
  const buttons = names.map((name, place) => element("button", { class: "chip", type: "button", onclick: () => choose(place) }, name));
  const bar = element("div", { class: "chips", role: "group", "aria-label": what }, element("span", { class: "what" }, what), ...buttons);
  bar.show = (chosen) => buttons.forEach((button, place) => button.setAttribute("aria-pressed", String(place === chosen)));
  return bar;
}

function viewer(sliders) {
  const state = { picture: 0, left: 0, right: 1, split: 0.5, zoom: 0, x: 0, y: 0 }; // zoom 0: fitted; x, y: of the picture's corner in the stage
  const images = { left: element("img", { alt: "", draggable: "false" }), right: element("img", { alt: "", draggable: "false" }) };
  const tags = { left: element("div", { class: "tag left" }), right: element("div", { class: "tag right" }) };
  const divider = element("div", { class: "divider", role: "slider", tabindex: "0", "aria-label": "Divider between left and right version", "aria-valuemin": "0", "aria-valuemax": "100" });
  const stage = element("div", { class: "stage" }, element("div", { class: "layer left" }, images.left), element("div", { class: "layer right" }, images.right), tags.left, tags.right, divider);
  const facts = element("div", { class: "facts" });
  const shown = element("span", { class: "what" });
  const names = sliders[0].versions.map((version) => version.name);
  const bars = {
    picture: chips("Picture", sliders.map((slider) => slider.name), (place) => { state.picture = place; fit(); load(); }),
    left: chips("Left", names, (place) => { state.left = place; load(); }),
    right: chips("Right", names, (place) => { state.right = place; load(); }),
  };
  const zoomBar = element("div", { class: "chips", role: "group", "aria-label": "Zoom" }, element("span", { class: "what" }, "Zoom"),
    element("button", { class: "chip", type: "button", "aria-label": "Zoom out", onclick: () => zoomBy(0.5) }, "−"),
    element("button", { class: "chip", type: "button", "aria-label": "Zoom in", onclick: () => zoomBy(2) }, "+"),
    element("button", { class: "chip", type: "button", onclick: () => { fit(); draw(); } }, "Fit"),
    element("button", { class: "chip", type: "button", onclick: () => zoomTo(1 / devicePixelRatio) }, "1:1 pixels"),
    element("button", { class: "chip", type: "button", onclick: () => zoomTo(4 / devicePixelRatio) }, "4:1"),
    shown);

  const slider = () => sliders[state.picture];
  const size = () => ({ width: stage.clientWidth, height: stage.clientHeight });
  const fitted = () => Math.min(size().width / slider().width, size().height / slider().height);
  const scale = () => state.zoom || fitted();
  // stage and picture lie on whole screen pixels, so that a picture pixel can be exactly one of them
  const whole = (value) => Math.round(value * devicePixelRatio) / devicePixelRatio;
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

  function load() {
    for (const side of ["left", "right"]) {
      const version = slider().versions[state[side]];
      if (images[side].getAttribute("src") !== version.src) images[side].src = version.src;
      images[side].alt = `${slider().name}, ${version.name}`;
      tags[side].textContent = version.name;
      bars[side].show(state[side]);
    }
    bars.picture.show(state.picture);
    const [left, right] = [state.left, state.right].map((place) => slider().versions[place]);
    facts.replaceChildren(element("div", {}, element("b", {}, left.name), left.detail), element("div", {}, element("b", {}, right.name), right.detail));
    layout();
  }

  function layout() { // the stage takes the picture's shape, as far as the window has room
    const wide = stage.parentElement ? stage.parentElement.clientWidth : 800;
    const room = Math.max(240, Math.min(innerHeight * 0.72, 900));
    const aspect = slider().width / slider().height;
    const high = Math.min(room, wide / aspect);
    stage.style.height = `${Math.round(high)}px`;
    stage.style.width = `${Math.round(Math.min(wide, Math.max(high * aspect, 300)))}px`;
    stage.style.left = stage.style.top = "0px";
    const box = stage.getBoundingClientRect();
    stage.style.left = `${whole(box.left) - box.left}px`;
    stage.style.top = `${whole(box.top + scrollY) - box.top - scrollY}px`;
    draw();
  }

  function draw() {
    const { width, height } = size();
    const s = scale();
    const [w, h] = [slider().width * s, slider().height * s];
    state.x = w <= width ? (width - w) / 2 : clamp(state.x, width - w, 0);
    state.y = h <= height ? (height - h) / 2 : clamp(state.y, height - h, 0);
    const at = `translate(${whole(state.x)}px, ${whole(state.y)}px) scale(${s})`;
    for (const side of ["left", "right"]) images[side].style.transform = at;
    stage.style.setProperty("--split", `${(state.split * width).toFixed(1)}px`);
    stage.classList.toggle("zoomed", s > fitted() * 1.001);
    stage.classList.toggle("pixels", s * devicePixelRatio >= 2);
    const percent = Math.round(state.split * 100);
    divider.setAttribute("aria-valuenow", percent);
    divider.setAttribute("aria-valuetext", `${percent} % ${tags.left.textContent}, ${100 - percent} % ${tags.right.textContent}`);
    shown.textContent = `${Math.round(100 * s * devicePixelRatio)} %`;
  }

  function fit() { state.zoom = 0; }

  function zoomTo(wanted, x = size().width * state.split, y = size().height / 2) { // keeps the point x, y of the stage in place
    const before = scale();
    const after = clamp(wanted, Math.min(fitted(), 1 / devicePixelRatio), 32 / devicePixelRatio);
    state.x = x - ((x - state.x) * after) / before;
    state.y = y - ((y - state.y) * after) / before;
    state.zoom = Math.abs(after / fitted() - 1) < 0.001 ? 0 : after;
    draw();
  }
  const zoomBy = (factor, x, y) => zoomTo(scale() * factor, x, y);
  const pan = (dx, dy) => { state.x += dx; state.y += dy; draw(); };
  const moveTo = (x) => { state.split = clamp(x / size().width, 0, 1); draw(); };

  // ---- pointers: one drags the divider, or the picture when it is zoomed; two pinch
  const pointers = new Map();
  let dragging = null;
  const place = (event) => { const box = stage.getBoundingClientRect(); return { x: event.clientX - box.left, y: event.clientY - box.top }; };
  const zoomed = () => stage.classList.contains("zoomed");

  stage.addEventListener("pointerdown", (event) => {
    if (event.pointerType === "mouse" && event.button !== 0) return;
    stage.setPointerCapture(event.pointerId);
    const at = place(event);
    pointers.set(event.pointerId, at);
    const near = Math.abs(at.x - state.split * size().width) < 26;
    dragging = pointers.size === 1 ? (near || !zoomed() ? "divider" : "picture") : "pinch";
    if (dragging === "divider" && !near && event.pointerType === "mouse") moveTo(at.x);
    stage.classList.toggle("panning", dragging === "picture");
    divider.focus({ preventScroll: true });
    if (event.pointerType === "mouse") event.preventDefault();
  });
  stage.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const at = place(event);
    if (dragging === "pinch" && pointers.size === 2) {
      const [other] = [...pointers].filter(([id]) => id !== event.pointerId).map(([, point]) => point);
      const distance = (a, b) => Math.hypot(a.x - b.x, a.y - b.y) || 1;
      pan((at.x - before.x) / 2, (at.y - before.y) / 2);
      zoomBy(distance(at, other) / distance(before, other), (at.x + other.x) / 2, (at.y + other.y) / 2);
    } else if (dragging === "divider") moveTo(state.split * size().width + at.x - before.x);
    else if (dragging === "picture") pan(at.x - before.x, at.y - before.y);
    pointers.set(event.pointerId, at);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    stage.addEventListener(end, (event) => {
      pointers.delete(event.pointerId);
      dragging = pointers.size === 1 && zoomed() ? "picture" : null;
      stage.classList.remove("panning");
    });
  }
  stage.addEventListener("dblclick", (event) => {
    const at = place(event);
    if (zoomed()) { fit(); draw(); } else zoomTo(Math.max(2 / devicePixelRatio, 2 * scale()), at.x, at.y);
  });
  stage.addEventListener("wheel", (event) => { // a wheel over a slider nobody uses scrolls the page
    if (!event.ctrlKey && document.activeElement !== divider) return;
    event.preventDefault();
    const at = place(event);
    zoomBy(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0018)), at.x, at.y);
  }, { passive: false });

  divider.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const far = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const digit = /^Digit([1-9])$/.exec(event.code);
    if (far && (event.shiftKey || far[1])) {
      if (!zoomed()) return;
      pan(-60 * far[0], -60 * far[1]);
    } else if (far) moveTo(size().width * (state.split + 0.02 * far[0]));
    else if (event.key === "Home") moveTo(0);
    else if (event.key === "End") moveTo(size().width);
    else if (event.key === "+" || event.key === "=") zoomBy(2);
    else if (event.key === "-") zoomBy(0.5);
    else if (event.key === "0") { fit(); draw(); }
    else if (event.key === "p") zoomTo(1 / devicePixelRatio);
    else if (event.key === "x") { [state.left, state.right] = [state.right, state.left]; load(); }
    else if (event.key === "n") { state.picture = (state.picture + 1) % sliders.length; fit(); load(); }
    else if (digit && digit[1] <= names.length) { state[event.shiftKey ? "left" : "right"] = digit[1] - 1; load(); }
    else return;
    event.preventDefault();
  });

  const all = element("section", { class: "viewer", "aria-label": "Compare pictures" });
  if (sliders.length > 1) all.append(bars.picture);
  all.append(bars.left, bars.right, element("div", {}, stage), zoomBar, facts,
    element("p", { class: "hint" }, "Drag the divider; drag the picture when zoomed; double-click, pinch or use the wheel to zoom."),
    element("p", { class: "hint keys" }, "Keys, with the divider in focus: ← → move it, Home and End to the ends, + − 0 zoom, p one picture pixel per screen pixel, Shift + arrows or ↑ ↓ pan, x swap, n next picture, 1–9 choose the right version, Shift + 1–9 the left."));
  new ResizeObserver(layout).observe(all);
  all.start = load;
  return all;
}
