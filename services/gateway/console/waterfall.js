// The story of one request: where the time of each of its tokens went, as bars on the clock and as a table.

import { byId, clock, duration, h, plain, swatch, table, themed } from "./dom.js";

const COLOURS = {
  tokenize: "#8a9a2b", submit: "#a67c52", limits: "#d1495b", fairness: "#d977b3", window: "#c9a227", queue: "#e08214",
  prefill: "#2f9fd0", wait: "#f0703a", launch: "#9467bd", compute: "#3b6fd8", return: "#17a2b8", hop: "#7d8ba0", write: "#2e9e6b",
};
const MEANS = {
  tokenize: "text to tokens, at the gateway", submit: "on the way to admission", limits: "held by a limit",
  fairness: "others' turn", window: "no room in flight", queue: "released, not planned yet", prefill: "the prompt is computed",
  wait: "could have been planned, and was not", launch: "planned, not begun", compute: "the step was computed",
  return: "results on the way to the scheduler", hop: "from the scheduler to the gateway", write: "to the socket",
};
const PAGE = 40;
const ROW_PX = 18;
const ms = (seconds) => seconds * 1000;
const total = (parts) => parts.reduce((sum, part) => sum + part, 0);

export function showStory(story) {
  const place = byId("request");
  const choices = story.choices.map((choice, index) => ({ ...choice, index })).filter((choice) => choice.written_s.length);
  place.replaceChildren(heading(story), ...(choices.length ? [new Waterfall(story, choices).element] : [h("p", { class: "notice" }, nothing(story))]));
}

export function showTrouble(id, sentence, again) {
  byId("request").replaceChildren(h("div", { class: "card" }, back(), h("h1", {}, id), h("p", { class: "refusal" }, sentence), h("button", { type: "button", onclick: again }, "Look again")));
}

const back = () => h("p", {}, h("a", { href: "#" }, "← All requests"));
const nothing = (story) => `It got no token: ${story.outcome}${story.code ? ` (${story.code})` : ""}.`;

function heading(story) {
  const missed = Object.entries(story.missed).map(([slo, part]) => `${slo === "ttft" ? "first token" : "between tokens"}: ${part} is to blame`);
  const facts = [
    ["Tenant", story.tenant], ["Class", story.class || "–"], ["Outcome", story.code ? `${story.outcome}: ${story.code}` : story.outcome],
    ["Ended", clock(story.ended_unix_s)], ["Policy", story.policy ? `${story.policy}@${story.revision}` : "–"],
    ["Prompt", `${story.prompt_tokens} tokens${story.prefix_hit_tokens ? `, ${story.prefix_hit_tokens} of them cached` : ""}`],
    ["Output", `${story.output_tokens} tokens`], ["First token", story.streamed ? duration(story.ttft_s) : "not streamed"], ["Longest gap", duration(story.longest_gap_s)],
    ["Whole answer", duration(story.total_s)], ["Slow reader", duration(story.slow_reader_s)], ["Gateway", story.gateway], ["Trace", story.trace_id],
  ];
  return h("div", { class: "card" }, back(), h("h1", {}, story.id),
    missed.length ? h("p", { class: "broken" }, `Broken promise: ${missed.join("; ")}`) : null,
    h("dl", { class: "facts" }, facts.map(([title, value]) => h("div", { class: String(value).length > 24 ? "long" : null }, h("dt", {}, title), h("dd", {}, String(value))))));
}

// A strip of parts in proportion, with each of them in words.
function strip(title, parts) {
  const whole = total(parts.map(([, seconds]) => seconds));
  const bar = h("div", { class: "strip", "aria-hidden": "true" }, parts.map(([part, seconds]) => {
    const piece = h("span", { title: `${part} ${duration(seconds)}` });
    piece.style.cssText = `width:${whole ? (100 * seconds) / whole : 0}%;background:${COLOURS[part]}`;
    return piece;
  }));
  const words = parts.map(([part, seconds]) => h("li", { title: MEANS[part] }, swatch(COLOURS[part]), `${part} `, h("strong", {}, duration(seconds))));
  return h("section", { class: "card" }, h("h2", {}, title, " ", h("span", { class: "aside" }, duration(whole))), bar, h("ul", { class: "parts" }, words));
}

