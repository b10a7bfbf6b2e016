"use strict";
// Tables: the means, and every picture, sortable by any column and filtered by codec and quality.

const shownFigure = (value, digits) => {
  if (value === null || value === undefined) return "–";
  if (digits === null) return String(value);
  return digits === 0 ? value.toLocaleString("en") : String(Number(value.toFixed(digits)) === value && digits === 1 ? value : value.toFixed(digits));
};

function sortableTable(columns, rows) {
  const state = { key: null, rising: true, codec: "", quality: "" };
  const body = element("tbody");
  const heads = columns.map((column) => element("th", { scope: "col", class: column.digits === null ? "word" : "" },
    element("button", { type: "button", onclick: () => sortBy(column) }, column.heading)));
  const table = element("table", {}, element("thead", {}, element("tr", {}, ...heads)), body);
  const options = (key) => [...new Set(rows.map((row) => row[key]))];
  const filter = (label, key) => {
    const choice = element("select", { onchange: (event) => { state[key] = event.target.value; fill(); } }, element("option", { value: "" }, "all"),
      ...options(key).map((value) => element("option", { value }, String(value))));
    return element("label", {}, `${label} `, choice);
  };

  function sortBy(column) {
    state.rising = state.key === column.key ? !state.rising : true;
    state.key = column.key;
    fill();
  }

  function fill() {
    const chosen = rows.filter((row) => (!state.codec || row.codec === state.codec) && (!state.quality || String(row.quality) === state.quality));
    if (state.key) {
      const sign = state.rising ? 1 : -1;
      chosen.sort((a, b) => {
        const [one, other] = [a[state.key], b[state.key]];
        if (one === null || other === null) return (one === null) - (other === null); // what was not measured goes last
        return sign * (typeof one === "number" ? one - other : String(one).localeCompare(String(other), "en", { numeric: true }));
      });
    }
    columns.forEach((column, place) => {
      if (column.key === state.key) heads[place].setAttribute("aria-sort", state.rising ? "ascending" : "descending");
      else heads[place].removeAttribute("aria-sort");
    });
    body.replaceChildren(...chosen.map((row) => element("tr", {}, ...columns.map((column) =>
      element("td", { class: column.digits === null ? "word" : "" }, shownFigure(row[column.key], column.digits))))));
  }

  fill();
  const filters = element("div", { class: "filters" });
  if (options("codec").length > 1) filters.append(filter("Codec", "codec"));
  if (options("quality").length > 1) filters.append(filter("Quality", "quality"));
  return element("div", {}, filters, element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Every picture" }, table));
}

function plainTable(headings, rows, label) {
  return element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, element("table", {},
    element("thead", {}, element("tr", {}, ...headings.map((heading, place) => element("th", { scope: "col", class: place ? "plain" : "plain word" }, heading)))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map((cell, place) => element("td", { class: place ? "" : "word" }, cell)))))));
}

function meansTable(means, perceptual) {
  const rows = means.flatMap((codec) => codec.rows.map((row) => [codec.name, shownFigure(row.quality, 1), shownFigure(row.bpp, 4), shownFigure(row["psnr-rgb"], 2),
    shownFigure(row["ms-ssim-rgb"], 4), ...perceptual.map(([key]) => shownFigure(row[key], 3)), shownFigure(row.encoding_time, 3), shownFigure(row.decoding_time, 3)]));
  return plainTable(["codec", "quality", "bpp", "PSNR dB", "MS-SSIM", ...perceptual.map(([, title]) => title), "encode s", "decode s"], rows, "Means");
}

function comparisonsTable(comparisons) {
  const sign = (value, digits) => (value === null ? "–" : `${value > 0 ? "+" : value < 0 ? "−" : ""}${Math.abs(value).toFixed(digits)}`);
  const unit = (one) => (one.metric === "ssimulacra2" ? "points" : "dB");
  const rows = comparisons.map((one) => [one.anchor, `${sign(one.bd_rate, 1)} %`, `${sign(one.bd_quality, 2)} ${unit(one)}`, `${one.quality_range.map((value) => value.toFixed(2)).join(" to ")} ${unit(one)}`, `${Math.round(100 * one.coverage)} %`]);
  return plainTable(["against", "bits at equal quality", "quality at equal bits", "compared over", "share of our range"], rows, "Bjøntegaard deltas");
}
