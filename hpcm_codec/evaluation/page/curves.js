"use strict";
// Rate-distortion curves as SVG, drawn anew for the width there is. Dashes and marks tell curves apart without colour.

const METRICS = [["psnr-rgb", "PSNR", "dB"], ["ms-ssim-rgb-db", "MS-SSIM", "dB"], ["ssimulacra2", "SSIMULACRA 2", ""]]; // key, name, unit
const LOOKS = [["#000", "", "●"], ["#c1440e", "", "■"], ["#2a6fbb", "9 3", "▲"], ["#7a7a7a", "3 3", "◆"], ["#1b7f4d", "12 3 3 3", "▼"],
  ["#8a4fbf", "6 2 2 2", "✚"], ["#b98900", "2 2", "✖"], ["#3b3b8f", "14 4", "◀"], ["#d0679d", "5 5", "▶"]];

function svg(name, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function niceSteps(low, high, most) {
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough);
  const steps = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-6; value += step) steps.push(value);
  return { steps, digits: Math.max(0, -Math.floor(Math.log10(step))) };
}

function spreadApart(heights, gap) { // rising heights moved as little as possible to be `gap` apart
  const groups = [];
  for (const height of heights) {
    groups.push([height, 1]);
    while (groups.length > 1) {
      const [[before, many], [after, more]] = groups.slice(-2);
      if (after / more - before / many >= gap * many) break;
      groups.splice(-2, 2, [before + after - gap * many * more, many + more]);
    }
  }
  return groups.flatMap(([total, many]) => Array.from({ length: many }, (_, place) => total / many + gap * place));
}