class Waterfall {
  constructor(story, choices) {
    this.story = story;
    this.choices = choices;
    this.choice = choices[0];
    this.start = 0;
    this.aligned = false;
    this.plot = h("div", { id: "waterfall", role: "img" });
    this.pager = h("div", { class: "pager" });
    this.words = h("p", { class: "hint" });
    this.rows = h("div");
    this.strips = h("div");
    this.strips.style.cssText = "display:grid;gap:var(--gap)";
    const note = h("p", { class: "hint" }, "Each bar is the time for which the reader waited for one token; point at a part for its milliseconds and its step.");
    this.element = h("div", {}, this.strips, h("section", { class: "card" }, h("h2", {}, "Every token"), note, this.pager, this.plot, this.words, h("details", {}, h("summary", {}, "As a table"), this.rows)));
    this.element.style.cssText = "display:grid;gap:var(--gap);grid-template-columns:minmax(0,1fr)";
    this.show();
  }

  // Token 0 is the first: its parts have other names than those of the tokens that follow.
  parts(index) {
    if (index) return this.choice.parts.map((part, column) => [part, this.choice.token_parts_s[index - 1][column]]);
    const first = Object.entries(this.story.first);
    const seconds = this.choice.written_s[0];
    // Of several choices, the one that began first has its way known in parts; the others waited with it.
    return first.length && Math.abs(total(first.map(([, each]) => each)) - seconds) < 1e-6 ? first : [["prefill", seconds]];
  }

  show() {
    const { choice, story } = this;
    const spent = choice.parts.map((part, column) => [part, total(choice.token_parts_s.map((row) => row[column]))]);
    this.strips.replaceChildren(strip("First token", this.parts(0)), ...(choice.token_parts_s.length ? [strip(`The ${choice.token_parts_s.length} tokens after it`, spent)] : []));
    const sum = total(this.parts(0).map(([, each]) => each)) + total(choice.token_parts_s.flat());
    this.words.textContent = `The parts sum to ${ms(sum).toFixed(3)} ms; the reader had the last token after ${ms(choice.written_s.at(-1)).toFixed(3)} ms${story.total_s === null ? "" : `, and the end of the answer after ${ms(story.total_s).toFixed(3)} ms`}.`;
    if (choice.token_parts_s.length && !total(choice.token_parts_s.flat())) this.words.textContent += " The answer was sent whole: its reader waited for the first token, and had the others with it.";
    this.turn(0);
  }

  turn(start) {
    this.start = start;
    const number = this.choice.written_s.length;
    const end = Math.min(number, start + PAGE);
    const step = (title, to, disabled) => h("button", { type: "button", disabled, onclick: () => this.turn(to) }, title);
    const align = h("button", { type: "button", "aria-pressed": String(this.aligned), onclick: () => { this.aligned = !this.aligned; this.turn(this.start); } }, "Side by side");
    this.pager.replaceChildren(
      ...(number > PAGE ? [step("←", Math.max(0, start - PAGE), start === 0), h("span", {}, `tokens ${start + 1} to ${end} of ${number}`), step("→", start + PAGE, end === number)] : []),
      align, ...(this.choices.length > 1 ? [this.chooser()] : []));
    this.draw(start, end);
    this.rows.replaceChildren(this.table(start, end));
  }

  chooser() {
    const select = h("select", {}, this.choices.map((choice, position) => h("option", { value: position }, `choice ${choice.index + 1}`)));
    select.value = this.choices.indexOf(this.choice);
    select.addEventListener("change", () => { this.choice = this.choices[select.value]; this.show(); });
    return h("label", {}, "Of ", select);
  }

