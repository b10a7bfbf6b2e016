"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const main = document.getElementById("main");
document.getElementById("title").textContent = document.title;

function add(heading, part) {
  main.append(element("h2", {}, heading), part);
  if (part.start) part.start();
}

main.replaceChildren();
if (data.sliders.length) add(data.curves ? "Look" : "Compare", viewer(data.sliders));
if (data.curves) {
  add("Curves", curveChart(data.curves));
  if (data.comparisons.length) add("Bits at equal quality", comparisonsTable(data.comparisons));
  add("Means", meansTable(data.means, data.perceptual));
  add("Every picture", sortableTable(data.columns, data.rows));
}
add("How it was made", element("ul", { class: "notes" }, ...data.notes.map((note) => element("li", {}, note))));
