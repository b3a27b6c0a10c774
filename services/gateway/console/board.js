// Everything on the board that is not a chart: figures, classes, lists, the policy.

import { byId, clock, colourOf, count, duration, h, share, swatch, table } from "./dom.js";

const link = (id) => h("a", { href: `#request=${encodeURIComponent(id)}` }, id.length > 16 ? `${id.slice(0, 14)}…` : id);
const sum = (values) => values.reduce((total, value) => total + value, 0);

const shown = new Map();

// What has not changed stays as it is: the reader's focus, selection and open lists are in it.
function put(id, data, make) {
  const text = JSON.stringify(data);
  if (shown.get(id) === text) return;
  shown.set(id, text);
  byId(id).replaceChildren(...[make()].flat());
}

export function showNow(now) {
  const { point } = now;
  byId("about").textContent = [now.model, now.policy && `policy ${now.policy.name}@${now.policy.revision}`].filter(Boolean).join(" · ");
  const missing = byId("missing");
  missing.hidden = !now.missing.length;
  missing.textContent = now.missing.length ? `Not ready: ${now.missing.join("; ")}.` : "";
  const unknown = notices(now);
  put("unknown", unknown, () => unknown.map((sentence) => h("p", { class: "notice" }, sentence)));
  byId("tiles").replaceChildren(...tiles(now));
  const known = now.num_running !== null;
  put("classes", [point.classes, now.promises, known], () => classes(point, now.promises, known));
  put("misses", now.misses.map(({ id }) => id), () => misses(now.misses));
  byId("running-count").textContent = now.num_running === null ? "" : `${now.num_running}`;
  put("running", [now.running, now.telemetry], () => running(now.running, now.telemetry));
  put("policy", [now.policy, now.earlier, now.last_rejection], () => policy(now));
  byId("telemetry").textContent = telemetry(now.telemetry);
  const select = byId("filters").elements.namedItem("class");
  const names = now.promises.map(([name]) => name);
  if (names.join() !== [...select.options].slice(1).map((option) => option.value).join()) {
    const chosen = select.value;
    select.replaceChildren(h("option", { value: "" }, "any"), ...names.map((name) => h("option", { value: name }, name)));
    select.value = names.includes(chosen) ? chosen : "";
  }
}

// What the figures below do not hold.
function notices({ silent, telemetry: { trouble } }) {
  const found = Object.entries(silent).map(([gateway, why]) => `${gateway} ${why}: what it serves is missing here.`);
  if (trouble) found.push(`Nothing of requests is known at the moment: ${trouble}.`);
  return found;
}

export function showEmpty(isEmpty, model) {
  const place = byId("empty");
  if (place.hidden === !isEmpty) return;
  place.hidden = !isEmpty;
  const body = JSON.stringify({ model, prompt: "import os", max_tokens: 32 });
  const command = `curl ${location.origin}/v1/completions -H 'Authorization: Bearer YOUR_KEY' -H 'Content-Type: application/json' -d '${body}'`;
  place.replaceChildren(
    h("h2", {}, "No request yet"),
    h("p", {}, "Send one with a tenant's key, and watch where the time of each of its tokens goes:"),
    h("pre", {}, command),
    h("p", { class: "hint" }, "Fairlead printed a key when it started; ", h("code", {}, "fairlead keys add --tenant NAME"), " makes another."),
  );
}

function tiles({ point, num_running }) {
  const of = Object.values(point.classes);
  const kv = point.kv?.blocks ? share(point.kv.used / point.kv.blocks) : "–";
  const queued = point.queued ? sum(Object.values(point.queued)) : null;
  const rate = (name) => (num_running === null ? "–" : count(sum(of.map((each) => each[name]))));
  const rows = [
    ["Requests/s", rate("requests_per_s")],
    ["Tokens/s", rate("tokens_per_s")],
    ["Running", count(num_running)],
    ["In the queue", count(queued)],
    ["KV in use", kv],
    ["Steps/s", count(point.steps?.per_s), point.steps?.mean_s ? `of ${duration(point.steps.mean_s)}` : ""],
  ];
  return rows.map(([title, value, aside]) => h("div", {}, h("dt", {}, title), h("dd", {}, value, " ", aside ? h("small", {}, aside) : "")));
}