  draw(start, end) {
    if (!window.Plotly) return;
    const traces = new Map();
    const labels = [];
    const bar = (part, label, from, seconds, text) => {
      if (!traces.has(part)) {
        traces.set(part, { type: "bar", orientation: "h", name: plain(part), x: [], base: [], y: [], customdata: [], marker: { color: COLOURS[part] }, hovertemplate: `<b>${plain(part)}</b> %{x:.3f} ms<br>%{customdata}<extra></extra>` });
      }
      const trace = traces.get(part);
      trace.x.push(ms(seconds));
      trace.base.push(ms(from));
      trace.y.push(label);
      trace.customdata.push(plain(text));
    };
    if (start === 0 && !this.aligned) {
      this.choice.chunks.forEach((chunk, index) => {
        const label = this.choice.chunks.length > 1 ? `chunk ${index + 1}` : "prompt";
        labels.push(label);
        bar("prefill", label, chunk.planned_s, chunk.computed_s - chunk.planned_s, `${chunk.tokens} prompt tokens, step ${chunk.step}`);
      });
    }
    for (let index = start; index < end; index += 1) {
      const label = `${index + 1}`;
      labels.push(label);
      let from = this.aligned ? 0 : index ? this.choice.written_s[index - 1] : 0;
      for (const [part, seconds] of this.parts(index)) {
        const cause = part === "wait" ? `, cause: ${this.choice.causes[index]}` : "";
        if (seconds > 0) bar(part, label, from, seconds, `token ${index + 1}, step ${this.choice.steps[index]}${cause}`);
        from += seconds;
      }
    }
    // A row for each token, also for one that nobody waited for.
    const rows = { type: "bar", orientation: "h", x: labels.map(() => 0), y: labels, showlegend: false, hoverinfo: "skip" };
    const height = 96 + ROW_PX * labels.length;
    this.plot.style.height = `${height}px`;
    this.plot.setAttribute("aria-label", `Bars of tokens ${start + 1} to ${end}; the table below has the same figures`);
    const lines = { gridcolor: themed("line"), zeroline: false };
    const layout = {
      height, barmode: "overlay", bargap: 0.22, font: { family: "system-ui, sans-serif", size: 12, color: themed("quiet") },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 60, r: 12, t: 44, b: 40 }, hovermode: "closest",
      hoverlabel: { bgcolor: themed("card"), bordercolor: themed("line"), font: { color: themed("text") } },
      legend: { orientation: "h", y: 1, yanchor: "bottom", x: 0, traceorder: "normal" },
      xaxis: { ...lines, title: { text: this.aligned ? "ms since the token before" : "ms since the request was received" }, rangemode: "tozero" },
      yaxis: { ...lines, type: "category", categoryorder: "array", categoryarray: labels.toReversed(), dtick: labels.length > 60 ? 5 : 1, showgrid: false, title: { text: "token" } },
    };
    const order = Object.keys(COLOURS);
    const ordered = [...traces.entries()].sort(([one], [other]) => order.indexOf(one) - order.indexOf(other)).map(([, trace]) => trace);
    // A plot has a size only once it is in the page.
    requestAnimationFrame(() => window.Plotly.react(this.plot, [rows, ...ordered], layout, { displayModeBar: false, responsive: true }));
  }

  table(start, end) {
    const figure = (seconds) => ms(seconds).toFixed(3);
    const { choice } = this;
    const rows = [];
    for (let index = Math.max(1, start); index < end; index += 1) rows.push(index);
    const columns = [
      { title: "Token", class: "number", cell: (index) => String(index + 1) },
      { title: "At", class: "number", cell: (index) => figure(choice.written_s[index]) },
      { title: "Latency", class: "number", cell: (index) => figure(choice.written_s[index] - choice.written_s[index - 1]) },
      ...choice.parts.map((part, column) => ({ title: part, class: "number", cell: (index) => figure(choice.token_parts_s[index - 1][column]) })),
      { title: "Cause of the wait", cell: (index) => choice.causes[index] },
      { title: "Step", class: "number", cell: (index) => String(choice.steps[index]) },
    ];
    const first = table("Parts of the first token, ms", this.parts(0).map(([part, seconds]) => ({ title: part, class: "number", cell: () => figure(seconds) })), start === 0 ? [0] : [], "");
    return h("div", {}, h("p", { class: "hint" }, "All in milliseconds."), start === 0 ? h("div", {}, h("h3", { class: "aside" }, "First token"), first) : null,
      h("h3", { class: "aside" }, "Tokens after it"), table("Parts of each token, ms", columns, rows, "There is only one token."));
  }
}
