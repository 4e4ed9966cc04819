"use strict";
/* Curves that are drawn by uPlot: one switch for what they stand against, one legend for all. */
(() => {
  const block = document.getElementById("curve-data");
  if (!block) return;
  const data = JSON.parse(block.textContent);
  const hidden = new Set();
  const figures = [...document.querySelectorAll(".chart")];
  let plots = [];

  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colour = (arm) => style(`--arm-${arm}`);
  const trim = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);
  const significant = (value) => trim(Number(value).toPrecision(3).replace(/e.*/, ""));
  const prefixed = (value, unit) => {
    let power = 0;
    while (Math.abs(value) >= 999.5 && power < 6) { value /= 1000; power += 1; }
    return `${significant(value)} ${["", "k", "M", "G", "T", "P", "E"][power]}${unit}`;
  };
  const seconds = (value) => {
    if (value < 0.9995) return `${significant(value * (value < 1e-3 ? 1e6 : 1e3))} ${value < 1e-3 ? "µs" : "ms"}`;
    if (value < 120) return `${significant(value)} s`;
    if (value < 7200) return `${significant(value / 60)} min`;
    return value < 172800 ? `${significant(value / 3600)} h` : `${significant(value / 86400)} d`;
  };
  const along = (axis, value) =>
    axis.unit === "s" ? seconds(value) : axis.unit ? prefixed(value, axis.unit) : String(value);
  const height = (measure, value) =>
    measure.percent ? `${trim((100 * value).toFixed(1))} %`
      : Math.abs(value) >= 1000 ? prefixed(value, "").trim() : trim(Number(value).toPrecision(4));

  /* The columns of uPlot: all places along the axis, then for each arm its values, and its band. */
  const columns = (lines, span) => {
    const tables = lines.map((line) => {
      if (line.level !== undefined) return [span, span.map(() => line.level), span.map(() => null), span.map(() => null)];
      return [line.x, line.y, line.y.map((y, i) => y + line.sd[i]), line.y.map((y, i) => y - line.sd[i])];
    });
    return uPlot.join(tables);
  };

  const draw = (figure) => {
    const measure = data.measures.find((found) => found.key === figure.dataset.measure);
    const axis = data.axes.find((found) => found.key === document.querySelector("[name=axis]:checked").value);
    const place = figure.querySelector(".plot");
    const tip = figure.querySelector(".tip");
    const all = data.curves[axis.key][measure.key];
    const shown = all.map((line, arm) => ({ ...line, arm }))
      .filter((line) => !hidden.has(line.arm) && (line.x || line.level !== undefined));
    place.replaceChildren();
    tip.textContent = "";
    const xs = shown.flatMap((line) => line.x ?? []);
    if (!xs.length) {
      tip.textContent = "No arm has it.";
      return null;
    }
    const log = axis.unit !== "";
    const low = Math.min(...xs);
    const high = Math.max(...xs);
    const margin = log ? Math.max((high / low) ** 0.05, 1.3) : 0;
    const span = log ? [low / margin, high * margin] : [Math.min(low, 0), Math.max(high, 1)];
    const dim = style("--dim");
    const series = [{}];
    const bands = [];
    for (const line of shown) {
      const at = series.length;
      const stroke = colour(line.arm);
      const level = line.level !== undefined;
      const flat = axis.key === "memory" || level;
      series.push({
        stroke, spanGaps: true, width: flat && !level ? 0 : 2,
        dash: level ? [2, 3] : data.arms[line.arm].dash,
        points: { show: !level, size: flat ? 10 : 6, fill: stroke, stroke },
      });
      const edge = { stroke: "transparent", spanGaps: true, points: { show: false }, width: 0 };
      series.push(edge, edge);
      if (!level && line.sd.some((sd) => sd > 0)) bands.push({ series: [at + 1, at + 2], fill: `${stroke}2b` });
    }
    const whiskers = (plot) => {
      const ctx = plot.ctx;
      ctx.save();
      ctx.lineWidth = 1.2 * devicePixelRatio;
      for (const line of shown) {
        if (!line.interval || line.level !== undefined) continue;
        const x = plot.valToPos(line.x.at(-1), "x", true);
        const [bottom, top] = line.interval.map((y) => plot.valToPos(y, "y", true));
        const half = 4 * devicePixelRatio;
        ctx.strokeStyle = colour(line.arm);
        ctx.beginPath();
        for (const y of [bottom, top]) { ctx.moveTo(x - half, y); ctx.lineTo(x + half, y); }
        ctx.moveTo(x, bottom);
        ctx.lineTo(x, top);
        ctx.stroke();
      }
      ctx.restore();
    };
    /* The text of the point that is nearest to the pointer. */
    const point = (plot) => {
      const { left, top } = plot.cursor;
      if (left === undefined || left < 0) { tip.textContent = ""; return; }
      let best = null;
      for (const line of shown) {
        const places = line.x ?? span;
        places.forEach((x, index) => {
          const y = line.level ?? line.y[index];
          const across = line.level === undefined ? plot.valToPos(x, "x") - left : 0;
          const distance = Math.hypot(across, plot.valToPos(y, "y") - top);
          if (!best || distance < best.distance) best = { distance, line, index, x, y };
        });
      }
      if (!best) return;
      const { line, index } = best;
      const spread = line.sd && line.sd[index] ? ` ± ${height(measure, line.sd[index])}` : "";
      const last = line.x && index === line.x.length - 1 && line.interval;
      const range = last ? ` [${line.interval.map((y) => height(measure, y)).join(", ")}]` : "";
      const where = line.level === undefined
        ? `, round ${line.rounds[index]}${axis.unit ? `, ${along(axis, best.x)}` : ""}` : "";
      tip.textContent = `${data.arms[line.arm].label}: ${height(measure, best.y)}${spread}${range}${where}`;
    };
    const ticks = log ? ticksOf(...span, place.clientWidth / 75) : null;
    const values = (plot, splits) => splits.map((value) => along(axis, value));
    const options = {
      width: place.clientWidth, height: 250, series, bands,
      legend: { show: false },
      cursor: { y: true, points: { show: false }, drag: { x: false, y: false } },
      scales: {
        x: { time: false, distr: log ? 3 : 1, range: span },
        y: { distr: measure.wide && wide(shown) ? 3 : 1, range: measure.wide && wide(shown) ? undefined : (plot, min, max) => padded(shown, min, max, measure) },
      },
      axes: [
        { stroke: dim, grid: { stroke: style("--grid"), width: 1 }, ticks: { show: false }, size: 30, values,
          ...(ticks ? { splits: () => ticks, filter: (plot, splits) => splits }
            : { incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000] }) },
        { stroke: dim, grid: { stroke: style("--grid"), width: 1 }, ticks: { show: false }, size: 56,
          values: (plot, splits) => splits.map((value) => (value === null ? "" : height(measure, value))) },
      ],
      hooks: { setCursor: [point], draw: [whiskers] },
    };
    return new uPlot(options, columns(shown, span), place);
  };
  /* Ticks of a logarithmic axis: powers of ten, with 2 and 5 where few fit, or even steps. */
  const ticksOf = (low, high, most) => {
    const decades = Math.log10(high / low);
    if (decades < 0.8) {
      const rough = (high - low) / 4;
      const power = 10 ** Math.floor(Math.log10(rough));
      const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
      const first = Math.ceil(low / step);
      return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, i) => (first + i) * step);
    }
    const found = [];
    const every = Math.max(1, Math.ceil(decades / most));
    for (let power = Math.floor(Math.log10(low)); 10 ** power <= high; power += 1) {
      const factors = 3 * decades <= most ? [1, 2, 5] : power % every === 0 ? [1] : [];
      found.push(...factors.map((factor) => factor * 10 ** power).filter((at) => at >= low && at <= high));
    }
    return found;
  };
  const wide = (shown) => {
    const ys = shown.flatMap((line) => line.y ?? [line.level]).filter((y) => y > 0);
    return ys.length > 0 && Math.max(...ys) > 20 * Math.min(...ys);
  };
  const padded = (shown, min, max, measure) => {
    const ends = shown.flatMap((line) => line.interval ?? []);
    min = Math.min(min, ...ends);
    max = Math.max(max, ...ends);
    const room = 0.05 * (max - min || Math.abs(max) || 1);
    return [Math.max(min - room, min >= 0 ? 0 : -Infinity), measure.percent ? Math.min(max + room, 1.02) : max + room];
  };

  const redraw = () => {
    plots.forEach((plot) => plot?.destroy());
    plots = figures.map(draw);
  };
  document.querySelectorAll("[name=axis]").forEach((input) => input.addEventListener("change", redraw));
  document.querySelectorAll(".legend [data-arm]").forEach((button) => {
    button.addEventListener("click", () => {
      const arm = Number(button.dataset.arm);
      if (!hidden.delete(arm)) hidden.add(arm);
      button.setAttribute("aria-pressed", String(!hidden.has(arm)));
      redraw();
    });
  });
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; redraw(); } });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  matchMedia("print").addEventListener("change", redraw);
  redraw();
})();
