// The charts of the last fifteen minutes. Drawn by plotly.js, and only those that can be seen.

import { byId, colourOf, count, duration, plain, share, themed } from "./dom.js";

const SPAN_S = 900;
const SHORTEST_SPAN_S = 60;
const LOG_TICKS_MS = [-2, -1, 0, 1, 2, 3, 4, 5].flatMap((power) => [10 ** power, 3 * 10 ** power]);
const visible = new Set();
const drawers = { ttft, tbt, tenants, steps, kv, queue };

export class Charts {
  constructor() {
    this.points = [];
    this.promises = [];
    const seen = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        if (isIntersecting) visible.add(target.id);
        else visible.delete(target.id);
      }
      this.draw();
    });
    for (const name of Object.keys(drawers)) seen.observe(byId(`chart-${name}`));
  }

  begin(points) {
    this.points = points;
  }

  add(point, promises) {
    this.points.push(point);
    this.points = this.points.filter((each) => each.unix_s > point.unix_s - SPAN_S);
    this.promises = promises;
    for (const [name] of promises) colourOf("class", name); // the most important class has the first colour
    this.draw();
  }

  draw() {
    if (document.hidden || !window.Plotly || !this.points.length) return;
    const base = frame(this.points);
    for (const [name, drawer] of Object.entries(drawers)) {
      const place = byId(`chart-${name}`);
      if (!visible.has(place.id)) continue;
      const { traces, layout, says } = drawer(this.points, this.promises);
      place.setAttribute("aria-label", `${place.parentElement.firstElementChild.textContent}: ${says}`);
      window.Plotly.react(place, traces, merged(base, layout), { displayModeBar: false, responsive: true });
    }
  }
}

function frame(points) {
  const last = points.at(-1).unix_s;
  const first = Math.min(Math.max(points[0].unix_s, last - SPAN_S), last - SHORTEST_SPAN_S);
  const lines = { gridcolor: themed("line"), linecolor: themed("line"), zeroline: false, automargin: true };
  return {
    font: { family: "system-ui, sans-serif", size: 12, color: themed("quiet") },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 44, r: 12, t: 6, b: 24 },
    hovermode: "x unified",
    hoverlabel: { bgcolor: themed("card"), bordercolor: themed("line"), font: { color: themed("text") } },
    legend: { orientation: "h", y: -0.16, yanchor: "top", x: 0, traceorder: "normal" },
    xaxis: { ...lines, type: "date", range: [new Date(first * 1000), new Date(last * 1000)], tickformat: "%H:%M:%S", tickangle: 0, nticks: innerWidth < 560 ? 3 : 5, hoverformat: "%H:%M:%S" },
    yaxis: { ...lines, rangemode: "tozero", nticks: 5 },
  };
}

const merged = (base, layout) => ({
  ...base, ...layout, xaxis: { ...base.xaxis, ...layout.xaxis }, yaxis: { ...base.yaxis, ...layout.yaxis },
  ...(layout.yaxis2 && { yaxis2: { ...base.yaxis, gridcolor: "rgba(0,0,0,0)", ...layout.yaxis2 } }),
});
const times = (points) => points.map((point) => new Date(point.unix_s * 1000));
// The order of the first is that of the policy, of the others that of the alphabet.
function names(points, of, first = []) {
  const found = [...new Set(points.flatMap((point) => Object.keys(of(point) ?? {})))].sort();
  return [...first.filter((name) => found.includes(name)), ...found.filter((name) => !first.includes(name))];
}
const line = (name, colour, x, y, more = {}) => ({ type: "scatter", mode: "lines", name: plain(name), x, y, line: { color: colour, width: 2, ...more.line }, ...without(more, "line") });
const without = (object, name) => Object.fromEntries(Object.entries(object).filter(([each]) => each !== name));