function classes(point, promises, measured) {
  const known = promises.map(([name]) => name);
  const others = Object.keys(point.classes).filter((name) => !known.includes(name));
  return [...promises, ...others.map((name) => [name, null, null])].map(([name, ttft, tbt]) => {
    const each = point.classes[name] ?? {};
    const row = (title, promised, slo) => {
      const kept = each[`${slo}_attained`];
      const mark = kept === null || kept === undefined ? "number" : `number ${kept >= 0.99 ? "kept" : "broken"}`;
      return h("tr", {}, h("th", { scope: "row" }, title), h("td", { class: "number" }, duration(each[`${slo}_p50_s`])),
        h("td", { class: "number" }, duration(each[`${slo}_p99_s`])), h("td", { class: "number" }, duration(promised)), h("td", { class: mark }, share(kept)));
    };
    const head = ["", "p50", "p99", "promised", "kept"].map((title) => h("th", { scope: "col", class: title ? "number" : "" }, title || h("span", { class: "unseen" }, "What")));
    const rates = measured ? `${count(each.requests_per_s ?? 0)} req/s · ${count(each.tokens_per_s ?? 0)} tok/s` : "";
    return h("div", { class: "card" }, h("h3", {}, swatch(colourOf("class", name)), name, h("span", { class: "aside" }, rates)),
      h("table", {}, h("caption", { class: "unseen" }, `Latency of class ${name}`), h("thead", {}, h("tr", {}, head)),
        h("tbody", {}, row("First token", ttft, "ttft"), row("Between tokens", tbt, "tbt"))));
  });
}

const WORDS = { ttft: "first token", tbt: "between tokens" };

function broken(line) {
  return Object.keys(line.missed).map((slo) => {
    const took = slo === "ttft" ? line.ttft_s : line.longest_gap_s;
    return `${WORDS[slo] ?? slo} ${duration(took)}${slo in line.promised ? ` of ${duration(line.promised[slo])}` : ""}`;
  }).join("; ");
}

function misses(lines) {
  return table("Requests that broke a promise of late, with the part to blame", [
    { title: "When", cell: (line) => clock(line.ended_unix_s) },
    { title: "Request", cell: (line) => link(line.id) },
    { title: "To blame", class: "broken", cell: (line) => [...new Set(Object.values(line.missed))].join(", ") },
    { title: "Broken", cell: broken },
    { title: "Tenant", cell: (line) => line.tenant },
  ], lines, "None of the requests that are remembered broke a promise.");
}

function running(lines, { traced, trouble }) {
  return table("Requests that run now, the oldest first", [
    { title: "Age", class: "number", cell: (line) => duration(line.age_s) },
    { title: "Tenant", cell: (line) => line.tenant },
    { title: "Class", cell: (line) => line.class || "waits for release" },
    { title: "Prompt", class: "number", cell: (line) => count(line.prompt_tokens) },
    { title: "Output", class: "number", cell: (line) => count(line.output_tokens) },
  ], lines, trouble ? "Not known at the moment." : traced ? "Nothing runs." : "Requests are not traced here: telemetry.tokens is off in deployment.yaml.");
}

export function showRecent(lines) {
  put("recent", lines.map(({ id }) => id), () => table("Requests that ended of late, the newest first", [
    { title: "Ended", cell: (line) => clock(line.ended_unix_s) },
    { title: "Request", cell: (line) => link(line.id) },
    { title: "Tenant", cell: (line) => line.tenant },
    { title: "Class", cell: (line) => line.class || "–" },
    { title: "Outcome", cell: (line) => (line.code ? `${line.outcome}: ${line.code}` : line.outcome) },
    { title: "Prompt", class: "number", cell: (line) => count(line.prompt_tokens) },
    { title: "Output", class: "number", cell: (line) => count(line.output_tokens) },
    { title: "First token", class: "number", cell: (line) => duration(line.ttft_s) },
    { title: "Longest gap", class: "number", cell: (line) => duration(line.longest_gap_s) },
    { title: "Promises", cell: (line) => (Object.keys(line.missed).length ? h("span", { class: "broken" }, "broken") : line.ttft_s === null ? "–" : h("span", { class: "kept" }, "kept")) },
  ], lines, "No request that ended fits."));
}

function policy({ policy: now, earlier, last_rejection: rejection }) {
  if (!now) return [h("p", { class: "hint" }, "No revision was received yet.")];
  const list = (changes) => (changes.length ? h("ul", { class: "changes" }, changes.map((change) => h("li", {}, change))) : h("p", { class: "hint" }, "No earlier revision is known to this gateway: it changed nothing since the gateway started."));
  const found = [
    h("p", {}, h("strong", {}, now.name), ` revision ${now.revision}, in force since ${new Date(now.applied_unix_s * 1000).toLocaleString()}`),
    h("h3", { class: "aside" }, "What it changed"), list(now.changes),
  ];
  if (rejection && rejection.unix_s > now.applied_unix_s) found.unshift(h("p", { class: "notice" }, `The last save was not used: ${rejection.error}`));
  if (earlier.length) {
    found.push(h("details", {}, h("summary", {}, "Earlier revisions"),
      earlier.map((each) => h("div", {}, h("p", {}, `${each.name} revision ${each.revision}, ${new Date(each.applied_unix_s * 1000).toLocaleString()}`), list(each.changes)))));
  }
  return found;
}

function telemetry({ traced, dropped }) {
  const lost = Object.entries(dropped).filter(([, number]) => number > 0);
  if (!traced) return "Tokens are not traced here: telemetry.tokens is off in deployment.yaml.";
  return lost.length ? `Telemetry lost: ${lost.map(([what, number]) => `${count(number)} ${what.replaceAll("_", " ")}`).join(", ")}.` : "Telemetry has lost nothing.";
}