function curveChart(curves) {
  const metrics = METRICS.filter(([key], place) => place < 2 || curves.some((curve) => curve.points.some((point) => point[key] !== null)));
  const state = { metric: metrics[0][0], hidden: new Set(), chosen: null };
  const look = (curve) => LOOKS[curves.indexOf(curve) % LOOKS.length];
  const chart = svg("svg", { class: "chart", role: "img", tabindex: "0" });
  const reading = element("p", { class: "reading", "aria-live": "polite" });
  const metricBar = chips("Quality", metrics.map(([, name]) => name), (place) => { state.metric = metrics[place][0]; state.chosen = null; draw(); });
  const legend = element("fieldset", { class: "legend", "aria-label": "Curves" }, ...curves.map((curve) => {
    const [colour, dashes, mark] = look(curve);
    const sample = svg("svg", { "aria-hidden": "true" }, svg("line", { x1: 0, x2: 40, y1: 7, y2: 7, stroke: colour, "stroke-width": curve === curves[0] ? 3 : 1.6, "stroke-dasharray": dashes }),
      svg("text", { x: 20, y: 11.5, fill: colour, "text-anchor": "middle", "font-size": 12 }, mark));
    const box = element("input", { type: "checkbox", checked: "", onchange: (event) => { state.hidden[event.target.checked ? "delete" : "add"](curve); state.chosen = null; draw(); } });
    return element("label", {}, box, sample, curve.name);
  }));
  let marks = []; // {x, y, curve, point} of what is drawn

  function endOf(points, far) { // the last point, or where the curve leaves a picture that reaches up to `far` bits per pixel
    const next = points.findIndex((point) => point.bpp > far);
    if (next < 0) return points[points.length - 1];
    const [a, b] = [points[Math.max(0, next - 1)], points[next]];
    const share = b.bpp === a.bpp ? 1 : (far - a.bpp) / (b.bpp - a.bpp);
    return { bpp: far, [state.metric]: a[state.metric] + share * (b[state.metric] - a[state.metric]) };
  }

  function draw() {
    const width = Math.max(300, chart.parentElement ? chart.parentElement.clientWidth : 800);
    const narrow = width < 620;
    const height = Math.round(Math.min(520, Math.max(300, width * (narrow ? 0.9 : 0.58))));
    const edge = { left: 50, right: narrow ? 12 : 175, top: 14, bottom: 46 };
    const valued = (curve) => curve.points.filter((point) => point[state.metric] !== null && point.bpp > 0);
    const shown = curves.filter((curve) => !state.hidden.has(curve) && valued(curve).length > 1);
    metricBar.show(metrics.findIndex(([key]) => key === state.metric));
    chart.setAttribute("viewBox", `0 0 ${width} ${height}`);
    chart.setAttribute("height", height);
    const [, metric, unit] = metrics.find(([key]) => key === state.metric);
    const title = `${metric} against bits per pixel of ${shown.map((curve) => curve.name).join(", ")}`;
    chart.setAttribute("aria-label", title + ". Arrow keys walk along the points.");
    marks = [];
    chart.replaceChildren();
    reading.textContent = narrow ? "Touch a point for its figures." : "Point at a curve for its figures, or walk along it with the arrow keys.";
    if (!shown.length) { reading.textContent = "No curve is chosen, or none has this measure."; return; }
    const own = shown.filter((curve) => curve.own);
    const guides = own.length ? own : shown;
    const far = 1.1 * Math.max(...guides.flatMap((curve) => valued(curve).map((point) => point.bpp)));
    const inside = shown.flatMap((curve) => valued(curve).filter((point) => point.bpp <= far));
    let low = Math.min(...guides.flatMap((curve) => valued(curve).map((point) => point[state.metric])));
    let high = Math.max(...inside.map((point) => point[state.metric]), ...shown.map((curve) => endOf(valued(curve), far)[state.metric]));
    const spare = 0.05 * (high - low || 1);
    low -= spare; high += spare;
    const x = (bpp) => edge.left + (bpp / far) * (width - edge.left - edge.right);
    const y = (value) => height - edge.bottom - ((value - low) / (high - low)) * (height - edge.top - edge.bottom);
    const across = niceSteps(0, far, narrow ? 5 : 9), up = niceSteps(low, high, 7);
    for (const value of across.steps) chart.append(svg("line", { class: "grid", x1: x(value), x2: x(value), y1: edge.top, y2: height - edge.bottom }),
      svg("text", { x: x(value), y: height - edge.bottom + 18, "text-anchor": "middle" }, value.toFixed(across.digits)));
    for (const value of up.steps) chart.append(svg("line", { class: "grid", x1: edge.left, x2: width - edge.right, y1: y(value), y2: y(value) }),
      svg("text", { x: edge.left - 8, y: y(value) + 4, "text-anchor": "end" }, value.toFixed(up.digits)));
    chart.append(svg("line", { class: "axis", x1: edge.left, x2: width - edge.right, y1: height - edge.bottom, y2: height - edge.bottom }),
      svg("text", { x: (edge.left + width - edge.right) / 2, y: height - 8, "text-anchor": "middle" }, "rate, bits per pixel"),
      svg("text", { x: 14, y: (height - edge.bottom) / 2, "text-anchor": "middle", transform: `rotate(-90 14 ${(height - edge.bottom) / 2})` }, unit ? `${metric}, ${unit}` : metric));
    const clip = svg("clipPath", { id: "inside" }, svg("rect", { x: edge.left, y: edge.top, width: width - edge.left - edge.right + 6, height: height - edge.top - edge.bottom }));
    const lines = svg("g", { "clip-path": "url(#inside)" });
    chart.append(clip, lines);
    const ends = [];
    for (const curve of [...shown].reverse()) {
      const [colour, dashes, mark] = look(curve);
      const points = valued(curve);
      lines.append(svg("polyline", { class: curve === curves[0] ? "curve main" : "curve", stroke: colour, "stroke-dasharray": dashes, points: points.map((point) => `${x(point.bpp)},${y(point[state.metric])}`).join(" ") }));
      for (const point of points) {
        const at = { x: x(point.bpp), y: y(point[state.metric]), curve, point };
        if (at.x > width - edge.right + 6 || at.y > height - edge.bottom || at.y < edge.top) continue;
        marks.push(at);
        lines.append(svg("text", { x: at.x, y: at.y + 4.5, "text-anchor": "middle", style: `fill:${colour};font-size:${curve === curves[0] ? 15 : 12}px` }, mark));
      }
      const end = endOf(points, far);
      ends.push({ x: x(end.bpp), y: y(end[state.metric]), curve, colour });
    }
    if (!narrow) {
      ends.sort((a, b) => a.y - b.y);
      const heights = spreadApart(ends.map((end) => end.y), 16);
      ends.forEach((end, place) => {
        const short = end.curve.name.length > 24 ? end.curve.name.split(" (")[0] : end.curve.name;
        const name = short.length > 24 ? short.slice(0, 23) + "…" : short;
        chart.append(svg("line", { x1: end.x + 5, y1: end.y, x2: width - edge.right + 12, y2: heights[place], stroke: "#b9bec5" }),
          svg("text", { x: width - edge.right + 15, y: heights[place] + 4, style: `fill:${end.colour};font-weight:${end.curve === curves[0] ? 700 : 400}` }, name));
      });
    }
    marks.sort((a, b) => curves.indexOf(a.curve) - curves.indexOf(b.curve) || a.x - b.x);
    choose(state.chosen);
  }

  function choose(mark) {
    chart.querySelectorAll(".chosen").forEach((ring) => ring.remove());
    if (!mark) return;
    const found = marks.find((candidate) => candidate.point === mark.point);
    if (!found) return;
    state.chosen = found;
    chart.append(svg("circle", { class: "chosen", cx: found.x, cy: found.y, r: 9, fill: "none", stroke: "#0b5fa5", "stroke-width": 2.5 }));
    const unit = metrics.find(([key]) => key === state.metric)[2];
    const quality = found.point.quality === null ? "" : `, quality ${found.point.quality}`;
    reading.textContent = `${found.curve.name}: ${found.point.bpp.toFixed(3)} bpp, ${found.point[state.metric].toFixed(2)}${unit && ` ${unit}`}${quality}`;
  }

  function nearest(event) {
    const box = chart.getBoundingClientRect();
    const at = { x: event.clientX - box.left, y: event.clientY - box.top };
    const best = marks.reduce((a, b) => (a && Math.hypot(a.x - at.x, a.y - at.y) <= Math.hypot(b.x - at.x, b.y - at.y) ? a : b), null);
    if (best && Math.hypot(best.x - at.x, best.y - at.y) < 60) choose(best);
  }
  chart.addEventListener("pointermove", nearest);
  chart.addEventListener("pointerdown", nearest);
  chart.addEventListener("keydown", (event) => {
    const here = marks.indexOf(state.chosen);
    let next = null;
    if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
      next = here < 0 ? marks[0] : marks[here + (event.key === "ArrowRight" ? 1 : -1)];
    } else if (event.key === "ArrowUp" || event.key === "ArrowDown") {
      const drawn = [...new Set(marks.map((mark) => mark.curve))];
      const curve = here < 0 ? drawn[0] : drawn[(drawn.indexOf(state.chosen.curve) + (event.key === "ArrowDown" ? 1 : drawn.length - 1)) % drawn.length];
      next = marks.filter((mark) => mark.curve === curve).sort((a, b) => Math.abs(a.x - (state.chosen || a).x) - Math.abs(b.x - (state.chosen || b).x))[0];
    } else return;
    event.preventDefault();
    if (next) choose(next);
  });

  const all = element("section", { "aria-label": "Curves" }, metricBar, element("div", {}, chart), reading, legend);
  new ResizeObserver(draw).observe(all);
  all.start = draw;
  return all;
}