function latency(points, promises, figure, promise) {
  const x = times(points);
  const traces = [];
  for (const name of names(points, (point) => point.classes, promises.map(([each]) => each))) {
    const y = points.map((point) => (point.classes[name]?.[figure] ?? null) && point.classes[name][figure] * 1000);
    if (y.every((value) => value === null)) continue;
    traces.push(line(name, colourOf("class", name), x, y, { hovertemplate: "%{y:.1f} ms" }));
  }
  for (const [name, ttft, tbt] of promises) {
    const value = 1000 * (promise === "ttft" ? ttft : tbt);
    traces.push(line(`${name}, promised`, colourOf("class", name), [x[0], x.at(-1)], [value, value], { line: { dash: "dash", width: 1.2 }, hoverinfo: "skip", showlegend: false }));
  }
  const last = points.at(-1).classes;
  const says = Object.entries(last).map(([name, each]) => `${name} ${duration(each[figure])}`).join(", ") || "no tokens in the last minute";
  const ticks = { type: "log", tickvals: LOG_TICKS_MS, ticktext: LOG_TICKS_MS.map((ms) => (ms < 1000 ? `${Number(ms.toPrecision(1))} ms` : `${ms / 1000} s`)) };
  return { traces, layout: { yaxis: ticks }, says };
}

function ttft(points, promises) {
  return latency(points, promises, "ttft_p99_s", "ttft");
}

function tbt(points, promises) {
  return latency(points, promises, "tbt_p99_s", "tbt");
}

function stacked(points, of, kind, unit, first) {
  const x = times(points);
  return names(points, of, first).map((name) =>
    line(name, colourOf(kind, name), x, points.map((point) => of(point)?.[name] ?? 0), { stackgroup: "all", line: { width: 1 }, hovertemplate: `%{y} ${unit}` }));
}

function tenants(points) {
  const served = Object.entries(points.at(-1).tenants ?? {});
  const says = served.map(([name, rate]) => `${name} ${count(rate)} tokens/s`).join(", ") || "nobody was served in the last seconds";
  return { traces: stacked(points, (point) => point.tenants, "tenant", "tokens/s"), layout: {}, says };
}

function steps(points) {
  const x = times(points);
  const of = (name) => points.map((point) => point.steps?.[name] ?? null);
  const mean = of("mean_s").map((value) => value && value * 1000);
  const traces = [
    line("prefill", "#e08214", x, of("prefill_tokens_per_s"), { stackgroup: "all", line: { width: 1 }, hovertemplate: "%{y} tokens/s" }),
    line("decode", "#3b7dd8", x, of("decode_tokens_per_s"), { stackgroup: "all", line: { width: 1 }, hovertemplate: "%{y} tokens/s" }),
    line("mean step", themed("text"), x, mean, { yaxis: "y2", line: { width: 1.4 }, hovertemplate: "%{y:.1f} ms" }),
  ];
  const last = points.at(-1).steps;
  const says = last ? `${count(last.per_s)} steps/s of ${duration(last.mean_s)}, ${count(last.prefill_tokens_per_s)} prefill and ${count(last.decode_tokens_per_s)} decode tokens/s` : "not known";
  return { traces, layout: { yaxis2: { overlaying: "y", side: "right", ticksuffix: " ms", tickmode: "auto" } }, says };
}

function kv(points) {
  const y = points.map((point) => (point.kv?.blocks ? (100 * point.kv.used) / point.kv.blocks : null));
  const labels = points.map((point) => (point.kv ? `${count(point.kv.used)} of ${count(point.kv.blocks)} blocks` : ""));
  const traces = [line("in use", "#9467bd", times(points), y, { fill: "tozeroy", text: labels, hovertemplate: "%{y:.1f} %: %{text}" })];
  const last = points.at(-1).kv;
  const top = Math.min(100, Math.max(5, 1.25 * Math.max(...y)));
  const says = last?.blocks ? `${share(last.used / last.blocks)}, ${labels.at(-1)}` : "not known";
  return { traces, layout: { yaxis: { range: [0, top], ticksuffix: " %" }, showlegend: false }, says };
}

function queue(points, promises) {
  const waiting = (point) => (point.queued ? { ...point.queued, "at the scheduler": point.sequences?.waiting ?? 0 } : {});
  const most = Math.max(...points.map((point) => Object.values(waiting(point)).reduce((sum, each) => sum + each, 0)));
  const says = Object.entries(waiting(points.at(-1))).map(([name, number]) => `${name} ${number}`).join(", ") || "not known";
  return { traces: stacked(points, waiting, "class", "waiting", promises.map(([name]) => name)), layout: { yaxis: most < 4 ? { range: [0, 4], dtick: 1 } : {} }, says };
}
